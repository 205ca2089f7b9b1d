"""Importance sampling: frequencies, weights, and the estimate that they leave unbiased."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from reducible.picks import importance_sample, sampling_probabilities
from reducible.types import SelectionError

DRAWS = 10_000


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def literal(g: list[float]) -> list[float]:
    total = math.fsum(g)
    return [v / total if total else 1 / len(g) for v in g]


@pytest.mark.parametrize(
    "g",
    [[1.0, 3.0, 0.0, 4.0], [0.0, 0.0], [2.0] * 5, [0.3], [1e30, 1e30, 2e30], [1e-30, 3e-30]],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_probabilities_and_weights_are_the_literal_ones(g: list[float], dtype: torch.dtype) -> None:
    scores = torch.tensor(g, dtype=dtype)
    p = sampling_probabilities(scores)
    assert p.dtype == torch.float64
    assert p.tolist() == pytest.approx(literal(g), rel=1e-6)
    chosen = importance_sample(scores, len(g), generator=_generator())
    weight = [1.0 / (len(g) * literal(g)[i]) for i in chosen.index.tolist()]
    assert chosen.weight.tolist() == pytest.approx(weight, rel=1e-6)
    assert chosen.weight.dtype == dtype
    assert chosen.info["score"].tolist() == scores[chosen.index].tolist()


def test_sums_do_not_overflow_single_precision() -> None:
    assert sampling_probabilities(torch.full((4,), 3e38)).tolist() == [0.25] * 4
    huge = torch.full((4,), 1e308, dtype=torch.float64)
    assert sampling_probabilities(huge).tolist() == [0.25] * 4


def test_hand_worked() -> None:
    """g = (1, 3): p = (¼, ¾), weights 1/(2p) = 2 and ⅔."""
    chosen = importance_sample(torch.tensor([1.0, 3.0]), 2, generator=_generator(1))
    for i, weight in zip(chosen.index.tolist(), chosen.weight.tolist(), strict=True):
        assert weight == pytest.approx([2.0, 2 / 3][i])


def test_draws_are_with_replacement_and_in_proportion() -> None:
    g, generator = [1.0, 3.0, 0.0, 4.0], _generator(2)
    counts, twice = np.zeros(4), 0
    for _ in range(DRAWS):
        index = importance_sample(torch.tensor(g), 2, generator=generator).index.tolist()
        np.add.at(counts, index, 1)
        twice += index[0] == index[1]
    p = np.array(literal(g))
    assert bool((abs(counts / (2 * DRAWS) - p) <= 4 * np.sqrt(p * (1 - p) / (2 * DRAWS))).all())
    same = float((p**2).sum())
    assert abs(twice / DRAWS - same) <= 4 * math.sqrt(same * (1 - same) / DRAWS)


def test_the_weighted_mean_is_unbiased() -> None:
    rng = np.random.default_rng(0)
    loss, g = torch.tensor(rng.exponential(size=12)), torch.tensor(rng.exponential(size=12))
    generator, k = _generator(3), 4
    estimates = []
    for _ in range(DRAWS):
        chosen = importance_sample(g, k, generator=generator)
        estimates.append(float((chosen.weight * loss[chosen.index]).sum() / k))
    error = np.std(estimates) / math.sqrt(DRAWS)
    assert abs(np.mean(estimates) - float(loss.mean())) <= 4 * error


def test_what_it_refuses() -> None:
    with pytest.raises(SelectionError, match="not negative"):
        importance_sample(torch.tensor([1.0, -1e-9]), 1, generator=_generator())
    with pytest.raises(SelectionError, match="ids 9"):
        importance_sample(
            torch.tensor([1.0, math.inf]), 1, generator=_generator(), ids=torch.tensor([8, 9])
        )
    with pytest.raises(SelectionError, match="cannot choose 3 of 2"):
        importance_sample(torch.ones(2), 3, generator=_generator())
