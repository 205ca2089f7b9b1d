"""Importance sampling by gradient norm, and its gate."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import reducible as rd
from reducible.selectors.grad_norm import variance_gain


def _evidence(seed: int = 0, size: int = 12, *, sharp: float = 1.0) -> rd.Evidence:
    """Logits that fit most labels the better, the larger ``sharp`` is."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, size=size)
    z = rng.normal(size=(size, 3))
    z[np.arange(size), y] += sharp * rng.exponential(size=size)
    return rd.Evidence(
        ids=torch.arange(size),
        logits=torch.tensor(z),
        targets=torch.tensor(y),
        features=torch.tensor(rng.normal(size=(size, 4))),
        loss=torch.nn.functional.cross_entropy(torch.tensor(z), torch.tensor(y), reduction="none"),
    )


def literal_norms(evidence: rd.Evidence, bound: str) -> np.ndarray:
    z, y = evidence.require("logits").numpy(), evidence.require("targets").numpy()
    f = evidence.require("features").numpy()
    out = np.zeros(len(z))
    for i in range(len(z)):
        exponentials = [math.exp(v - max(z[i])) for v in z[i]]
        h = [e / math.fsum(exponentials) for e in exponentials]
        h[y[i]] -= 1.0
        out[i] = math.sqrt(math.fsum(v * v for v in h))
        if bound == "last_layer":
            out[i] *= math.sqrt(math.fsum(v * v for v in f[i]) + 1.0)
    return out


def literal_tau(g: np.ndarray) -> float:
    """1/τ = √(1 − ‖g/Σg − 1/n_B‖² / ‖g/Σg‖²)."""
    p = [v / math.fsum(g) for v in g]
    away = math.fsum((v - 1 / len(p)) ** 2 for v in p)
    return 1.0 / math.sqrt(1.0 - away / math.fsum(v * v for v in p))


@pytest.mark.parametrize("bound", ["logits", "last_layer"])
def test_the_weighted_mean_is_unbiased(bound: str, generator: torch.Generator) -> None:
    evidence, k, draws = _evidence(), 4, 10_000
    rule = rd.selector("grad_norm_is", bound=bound)
    loss = evidence.require("loss")
    norms = literal_norms(evidence, bound)
    p = norms / norms.sum()
    estimates, counts = [], np.zeros(len(p))
    for _ in range(draws):
        chosen = rule.select(evidence, k, generator=generator)
        estimates.append(float((chosen.weight * loss[chosen.index]).sum() / k))
        np.add.at(counts, chosen.index.numpy(), 1)
    error = np.std(estimates) / math.sqrt(draws)
    assert abs(np.mean(estimates) - float(loss.mean())) <= 4 * error
    n = k * draws
    assert bool((abs(counts / n - p) <= 4 * np.sqrt(p * (1 - p) / n)).all())


def test_weights_are_the_literal_ones_and_rows_repeat(generator: torch.Generator) -> None:
    evidence = _evidence(1)
    norms = literal_norms(evidence, "logits")
    rule = rd.selector("grad_norm_is")
    repeated = False
    for _ in range(20):
        chosen = rule.select(evidence, 12, generator=generator)
        index = chosen.index.tolist()
        repeated |= len(set(index)) < 12
        weight = [norms.sum() / (12 * norms[i]) for i in index]
        assert chosen.weight.tolist() == pytest.approx(weight)
    assert repeated


def test_what_is_needed() -> None:
    assert rd.selector("grad_norm_is").needs == {"logits", "targets"}
    needs = rd.selector("grad_norm_is", bound="last_layer").needs
    assert needs == {"logits", "targets", "features"}


@pytest.mark.parametrize(
    "g", [[1.0, 2.0, 3.0], [5.0] * 4, [0.0, 0.0, 7.0, 0.0], [0.3], [1e30, 2e30, 0.0]]
)
def test_tau_is_the_literal_one(g: list[float]) -> None:
    tau = float(variance_gain(torch.tensor(g, dtype=torch.float64)))
    assert tau == pytest.approx(literal_tau(np.array(g)))


def test_tau_worked_by_hand() -> None:
    """p = (¼, ¾): 1/τ² = 1 − 2·(¼)²/(⅝) = ⅘."""
    assert float(variance_gain(torch.tensor([1.0, 3.0]))) == pytest.approx(math.sqrt(1.25))
    assert float(variance_gain(torch.zeros(3))) == pytest.approx(1.0)


@pytest.mark.parametrize("bound", ["logits", "last_layer"])
def test_the_gate_opens_and_shuts_as_the_literal_one(bound: str) -> None:
    k, size = 10, 20
    rule = rd.selector("grad_norm_is", tau_gate=True, bound=bound)
    average, gates = 0.0, []
    for step in range(60):
        evidence = _evidence(step, size, sharp=30.0 if step < 30 else 0.0)
        norms = literal_norms(evidence, bound)
        chosen = rule.select(evidence, k, generator=torch.Generator().manual_seed(step))
        gates.append(average > (size + 3 * k) / (3 * k))
        if gates[-1]:
            weight = [norms.sum() / (size * norms[i]) for i in chosen.index.tolist()]
            assert chosen.weight.tolist() == pytest.approx(weight)
        else:
            assert chosen.weight.tolist() == [1.0] * k
            assert chosen.index.unique().numel() == k
            assert chosen.info == {}  # nothing was looked at
        rule.observe(evidence, chosen)
        average = 0.9 * average + 0.1 * literal_tau(norms)
        assert rule.state_dict() == {"tau": pytest.approx(average)}
    assert gates[0] is False
    assert any(gates[:30])
    assert gates[-1] is False


def test_the_gate_is_shut_at_its_threshold_and_resumes() -> None:
    evidence, k = _evidence(0, 20), 10
    rule = rd.selector("grad_norm_is", tau_gate=True)
    for tau, weighted in ((50 / 30, False), (50 / 30 + 1e-9, True)):
        rule.load_state_dict({"tau": tau})
        chosen = rule.select(evidence, k, generator=torch.Generator().manual_seed(0))
        assert (chosen.weight.tolist() != [1.0] * k) is weighted


def test_a_shut_gate_is_uniform(generator: torch.Generator) -> None:
    evidence, draws = _evidence(2), 4000
    rule = rd.selector("grad_norm_is", tau_gate=True)
    counts = np.zeros(12)
    for _ in range(draws):
        counts[rule.select(evidence, 3, generator=generator).index] += 1
    error = math.sqrt(draws * 0.25 * 0.75)
    assert bool((abs(counts - draws * 0.25) <= 4 * error).all())


def test_without_the_gate_nothing_is_remembered(generator: torch.Generator) -> None:
    rule, evidence = rd.selector("grad_norm_is"), _evidence()
    rule.observe(evidence, rule.select(evidence, 3, generator=generator))
    assert rule.state_dict() == {"tau": 0.0}


def test_all_gradients_zero(generator: torch.Generator) -> None:
    evidence = rd.Evidence(
        ids=torch.arange(4),
        logits=torch.tensor([[1e30, 0.0]]).repeat(4, 1),
        targets=torch.zeros(4, dtype=torch.int64),
    )
    for gate in (False, True):
        rule = rd.selector("grad_norm_is", tau_gate=gate)
        chosen = rule.select(evidence, 3, generator=generator)
        assert chosen.weight.tolist() == [1.0] * 3
        rule.observe(evidence, chosen)
        assert rule.state_dict() == {"tau": pytest.approx(0.1 if gate else 0.0)}


def test_a_shut_gate_looks_at_nothing_and_draws_what_uniform_does() -> None:
    rule, bare = rd.selector("grad_norm_is", tau_gate=True), rd.Evidence(ids=torch.arange(20))
    asked: list[frozenset[str]] = []

    def look(needs: frozenset[str], rows: Any = None, *, samples: int = 0) -> rd.Evidence:
        asked.append(needs)
        return bare if needs == frozenset() else _evidence(0, 20)

    drawn = rd.selector("uniform").select(bare, 10, generator=torch.Generator().manual_seed(4))
    choice = rule.choose(look, 10, generator=torch.Generator().manual_seed(4))
    assert choice.positions.tolist() == drawn.index.tolist()
    assert choice.selection.weight.tolist() == [1.0] * 10
    assert asked == [frozenset()]
    rule.load_state_dict({"tau": 2.0})  # above 50/30
    choice = rule.choose(look, 10, generator=torch.Generator().manual_seed(4))
    assert asked[1:] == [frozenset(), rule.needs]
    assert choice.selection.weight.tolist() != [1.0] * 10


def test_it_says_when_it_is_blind() -> None:
    rule, plain = rd.selector("grad_norm_is", tau_gate=True), rd.selector("grad_norm_is")
    assert (rule.sometimes_blind, plain.sometimes_blind) == (True, False)
    assert rule.hindsight == {"logits", "targets"}
    assert plain.hindsight == frozenset()
    for tau, k, size, blind in [(0, 1, 1, True), (2, 10, 29, False), (2, 10, 30, True)]:
        for either in (rule, plain):
            either.load_state_dict({"tau": float(tau)})
        assert rule.is_blind(0, k, size) is blind
        assert plain.is_blind(0, k, size) is False


def test_a_broken_norm_never_moves_the_gate(generator: torch.Generator) -> None:
    evidence = _evidence()
    rule = rd.selector("grad_norm_is", tau_gate=True)
    with pytest.raises(rd.SelectionError, match="cannot choose 13 of 12"):
        rule.select(evidence, 13, generator=generator)
    chosen = rule.select(evidence, 3, generator=generator)
    evidence.require("logits")[5] = math.nan
    with pytest.raises(rd.SelectionError, match="ids 5"):
        rule.observe(evidence, chosen)
    assert rule.state_dict() == {"tau": 0.0}
