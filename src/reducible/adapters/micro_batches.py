"""Cuts what is chosen for an update into the micro-batches of accumulated gradients."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reducible.batches import gather
from reducible.loop import Chosen, SelectingLoader
from reducible.tasks import Task


class MicroBatch(NamedTuple):
    """Some of the rows of an update."""

    batch: Any
    ids: Tensor  # [K]
    weights: Tensor  # [K]


def micro_batches(chosen: Chosen, parts: int, task: Task) -> list[MicroBatch]:
    """Cuts an update's rows into ``parts`` that differ by a row at most, in their order.

    Each is without the padding that none of its rows needs.
    """
    rows = chosen.ids.numel()
    bounds = [rows * i // parts for i in range(parts + 1)]
    made: list[MicroBatch] = []
    for first, last in pairwise(bounds):
        where = torch.arange(first, last)
        batch = chosen.batch if parts == 1 else gather(chosen.batch, where, rows)
        ids, weights = chosen.ids[first:last], chosen.weights[first:last]
        made.append(MicroBatch(task.unpadded(batch), ids, weights))
    return made


def planned_batches(rows: int, size: int, accumulated: int, *, drop_last: bool) -> int:
    """Returns the batches of an epoch without selection, filled up to whole updates.

    Args:
        rows: of the data set.
        size: rows of a batch, over all processes.
        accumulated: batches of an update.
        drop_last: whether a last short batch is left out.

    >>> planned_batches(250, 16, 4, drop_last=False), planned_batches(250, 16, 1, drop_last=True)
    (16, 15)
    """
    batches = rows // size if drop_last else math.ceil(rows / size)
    return max(1, math.ceil(batches / accumulated)) * accumulated


def endless(batches: SelectingLoader) -> Iterator[Chosen]:
    """Yields what is chosen, pass after pass."""
    while True:
        yield from batches
