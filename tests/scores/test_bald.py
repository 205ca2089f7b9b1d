"""Disagreement of dropout passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reducible as rd
from reducible import scores


def literal(mc_logits: np.ndarray) -> np.ndarray:
    """H[p̄_i] − mean_s H[p_is]."""
    samples, rows, classes = mc_logits.shape
    out = np.zeros(rows)
    for i in range(rows):
        mean, conditional = [0.0] * classes, 0.0
        for s in range(samples):
            exponentials = [math.exp(v - max(mc_logits[s, i])) for v in mc_logits[s, i]]
            p = [e / math.fsum(exponentials) for e in exponentials]
            conditional += -math.fsum(v * math.log(v) for v in p if v > 0.0) / samples
            mean = [m + v / samples for m, v in zip(mean, p, strict=True)]
        out[i] = -math.fsum(v * math.log(v) for v in mean if v > 0.0) - conditional
    return out


def _cases() -> dict[str, np.ndarray]:
    z = np.random.default_rng(2).normal(size=(4, 16, 5)) * 3
    return {
        "random": z,
        "tied": np.tile(z[:, :1], (1, 6, 1)),
        "one example": z[:, :1],
        "one pass": z[:1],
        "huge": z * 1e30,
        "tiny": z * 1e-30,
    }


@pytest.mark.parametrize("name", _cases())
def test_equals_the_literal_loops(name: str) -> None:
    z = _cases()[name]
    score = scores.bald(mc_logits=torch.tensor(z)).numpy()
    np.testing.assert_allclose(score, literal(z), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    """Certain, each pass of another class: log 2 nats. Agreement, sure or unsure: none."""
    z = torch.tensor(
        [[[90.0, 0.0], [0.0, 0.0], [90.0, 0.0]], [[0.0, 90.0], [0.0, 0.0], [90.0, 0.0]]],
        dtype=dtype,
    )
    score = scores.bald(mc_logits=z)
    assert score.dtype == dtype
    torch.testing.assert_close(score, torch.tensor([math.log(2), 0.0, 0.0], dtype=dtype))


@given(st.integers(1, 5), st.integers(0, 1000), st.floats(1e-3, 100.0))
def test_never_negative_and_at_most_the_entropy(samples: int, seed: int, scale: float) -> None:
    z = np.random.default_rng(seed).normal(size=(samples, 4, 3)) * scale
    score = scores.bald(mc_logits=torch.tensor(z))
    assert bool((score >= -1e-12).all())
    assert bool((score <= scores.entropy(mc_logits=torch.tensor(z)) + 1e-12).all())


def test_the_rule_takes_what_passes_disagree_on(generator: torch.Generator) -> None:
    z = torch.tensor([[[0.0, 0.0], [9.0, 0.0], [3.0, 0.0]], [[0.0, 0.0], [0.0, 9.0], [0.0, 3.0]]])
    rule = rd.selector("bald", samples=2)
    assert (rule.needs, rule.samples) == ({"mc_logits"}, 2)
    evidence = rd.Evidence(ids=torch.arange(3), mc_logits=z)
    assert rule.select(evidence, 3, generator=generator).index.tolist() == [1, 2, 0]
