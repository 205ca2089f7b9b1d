"""Entropies: of the mean over dropout passes, and of one plain pass."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reducible as rd
from reducible import scores


def literal_softmax(z: np.ndarray) -> list[float]:
    exponentials = [math.exp(v - max(z)) for v in z]
    return [e / math.fsum(exponentials) for e in exponentials]


def literal_entropy(p: list[float]) -> float:
    return -math.fsum(v * math.log(v) for v in p if v > 0.0)


def literal(mc_logits: np.ndarray) -> np.ndarray:
    """H[p̄_i], p̄_i = mean_s softmax(z_is)."""
    samples, rows, classes = mc_logits.shape
    out = np.zeros(rows)
    for i in range(rows):
        passes = [literal_softmax(mc_logits[s, i]) for s in range(samples)]
        mean = [math.fsum(p[c] for p in passes) / samples for c in range(classes)]
        out[i] = literal_entropy(mean)
    return out


def _cases() -> dict[str, np.ndarray]:
    z = np.random.default_rng(0).normal(size=(3, 16, 5)) * 3
    return {
        "random": z,
        "tied": np.tile(z[:, :1], (1, 6, 1)),
        "one example": z[:, :1],
        "one pass": z[:1],
        "one class": z[:, :, :1],
        "huge": z * 1e30,
        "tiny": z * 1e-30,
        "certain": np.tile([900.0, 0.0, -900.0], (3, 4, 1)),
    }


@pytest.mark.parametrize("name", _cases())
def test_equals_the_literal_loops(name: str) -> None:
    z = _cases()[name]
    score = scores.entropy(mc_logits=torch.tensor(z)).numpy()
    np.testing.assert_allclose(score, literal(z), rtol=1e-12, atol=1e-14)
    plain = scores.entropy_of_logits(logits=torch.tensor(z[0])).numpy()
    np.testing.assert_allclose(plain, literal(z[:1]), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]], dtype=dtype)
    expected = torch.tensor([0.665573, math.log(3)], dtype=dtype)
    torch.testing.assert_close(scores.entropy_of_logits(logits=z), expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(scores.entropy(mc_logits=z[None]), expected, atol=1e-6, rtol=0)


def test_probabilities_are_averaged_not_logits() -> None:
    """Passes (1, 0) and (1/2, 1/2): p̄ = (3/4, 1/4), H = 0.562335; logits would give H near 0."""
    z = torch.tensor([[[1000.0, 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    assert scores.entropy(mc_logits=z).item() == pytest.approx(0.5623351446)


def test_a_class_that_cannot_be_adds_nothing() -> None:
    z = torch.tensor([[0.0, 0.0, -math.inf]], dtype=torch.float64)
    assert scores.entropy_of_logits(logits=z).item() == pytest.approx(math.log(2))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=8))
def test_between_zero_and_log_of_the_classes(row: list[float]) -> None:
    h = scores.entropy_of_logits(logits=torch.tensor([row], dtype=torch.float64)).item()
    assert -1e-12 <= h <= math.log(len(row)) + 1e-12


def test_the_rule_takes_the_uncertain_one(generator: torch.Generator) -> None:
    z = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0], [5.0, 0.0, 0.0]])
    rule = rd.selector("entropy")
    assert (rule.needs, rule.samples) == ({"mc_logits"}, 10)
    evidence = rd.Evidence(ids=torch.arange(3), mc_logits=z.repeat(2, 1, 1))
    assert rule.select(evidence, 2, generator=generator).index.tolist() == [1, 0]
    plain = rd.selector("entropy", samples=0)
    assert (plain.needs, plain.samples) == ({"logits"}, 0)
    evidence = rd.Evidence(ids=torch.arange(3), logits=z)
    assert plain.select(evidence, 2, generator=generator).index.tolist() == [1, 0]
    assert rd.selector("entropy", samples=3).samples == 3
