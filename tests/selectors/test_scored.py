"""A pure score joined to a pick."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import reducible as rd
from reducible.selectors import Scored
from reducible.types import ConfigurationError, MissingEvidence, Selection


def _evidence() -> rd.Evidence:
    return rd.Evidence(
        ids=torch.tensor([7, 8, 9]),
        loss=torch.tensor([2.0, 0.5, 3.0]),
        irreducible_loss=torch.tensor([0.1, 0.4, 2.9]),
    )


def test_rho_takes_the_reducible_one_not_the_hardest() -> None:
    chosen = Scored(rd.scores.rho).select(_evidence(), 1, generator=torch.Generator())
    assert chosen.index.tolist() == [0]
    assert chosen.info["score"].tolist() == pytest.approx([1.9])
    hardest = Scored(rd.scores.train_loss).select(_evidence(), 1, generator=torch.Generator())
    assert hardest.index.tolist() == [2]


def test_the_pick_gets_scores_ids_and_generator() -> None:
    seen: dict[str, object] = {}

    def pick(
        scores: Tensor, k: int, *, generator: torch.Generator, ids: Tensor | None = None
    ) -> Selection:
        seen.update(scores=scores.tolist(), k=k, generator=generator, ids=ids)
        return Selection(torch.zeros(k, dtype=torch.int64), torch.ones(k))

    evidence, generator = _evidence(), torch.Generator()
    Scored(rd.scores.train_loss, pick=pick).select(evidence, 2, generator=generator)
    assert seen == {"scores": [2.0, 0.5, 3.0], "k": 2, "generator": generator, "ids": evidence.ids}


def test_hyperparameters_reach_the_score() -> None:
    def score(*, loss: Tensor, sign: float = 1.0) -> Tensor:
        return sign * loss

    lowest = Scored(score, hyperparameters={"sign": -1.0})
    assert lowest.needs == {"loss"}
    assert lowest.select(_evidence(), 1, generator=torch.Generator()).index.tolist() == [1]


def test_an_unknown_hyperparameter_fails_at_construction() -> None:
    with pytest.raises(ConfigurationError, match=r"the score 'rho' has no \['beta'\]"):
        Scored(rd.scores.rho, hyperparameters={"beta": 1.0})


def test_missing_evidence_says_what_there_is_and_where_it_comes_from() -> None:
    evidence = rd.Evidence(ids=torch.arange(3), loss=torch.ones(3))
    with pytest.raises(
        MissingEvidence,
        match=r"no 'irreducible_loss' in the evidence; there is: ids, loss.*fit_irreducible_loss",
    ):
        Scored(rd.scores.rho).select(evidence, 1, generator=torch.Generator())


def test_broken_points_are_named_by_their_ids() -> None:
    evidence = rd.Evidence(ids=torch.tensor([70, 80]), loss=torch.tensor([1.0, float("nan")]))
    with pytest.raises(rd.SelectionError, match="ids 80"):
        Scored(rd.scores.train_loss).select(evidence, 1, generator=torch.Generator())


def test_it_keeps_no_state() -> None:
    rule = Scored(rd.scores.rho)
    assert rule.state_dict() == {}
    with pytest.raises(ConfigurationError, match=r"state with keys \['ema'\] given to Scored"):
        rule.load_state_dict({"ema": 1.0})
