"""Whole batches at once, from data sets that can, as torch would collate their items."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset, TensorDataset, default_collate

WholeBatch = Callable[[Sequence[int]], Any]
"""Positions → ``default_collate([dataset[i] for i in positions])``."""


def fetcher_of(dataset: Any) -> WholeBatch | None:
    """Returns what gives batches of ``dataset`` at once; None if only items can be had.

    The batches equal those of torch's default collate function, to their types. So it is for
    TensorDatasets, Subsets, data sets with columns (Hugging Face's), and those that say so
    themselves by a method ``whole_batch_fetcher()``, as ``WithIds`` does.
    """
    # Of the class: what a wrapper hands on by __getattr__ would bypass its own __getitem__.
    own = getattr(type(dataset), "whole_batch_fetcher", None)
    if own is not None:
        return own(dataset)
    if type(dataset) is Subset:
        return _of_subset(dataset)
    if type(dataset) is TensorDataset and all(map(_is_plain, dataset.tensors)):
        return _of_tensors(dataset.tensors)
    return _of_columns(dataset) if has_columns(dataset) else None


def items_at(dataset: Any, positions: Sequence[int]) -> list[Any]:
    """Returns the items at ``positions``, asked for together if the data set can."""
    many = getattr(dataset, "__getitems__", None)
    return [dataset[i] for i in positions] if many is None else many(positions)


def has_columns(dataset: Any) -> bool:
    """Whether rows are kept as named columns, which a list of positions cuts (Hugging Face's)."""
    both = hasattr(type(dataset), "column_names") and hasattr(type(dataset), "__getitems__")
    return both and isinstance(dataset.column_names, list)


def _is_plain(tensor: Tensor) -> bool:
    return type(tensor) is Tensor and tensor.layout is torch.strided


def _of_subset(dataset: Subset[Any]) -> WholeBatch | None:
    inner, where = fetcher_of(dataset.dataset), dataset.indices
    return None if inner is None else lambda positions: inner([where[i] for i in positions])


def _of_tensors(tensors: Sequence[Tensor]) -> WholeBatch:
    def fetch(positions: Sequence[int]) -> list[Tensor]:
        at = as_positions(positions)
        return [take(tensor, at) for tensor in tensors]  # a list, as torch collates tuples

    return fetch


def as_positions(positions: Sequence[int]) -> Tensor:
    """Returns ``positions`` as [B] int64; by NumPy, which takes a quarter of torch's time."""
    return torch.from_numpy(np.asarray(positions, dtype=np.int64))


def take(tensor: Tensor, at: Tensor) -> Tensor:
    """Returns ``tensor[at]`` for ``at`` [B] int64, negative positions counted from the end."""
    if tensor.is_cpu:
        with suppress(IndexError):  # raised for negative positions too
            return tensor.index_select(0, at)  # a quarter of the time
    return tensor[at]


def _of_columns(dataset: Any) -> WholeBatch:
    def fetch(positions: Sequence[int]) -> Any:
        columns = dataset[list(positions)]
        if not isinstance(columns, Mapping):
            return default_collate(items_at(dataset, positions))
        return {name: _collated(column) for name, column in columns.items()}

    return fetch


def _collated(column: Any) -> Any:
    return column if isinstance(column, Tensor) else default_collate(list(column))
