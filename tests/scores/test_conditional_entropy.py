"""The mean entropy of dropout passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import reducible as rd
from reducible import scores


def literal(mc_logits: np.ndarray) -> np.ndarray:
    """mean_s −Σ_c p_isc log p_isc."""
    samples, rows, _ = mc_logits.shape
    out = np.zeros(rows)
    for i in range(rows):
        for s in range(samples):
            exponentials = [math.exp(v - max(mc_logits[s, i])) for v in mc_logits[s, i]]
            p = [e / math.fsum(exponentials) for e in exponentials]
            out[i] += -math.fsum(v * math.log(v) for v in p if v > 0.0) / samples
    return out


def _cases() -> dict[str, np.ndarray]:
    z = np.random.default_rng(1).normal(size=(4, 16, 5)) * 3
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
    score = scores.conditional_entropy(mc_logits=torch.tensor(z)).numpy()
    np.testing.assert_allclose(score, literal(z), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    """Entropies log 3 and 0.665573 over two passes: their mean, 0.882093."""
    z = torch.tensor([[[0.0, 0.0, 0.0]], [[2.0, 0.0, 0.0]]], dtype=dtype)
    score = scores.conditional_entropy(mc_logits=z)
    assert score.dtype == dtype
    assert score.item() == pytest.approx(0.8820927, abs=1e-6)


def test_the_rule_takes_what_every_pass_is_unsure_of(generator: torch.Generator) -> None:
    sure_each_way = [[50.0, 0.0], [0.0, 50.0]]
    unsure, middling = [[0.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [1.0, 0.0]]
    z = torch.tensor([sure_each_way, unsure, middling]).transpose(0, 1)  # [S, B, C]
    rule = rd.selector("conditional_entropy", samples=2)
    assert (rule.needs, rule.samples) == ({"mc_logits"}, 2)
    evidence = rd.Evidence(ids=torch.arange(3), mc_logits=z)
    assert rule.select(evidence, 3, generator=generator).index.tolist() == [1, 2, 0]
