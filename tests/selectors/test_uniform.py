"""Uniform selection."""

from __future__ import annotations

import math

import pytest
import torch

import reducible as rd


def _select(k: int, n: int, generator: torch.Generator) -> rd.Selection:
    evidence = rd.Evidence(ids=torch.arange(100, 100 + n))
    return rd.selector("uniform").select(evidence, k, generator=generator)


def test_needs_nothing() -> None:
    rule = rd.selector("uniform")
    assert rule.needs == frozenset()
    assert rule.samples == 0


def test_every_candidate_equally_often_and_none_twice(generator: torch.Generator) -> None:
    draws, k, n = 3000, 3, 10
    counts = torch.zeros(n)
    for _ in range(draws):
        index = _select(k, n, generator).index
        assert index.unique().numel() == k
        counts[index] += 1
    share = k / n
    error = math.sqrt(draws * share * (1 - share))
    assert bool(((counts - draws * share).abs() < 5 * error).all()), counts


def test_pairs_are_equally_likely(generator: torch.Generator) -> None:
    """A block of neighbours would pass the test of single candidates."""
    draws, n = 3000, 4
    together = torch.zeros(n, n)
    for _ in range(draws):
        a, b = _select(2, n, generator).index.tolist()
        together[min(a, b), max(a, b)] += 1
    pairs = together[torch.triu(torch.ones(n, n), 1).bool()]
    share = 1 / 6
    assert bool(((pairs - draws * share).abs() < 5 * math.sqrt(draws * share)).all()), pairs


def test_weights_are_ones(generator: torch.Generator) -> None:
    chosen = _select(4, 9, generator)
    assert chosen.weight.tolist() == [1.0] * 4


@pytest.mark.parametrize("k", [0, 10])
def test_k_out_of_range(k: int, generator: torch.Generator) -> None:
    with pytest.raises(rd.SelectionError, match=f"cannot choose {k} of 9"):
        _select(k, 9, generator)
