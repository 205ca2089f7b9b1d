"""The k largest, ties at random."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reducible.picks import top_k
from reducible.types import SelectionError


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_hand_worked(dtype: torch.dtype) -> None:
    scores = torch.tensor([0.5, -1.0, 3.0, 2.0], dtype=dtype)
    chosen = top_k(scores, 2, generator=_generator())
    assert chosen.index.tolist() == [2, 3]  # best first
    assert chosen.index.dtype == torch.int64
    assert chosen.weight.tolist() == [1.0, 1.0]
    assert chosen.weight.dtype == dtype
    assert chosen.info["score"].tolist() == [3.0, 2.0]


def test_the_tied_rest_falls_evenly() -> None:
    """ρ = (1.9, 0.1, 0.1): candidate 0 always, 1 and 2 in half of the draws each."""
    scores, generator = torch.tensor([1.9, 0.1, 0.1]), _generator()
    draws = 4000
    picks = [top_k(scores, 2, generator=generator).index.tolist() for _ in range(draws)]
    assert {p[0] for p in picks} == {0}
    ones = sum(p[1] == 1 for p in picks)
    # five standard errors of a fair coin
    assert abs(ones - draws / 2) < 5 * math.sqrt(draws / 4)


def test_equal_scores_favour_no_position() -> None:
    scores, generator = torch.zeros(8), _generator(1)
    draws, k = 4000, 3
    counts = torch.zeros(8)
    for _ in range(draws):
        counts[top_k(scores, k, generator=generator).index] += 1
    share = k / 8
    error = math.sqrt(draws * share * (1 - share))
    assert bool(((counts - draws * share).abs() < 5 * error).all()), counts


def _draws(scores: torch.Tensor, k: int) -> bool:
    generator = _generator(3)
    before = generator.get_state()
    top_k(scores, k, generator=generator)
    return not torch.equal(generator.get_state(), before)


def test_it_draws_only_where_a_chosen_score_is_tied() -> None:
    distinct = torch.tensor([4.0, 1.0, 3.0, 2.0])
    assert not _draws(distinct, 2)
    assert not _draws(distinct, 4)
    assert not _draws(torch.tensor([4.0, 1.0, 3.0, 1.0]), 2)  # the rest may be tied
    assert _draws(torch.tensor([4.0, 3.0, 3.0, 1.0]), 2)  # across the edge
    assert _draws(torch.tensor([3.0, 3.0, 2.0, 1.0]), 3)  # among the chosen


@pytest.mark.parametrize("size", [1024, 1025, 5000])
def test_the_choice_among_many_is_that_among_few(size: int) -> None:
    scores = torch.randperm(size, generator=_generator()) / size
    chosen = top_k(scores, 5, generator=_generator())
    assert chosen.index.tolist() == scores.argsort(descending=True)[:5].tolist()
    tied = top_k(torch.zeros(size), 5, generator=_generator()).index.tolist()
    assert tied != top_k(torch.zeros(size), 5, generator=_generator(1)).index.tolist()
    with pytest.raises(SelectionError, match=f"1 of {size} candidates"):
        top_k(scores.index_fill(0, torch.tensor([7]), math.nan), 5, generator=_generator())


def test_same_generator_state_same_choice() -> None:
    scores = torch.zeros(50)
    first = top_k(scores, 10, generator=_generator(7)).index
    assert top_k(scores, 10, generator=_generator(7)).index.tolist() == first.tolist()
    assert top_k(scores, 10, generator=_generator(8)).index.tolist() != first.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_raises_and_names_its_ids(bad: float) -> None:
    scores = torch.tensor([1.0, bad, 2.0, bad])
    ids = torch.tensor([10, 2**53 + 1, 12, 13])
    with pytest.raises(SelectionError, match=rf"2 of 4 candidates, ids {2**53 + 1}, 13\."):
        top_k(scores, 1, generator=_generator(), ids=ids)
    with pytest.raises(SelectionError, match="ids 1, 3"):  # positions, where there are no ids
        top_k(scores, 1, generator=_generator())


@pytest.mark.parametrize("k", [0, -1, 4])
def test_k_out_of_range(k: int) -> None:
    with pytest.raises(SelectionError, match=f"cannot choose {k} of 3 candidates"):
        top_k(torch.zeros(3), k, generator=_generator())


def test_a_reduced_loss_is_no_score() -> None:
    with pytest.raises(SelectionError, match="reduction='none'"):
        top_k(torch.tensor(1.0), 1, generator=_generator())


@given(
    st.lists(st.sampled_from([-1e30, -1.0, 0.0, 1e-30, 0.5, 1.0, 1e30]), min_size=1, max_size=30),
    st.data(),
)
def test_chosen_scores_are_the_k_largest(values: list[float], data: st.DataObject) -> None:
    k = data.draw(st.integers(1, len(values)))
    scores = torch.tensor(values, dtype=torch.float64)
    before = scores.clone()
    chosen = top_k(scores, k, generator=_generator(data.draw(st.integers(0, 2**31))))
    assert scores[chosen.index].tolist() == sorted(values, reverse=True)[:k]
    assert chosen.info["score"].tolist() == scores[chosen.index].tolist()
    assert len(set(chosen.index.tolist())) == k
    assert torch.equal(scores, before)
