"""Draws without replacement: their frequencies against exact ones, enumerated."""

from __future__ import annotations

import inspect
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducible.picks import gumbel_top_k, rank_sample, soft_top_k
from reducible.types import Selection, SelectionError

DRAWS = 10_000


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def plackett_luce(p: list[float], k: int) -> dict[tuple[int, ...], float]:
    """Probability of every order of k draws, each ∝ p among what is left."""
    out = {}
    for order in permutations(range(len(p)), k):
        probability, left = 1.0, math.fsum(p)
        for i in order:
            probability *= p[i] / left
            left -= p[i]
        out[order] = probability
    return out


def assert_frequencies(draw: Callable[[], Selection], p: list[float], k: int) -> None:
    """Orders and inclusions are as frequent as they should be, within 4 standard errors."""
    exact = plackett_luce(p, k)
    orders = [tuple(draw().index.tolist()) for _ in range(DRAWS)]
    counts = Counter(orders)
    assert set(counts) <= set(exact)
    for order, share in exact.items():
        error = math.sqrt(share * (1 - share) / DRAWS)
        assert abs(counts[order] / DRAWS - share) <= 4 * error, order
    for i in range(len(p)):
        share = math.fsum(q for order, q in exact.items() if i in order)
        got = sum(i in order for order in orders) / DRAWS
        assert abs(got - share) <= 4 * math.sqrt(share * (1 - share) / DRAWS) + 1e-12, i


def test_gumbel_draws_in_plackett_luce_order() -> None:
    p, generator = [0.5, 0.3, 0.15, 0.05], _generator()
    log_weights = torch.tensor(p).log() + 7.0  # a constant changes nothing
    assert_frequencies(lambda: gumbel_top_k(log_weights, 2, generator=generator), p, 2)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_soft_top_k_draws_by_the_exponential_of_the_score(temperature: float) -> None:
    scores, generator = torch.tensor([1.0, 0.0, -1.0, 0.5]), _generator(1)
    p = [math.exp(s / temperature) for s in scores.tolist()]
    assert_frequencies(
        lambda: soft_top_k(scores, 2, generator=generator, temperature=temperature), p, 2
    )


def test_soft_top_k_has_temperature_one() -> None:
    scores = torch.tensor([1.0, 0.0, -1.0, 0.5])
    for seed in range(20):
        chosen = soft_top_k(scores, 2, generator=_generator(seed)).index.tolist()
        plain = gumbel_top_k(scores, 2, generator=_generator(seed)).index.tolist()
        assert chosen == plain


# -- weights that undo the bias of soft draws -----------------------------------------------------

SCORES = torch.tensor([2.0, 0.5, -1.0, 1.0, 3.0, -2.0, 0.0, 0.7], dtype=torch.float64)


def literal_weights(
    scores: list[float], k: int, temperature: float, seed: int
) -> tuple[list[int], dict[int, float]]:
    """Rows drawn, in order, and the weight of each, from the noise that ``seed`` gives."""
    exponential = torch.empty(len(scores), dtype=torch.float64)
    noise = (-exponential.exponential_(generator=_generator(seed)).log()).tolist()
    total = math.fsum(math.exp(s / temperature) for s in scores)
    phi = [math.log(math.exp(s / temperature) / total) for s in scores]  # normalised
    perturbed = [a + b for a, b in zip(phi, noise, strict=True)]
    order = sorted(range(len(scores)), key=lambda i: -perturbed[i])
    kappa = perturbed[order[k]] if k < len(scores) else -math.inf
    weights = {}
    for i in order[:k]:
        q = 1.0 - math.exp(-math.exp(phi[i] - kappa))
        weights[i] = k / (len(scores) * q)
    return order[:k], weights


@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("k", [1, 3, 7, 8])
@pytest.mark.parametrize("seed", range(5))
def test_corrected_draws_are_the_same_rows_with_the_literal_weights(
    seed: int, k: int, temperature: float
) -> None:
    draw = partial(soft_top_k, SCORES, k, temperature=temperature)
    chosen = draw(generator=_generator(seed), correct=True)
    rows, weights = literal_weights(SCORES.tolist(), k, temperature, seed)
    plain = draw(generator=_generator(seed))
    assert plain.index.tolist() == rows
    assert sorted(chosen.index.tolist()) == sorted(rows)
    expected = [weights[i] for i in chosen.index.tolist()]
    assert chosen.weight.tolist() == pytest.approx(expected, rel=1e-9)
    assert chosen.info["score"].tolist() == SCORES[chosen.index].tolist()


@pytest.mark.parametrize("part", [slice(None), slice(0, 2), slice(3, 4)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_corrected_mean_is_unbiased_of_any_part(temperature: float, part: slice) -> None:
    rng, generator, k = np.random.default_rng(8), _generator(6), 4
    loss = torch.tensor(rng.exponential(size=len(SCORES)))
    estimates = []
    for _ in range(DRAWS):
        chosen = soft_top_k(SCORES, k, generator=generator, temperature=temperature, correct=True)
        index, weight = chosen.index[part], chosen.weight[part]
        estimates.append(float((weight * loss[index]).sum() / len(index)))
    error = np.std(estimates) / math.sqrt(DRAWS)
    assert abs(np.mean(estimates) - float(loss.mean())) <= 4 * error


def test_without_correction_the_mean_is_biased() -> None:
    """So that the test above says something: rows of high score have the higher loss here."""
    generator = _generator(6)
    means = [
        float(SCORES[soft_top_k(SCORES, 4, generator=generator).index].mean()) for _ in range(2000)
    ]
    error = np.std(means) / math.sqrt(len(means))
    assert np.mean(means) - float(SCORES.mean()) > 20 * error


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", [1.0, 1e30])
def test_all_rows_have_weights_of_one(dtype: torch.dtype, scale: float) -> None:
    scores = scale * SCORES.to(dtype)
    chosen = soft_top_k(scores, len(scores), generator=_generator(), correct=True)
    assert chosen.weight.tolist() == [1.0] * len(scores)
    assert chosen.weight.dtype == chosen.info["score"].dtype == dtype
    assert sorted(chosen.index.tolist()) == list(range(len(scores)))


@pytest.mark.parametrize("scale", [0.0, 1e30, -1e30])
def test_weights_of_equal_scores_do_not_depend_on_their_height(scale: float) -> None:
    expected = soft_top_k(torch.zeros(8), 3, generator=_generator(), correct=True)
    chosen = soft_top_k(torch.full((8,), scale), 3, generator=_generator(), correct=True)
    assert chosen.index.tolist() == expected.index.tolist()
    assert chosen.weight.tolist() == expected.weight.tolist()


def test_corrected_draws_refuse_what_others_do() -> None:
    scores, ids = torch.tensor([1.0, math.nan, 2.0]), torch.tensor([7, 8, 9])
    with pytest.raises(SelectionError, match="ids 8"):
        soft_top_k(scores, 1, generator=_generator(), ids=ids, correct=True)
    with pytest.raises(SelectionError, match="cannot choose 4 of 3"):
        soft_top_k(torch.zeros(3), 4, generator=_generator(), correct=True)


def literal_rank_probabilities(scores: list[float], pressure: float) -> list[float]:
    """p_i ∝ exp(−log(s)/n_B)^rank_i, rank 1 the highest; for scores without ties."""
    n = len(scores)
    p = [0.0] * n
    for i, score in enumerate(scores):
        rank = 1 + sum(other > score for other in scores)
        p[i] = (1.0 / math.exp(math.log(pressure) / n)) ** rank
    return [v / math.fsum(p) for v in p]


def test_rank_probabilities_worked_by_hand() -> None:
    p = literal_rank_probabilities([4.0, 3.0, 2.0, 1.0], 100.0)
    assert p == pytest.approx([0.690679, 0.218412, 0.069068, 0.021841], abs=1e-6)
    scores, generator = torch.tensor([2.0, 4.0, 1.0, 3.0]), _generator(2)
    counts = torch.zeros(4)
    for _ in range(DRAWS):
        counts[rank_sample(scores, 1, generator=generator).index] += 1
    share = torch.tensor([p[2], p[0], p[3], p[1]])
    assert bool(((counts / DRAWS - share).abs() <= 4 * (share * (1 - share) / DRAWS).sqrt()).all())


@pytest.mark.parametrize("pressure", [100.0, 3.0])
def test_rank_sample_draws_without_replacement(pressure: float) -> None:
    values, generator = [0.3, 1e30, 0.1, -5.0], _generator(3)
    p = literal_rank_probabilities(values, pressure)
    scores = torch.tensor(values)
    assert_frequencies(lambda: rank_sample(scores, 2, generator=generator, pressure=pressure), p, 2)


def test_rank_sample_ranks_equal_scores_at_random() -> None:
    generator, counts = _generator(4), torch.zeros(4)
    for _ in range(DRAWS):
        counts[rank_sample(torch.zeros(4), 1, generator=generator).index] += 1
    error = math.sqrt(0.25 * 0.75 / DRAWS)
    assert bool(((counts / DRAWS - 0.25).abs() <= 4 * error).all())


def test_towards_zero_temperature_the_largest_in_order() -> None:
    scores = torch.tensor([0.1, 3.0, -2.0, 1.0])
    chosen = soft_top_k(scores, 3, generator=_generator(), temperature=1e-40)
    assert chosen.index.tolist() == [1, 3, 0]


@pytest.mark.parametrize("scale", [1e30, -1e30])
def test_ties_fall_evenly_where_the_noise_is_rounded_away(scale: float) -> None:
    generator, counts = _generator(5), torch.zeros(8)
    for _ in range(4000):
        counts[gumbel_top_k(torch.full((8,), scale), 3, generator=generator).index] += 1
    error = math.sqrt(4000 * (3 / 8) * (5 / 8))
    assert bool(((counts - 1500).abs() <= 4 * error).all()), counts


def test_the_pressure_of_the_paper() -> None:
    assert inspect.signature(rank_sample).parameters["pressure"].default == 100.0


PICKS = pytest.mark.parametrize("pick", [gumbel_top_k, soft_top_k, rank_sample])


@PICKS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_selection_says_the_scores_and_weighs_nothing(
    pick: Callable[..., Selection], dtype: torch.dtype
) -> None:
    scores = torch.tensor([0.5, -1.0, 3.0, 2.0], dtype=dtype)
    chosen = pick(scores, 3, generator=_generator())
    assert chosen.weight.tolist() == [1.0] * 3
    assert chosen.weight.dtype == chosen.info["score"].dtype == dtype
    assert chosen.info["score"].tolist() == scores[chosen.index].tolist()


@PICKS
def test_broken_scores_are_named(pick: Callable[..., Selection]) -> None:
    scores, ids = torch.tensor([1.0, math.nan, 2.0]), torch.tensor([7, 8, 9])
    with pytest.raises(SelectionError, match="ids 8"):
        pick(scores, 1, generator=_generator(), ids=ids)
    with pytest.raises(SelectionError, match="cannot choose 4 of 3"):
        pick(torch.zeros(3), 4, generator=_generator())


@PICKS
@given(
    st.lists(st.sampled_from([-1e30, -1.0, 0.0, 1e-30, 1.0, 1e30]), min_size=1, max_size=12),
    st.data(),
)
def test_no_row_twice(
    pick: Callable[..., Selection], values: list[float], data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, len(values)))
    chosen = pick(torch.tensor(values), k, generator=_generator(data.draw(st.integers(0, 99))))
    assert len(np.unique(chosen.index.numpy())) == k
