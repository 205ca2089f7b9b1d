"""Closeness to the decision boundary, and confidence."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reducible import scores


def literal(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """p(2) − p(1), and 1 − p(1), of probabilities sorted downwards."""
    margin, unsure = np.zeros(len(logits)), np.zeros(len(logits))
    for i, z in enumerate(logits):
        exponentials = [math.exp(v - max(z)) for v in z]
        p = sorted((e / math.fsum(exponentials) for e in exponentials), reverse=True)
        margin[i], unsure[i] = p[1] - p[0], 1.0 - p[0]
    return margin, unsure


def _cases() -> dict[str, np.ndarray]:
    z = np.random.default_rng(4).normal(size=(16, 5)) * 3
    return {
        "random": z,
        "tied": np.tile(z[:1], (6, 1)),
        "tied classes": np.zeros((3, 4)),
        "one example": z[:1],
        "two classes": z[:, :2],
        "huge": z * 1e30,
        "tiny": z * 1e-30,
    }


@pytest.mark.parametrize("name", _cases())
def test_equals_the_literal_loops(name: str) -> None:
    z = _cases()[name]
    margin, unsure = literal(z)
    got = scores.margin(logits=torch.tensor(z)).numpy()
    np.testing.assert_allclose(got, margin, rtol=1e-12, atol=1e-14)
    got = scores.least_confidence(logits=torch.tensor(z)).numpy()
    np.testing.assert_allclose(got, unsure, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    """p = (0.786986, 0.106507, 0.106507) and (1/2, 1/2, 0): the second is the closer call."""
    z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, -900.0]], dtype=dtype)
    margin, unsure = scores.margin(logits=z), scores.least_confidence(logits=z)
    assert margin.dtype == unsure.dtype == dtype
    assert margin.tolist() == pytest.approx([-0.680479, 0.0], abs=1e-6)
    assert unsure.tolist() == pytest.approx([0.213014, 0.5], abs=1e-6)
