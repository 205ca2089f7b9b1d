"""Selection via proxy: the most uncertain ids."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import reducible as rd


def literal(z: np.ndarray, uncertainty: str) -> float:
    exponentials = [math.exp(v - max(z)) for v in z]
    p = sorted((e / math.fsum(exponentials) for e in exponentials), reverse=True)
    return {
        "entropy": -math.fsum(v * math.log(v) for v in p if v > 0),
        "least_confidence": 1 - p[0],
        "margin": -(p[0] - p[1]),
    }[uncertainty]


@pytest.mark.parametrize("uncertainty", ["entropy", "least_confidence", "margin"])
def test_the_most_uncertain_are_kept(uncertainty: str, generator: torch.Generator) -> None:
    z = np.random.default_rng(0).normal(size=(50, 4)) * 2
    rule = rd.selector("svp", uncertainty=uncertainty)
    chosen = rule.select(
        rd.Evidence(ids=torch.arange(50), logits=torch.tensor(z)), 20, generator=generator
    )
    score = np.array([literal(row, uncertainty) for row in z])
    assert chosen.index.tolist() == np.argsort(-score)[:20].tolist()
    assert chosen.info["score"].tolist() == pytest.approx(np.sort(score)[::-1][:20].tolist())
    assert chosen.weight.tolist() == [1.0] * 20


def test_the_three_differ_where_they_should(generator: torch.Generator) -> None:
    """p = (.5, .49, .01), (.46, .27, .27), (.45, .43, .12)."""
    p = torch.tensor([[0.5, 0.49, 0.01], [0.46, 0.27, 0.27], [0.45, 0.43, 0.12]])
    first = {
        u: rd.selector("svp", uncertainty=u)
        .select(rd.Evidence(ids=torch.arange(3), logits=p.log()), 1, generator=generator)
        .index.item()
        for u in ("entropy", "least_confidence", "margin")
    }
    assert first == {"entropy": 1, "least_confidence": 2, "margin": 0}


def test_it_decides_once() -> None:
    assert rd.selector("svp").horizon == "run"
    assert rd.selector("svp").needs == {"logits"}
    assert rd.SELECTORS["svp"].hyperparameters == {"uncertainty": "entropy"}
