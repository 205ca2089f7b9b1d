"""Batches of any structure: what leads with B in them is gathered, moved and mapped."""

from __future__ import annotations

import copy
import dataclasses
import numbers
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from reducible.types import Candidates, ConfigurationError, DataError

_CONSTANT = (str, bytes, numbers.Number, np.generic, torch.dtype, torch.device, type(None))
"""Types that stand in a batch once, for all of its rows."""


class _Hook(NamedTuple):
    gather: Callable[[Any, Tensor], Any]
    to_device: Callable[[Any, torch.device], Any]


_HOOKS: dict[type, _Hook] = {}


def register_batch_type(
    kind: type,
    *,
    gather: Callable[[Any, Tensor], Any],
    to_device: Callable[[Any, torch.device], Any] = lambda part, _: part,
) -> None:
    """Say how rows are taken from a type of one's own that stands in batches.

    Tensors, NumPy arrays, lists, tuples, mappings and dataclasses need no such word.

    Args:
        kind: the type; types derived from it are meant too.
        gather: (part, [K] int64 positions) → the part with these rows alone.
        to_device: (part, device) → the part on the device; as it is by default.

    Raises:
        ConfigurationError: ``kind`` is no class.

    >>> class Boxes:
    ...     def __init__(self, of):
    ...         self.of = of
    >>> register_batch_type(Boxes, gather=lambda part, rows: Boxes([part.of[i] for i in rows]))
    >>> gather((torch.arange(3), Boxes("abc")), torch.tensor([2, 0]), 3)[1].of
    ['c', 'a']
    """
    if not isinstance(kind, type):
        raise ConfigurationError(f"a type is registered, got {kind!r}: pass the class itself.")
    _HOOKS[kind] = _Hook(gather, to_device)


def _hook_of(part: Any) -> _Hook | None:
    return next((_HOOKS[kind] for kind in type(part).__mro__ if kind in _HOOKS), None)


def gather(batch: Any, index: Tensor, size: int) -> Any:
    """Rows ``index`` ([K] int64) of everything in ``batch`` that leads with its ``size`` rows.

    Tensors are gathered on their own device, by one copy each. A list or tuple of ``size`` items
    is a part by row (of texts, or of tensors of different shapes) unless it is the batch itself.
    Numbers, texts and None stand for all rows and are kept.

    Raises:
        DataError: something does not lead with ``size`` rows, may be meant by row or as parts, or
            is of a type that is not known here; the cure with it.
    """
    if type(batch) is tuple:  # the usual case, by hand: it comes up at every step
        parts: list[Any] = []
        for part in batch:
            whole = isinstance(part, Tensor)
            parts.append(_rows(part, index, size) if whole else _gather(part, index, size))
        return tuple(parts)
    if _has_items(batch):
        return _sequence(batch, [_gather(part, index, size) for part in batch])
    return _gather(batch, index, size)


def _gather(part: Any, index: Tensor, size: int) -> Any:
    if isinstance(part, Tensor):
        return _rows(part, index, size)
    hook = _hook_of(part) if _HOOKS else None
    if hook is not None:
        return hook.gather(part, index)
    if isinstance(part, np.ndarray):
        if part.ndim == 0 or part.shape[0] != size:
            raise _does_not_lead("an array", part.shape, size)
        return part[index.cpu().numpy()]
    if _has_items(part):
        if _by_row(part, size):
            return _sequence(part, [part[i] for i in index.tolist()])
        return _sequence(part, [_gather(v, index, size) for v in part])
    if isinstance(part, Mapping):
        return _mapping(part, {k: _gather(v, index, size) for k, v in part.items()})
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return _fields(part, lambda value: _gather(value, index, size))
    if isinstance(part, _CONSTANT):
        return part
    raise DataError(
        f"a {type(part).__name__} in a batch of {size} ids: how its rows are taken is not known. "
        f"Say it once: reducible.register_batch_type({type(part).__name__}, gather=…). Or let the "
        "collate function leave it out."
    )


_COMPRESSED = {torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def _rows(tensor: Tensor, index: Tensor, size: int) -> Tensor:
    if tensor.is_nested:
        raise DataError(
            f"a nested tensor in a batch of {size} ids: its rows cannot be taken. Pad it, or put "
            "a list of its tensors into the batch."
        )
    if tensor.layout in _COMPRESSED:
        raise DataError(
            f"a tensor of layout {tensor.layout} in a batch of {size} ids: its rows cannot be "
            "taken. Let the collate function make it dense, or tensor.to_sparse()."
        )
    if tensor.dim() == 0 or tensor.shape[0] != size:
        raise _does_not_lead("a tensor", tuple(tensor.shape), size)
    return tensor.index_select(0, beside(index, tensor))


def _does_not_lead(what: str, shape: Any, size: int) -> DataError:
    return DataError(
        f"{what} of shape {tuple(shape)} in a batch of {size} ids: everything must lead with the "
        "batch. Move what is not per example out of the batch, or pass a number as a number."
    )


def _is_sequence(part: Any) -> bool:
    return isinstance(part, tuple | list)


def _has_items(part: Any) -> bool:
    """Whether it is a list or tuple of rows or parts; a PackedSequence mixes its rows by time."""
    return _is_sequence(part) and not isinstance(part, PackedSequence)


def _by_row(part: Any, size: int) -> bool:
    """Whether a list or tuple inside a batch has an item per row, not a part per item.

    Raises:
        DataError: it has neither ``size`` items nor parts, or may be meant either way.
    """
    if hasattr(part, "_fields") or not part:  # a named tuple has parts
        return False
    inner = [v for v in part if isinstance(v, Tensor | np.ndarray | Mapping | tuple | list)]
    if len(part) != size:
        if not inner and not all(v is None for v in part):
            raise DataError(
                f"a {type(part).__name__} of {len(part)} items in a batch of {size} ids."
            )
        return False
    if len(inner) < size or not all(_leads(v, size) for v in inner):
        return True
    raise DataError(
        f"a {type(part).__name__} of {size} items in a batch of {size} ids, each of which leads "
        f"with {size} itself: one item a row, or parts that have all rows? Stack the items, or put "
        "the parts into a mapping."
    )


def _leads(part: Any, size: int) -> bool:
    """Whether everything in ``part`` leads with ``size``."""
    if isinstance(part, Tensor | np.ndarray):
        return part.ndim > 0 and part.shape[0] == size
    if isinstance(part, Mapping):
        return bool(part) and all(_leads(v, size) for v in part.values())
    return _is_sequence(part) and len(part) == size


def _sequence(like: Any, items: list[Any]) -> Any:
    if hasattr(like, "_fields"):
        return type(like)(*items)
    return items if type(like) is list else type(like)(items)


def _mapping(like: Mapping[Any, Any], items: dict[Any, Any]) -> Any:
    if type(like) is dict:
        return items
    try:
        return type(like)(items)  # pyright: ignore[reportCallIssue]
    except TypeError:  # it is made in another way, as a defaultdict is
        if not isinstance(like, MutableMapping):
            return items
        made = copy.copy(like)
        made.update(items)
        return made


def _fields(like: Any, change: Callable[[Any], Any]) -> Any:
    made = copy.copy(like)
    for field in dataclasses.fields(like):
        object.__setattr__(made, field.name, change(getattr(like, field.name)))
    return made


def take(candidates: Candidates, rows: Tensor) -> Candidates:
    """Returns some rows of a candidate batch, with their ids.

    Args:
        candidates: B rows.
        rows: [K] int64 positions.

    >>> take(Candidates(torch.tensor([7, 8, 9]), {"x": torch.eye(3)}), torch.tensor([2])).ids
    tensor([9])
    """
    ids, batch = candidates
    return Candidates(ids[rows.to(ids.device)], gather(batch, rows, ids.numel()))


def device_of(model: nn.Module) -> torch.device:
    """Returns the device of a model's first parameter; the CPU if it has none.

    >>> device_of(nn.Linear(1, 1))
    device(type='cpu')
    """
    return next(model.parameters(), torch.empty(0)).device


def map_batch(batch: Any, on_tensor: Callable[[Tensor], Any]) -> Any:
    """``batch`` with its tensors mapped, its structure and all else kept."""
    if isinstance(batch, Tensor):
        return on_tensor(batch)
    return _inside(batch, lambda part: map_batch(part, on_tensor))


def _inside(batch: Any, change: Callable[[Any], Any]) -> Any:
    """``batch`` with ``change`` applied to its parts; itself if it has none."""
    if _is_sequence(batch):
        return _sequence(batch, [change(part) for part in batch])
    if isinstance(batch, Mapping):
        return _mapping(batch, {key: change(part) for key, part in batch.items()})
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        return _fields(batch, change)
    return batch


def beside(tensor: Tensor, other: Tensor) -> Tensor:
    """``tensor`` on the device of ``other``.

    Skips ``Tensor.to`` if both are on the CPU: two flags cost less than a ``to`` that does nothing.
    """
    if tensor.is_cpu and other.is_cpu:
        return tensor
    return tensor.to(other.device, non_blocking=not other.is_cpu)  # or it is read too early


def to_device(batch: Any, device: torch.device) -> Any:
    """``batch`` with its tensors on ``device``; copies from pinned memory do not block."""
    if isinstance(batch, tuple):  # the usual case on a CPU, by hand: it comes up at every step
        for part in batch:
            if not isinstance(part, Tensor) or part.device != device:
                break
        else:
            return batch
    return _moved(batch, device, device.type != "cpu")  # or values are read too early


def _moved(part: Any, device: torch.device, non_blocking: bool) -> Any:
    if isinstance(part, Tensor):
        return part.to(device, non_blocking=non_blocking)
    hook = _hook_of(part) if _HOOKS else None
    if hook is not None:
        return hook.to_device(part, device)
    return _inside(part, lambda inner: _moved(inner, device, non_blocking))
