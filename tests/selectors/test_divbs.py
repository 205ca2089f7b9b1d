"""DivBS from logits, labels and features: the residual's gradients built in full."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import reducible as rd


def _evidence(
    seed: int = 0, size: int = 16, classes: int = 4, width: int = 5, **changes: Any
) -> rd.Evidence:
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {
        "ids": torch.arange(size),
        "logits": torch.tensor(rng.normal(size=(size, classes)) * 2),
        "targets": torch.tensor(rng.integers(0, classes, size=size)),
        "features": torch.tensor(rng.normal(size=(size, width))),
    }
    return rd.Evidence(**(fields | changes))


def literal_gradients(evidence: rd.Evidence) -> np.ndarray:
    """G_i = (softmax(z_i) − onehot(y_i)) ⊗ f_i, flattened: [B, C·D]."""
    z, y = evidence.require("logits").numpy(), evidence.require("targets").numpy()
    f = evidence.require("features").numpy()
    out = []
    for i in range(len(z)):
        exponentials = [math.exp(v - max(z[i])) for v in z[i]]
        h = [e / math.fsum(exponentials) for e in exponentials]
        h[y[i]] -= 1.0
        out.append([a * b for a in h for b in f[i]])
    return np.array(out)


def assert_greedy(g: np.ndarray, index: list[int]) -> int:
    """Every pick pulls hardest on the residual until that is gone; returns how many did."""
    g = g / abs(g).max()
    r = g.mean(axis=0)
    start, basis = np.linalg.norm(r), list[np.ndarray]()
    for step, pick in enumerate(index):
        if np.linalg.norm(r) <= 1e-6 * start:
            return step
        pulls = abs(g @ r)
        pulls[index[:step]] = -1.0
        assert pulls[pick] >= pulls.max() * (1 - 1e-6), step
        e = g[pick].copy()
        for b in [*basis, *basis]:
            e -= (b @ e) * b
        if np.linalg.norm(e) > 1e-6 * np.linalg.norm(g[pick]):
            basis.append(e / np.linalg.norm(e))
            r = r - (basis[-1] @ r) * basis[-1]
    return len(index)


def test_greedy_picks_are_those_on_the_gradient_matrix(generator: torch.Generator) -> None:
    for seed in range(5):
        evidence = _evidence(seed)
        chosen = rd.selector("divbs").select(evidence, 10, generator=generator)
        assert assert_greedy(literal_gradients(evidence), chosen.index.tolist()) == 10


@pytest.mark.parametrize("scale", [1e30, 1e-30, 1e-200])
def test_the_scale_of_the_features_changes_nothing(scale: float) -> None:
    evidence = _evidence()
    rule = rd.selector("divbs")
    plain = rule.select(evidence, 8, generator=torch.Generator().manual_seed(0)).index.tolist()
    scaled = _evidence(features=evidence.require("features") * scale)
    again = rule.select(scaled, 8, generator=torch.Generator().manual_seed(0))
    assert again.index.tolist() == plain
    assert bool(torch.isfinite(again.info["score"]).all())


def test_well_fitted_examples_still_have_directions(generator: torch.Generator) -> None:
    """Residuals near 10⁻²⁰⁰ are small, not zero: the largest is picked, not a random one."""
    z = torch.zeros(8, 2, dtype=torch.float64)
    z[:, 0] = 480.0
    z[5, 0] = 450.0
    evidence = _evidence(size=8, classes=2, logits=z, targets=torch.zeros(8, dtype=torch.int64))
    for _ in range(10):
        chosen = rd.selector("divbs").select(evidence, 1, generator=generator)
        assert chosen.index.tolist() == [5]


CASES: dict[str, dict[str, Any]] = {
    "equal labels": {"targets": torch.zeros(16, dtype=torch.int64)},
    "no gradient": {
        "logits": torch.tensor([[1e30, 0.0, 0.0, 0.0]]).double().repeat(16, 1),
        "targets": torch.zeros(16, dtype=torch.int64),
    },
    "two gradients": {
        "logits": torch.tensor([[1e30, 0.0, 0.0, 0.0]]).double().repeat(16, 1),
        "targets": torch.tensor([1, 2, *[0] * 14]),
    },
    "zero features": {"features": torch.zeros(16, 5, dtype=torch.float64)},
    "copies": {
        "logits": torch.tensor([[1.0, 0.0, 2.0, 0.0]]).double().repeat(16, 1),
        "targets": torch.zeros(16, dtype=torch.int64),
        "features": torch.ones(16, 5, dtype=torch.float64),
    },
    "huge": {"logits": _evidence().require("logits") * 1e30},
}


@pytest.mark.parametrize("rule", ["greedy", "sample"])
@pytest.mark.parametrize("project", [None, 3, 1000])
@pytest.mark.parametrize("name", CASES)
def test_never_a_row_twice(name: str, rule: str, project: int | None) -> None:
    evidence = _evidence(**CASES[name])
    for k in (1, 7, 15, 16):
        selector = rd.selector("divbs", rule=rule, project=project)
        chosen = selector.select(evidence, k, generator=torch.Generator().manual_seed(k))
        assert chosen.index.unique().numel() == k
        assert chosen.weight.tolist() == [1.0] * k


def test_the_only_gradients_come_first() -> None:
    """Rows 0 and 1 alone are misfitted: they are picked first, whatever the generator."""
    evidence = _evidence(**CASES["two gradients"])
    for seed in range(20):
        for rule in ("greedy", "sample"):
            generator = torch.Generator().manual_seed(seed)
            chosen = rd.selector("divbs", rule=rule).select(evidence, 3, generator=generator)
            assert set(chosen.index[:2].tolist()) == {0, 1}


def test_sampling_varies_and_greed_does_not() -> None:
    evidence = _evidence()
    first: dict[str, set[int]] = {"greedy": set(), "sample": set()}
    for rule, seen in first.items():
        for seed in range(40):
            generator = torch.Generator().manual_seed(seed)
            chosen = rd.selector("divbs", rule=rule).select(evidence, 1, generator=generator)
            seen.add(int(chosen.index))
    assert len(first["greedy"]) == 1
    assert len(first["sample"]) > 3


def test_projection_keeps_its_coordinates(generator: torch.Generator) -> None:
    rule = rd.selector("divbs", project=6)
    assert rule.state_dict() == {"coordinates": None}
    first = _evidence(0)
    chosen = rule.select(first, 4, generator=generator)
    assert rule.state_dict() == {"coordinates": None}  # select changes no state
    rule.observe(first, chosen)
    coordinates = rule.state_dict()["coordinates"]
    assert coordinates.unique().numel() == 6
    assert 0 <= int(coordinates.min()) <= int(coordinates.max()) < 20
    g = literal_gradients(first)[:, coordinates]
    assert_greedy(g, chosen.index.tolist())
    pull = abs(g @ g.mean(axis=0))[int(chosen.index[0])] / abs(g).max() ** 2
    assert chosen.info["score"][0].item() == pytest.approx(pull)
    resumed = rd.selector("divbs", project=6)
    resumed.load_state_dict(rule.state_dict())
    for step in range(1, 4):
        evidence = _evidence(step)
        for selector in (rule, resumed):
            chosen = selector.select(evidence, 4, generator=torch.Generator().manual_seed(step))
            assert assert_greedy(literal_gradients(evidence)[:, coordinates], chosen.index.tolist())
            selector.observe(evidence, chosen)
            assert selector.state_dict()["coordinates"].tolist() == coordinates.tolist()


def test_projections_differ_by_the_generator() -> None:
    drawn = set()
    for seed in range(10):
        rule, evidence = rd.selector("divbs", project=2), _evidence()
        generator = torch.Generator().manual_seed(seed)
        rule.observe(evidence, rule.select(evidence, 1, generator=generator))
        drawn.add(tuple(rule.state_dict()["coordinates"].tolist()))
    assert len(drawn) > 5


def test_loading_forgets_what_was_drawn_and_not_observed(generator: torch.Generator) -> None:
    rule, evidence = rd.selector("divbs", project=2), _evidence()
    chosen = rule.select(evidence, 1, generator=generator)
    rule.load_state_dict({"coordinates": None})
    rule.observe(evidence, chosen)
    assert rule.state_dict() == {"coordinates": None}


def test_without_a_projection_there_is_no_state(generator: torch.Generator) -> None:
    rule, evidence = rd.selector("divbs"), _evidence()
    rule.observe(evidence, rule.select(evidence, 2, generator=generator))
    assert rule.state_dict() == {"coordinates": None}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_info_says_how_hard_each_pulled(dtype: torch.dtype, generator: torch.Generator) -> None:
    evidence = _evidence()
    evidence = _evidence(
        logits=evidence.require("logits").to(dtype), features=evidence.require("features").to(dtype)
    )
    chosen = rd.selector("divbs").select(evidence, 5, generator=generator)
    assert chosen.weight.dtype == chosen.info["score"].dtype == dtype
    g = literal_gradients(evidence)
    h = torch.softmax(evidence.require("logits").double(), 1)
    h[torch.arange(16), evidence.require("targets")] -= 1
    unit = float(h.abs().max() * evidence.require("features").abs().max())
    first = abs(g @ g.mean(axis=0))[int(chosen.index[0])] / unit**2
    assert chosen.info["score"][0].item() == pytest.approx(first, rel=1e-5)
    assert bool((chosen.info["score"] > 0).all())


@pytest.mark.parametrize("name", ["logits", "features"])
def test_broken_inputs_are_named(name: str, generator: torch.Generator) -> None:
    broken = _evidence().require(name).clone()
    broken[3, 0] = math.nan
    changes: dict[str, Any] = {name: broken}
    evidence = _evidence(**changes)
    with pytest.raises(rd.SelectionError, match="ids 3"):
        rd.selector("divbs").select(evidence, 2, generator=generator)
