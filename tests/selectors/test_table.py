"""Building a rule by name."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor

import reducible as rd
from reducible.picks import rank_sample, soft_top_k
from reducible.scores import Row
from reducible.selectors import Scored
from reducible.selectors.by_score import scored
from reducible.types import ConfigurationError


def test_rows_of_the_papers_are_there() -> None:
    needs = {name: set(row.needs) for name, row in rd.SELECTORS.items()}
    assert needs["uniform"] == set()
    assert needs["train_loss"] == {"loss"}
    assert needs["grad_norm"] == {"logits", "targets"}
    assert needs["irreducible_loss"] == {"irreducible_loss"}
    assert needs["rho"] == {"loss", "irreducible_loss"}


def test_a_hyperparameter_changes_what_is_needed() -> None:
    assert rd.selector("grad_norm", bound="last_layer").needs == {"logits", "targets", "features"}


def test_grad_norm_uses_the_bound_asked_for() -> None:
    evidence = rd.Evidence(
        ids=torch.arange(2),
        targets=torch.tensor([0, 0]),
        logits=torch.tensor([[0.0, 1.0], [0.0, 0.9]]),  # the first is a little worse …
        features=torch.tensor([[0.0], [5.0]]),  # … the second has far larger inputs
    )
    chosen = {
        bound: rd.selector("grad_norm", bound=bound)
        .select(evidence, 1, generator=torch.Generator())
        .index.item()
        for bound in ("logits", "last_layer")
    }
    assert chosen == {"logits": 0, "last_layer": 1}


@pytest.mark.parametrize(
    ("wrong", "meant"), [("rhoo", "rho"), ("trainloss", "train_loss"), ("unifrom", "uniform")]
)
def test_did_you_mean_a_name(wrong: str, meant: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"no selector '{wrong}'\. Did you mean '{meant}"):
        rd.selector(wrong)


def test_a_far_name_lists_what_there_is() -> None:
    with pytest.raises(ConfigurationError, match="There are: uniform, train_loss"):
        rd.selector("xyz")


def test_did_you_mean_a_hyperparameter() -> None:
    with pytest.raises(
        ConfigurationError, match=r"no hyperparameter 'boundd'\. Did you mean 'bound"
    ):
        rd.selector("grad_norm", boundd="logits")
    with pytest.raises(
        ConfigurationError, match=r"'rho' has no hyperparameter 'beta'\. It has none"
    ):
        rd.selector("rho", beta=1)


def test_a_value_that_cannot_work() -> None:
    with pytest.raises(ConfigurationError, match="bound must be one of 'logits', 'last_layer'"):
        rd.selector("grad_norm", bound="exact")


def test_the_table_cannot_be_changed() -> None:
    with pytest.raises(TypeError, match="does not support item assignment"):
        cast(dict[str, Any], rd.SELECTORS)["mine"] = None


@pytest.mark.parametrize("name", rd.SELECTORS)
def test_every_build_is_a_new_selector(name: str) -> None:
    assert isinstance(rd.selector(name), rd.Selector)
    assert rd.selector(name) is not rd.selector(name)
    assert rd.selector(name, **rd.SELECTORS[name].hyperparameters).needs == rd.selector(name).needs


def test_defaults_of_a_score_become_hyperparameters() -> None:
    def score(*, loss: Tensor, power: float = 2.0) -> Tensor:
        return loss**power

    row = Row(
        name="mine",
        make=scored(score),
        equation="L^p",
        paper="nobody",
        summary="A row made here.",
        against="Everything.",
    )
    assert row.hyperparameters == {"power": 2.0}
    assert row.needs == {"loss"}
    built = row.make(power=3.0)
    assert isinstance(built, Scored)
    evidence = rd.Evidence(ids=torch.arange(2), loss=torch.tensor([2.0, 3.0]))
    assert built.score(evidence).tolist() == [8.0, 27.0]


def _twenty() -> rd.Evidence:
    generator = torch.Generator().manual_seed(5)
    return rd.Evidence(
        ids=torch.arange(20),
        loss=torch.rand(20, generator=generator),
        irreducible_loss=torch.rand(20, generator=generator),
    )


@pytest.mark.parametrize("seed", range(5))
def test_rules_of_a_score_and_a_pick_hand_over_their_hyperparameters(seed: int) -> None:
    evidence = _twenty()
    rho = evidence.require("loss") - evidence.require("irreducible_loss")

    def fresh() -> torch.Generator:
        return torch.Generator().manual_seed(seed)

    for temperature in (1.0, 0.01, 30.0):
        chosen = rd.selector("rho_soft", temperature=temperature)
        expected = soft_top_k(rho, 6, generator=fresh(), temperature=temperature)
        got = chosen.select(evidence, 6, generator=fresh())
        assert got.index.tolist() == expected.index.tolist()
        assert got.info["score"].tolist() == rho[got.index].tolist()
        weighted = rd.selector("rho_soft", temperature=temperature, correct=True)
        expected = soft_top_k(rho, 6, generator=fresh(), temperature=temperature, correct=True)
        got = weighted.select(evidence, 6, generator=fresh())
        assert got.index.tolist() == expected.index.tolist()
        assert got.weight.tolist() == expected.weight.tolist() != [1.0] * 6
    for pressure in (100.0, 1.5):
        chosen = rd.selector("train_loss_rank", pressure=pressure)
        loss = evidence.require("loss")
        ranked = rank_sample(loss, 6, generator=fresh(), pressure=pressure)
        got = chosen.select(evidence, 6, generator=fresh())
        assert got.index.tolist() == ranked.index.tolist()
    assert rd.selector("rho_soft").needs == {"loss", "irreducible_loss"}
    assert rd.selector("train_loss_rank").needs == {"loss"}


def test_a_low_temperature_is_the_largest_rho() -> None:
    evidence = _twenty()
    soft = rd.selector("rho_soft", temperature=1e-9)
    top = rd.selector("rho").select(evidence, 6, generator=torch.Generator())
    cold = soft.select(evidence, 6, generator=torch.Generator())
    assert cold.index.tolist() == top.index.tolist()
