"""Samplers that repeat rows: named, with what to pass in their place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    WeightedRandomSampler,
)

import reducible as rd
from varying_toys import DATA, N, Opaque, batches_of, ids_of

WEIGHTS = torch.ones(N, dtype=torch.float64).tolist()


@pytest.mark.parametrize("make", [DataLoader, Opaque])
@pytest.mark.parametrize("batched", [False, True])
def test_a_sampler_with_replacement_is_refused_at_once(make: Any, batched: bool) -> None:
    for order, message in (
        (WeightedRandomSampler(WEIGHTS, N), "WeightedRandomSampler .*Pass replacement=False, with"),
        (RandomSampler(DATA, replacement=True), "RandomSampler draws with replacement.*Pass repl"),
    ):
        options: dict[str, Any] = {"sampler": order, "batch_size": 20}
        if batched:
            options = {"batch_sampler": BatchSampler(order, 20, drop_last=True)}
        with pytest.raises(rd.DataError, match=message):
            batches_of(make(DATA, **options))
    once = WeightedRandomSampler(WEIGHTS, 100, replacement=False)
    assert len(ids_of(batches_of(make(DATA, sampler=once, batch_size=20)))) == 5


class Filling(BatchSampler):
    """Fills the last batch from the beginning, as samplers of batches for several ranks do."""

    even_batches = True

    def __iter__(self) -> Iterator[list[int]]:
        for rows in super().__iter__():
            yield (rows * self.batch_size)[: self.batch_size]


class Padding(Sampler[int]):
    def __iter__(self) -> Iterator[int]:
        return iter([*range(30), *([29] * 10)])


class Mirror(BatchSampler):
    def __iter__(self) -> Iterator[list[int]]:
        return (rows + rows for rows in super().__iter__())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_sampler": Filling(SequentialSampler(range(30)), 20, False)}, "even_batches=False"),
        ({"sampler": Padding(), "batch_size": 20}, r"Padding draws rows more than once.*padding"),
        ({"batch_sampler": Mirror(Padding(), 20, False)}, "Mirror over Padding draws rows more"),
    ],
)
def test_a_sampler_that_repeats_rows_is_named(options: dict[str, Any], message: str) -> None:
    batches = batches_of(DataLoader(DATA, **options), "rho", 0.5)
    with pytest.raises(rd.DataError, match=f"occur more than once.*{message}"):
        ids_of(batches)


def test_padding_that_gives_a_rank_no_row_twice_is_let_through() -> None:
    order: Any = DistributedSampler(range(3), 2, 1, shuffle=False)  # pyright: ignore[reportArgumentType]
    batches = batches_of(DataLoader(DATA, sampler=order, batch_size=2), "rho", 1.0)
    assert [sorted(ids) for ids in ids_of(batches)] == [[0, 1]]


def test_a_padded_distributed_sampler_is_named_with_its_cure() -> None:
    order: Any = DistributedSampler(range(3), 2, 0, shuffle=False)  # pyright: ignore[reportArgumentType]
    order.num_samples, order.total_size = 6, 12  # a rank sees the rows that fill up, too
    batches = batches_of(DataLoader(DATA, sampler=order, batch_size=6), "rho", 0.5)
    with pytest.raises(
        rd.DataError, match=r"DistributedSampler pads the rows.*Pass drop_last=True"
    ):
        ids_of(batches)
