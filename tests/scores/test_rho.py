"""The reducible holdout loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducible import scores


def literal(loss: np.ndarray, irreducible_loss: np.ndarray) -> np.ndarray:
    """RHO-LOSS, Algorithm 1, line 7, one example after the other."""
    out = np.empty(len(loss))
    for i in range(len(loss)):
        out[i] = loss[i] - irreducible_loss[i]
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    score = scores.rho(
        loss=torch.tensor([2.0, 0.5, 3.0], dtype=dtype),
        irreducible_loss=torch.tensor([0.1, 0.4, 2.9], dtype=dtype),
    )
    assert score.dtype == dtype
    torch.testing.assert_close(score, torch.tensor([1.9, 0.1, 0.1], dtype=dtype))


def test_a_store_of_single_precision_keeps_the_loss_in_double() -> None:
    score = scores.rho(
        loss=torch.tensor([1.0], dtype=torch.float64),
        irreducible_loss=torch.tensor([0.25], dtype=torch.float32),
    )
    assert score.dtype == torch.float64
    assert score.tolist() == [0.75]


def _random(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    return generator.exponential(size=64), generator.exponential(size=64)


CASES = {
    "random": _random(np.random.default_rng(0)),
    "tied": (np.full(8, 0.7), np.full(8, 0.2)),
    "one": (np.array([0.3]), np.array([0.9])),
    "huge": (np.array([1e30, 1e30, 1.0]), np.array([1e30, 1.0, 1e30])),
    "tiny": (np.array([1e-30, 2e-30]), np.array([2e-30, 1e-30])),
    "zero": (np.zeros(5), np.zeros(5)),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_the_literal_loop(name: str) -> None:
    loss, irreducible = CASES[name]
    score = scores.rho(loss=torch.tensor(loss), irreducible_loss=torch.tensor(irreducible))
    np.testing.assert_array_equal(score.numpy(), literal(loss, irreducible))


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)), min_size=2, max_size=20),
    st.floats(0.1, 1e3),
)
def test_more_loss_scores_higher_and_more_irreducible_loss_lower(
    pairs: list[tuple[float, float]], more: float
) -> None:
    loss, irreducible = torch.tensor(pairs, dtype=torch.float64).T
    here = scores.rho(loss=loss, irreducible_loss=irreducible)
    assert bool((scores.rho(loss=loss + more, irreducible_loss=irreducible) > here).all())
    assert bool((scores.rho(loss=loss, irreducible_loss=irreducible + more) < here).all())
