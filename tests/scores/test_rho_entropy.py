"""The reducible holdout loss with a bonus for uncertainty."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import reducible as rd
from reducible import scores


def literal(
    loss: np.ndarray, irreducible: np.ndarray, logits: np.ndarray, beta: float
) -> np.ndarray:
    out = np.zeros(len(loss))
    for i, z in enumerate(logits):
        exponentials = [math.exp(v - max(z)) for v in z]
        p = [e / math.fsum(exponentials) for e in exponentials]
        entropy = -math.fsum(v * math.log(v) for v in p if v > 0.0)
        out[i] = loss[i] - irreducible[i] + beta * entropy
    return out


def _cases() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(5)
    loss, irreducible = rng.exponential(size=16), rng.exponential(size=16)
    z = rng.normal(size=(16, 5)) * 3
    return {
        "random": (loss, irreducible, z),
        "tied": (np.full(4, 0.7), np.full(4, 0.2), np.tile(z[:1], (4, 1))),
        "one example": (loss[:1], irreducible[:1], z[:1]),
        "huge": (loss * 1e30, irreducible * 1e30, z * 1e30),
        "tiny": (loss * 1e-30, irreducible * 1e-30, z * 1e-30),
    }


@pytest.mark.parametrize("beta", [0.7, 0.0, -1.5])
@pytest.mark.parametrize("name", _cases())
def test_equals_the_literal_loops(name: str, beta: float) -> None:
    loss, irreducible, z = (torch.tensor(x) for x in _cases()[name])
    score = scores.rho_entropy(loss=loss, irreducible_loss=irreducible, logits=z, beta=beta)
    expected = literal(*_cases()[name], beta)
    np.testing.assert_allclose(score.numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    """ρ = 1.9, H = 0.665573: 1.9 + 0.7·0.665573 = 2.365901."""
    score = scores.rho_entropy(
        loss=torch.tensor([2.0], dtype=dtype),
        irreducible_loss=torch.tensor([0.1], dtype=torch.float64),
        logits=torch.tensor([[2.0, 0.0, 0.0]], dtype=torch.float64),
    )
    assert score.dtype == dtype
    assert score.item() == pytest.approx(2.365901, abs=1e-6)


def test_uncertainty_decides_between_equal_losses(generator: torch.Generator) -> None:
    evidence = rd.Evidence(
        ids=torch.arange(3),
        loss=torch.tensor([1.0, 1.0, 1.1]),
        irreducible_loss=torch.tensor([0.5, 0.5, 0.5]),
        logits=torch.tensor([[5.0, 0.0], [0.0, 0.0], [5.0, 0.0]]),
    )
    order = {
        beta: rd.selector("rho_entropy", beta=beta)
        .select(evidence, 2, generator=generator)
        .index.tolist()
        for beta in (0.7, 0.01, -1.0)
    }
    assert order == {0.7: [1, 2], 0.01: [2, 1], -1.0: [2, 0]}
    assert rd.selector("rho_entropy").needs == {"loss", "irreducible_loss", "logits"}
