"""Batches of any structure: tuples, dicts and lists whose tensors lead with B."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reducible.types import DataError


def map_batch(
    batch: Any, on_tensor: Callable[[Tensor], Any], on_rows: Callable[[list], Any]
) -> Any:
    """``batch`` with its tensors and its lists of non-tensors mapped, its structure kept."""
    if isinstance(batch, Tensor):
        return on_tensor(batch)
    if isinstance(batch, tuple):
        parts = [map_batch(v, on_tensor, on_rows) for v in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if isinstance(batch, Mapping):
        items = {k: map_batch(v, on_tensor, on_rows) for k, v in batch.items()}
        return items if type(batch) is dict else type(batch)(items)  # pyright: ignore[reportCallIssue]
    if isinstance(batch, list):
        if any(isinstance(v, Tensor | Mapping | tuple | list) for v in batch):
            return [map_batch(v, on_tensor, on_rows) for v in batch]
        return on_rows(batch)
    return batch


def gather(batch: Any, index: Tensor, size: int) -> Any:
    """Rows ``index`` ([K] int64) of every tensor and every list of ``size`` items in ``batch``.

    Tensors are gathered on their own device, by one copy each.

    Raises:
        DataError: a tensor does not lead with ``size`` rows.
    """

    if type(batch) is tuple:  # the usual case, by hand: it comes up at every step
        parts: list[Any] = []
        for part in batch:
            whole = isinstance(part, Tensor)
            parts.append(_rows(part, index, size) if whole else gather(part, index, size))
        return tuple(parts)
    return map_batch(
        batch,
        lambda tensor: _rows(tensor, index, size),
        lambda items: _items(items, index, size),
    )


def _rows(tensor: Tensor, index: Tensor, size: int) -> Tensor:
    if tensor.dim() == 0 or tensor.shape[0] != size:
        raise DataError(
            f"a tensor of shape {tuple(tensor.shape)} in a batch of {size} ids: every tensor "
            "must lead with the batch. Move what is not per example out of the batch."
        )
    return tensor.index_select(0, beside(index, tensor))


def _items(items: list[Any], index: Tensor, size: int) -> list[Any]:
    if len(items) != size:
        raise DataError(f"a list of {len(items)} items in a batch of {size} ids.")
    return [items[i] for i in index.tolist()]


def beside(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor`` on the device of ``other``.

    On the CPU two flags say that it is there, for less than ``to`` takes to find nothing to do.
    """
    if tensor.is_cpu and other.is_cpu:
        return tensor
    return tensor.to(other.device, non_blocking=not other.is_cpu)  # or it is read too early


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``; copies from pinned memory do not block."""
    if isinstance(batch, tuple):  # the usual case on a CPU, for it comes up at every step
        for part in batch:
            if not isinstance(part, Tensor) or part.device != device:
                break
        else:
            return batch
    wait = device.type == "cpu"  # or values are read before they are there
    return map_batch(batch, lambda t: t.to(device, non_blocking=not wait), lambda r: r)
