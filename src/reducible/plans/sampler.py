"""Draws the ids of a plan, each about as often as its weight says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import final

import torch
from torch import Tensor
from torch.utils.data import Sampler

from reducible.types import DataError, name_ids


@final
class PlanSampler(Sampler[int]):
    """Positions of a plan's ids, each about as often as its weight says.

    An id of weight w comes ⌊w⌋ or ⌈w⌉ times an epoch, w times in the mean (systematic sampling),
    its repeats evenly spaced over the epoch, so that about M/⌈w⌉ draws in a row, for the largest
    w, hold no id twice.

    Args:
        planned: [M] int64 ids to draw.
        weight: [M] float64 with mean one: how often to draw each.
        ids: [N] int64 of the data set, by position.
        generator: of the draws and their order.

    Raises:
        DataError: the data set lacks an id of the plan.
    """

    def __init__(
        self, planned: Tensor, weight: Tensor, ids: Tensor, *, generator: torch.Generator
    ) -> None:
        ascending, order = ids.cpu().sort()
        where = torch.searchsorted(ascending, planned).clamp_(max=ids.numel() - 1)
        missing = ascending[where] != planned
        if bool(missing.any()):
            raise DataError(
                f"the data set lacks {int(missing.sum())} ids of the plan: "
                f"{name_ids(planned[missing])}. The plan is of another data set or split."
            )
        self._positions = order[where]  # [M]
        self._weight = weight
        self.generator = generator
        evenly = bool((weight == weight[0]).all())
        self.each_once = self._positions if evenly else None
        """[M] int64: the positions if an epoch has each of them once; None otherwise."""

    def __len__(self) -> int:
        return self._positions.numel()

    def __iter__(self) -> Iterator[int]:
        count = systematic_counts(self._weight, generator=self.generator)  # [M]
        offset = _even_offsets(count, generator=self.generator)
        copies = torch.repeat_interleave(torch.arange(count.numel()), count)  # [M] draws
        first = count.cumsum(0) - count
        nth = torch.arange(copies.numel()) - first[copies]  # which repeat of its id each draw is
        when = (nth + offset[copies]) / count[copies]  # in [0, 1), repeats evenly spaced
        yield from self._positions[copies[when.argsort()]].tolist()


def systematic_counts(weight: Tensor, *, generator: torch.Generator) -> Tensor:
    """Draws how often each of M examples comes: ⌊w⌋ or ⌈w⌉ times, w in the mean, M in all.

    Args:
        weight: [M] float64 with mean one.
        generator: of the draw; the examples are mixed first, so that neighbours are not tied.

    Returns:
        [M] int64.
    """
    size = weight.numel()
    order = torch.randperm(size, generator=generator)
    edges = weight[order].cumsum(0)
    edges = edges / edges[-1] * size
    shift = torch.rand(1, dtype=torch.float64, generator=generator)
    ticks = (edges - shift).ceil().clamp_(min=0).long()  # draws before each edge
    ticks[-1] = size
    count = torch.empty_like(ticks)
    count[order] = torch.diff(ticks, prepend=torch.zeros(1, dtype=torch.int64))
    return count


def _even_offsets(count: Tensor, *, generator: torch.Generator) -> Tensor:
    """[M] float64 in [0, 1), at random, evenly spread among ids with the same ``count`` ([M]).

    So that the epoch is as dense everywhere, and repeats that are evenly spaced in it stay so.
    """
    mixed = torch.randperm(count.numel(), generator=generator)
    order = mixed[count[mixed].argsort(stable=True)]  # by count, at random within one
    values, sizes = torch.unique_consecutive(count[order], return_counts=True)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    start = torch.rand(values.numel(), dtype=torch.float64, generator=generator)
    nth = torch.arange(count.numel()) - first
    offset = torch.empty(count.numel(), dtype=torch.float64)
    offset[order] = (nth + start.repeat_interleave(sizes)) / sizes.repeat_interleave(sizes)
    return offset
