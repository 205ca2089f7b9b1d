"""Selective backpropagation: percentiles among recent losses, and draws by them."""

from __future__ import annotations

import math
from itertools import permutations
from typing import Any

import numpy as np
import pytest
import torch

import reducible as rd
from reducible.selectors.selective_backprop import percentile


def _evidence(loss: Any) -> rd.Evidence:
    values = torch.as_tensor(loss, dtype=torch.float64)
    return rd.Evidence(ids=torch.arange(len(values)), loss=values)


def literal_cdf(loss: list[float], recent: list[float]) -> list[float]:
    return [sum(r <= v for r in recent) / len(recent) for v in loss]


@pytest.mark.parametrize(
    ("loss", "recent"),
    [
        ([0.5, 2.0, 1.0], [0.5, 2.0, 1.0]),
        ([0.5, 2.0, 1.0], [3.0, 0.0, 1.0, 1.0]),
        ([1.0, 1.0], [1.0, 1.0]),
        ([1e30, 1e-30], [1e30, 1e-30, 0.0]),
        ([0.0], [0.0]),
    ],
)
def test_percentiles_are_the_literal_ones(loss: list[float], recent: list[float]) -> None:
    got = percentile(torch.tensor(loss), torch.tensor(recent))
    assert got.dtype == torch.float64
    assert got.tolist() == pytest.approx(literal_cdf(loss, recent))


def test_percentiles_by_hand() -> None:
    recent = torch.tensor([4.0, 1.0, 2.0, 3.0])
    assert percentile(torch.tensor([2.0, 0.5, 9.0]), recent).tolist() == [0.5, 0.0, 1.0]


@pytest.mark.parametrize("beta", [1.0, 3.0, 0.0])
@pytest.mark.parametrize("remembered", [[], [0.1, 0.2, 2.5, 9.0, 9.0]])
def test_inclusions_are_as_frequent_as_they_should_be(
    beta: float, remembered: list[float], generator: torch.Generator
) -> None:
    loss, k, draws = [0.3, 4.0, 1.0, 2.0], 2, 10_000
    rule = rd.selector("selective_backprop", beta=beta)
    if remembered:
        rule.load_state_dict({"recent": torch.tensor(remembered, dtype=torch.float64)})
    p = [c**beta for c in literal_cdf(loss, remembered + loss)]
    share = np.zeros(4)
    for order in permutations(range(4), k):
        probability, left = 1.0, math.fsum(p)
        for i in order:
            probability *= p[i] / left
            left -= p[i]
        share[list(order)] += probability
    counts, evidence = np.zeros(4), _evidence(loss)
    for _ in range(draws):
        chosen = rule.select(evidence, k, generator=generator)
        assert chosen.index[0] != chosen.index[1]
        counts[chosen.index] += 1
    error = np.sqrt(share * (1 - share) / draws)
    assert bool((abs(counts / draws - share) <= 4 * error).all()), counts
    chosen = rule.select(evidence, k, generator=generator)
    assert chosen.info["score"].tolist() == [loss[i] for i in chosen.index.tolist()]
    assert chosen.weight.tolist() == [1.0] * k


@pytest.mark.parametrize("history", [1, 3, 5, 8, 1024])
def test_the_last_losses_are_remembered(history: int) -> None:
    rule, seen = rd.selector("selective_backprop", history=history), list[float]()
    assert rule.state_dict() == {"recent": None}
    for step in range(5):
        loss = np.random.default_rng(step).exponential(size=4).tolist()
        rule.observe(_evidence(loss), rd.Selection(torch.tensor([0]), torch.ones(1)))
        seen += loss
        assert rule.state_dict()["recent"].tolist() == seen[-history:]


@pytest.mark.parametrize("history", [1, 4, 6, 100])
def test_the_candidates_stand_among_the_last_of_the_history(
    history: int, generator: torch.Generator
) -> None:
    """The lowest percentile that is not 0 shows which losses were ranked among."""
    remembered, loss = [9.0, 8.0, 0.1, 0.2, 0.3], [1.0, 2.0, 3.0, 4.0]
    rule = rd.selector("selective_backprop", history=history, beta=200.0)
    rule.load_state_dict({"recent": torch.tensor(remembered[-history:], dtype=torch.float64)})
    # β = 200 makes it all but certain that the highest come first, in order.
    chosen = rule.select(_evidence(loss), 4, generator=generator)
    assert chosen.index.tolist() == [3, 2, 1, 0]


def test_how_far_back_the_ranks_go() -> None:
    """One old loss above both candidates halves nothing; two below both raise the lower one."""
    old, loss, draws = [0.0] * 6, [1.0, 2.0], 2000
    for history, low in ((2, 1 / 2), (4, 3 / 4), (8, 7 / 8)):
        rule, generator = rd.selector("selective_backprop", history=history), torch.Generator()
        rule.load_state_dict({"recent": torch.tensor(old[-history:], dtype=torch.float64)})
        generator.manual_seed(0)
        first = [
            int(rule.select(_evidence(loss), 1, generator=generator).index) for _ in range(draws)
        ]
        share = low / (low + 1.0)
        error = math.sqrt(share * (1 - share) / draws)
        assert abs(first.count(0) / draws - share) <= 4 * error, history


@pytest.mark.parametrize("loss", [[0.5] * 6, [1e30] * 6, [1e-30] * 6, [0.7]])
def test_ties_and_extremes(loss: list[float], generator: torch.Generator) -> None:
    k = max(1, len(loss) // 2)
    chosen = rd.selector("selective_backprop").select(_evidence(loss), k, generator=generator)
    assert chosen.index.unique().numel() == k


def test_a_state_of_another_precision(generator: torch.Generator) -> None:
    rule = rd.selector("selective_backprop")
    rule.load_state_dict({"recent": torch.ones(3, dtype=torch.float64)})
    evidence = rd.Evidence(ids=torch.arange(2), loss=torch.tensor([0.5, 2.0]))
    rule.observe(evidence, rule.select(evidence, 1, generator=generator))
    assert rule.state_dict()["recent"].dtype == torch.float32


def test_defaults() -> None:
    row = rd.SELECTORS["selective_backprop"]
    assert row.hyperparameters == {"beta": 1.0, "history": 1024}
    assert row.needs == {"loss"}


def test_what_is_remembered_is_a_copy() -> None:
    rule, evidence = rd.selector("selective_backprop"), _evidence([1.0, 2.0])
    rule.observe(evidence, rd.Selection(torch.tensor([0]), torch.ones(1)))
    evidence.require("loss").zero_()
    assert rule.state_dict()["recent"].tolist() == [1.0, 2.0]
