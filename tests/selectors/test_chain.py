"""Two rules in a row, given all evidence at once or looking twice."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import reducible as rd
from reducible import scores
from reducible.selectors import Chain, Scored
from reducible.selectors.grad_norm import GradNormIS
from reducible.selectors.rho_updating import RhoUpdating
from reducible.selectors.selective_backprop import SelectiveBackprop

SIZE = 40


def _evidence(seed: int = 0) -> rd.Evidence:
    rng = np.random.default_rng(seed)
    return rd.Evidence(
        ids=torch.arange(100, 100 + SIZE),
        targets=torch.tensor(rng.integers(0, 4, size=SIZE)),
        loss=torch.tensor(rng.exponential(size=SIZE)),
        irreducible_loss=torch.tensor(rng.exponential(size=SIZE)),
        logits=torch.tensor(rng.normal(size=(SIZE, 4))),
        features=torch.tensor(rng.normal(size=(SIZE, 6))),
        mc_logits=torch.tensor(rng.normal(size=(3, SIZE, 4))),
    )


class Spy:
    """Hands out what was asked for, and remembers what that was."""

    def __init__(self, evidence: rd.Evidence) -> None:
        self.evidence = evidence
        self.asked: list[tuple[set[str], list[int] | None, int]] = []

    def __call__(
        self, needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
    ) -> rd.Evidence:
        self.asked.append((set(needs), None if rows is None else rows.tolist(), samples))
        here = self.evidence if rows is None else self.evidence.rows(rows)
        hidden: dict[str, Any] = {
            f.name: None for f in fields(here) if f.name not in {*needs, "ids", "context"}
        }
        return replace(here, **hidden)


def _rho(evidence: rd.Evidence) -> np.ndarray:
    return (evidence.require("loss") - evidence.require("irreducible_loss")).numpy()


@pytest.mark.parametrize(
    ("name", "second", "sign"),
    [("rho_margin", scores.margin, 1), ("rho_bald", scores.bald, 1)],
)
@pytest.mark.parametrize(("prefilter", "k"), [(10, 4), (10, 10), (4, 9), (100, 5), (1, 1)])
def test_the_best_by_rho_then_the_best_of_these(
    name: str, second: Any, sign: int, prefilter: int, k: int, generator: torch.Generator
) -> None:
    evidence = _evidence()
    chosen = rd.selector(name, prefilter=prefilter).select(evidence, k, generator=generator)
    survivors = np.argsort(-_rho(evidence))[: min(max(prefilter, k), SIZE)]
    rule = Scored(second)
    score = rule.score(evidence).numpy()
    expected = sorted(survivors, key=lambda i: -sign * score[i])[:k]
    assert chosen.index.tolist() == expected
    assert chosen.info["score"].tolist() == pytest.approx(score[expected].tolist())


def test_margins_by_hand(generator: torch.Generator) -> None:
    """Row 3 has the smallest margin but the lowest ρ, so a prefilter of 3 drops it."""
    evidence = rd.Evidence(
        ids=torch.arange(4),
        loss=torch.tensor([2.0, 1.9, 1.8, 0.1]),
        irreducible_loss=torch.zeros(4),
        logits=torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]),
    )
    chosen = {
        prefilter: rd.selector("rho_margin", prefilter=prefilter)
        .select(evidence, 2, generator=generator)
        .index.tolist()
        for prefilter in (2, 3, 4)
    }
    assert chosen == {2: [1, 0], 3: [1, 2], 4: [3, 1]}


def test_rho_divbs_pursues_the_mean_of_the_survivors() -> None:
    evidence = _evidence()
    chosen = rd.selector("rho_divbs", prefilter=15).select(
        evidence, 5, generator=torch.Generator().manual_seed(0)
    )
    survivors = torch.tensor(np.argsort(-_rho(evidence))[:15].copy())
    alone = rd.selector("divbs").select(
        evidence.rows(survivors), 5, generator=torch.Generator().manual_seed(1)
    )
    assert chosen.index.tolist() == survivors[alone.index].tolist()
    whole = rd.selector("divbs").select(evidence, 5, generator=torch.Generator().manual_seed(0))
    assert chosen.index.tolist() != whole.index.tolist()


@pytest.mark.parametrize(
    ("name", "prefilter"), [("rho_divbs", 50), ("rho_margin", 100), ("rho_bald", 100)]
)
def test_prefilters_of_the_report(name: str, prefilter: int) -> None:
    assert rd.SELECTORS[name].hyperparameters["prefilter"] == prefilter


@pytest.mark.parametrize("name", ["rho_divbs", "rho_margin", "rho_bald"])
@pytest.mark.parametrize("k", [1, 6, 20, SIZE])
def test_looking_in_stages_chooses_what_full_evidence_does(name: str, k: int) -> None:
    rule = rd.selector(name, prefilter=12)
    for seed in range(5):
        full = _evidence(seed)
        direct = rule.select(full, k, generator=torch.Generator().manual_seed(seed))
        spy = Spy(full)
        choice = rule.choose(spy, k, generator=torch.Generator().manual_seed(seed))
        assert choice.positions.tolist() == direct.index.tolist()
        assert choice.selection.weight.tolist() == direct.weight.tolist()
        assert choice.evidence.ids[choice.selection.index].tolist() == [
            100 + i for i in direct.index.tolist()
        ]
        assert choice.rows is not None
        assert len(choice.rows) == max(12, k)
        assert set.union(*(a[0] for a in spy.asked)) == rule.needs


def test_dropout_passes_are_measured_on_the_survivors_only(generator: torch.Generator) -> None:
    evidence = _evidence()
    rule = rd.selector("rho_bald", prefilter=12, samples=7)
    assert rule.samples == 7
    spy = Spy(evidence)
    choice = rule.choose(spy, 5, generator=generator)
    first, second = spy.asked
    assert first[:2] == ({"loss", "irreducible_loss"}, None)
    assert second[0] == {"mc_logits"}
    assert second[2] == 7
    assert second[1] == choice.rows.tolist() if choice.rows is not None else False
    assert set(second[1] or ()) == set(np.argsort(-_rho(evidence))[:12].tolist())


def test_one_look_is_enough_without_dropout(generator: torch.Generator) -> None:
    spy = Spy(_evidence())
    rd.selector("rho_margin", prefilter=12).choose(spy, 5, generator=generator)
    assert spy.asked == [({"loss", "irreducible_loss", "logits"}, None, 0)]


def test_a_first_rule_that_reads_dropout_passes_gets_them(generator: torch.Generator) -> None:
    chain = Chain(Scored(scores.bald, samples=4), prefilter=9, then=Scored(scores.train_loss))
    assert chain.samples == 4
    spy = Spy(_evidence())
    chain.choose(spy, 3, generator=generator)
    assert spy.asked == [({"mc_logits", "loss"}, None, 4)]
    both = Chain(
        Scored(scores.bald, samples=4), prefilter=9, then=Scored(scores.entropy, samples=2)
    )
    spy = Spy(_evidence())
    both.choose(spy, 3, generator=generator)
    assert spy.asked == [({"mc_logits"}, None, 4)]


def test_the_second_rule_keeps_its_weights_and_its_memory(generator: torch.Generator) -> None:
    evidence = _evidence()
    chain = Chain(Scored(scores.rho), prefilter=10, then=GradNormIS(tau_gate=True))
    alone = GradNormIS(tau_gate=True)
    choice = chain.choose(Spy(evidence), 4, generator=generator)
    chain.observe(choice.evidence, choice.selection)
    alone.observe(choice.evidence, choice.selection)
    assert chain.state_dict() == alone.state_dict() != {"tau": 0.0}
    resumed = Chain(Scored(scores.rho), prefilter=10, then=GradNormIS(tau_gate=True))
    resumed.load_state_dict(chain.state_dict())
    assert resumed.state_dict() == alone.state_dict()
    weighted = Chain(Scored(scores.rho), prefilter=10, then=GradNormIS())
    assert weighted.select(evidence, 4, generator=generator).weight.tolist() != [1.0] * 4


@pytest.mark.parametrize("looks", [False, True])
def test_the_second_rule_observes_the_survivors_alone(
    looks: bool, generator: torch.Generator
) -> None:
    """All evidence at once or in stages: it remembers the ten losses that it chose among."""
    evidence = _evidence()
    chain = Chain(Scored(scores.rho), prefilter=10, then=SelectiveBackprop())
    if looks:
        choice = chain.choose(Spy(evidence), 4, generator=generator)
        chain.observe(choice.evidence, choice.selection)
    else:
        chain.observe(evidence, chain.select(evidence, 4, generator=generator))
    best = np.argsort(-_rho(evidence))[:10]
    remembered = chain.state_dict()["recent"].tolist()
    assert sorted(remembered) == sorted(evidence.require("loss")[best.copy()].tolist())


def test_what_the_rules_say_of_their_choice_survives(generator: torch.Generator) -> None:
    rng = np.random.default_rng(1)
    evidence = replace(
        _evidence(),
        group_irreducible_loss=torch.tensor(rng.exponential(size=(SIZE, 3))),
        context={"group_holdout_loss": torch.zeros(3), "step": torch.tensor(0)},
    )
    chain = Chain(Scored(scores.rho), prefilter=10, then=rd.selector("reducr"))
    chosen = chain.select(evidence, 4, generator=generator)
    assert chosen.info["group_weights"].tolist() == pytest.approx([1 / 3] * 3)
    assert chosen.info["score"].shape == (4,)
    mixed = rd.Scheduled(chain, mix=0.5).select(evidence, 4, generator=generator)
    assert mixed.info["group_weights"].tolist() == pytest.approx([1 / 3] * 3)


def test_two_rules_that_draw_blindly_measure_nothing(generator: torch.Generator) -> None:
    gate = GradNormIS(tau_gate=True)
    chain = Chain(rd.selector("uniform"), prefilter=10, then=gate)
    assert (chain.sometimes_blind, chain.hindsight) == (True, {"logits", "targets"})
    spy = Spy(_evidence())
    choice = chain.choose(spy, 4, generator=generator)
    assert [asked[0] for asked in spy.asked] == [set()]
    assert choice.positions.unique().numel() == 4
    gate.load_state_dict({"tau": 2.0})  # 3·4·2 against 10 + 3·4: of the survivors, not of all
    assert not chain.is_blind(0, 4, SIZE)
    spy = Spy(_evidence())
    chain.choose(spy, 4, generator=generator)
    assert [asked[0] for asked in spy.asked] == [set(), {"logits", "targets"}]
    scored = Chain(Scored(scores.rho), prefilter=10, then=gate)
    assert (scored.sometimes_blind, scored.hindsight) == (False, frozenset())


def test_k_out_of_range(generator: torch.Generator) -> None:
    for k in (0, SIZE + 1):
        with pytest.raises(rd.SelectionError, match=f"cannot choose {k} of {SIZE} candidates"):
            rd.selector("rho_margin").select(_evidence(), k, generator=generator)


def test_a_live_irreducible_loss_model_is_still_trained() -> None:
    chain = Chain(RhoUpdating(lr_ratio=0.5), prefilter=10, then=Scored(scores.margin))
    assert chain.lr_ratio == 0.5
    turned = Chain(Scored(scores.margin), prefilter=10, then=RhoUpdating(lr_ratio=0.25))
    assert turned.lr_ratio == 0.25
    assert rd.selector("rho_margin").lr_ratio is None


def test_rules_that_cannot_be_chained() -> None:
    plain = Scored(scores.rho)
    for first, then in ((rd.selector("rs2"), plain), (plain, rd.selector("svp"))):
        with pytest.raises(rd.ConfigurationError, match="decide by candidate batch"):
            Chain(first, prefilter=5, then=then)
    with pytest.raises(rd.ConfigurationError, match="keeps no state, SelectiveBackprop does"):
        Chain(SelectiveBackprop(), prefilter=5, then=plain)
