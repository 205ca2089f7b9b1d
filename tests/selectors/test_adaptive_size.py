"""RHO-LOSS with a batch size that follows how reducible the candidates are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

import reducible as rd


def _evidence(rho: Any) -> rd.Evidence:
    loss = torch.as_tensor(rho, dtype=torch.float64) + 1.0
    return rd.Evidence(
        ids=torch.arange(len(loss)), loss=loss, irreducible_loss=torch.ones_like(loss)
    )


def _size(rule: rd.Selector, rho: Any, k: int) -> int:
    chosen = rule.select(_evidence(rho), k, generator=torch.Generator())
    order = np.argsort(-np.asarray(rho, dtype=float))
    assert chosen.index.tolist() == order[: len(chosen.index)].tolist()
    assert chosen.weight.tolist() == [1.0] * len(chosen.index)
    return len(chosen.index)


def _observe(rule: rd.Selector, rho: Any) -> None:
    rule.observe(_evidence(rho), rd.Selection(torch.tensor([0]), torch.ones(1)))


def _around(mean: float, size: int = 320) -> np.ndarray:
    """``size`` different ρ with this mean."""
    return mean + np.linspace(-0.5, 0.5, size)


def test_the_reports_own_sizes_by_hand() -> None:
    """n_B = 320, k = 96: 0.1·320 = 32 at the average; e^0.9·32 = 78.7 once ρ̄ rises by 1."""
    rule = rd.selector("rho_ema")
    assert _size(rule, _around(2.0), 96) == 32
    _observe(rule, _around(2.0))
    assert rule.state_dict()["average"].item() == pytest.approx(2.0)
    assert _size(rule, _around(2.0), 96) == 32
    assert _size(rule, _around(3.0), 96) == 79  # EMA_t = 2.1
    assert _size(rule, _around(1.0), 96) == 16  # 32·e^−0.9 = 13.01, cut to k_min
    assert _size(rule, _around(1.5), 96) == 20  # 32·e^−0.45 = 20.4
    assert _size(rule, _around(4.0), 96) == 96  # 32·e^1.8 = 193.6, cut to k
    _observe(rule, _around(3.0))
    assert rule.state_dict()["average"].item() == pytest.approx(2.1)


@pytest.mark.parametrize(
    ("hyperparameters", "k", "size"),
    [
        ({}, 10, 10),  # k_min = 16 is cut to k
        ({"alpha": 0.25}, 320, 80),
        ({"alpha": 1e-9}, 320, 16),
        ({"alpha": 1e-9, "k_min": 1}, 320, 1),
        ({"k_base": 1000}, 320, 100),
        ({"k_max": 20}, 320, 20),
        ({"k_max": 20}, 18, 18),
        ({"k_max": 20, "k_min": 20, "alpha": 1e-9}, 320, 20),
        ({"alpha": 1e9}, 320, 320),
        ({"k_base": 205}, 320, 21),  # 20.5 is rounded up
        ({"k_base": 204}, 320, 20),
    ],
)
def test_caps(hyperparameters: dict[str, Any], k: int, size: int) -> None:
    assert _size(rd.selector("rho_ema", **hyperparameters), _around(0.0), k) == size


@pytest.mark.parametrize("beta", [0.9, 0.0, 0.5])
def test_a_run_equals_the_literal_reference(beta: float) -> None:
    rule, average = rd.selector("rho_ema", beta=beta, k_min=4), None
    for step in range(60):
        rng = np.random.default_rng(step)
        rho = rng.normal(size=50) + 2 * math.sin(step / 5)
        mean = math.fsum(rho) / 50
        average = mean if average is None else beta * average + (1 - beta) * mean
        wanted = 0.1 * math.exp(mean - average) * 50
        assert _size(rule, rho, 30) == math.floor(min(max(wanted, 4), 30) + 0.5)
        _observe(rule, rho)
        assert rule.state_dict()["average"].item() == pytest.approx(average)


@pytest.mark.parametrize(("scale", "size"), [(1e30, 320), (1e-30, 32), (0.0, 32)])
def test_extremes(scale: float, size: int) -> None:
    rule = rd.selector("rho_ema")
    _observe(rule, np.zeros(320))
    assert (
        len(rule.select(_evidence(np.full(320, scale)), 320, generator=torch.Generator()).index)
        == size
    )
    _observe(rule, np.full(320, 1e30))
    chosen = rule.select(_evidence(np.full(320, -1e30)), 320, generator=torch.Generator())
    assert len(chosen.index) == 16


def test_one_candidate() -> None:
    assert _size(rd.selector("rho_ema"), [0.3], 1) == 1


def test_the_average_is_kept_in_double() -> None:
    rule = rd.selector("rho_ema")
    evidence = rd.Evidence(
        ids=torch.arange(3), loss=torch.full((3,), 0.1), irreducible_loss=torch.zeros(3)
    )
    rule.observe(evidence, rule.select(evidence, 1, generator=torch.Generator()))
    assert rule.state_dict()["average"].dtype == torch.float64
