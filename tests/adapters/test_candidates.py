"""Candidates to the loader that a script has: its order, its ids, its collate function."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SubsetRandomSampler,
    TensorDataset,
)

import reducible as rd
from reducible.adapters.candidates import (
    candidates_like,
    state_of_all_ranks,
    state_of_this_rank,
)

DATA = TensorDataset(torch.arange(64.0), torch.arange(64) % 2)


def _ids(loader: Any) -> list[list[int]]:
    return [batch.ids.tolist() for batch in loader]


def test_batches_are_as_much_larger_as_rows_are_left_out() -> None:
    found = _ids(candidates_like(DataLoader(DATA, 4), 0.25, seed=0))
    assert found == [list(range(i, i + 16)) for i in range(0, 64, 16)]  # in order, as it was
    together = _ids(candidates_like(DataLoader(DATA, 4), 0.25, seed=0, updates=2))
    assert [len(ids) for ids in together] == [32, 32]


def test_a_loader_that_shuffles_is_shuffled_by_the_seed() -> None:
    shuffled = DataLoader(DATA, 4, shuffle=True)
    first, again = (_ids(candidates_like(shuffled, 0.5, seed=1)) for _ in range(2))
    other = _ids(candidates_like(shuffled, 0.5, seed=2))
    assert first == again != other
    assert sorted(i for ids in first for i in ids) == list(range(64))


def test_a_sampler_of_ones_own_stays() -> None:
    some = SubsetRandomSampler(range(0, 64, 2))
    found = _ids(candidates_like(DataLoader(DATA, 4, sampler=some), 0.5, seed=0))
    assert sorted(i for ids in found for i in ids) == list(range(0, 64, 2))
    few = RandomSampler(DATA, num_samples=16)
    found = _ids(candidates_like(DataLoader(DATA, 4, sampler=few), 0.5, seed=0))
    assert [len(ids) for ids in found] == [8, 8]


def test_ids_and_collate_functions_that_are_there_stay() -> None:
    data = rd.WithIds(DATA, ids=torch.arange(64) + 100)

    def sums(items: list[Any]) -> Any:
        return torch.stack([x for x, _ in items]), torch.stack([y for _, y in items])

    loader = DataLoader(data, 4, collate_fn=sums)  # pyright: ignore[reportArgumentType]
    (first, *_) = candidates_like(loader, 0.5, seed=0)
    assert first.ids.tolist() == list(range(100, 108))
    assert torch.equal(first.batch[0], torch.arange(8.0))


def test_what_cannot_be_known_is_refused() -> None:
    class Stream(IterableDataset[int]):
        def __iter__(self) -> Iterator[int]:
            return iter(range(8))

    shared = DistributedSampler(DATA, num_replicas=2, rank=0)
    with pytest.raises(rd.ConfigurationError, match="shares the rows among processes"):
        candidates_like(DataLoader(DATA, 4, sampler=shared), 0.5, seed=0)
    with pytest.raises(rd.ConfigurationError, match="map-style data set was expected"):
        candidates_like(DataLoader(Stream(), 4), 0.5, seed=0)


def test_states_are_of_as_many_processes() -> None:
    state = state_of_all_ranks({"step": 3})
    assert state_of_this_rank(state) == {"step": 3}
    with pytest.raises(rd.ConfigurationError, match="of 2 processes, and there are 1 now"):
        state_of_this_rank({"ranks": [{}, {}]})
