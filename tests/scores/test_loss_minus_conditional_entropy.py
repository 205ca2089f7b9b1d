"""The loss of the mean prediction, less the mean entropy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import reducible as rd
from reducible import scores


def literal(mc_logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """−log p̄_i[y_i] − mean_s H[p_is]; the mean of p_is[y_i] in logarithms, for it may vanish."""
    samples, rows, _ = mc_logits.shape
    out = np.zeros(rows)
    for i in range(rows):
        at_label, conditional = [], 0.0
        for s in range(samples):
            z, top = mc_logits[s, i], max(mc_logits[s, i])
            total = math.fsum(math.exp(v - top) for v in z)
            p = [math.exp(v - top) / total for v in z]
            conditional += -math.fsum(v * math.log(v) for v in p if v > 0.0) / samples
            at_label.append(z[targets[i]] - top - math.log(total))
        best = max(at_label)
        log_mean = best + math.log(math.fsum(math.exp(v - best) for v in at_label) / samples)
        out[i] = -log_mean - conditional
    return out


def _cases() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(3)
    z, y = rng.normal(size=(4, 16, 5)) * 3, rng.integers(0, 5, size=16)
    return {
        "random": (z, y),
        "tied": (np.tile(z[:, :1], (1, 6, 1)), np.full(6, 2)),
        "equal labels": (z, np.zeros(16, dtype=np.int64)),
        "one example": (z[:, :1], y[:1]),
        "one pass": (z[:1], y),
        "huge": (z * 1e30, y),
        "tiny": (z * 1e-30, y),
    }


@pytest.mark.parametrize("name", _cases())
def test_equals_the_literal_loops(name: str) -> None:
    z, y = _cases()[name]
    score = scores.loss_minus_conditional_entropy(
        mc_logits=torch.tensor(z), targets=torch.tensor(y)
    )
    np.testing.assert_allclose(score.numpy(), literal(z, y), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    """z = (2, 0, 0): 0.239545 − 0.665573 where y = 0, and 2.239545 − 0.665573 where y = 1."""
    z = torch.tensor([[[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]]], dtype=dtype)
    score = scores.loss_minus_conditional_entropy(mc_logits=z, targets=torch.tensor([0, 1]))
    expected = torch.tensor([-0.426028, 1.573972], dtype=dtype)
    torch.testing.assert_close(score, expected, atol=2e-6, rtol=0)


def test_probabilities_are_averaged_neither_logits_nor_losses() -> None:
    """p_s[y] = 1 and 1/2: −log 3/4 − (0 + log 2)/2."""
    z = torch.tensor([[[200.0, 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    score = scores.loss_minus_conditional_entropy(mc_logits=z, targets=torch.tensor([0]))
    assert score.item() == pytest.approx(math.log(4 / 3) - math.log(2) / 2)


def test_the_rule_takes_confident_mistakes(generator: torch.Generator) -> None:
    z = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [4.0, 0.0]]])
    rule = rd.selector("loss_minus_conditional_entropy", samples=1)
    assert (rule.needs, rule.samples) == ({"mc_logits", "targets"}, 1)
    evidence = rd.Evidence(ids=torch.arange(3), mc_logits=z, targets=torch.tensor([0, 1, 0]))
    # log 2 − log 2 = 0; 4.018 − 0.090; 0.018 − 0.090
    assert rule.select(evidence, 3, generator=generator).index.tolist() == [1, 0, 2]
