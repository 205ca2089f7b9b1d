"""REDUCR: hand-worked steps, and fifty steps of a literal reference."""

from __future__ import annotations

import math
from typing import Any, cast

import numpy as np
import pytest
import torch

import reducible as rd
from reducible.selectors.reducr import Reducr, excess_loss, group_weights

C = 3


def _evidence(step: int, size: int = 16, *, holdout: bool = True) -> rd.Evidence:
    rng = np.random.default_rng(step)
    context = {"group_holdout_loss": torch.tensor(rng.exponential(size=C))} if holdout else {}
    return rd.Evidence(
        ids=torch.arange(size),
        loss=torch.tensor(rng.exponential(size=size) + 0.5),
        group_irreducible_loss=torch.tensor(rng.exponential(size=(size, C))),
        context=context,
    )


class Literal:
    """Algorithm 1 of REDUCR, one number after the other."""

    def __init__(
        self,
        eta: float,
        *,
        clip: bool = True,
        class_holdout: bool = True,
        class_irreducible: bool = True,
        model_loss: bool = True,
        reduce: str = "sum",
    ) -> None:
        self.eta, self.reduce = eta, reduce
        self.clip = clip and model_loss
        self.holdout, self.irreducible, self.loss = class_holdout, class_irreducible, model_loss
        self.total = [0.0] * C

    def weights(self) -> list[float]:
        top = max(-self.eta * s for s in self.total)
        exponentials = [math.exp(-self.eta * s - top) for s in self.total]
        return [e / math.fsum(exponentials) for e in exponentials]

    def excess(self, evidence: rd.Evidence) -> np.ndarray:
        loss = evidence.require("loss").numpy()
        il = evidence.require("group_irreducible_loss").numpy()
        out = np.zeros((len(loss), C))
        for i in range(len(loss)):
            for c in range(C):
                e = (loss[i] if self.loss else 0.0) - (il[i, c] if self.irreducible else 0.0)
                out[i, c] = max(0.0, e) if self.clip else e
        return out

    def scores(self, evidence: rd.Evidence) -> np.ndarray:
        excess, w = self.excess(evidence), self.weights()
        return np.array([math.fsum(w[c] * row[c] for c in range(C)) for row in excess])

    def observe(self, evidence: rd.Evidence, chosen: list[int]) -> None:
        excess = self.excess(evidence)
        h = evidence.require("group_holdout_loss").numpy() if self.holdout else np.zeros(C)
        for c in range(C):
            gap = math.fsum(excess[i, c] - h[c] for i in chosen)
            self.total[c] += gap if self.reduce == "sum" else gap / len(chosen)


SWITCHES: list[dict[str, Any]] = [
    {},
    {"reduce": "mean"},
    {"clip": False},
    {"class_holdout": False},
    {"class_irreducible": False},
    {"model_loss": False},
    {"class_holdout": False, "class_irreducible": False},
    {"class_holdout": False, "clip": False, "reduce": "mean"},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
@pytest.mark.parametrize("eta", [0.0, 1e-4, 0.3, 10.0])
def test_fifty_steps_equal_the_literal_reference(switches: dict[str, Any], eta: float) -> None:
    rule, reference, k = rd.selector("reducr", eta=eta, **switches), Literal(eta, **switches), 4
    for step in range(50):
        evidence = _evidence(step)
        chosen = rule.select(evidence, k, generator=torch.Generator().manual_seed(step))
        scores = reference.scores(evidence)
        assert chosen.index.tolist() == np.argsort(-scores)[:k].tolist()
        assert chosen.weight.tolist() == [1.0] * k
        np.testing.assert_allclose(chosen.info["score"], np.sort(scores)[::-1][:k], rtol=1e-9)
        weights = chosen.info["group_weights"].tolist()
        assert sum(weights) == pytest.approx(1.0)
        if step or switches.get("class_irreducible", True):
            expected = reference.weights()
            groups_known = switches.get("class_holdout", True) or len(weights) == C
            assert weights == pytest.approx(expected if groups_known else [1.0])
        rule.observe(evidence, chosen)
        reference.observe(evidence, chosen.index.tolist())
        total = rule.state_dict()["total"]
        assert total.dtype == torch.float64
        expected = reference.total if len(total) == C else reference.total[:1]
        np.testing.assert_allclose(total, expected, rtol=1e-9, atol=1e-12)


def _hand(h: tuple[float, float] = (0.7, 0.2)) -> rd.Evidence:
    return rd.Evidence(
        ids=torch.arange(2),
        loss=torch.tensor([1.0, 2.0], dtype=torch.float64),
        group_irreducible_loss=torch.tensor([[0.5, 1.5], [1.0, 0.5]], dtype=torch.float64),
        context={"group_holdout_loss": torch.tensor(h, dtype=torch.float64)},
    )


def test_hand_worked() -> None:
    """e = ((½, 0), (1, 1½)); w = (½, ½); scores (¼, 1¼); S = (0.3, 1.3); w = softmax(−S)."""
    evidence = _hand()
    e = excess_loss(evidence.require("loss")[:, None], evidence.require("group_irreducible_loss"))
    assert e.tolist() == [[0.5, 0.0], [1.0, 1.5]]
    rule = rd.selector("reducr", eta=1.0)
    chosen = rule.select(evidence, 2, generator=torch.Generator())
    assert chosen.info["score"].tolist() == [1.25, 0.25]
    chosen = rule.select(evidence, 1, generator=torch.Generator())
    assert chosen.index.tolist() == [1]
    assert chosen.info["group_weights"].tolist() == [0.5, 0.5]
    rule.observe(evidence, chosen)
    assert rule.state_dict()["total"].tolist() == pytest.approx([0.3, 1.3])
    weights = group_weights(rule.state_dict()["total"], eta=1.0)
    assert weights.tolist() == pytest.approx([0.731059, 0.268941], abs=1e-6)
    again = rule.select(evidence, 1, generator=torch.Generator())
    assert again.info["group_weights"].tolist() == pytest.approx([0.731059, 0.268941], abs=1e-6)
    assert again.info["score"].tolist() == pytest.approx([0.731059 + 1.5 * 0.268941], abs=1e-5)


def test_the_class_that_learns_least_gains_weight() -> None:
    """Above its holdout loss by 5, below it by 5: the second class is the one to serve."""
    assert group_weights(torch.tensor([5.0, -5.0]), eta=1.0).argmax() == 1


def test_the_sum_grows_with_the_batch_and_the_mean_does_not() -> None:
    state = {}
    for reduce in ("sum", "mean"):
        rule = rd.selector("reducr", eta=1.0, reduce=reduce)
        rule.observe(_hand(), rd.Selection(torch.tensor([0, 1]), torch.ones(2)))
        state[reduce] = rule.state_dict()["total"].tolist()
    assert state["sum"] == pytest.approx([0.1, 1.1])  # 1.5 − 1.4, 1.5 − 0.4
    assert state["mean"] == pytest.approx([0.05, 0.55])


def test_the_holdout_loss_is_read_from_the_context_only() -> None:
    rule = rd.selector("reducr")
    assert rule.needs == {"loss", "group_irreducible_loss", "group_holdout_loss"}
    evidence = _evidence(0, holdout=False)
    chosen = rule.select(evidence, 3, generator=torch.Generator())
    with pytest.raises(rd.MissingEvidence, match="no 'group_holdout_loss'"):
        rule.observe(evidence, chosen)
    for h in ((0.0, 0.0), (9.0, -4.0)):
        moved = rd.selector("reducr", eta=1.0)
        moved.observe(_hand(h), rd.Selection(torch.tensor([1]), torch.ones(1)))
        assert moved.state_dict()["total"].tolist() == [1.0 - h[0], 1.5 - h[1]]
    without = rd.selector("reducr", class_holdout=False)
    assert without.needs == {"loss", "group_irreducible_loss"}
    without.observe(evidence, chosen)


def test_switches_change_what_is_needed() -> None:
    assert rd.selector("reducr", model_loss=False).needs == {
        "group_irreducible_loss",
        "group_holdout_loss",
    }
    needs = rd.selector("reducr", class_irreducible=False).needs
    assert needs == {"loss", "group_holdout_loss"}


def test_without_the_loss_nothing_is_clipped(generator: torch.Generator) -> None:
    evidence = rd.Evidence(
        ids=torch.arange(3),
        group_irreducible_loss=torch.tensor([[1.0, 1.0], [0.2, 0.2], [2.0, 2.0]]),
        context={"group_holdout_loss": torch.zeros(2)},
    )
    chosen = rd.selector("reducr", model_loss=False).select(evidence, 3, generator=generator)
    assert chosen.index.tolist() == [1, 0, 2]
    assert chosen.info["score"].tolist() == pytest.approx([-0.2, -1.0, -2.0])


@pytest.mark.parametrize("eta", [1e-6, 1e-3, 1.0, 10.0])
def test_log_weights_stay_finite_over_ten_thousand_steps(eta: float) -> None:
    rule = rd.selector("reducr", eta=eta)
    evidence = _hand((0.9, 60.0))  # one class far under its holdout loss, one at it
    chosen = rd.Selection(torch.tensor([0, 1]), torch.ones(2))
    for _ in range(10_000):
        rule.observe(evidence, chosen)
    weights = rule.select(evidence, 1, generator=torch.Generator()).info["group_weights"]
    assert bool(torch.isfinite(weights).all())
    assert float(weights.sum()) == pytest.approx(1.0)
    log_weights = torch.log_softmax(-eta * rule.state_dict()["total"], dim=0)
    assert bool(torch.isfinite(log_weights).all())
    assert weights.argmax() == 1


def test_a_clipped_tie_falls_by_the_generator() -> None:
    evidence = rd.Evidence(
        ids=torch.arange(4),
        loss=torch.zeros(4),
        group_irreducible_loss=torch.ones(4, 2),
    )
    first = [
        rd.selector("reducr").select(evidence, 1, generator=torch.Generator().manual_seed(s))
        for s in range(60)
    ]
    assert {f.index.item() for f in first} == {0, 1, 2, 3}
    assert {f.info["score"].item() for f in first} == {0.0}


def test_clipping_hides_no_broken_loss(generator: torch.Generator) -> None:
    ids = torch.tensor([5, 6])
    table = torch.tensor([[0.1, 0.1], [0.1, math.inf]])
    for loss, il, who in (
        (torch.tensor([-math.inf, 1.0]), torch.zeros(2, 2), 5),
        (torch.ones(2), table, 6),
    ):
        evidence = rd.Evidence(ids=ids, loss=loss, group_irreducible_loss=il)
        with pytest.raises(rd.SelectionError, match=f"ids {who}"):
            rd.selector("reducr").select(evidence, 1, generator=generator)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_the_losses_whatever_the_table_has(dtype: torch.dtype) -> None:
    evidence = rd.Evidence(
        ids=torch.arange(2),
        loss=torch.tensor([1.0, 2.0], dtype=dtype),
        group_irreducible_loss=torch.zeros(2, 2, dtype=torch.float64),
        context={"group_holdout_loss": torch.zeros(2)},
    )
    rule = rd.selector("reducr")
    chosen = rule.select(evidence, 1, generator=torch.Generator())
    assert chosen.weight.dtype == chosen.info["score"].dtype == dtype
    assert chosen.info["group_weights"].dtype == dtype
    rule.observe(evidence, chosen)
    assert rule.state_dict()["total"].dtype == torch.float64


def test_gamma_is_recorded_for_fitting() -> None:
    assert cast(Reducr, rd.selector("reducr")).gamma == 9.0
    assert cast(Reducr, rd.selector("reducr", gamma=4)).gamma == 4


def test_a_saved_state_is_a_copy() -> None:
    rule = rd.selector("reducr")
    assert rule.state_dict() == {"total": None}
    rule.observe(_hand(), rd.Selection(torch.tensor([0]), torch.ones(1)))
    saved = rule.state_dict()
    saved["total"].zero_()
    assert rule.state_dict()["total"].tolist() != [0.0, 0.0]
