"""Shares batches among the processes of one training run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, final

import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler

from reducible.types import ConfigurationError, require_between


@final
class RankBatches(Sampler[list[int]]):
    """Every ``ranks``-th batch of index lists, from the ``rank``-th on; the same number for each.

    All ranks walk over one order, which must be drawn from one seed, so that no row comes to two
    of them in a pass, and a step's batches differ. Batches that are left over, fewer than there
    are ranks, are dropped: no rank gets ahead into the next pass, in which rows come again.

    Args:
        batches: of index lists, in the same order in every process.
        rank: this process, from 0.
        ranks: how many processes there are.

    >>> four = BatchSampler(range(8), batch_size=2, drop_last=True)
    >>> list(RankBatches(four, 1, 2)), list(RankBatches(four, 1, 3))
    ([[2, 3], [6, 7]], [[2, 3]])
    """

    def __init__(self, batches: Iterable[list[int]], rank: int, ranks: int) -> None:
        require_between("ranks", ranks, 1, whole=True)
        require_between("rank", rank, 0, ranks - 1, whole=True)
        self.batches, self.rank, self.ranks = batches, rank, ranks
        self.batch_size = getattr(batches, "batch_size", None)

    def __iter__(self) -> Iterator[list[int]]:
        group: list[list[int]] = []
        for batch in self.batches:
            group.append(batch)
            if len(group) == self.ranks:
                yield group[self.rank]
                group = []

    def __len__(self) -> int:
        return len(self.batches) // self.ranks  # pyright: ignore[reportArgumentType]

    def set_epoch(self, epoch: int) -> None:
        """Passes it on to an order that shuffles by it."""
        for order in (self.batches, getattr(self.batches, "sampler", None)):
            if hasattr(order, "set_epoch"):
                order.set_epoch(epoch)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def candidate_loader(
    dataset: Any,
    batch_size: int,
    *,
    seed: int,
    rank: int = 0,
    ranks: int = 1,
    sampler: Sampler[int] | None = None,
    **options: Any,
) -> DataLoader[Any]:
    """A DataLoader of candidate batches in an order of its own, shared among ``ranks``.

    Args:
        dataset: map-style.
        batch_size: n_B.
        seed: of the order, the same in every process.
        rank: this process.
        ranks: how many there are.
        sampler: draws the order in the seed's stead; the same in every process.
        options: of the DataLoader (``collate_fn``, ``num_workers``, …).

    Raises:
        ConfigurationError: the data have fewer rows than one candidate batch for each process.

    >>> loader = candidate_loader(range(8), 4, seed=0)
    >>> sorted(torch.cat(list(loader)).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    generator = torch.Generator().manual_seed(seed)  # the loader's too, as with shuffle=True
    order = RandomSampler(dataset, generator=generator) if sampler is None else sampler
    rows = len(order)  # pyright: ignore[reportArgumentType]
    if rows < ranks * batch_size:
        each = "" if ranks == 1 else f" for each of {ranks} processes"
        raise ConfigurationError(
            f"a candidate batch has {batch_size} rows{each}, but there are {rows} in all. Raise "
            "keep, or lower the rows of an update."
        )
    if ranks == 1:
        return DataLoader(
            dataset, batch_size, sampler=order, drop_last=True, generator=generator, **options
        )
    batches = RankBatches(BatchSampler(order, batch_size, drop_last=True), rank, ranks)
    return DataLoader(dataset, batch_sampler=batches, generator=generator, **options)
