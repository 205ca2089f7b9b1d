"""The reducible holdout loss with both losses bounded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

import reducible as rd
from reducible import scores


def literal(
    logits: np.ndarray, targets: np.ndarray, irreducible: np.ndarray, temperature: float, nu: float
) -> np.ndarray:
    """Probabilities mixed one example after the other."""
    out = np.zeros(len(logits))
    for i, z in enumerate(logits):
        exponentials = [math.exp((v - max(z)) / temperature) for v in z]
        p = exponentials[targets[i]] / math.fsum(exponentials)
        held = math.exp(-irreducible[i])
        share = nu / len(z)
        out[i] = math.log((1 - nu) * held + share) - math.log((1 - nu) * p + share)
    return out


def _cases() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(7)
    z = rng.normal(size=(16, 5)) * 3
    y = rng.integers(5, size=16)
    irreducible = rng.exponential(size=16)
    return {
        "random": (z, y, irreducible),
        "tied": (np.tile(z[:1], (4, 1)), np.full(4, 2), np.full(4, 0.4)),
        "one example": (z[:1], y[:1], irreducible[:1]),
        "two classes": (z[:, :2], y % 2, irreducible),
        "tiny": (z * 1e-30, y, irreducible * 1e-30),
    }


@pytest.mark.parametrize("floor", [0.1, 0.0, 0.6])
@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("name", _cases())
def test_equals_the_literal_loops(name: str, temperature: float, floor: float) -> None:
    z, y, irreducible = _cases()[name]
    score = scores.rho_calibrated(
        logits=torch.tensor(z),
        targets=torch.tensor(y),
        irreducible_loss=torch.tensor(irreducible),
        temperature=temperature,
        floor=floor,
    )
    expected = literal(z, y, irreducible, temperature, floor)
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    """p = 0.786986 and exp(−IL) = ½, ν = 0.3 of three classes.

    log(0.7·0.5 + 0.1) − log(0.7·0.786986 + 0.1) = log(0.45 / 0.650890) = −0.369093.
    """
    score = scores.rho_calibrated(
        logits=torch.tensor([[2.0, 0.0, 0.0]], dtype=dtype),
        targets=torch.tensor([0]),
        irreducible_loss=torch.tensor([math.log(2.0)], dtype=torch.float64),
        floor=0.3,
    )
    assert score.dtype == dtype
    assert score.item() == pytest.approx(-0.369093, abs=1e-6)


def test_the_defaults() -> None:
    """No temperature, and one label in ten is held to be random."""
    z, y, irreducible = _cases()["random"]
    score = scores.rho_calibrated(
        logits=torch.tensor(z), targets=torch.tensor(y), irreducible_loss=torch.tensor(irreducible)
    )
    np.testing.assert_allclose(score.numpy(), literal(z, y, irreducible, 1.0, 0.1), rtol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_floor_and_temperature_it_is_rho_bit_for_bit(dtype: torch.dtype) -> None:
    z, y, irreducible = (torch.tensor(a) for a in _cases()["random"])
    z, irreducible = 1e3 * z.to(dtype), irreducible.to(dtype)
    score = scores.rho_calibrated(
        logits=z, targets=y, irreducible_loss=irreducible, temperature=1.0, floor=0.0
    )
    loss = F.cross_entropy(z, y, reduction="none")
    assert torch.equal(score, scores.rho(loss=loss, irreducible_loss=irreducible))


def test_a_label_that_both_are_sure_is_wrong_scores_nothing() -> None:
    """Though the model being trained is far surer; rho would choose it first."""
    evidence = rd.Evidence(
        ids=torch.arange(3),
        logits=torch.tensor([[0.0, 90.0], [0.0, 1.0], [3.0, 0.0]]),
        targets=torch.zeros(3, dtype=torch.int64),
        loss=torch.tensor([90.0, 1.313, 0.049]),
        irreducible_loss=torch.tensor([15.0, 0.2, 0.01]),
    )
    first = {
        name: rd.selector(name).select(evidence, 1, generator=torch.Generator()).index.item()
        for name in ("rho", "rho_calibrated")
    }
    assert first == {"rho": 0, "rho_calibrated": 1}
    rule = rd.selector("rho_calibrated")
    assert rule.needs == {"logits", "targets", "irreducible_loss"}
    chosen = rule.select(evidence, 3, generator=torch.Generator())
    assert chosen.index.tolist() == [1, 2, 0]
    assert chosen.info["score"][2].item() == pytest.approx(0.0, abs=1e-5)


@given(
    st.lists(st.floats(-1e30, 1e30), min_size=2, max_size=6),
    st.floats(0, 1e30),
    st.floats(0.001, 0.999),
    st.floats(0.1, 100),
)
def test_it_is_bounded(
    z: list[float], irreducible: float, floor: float, temperature: float
) -> None:
    score = scores.rho_calibrated(
        logits=torch.tensor([z], dtype=torch.float64),
        targets=torch.tensor([0]),
        irreducible_loss=torch.tensor([irreducible], dtype=torch.float64),
        temperature=temperature,
        floor=floor,
    )
    most = math.log(1.0 + (1.0 - floor) * len(z) / floor)
    assert abs(score.item()) <= most * (1 + 1e-12)


@pytest.mark.parametrize("floor", [0.0, 0.1])
@pytest.mark.parametrize("broken", [math.inf, -math.inf, math.nan])
def test_a_floor_hides_no_broken_loss(floor: float, broken: float) -> None:
    def score(logit: float, irreducible: float) -> float:
        return scores.rho_calibrated(
            logits=torch.tensor([[logit, 0.0]]),
            targets=torch.tensor([0]),
            irreducible_loss=torch.tensor([irreducible]),
            floor=floor,
        ).item()

    assert not math.isfinite(score(0.0, broken))
    assert not math.isfinite(score(broken, 0.5))
    assert math.isfinite(score(0.0, 0.5))
