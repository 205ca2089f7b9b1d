"""Labels as people have them: lists, arrays, columns of numbers; what is none says what it is."""

from __future__ import annotations

import hashlib
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from reducible.types import DataError, name_ids


def class_labels(found: Any, cure: str) -> Tensor:
    """Returns ``found`` as [N] int64 if it holds one class per example.

    Args:
        found: a tensor of whole numbers, [N] or [N, 1], on any device.
        cure: a sentence saying how to name other labels, for the error.

    Raises:
        DataError: what ``found`` is in place of labels (one-hot rows, floats, strings, …).
    """
    if isinstance(found, Tensor) and not (found.is_floating_point() or found.is_complex()):
        if found.dim() == 1:
            return found.long()
        if found.dim() == 2 and found.shape[1] == 1:
            return found.squeeze(1).long()
    raise DataError(f"labels must be whole numbers of shape [B], got {_what(found)} {cure}")


def as_labels(found: Any, cure: str) -> Tensor:
    """Returns ``class_labels`` of a list, a tuple, a NumPy array or a tensor: [N] int64.

    >>> as_labels([2, 0, 1], "")
    tensor([2, 0, 1])
    """
    return class_labels(as_tensor(found), cure)


def as_tensor(found: Any) -> Any:
    """Returns ``found`` as a tensor, or as it is if it is no list or array of numbers."""
    if isinstance(found, Tensor | str):
        return found
    try:
        return torch.as_tensor(found)
    except (TypeError, ValueError, RuntimeError):
        return found


def key_ids(keys: Any) -> Tensor:
    """Returns an int64 id for each of ``keys``: [N], not negative, the same in every process.

    For rows that are told apart by strings. Call it once, on all keys of the data set, and keep the
    ids beside the rows; hashing in the loop costs time at every step.

    Args:
        keys: N strings, none twice.

    Raises:
        DataError: a key comes twice, or two keys have one id (of 10**9 keys one pair in 20 cases).

    >>> key_ids(["a", "b"])
    tensor([1702698405120146464, 4226560797588928834])
    """
    keys = [str(key) for key in keys]
    if len(set(keys)) < len(keys):
        ordered = sorted(keys)
        twice = next(a for a, b in pairwise(ordered) if a == b)
        raise DataError(f"key {twice!r} comes more than once, so it does not tell rows apart.")
    digests = (hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys)
    ids = torch.tensor([int.from_bytes(d, "little") >> 1 for d in digests], dtype=torch.int64)
    values, counts = ids.unique(return_counts=True)
    if values.numel() < ids.numel():
        raise DataError(
            f"two keys have one id, {name_ids(values[counts > 1])}: number the rows instead."
        )
    return ids


def _what(found: Any) -> str:
    """Describes what was found in the place of labels, and the way from it to labels."""
    if not isinstance(found, Tensor):
        return _no_tensor(found)
    what = f"{str(found.dtype).removeprefix('torch.')} of shape {tuple(found.shape)}"
    if found.dim() == 2 and _is_one_hot(found):
        return f"{what}, which is one-hot. Take y.argmax(dim=1) for them."
    if found.is_floating_point():
        if bool((found == found.round()).all()) and found.dim() <= 2:
            return f"{what}: floats that hold whole numbers. Take y.long() for them."
        return f"{what}: no classes. Probabilities, or targets of a regression?"
    if found.dim() == 2:
        return f"{what}: {found.shape[1]} numbers for each example. Several labels, or token ids?"
    return f"{what}."


def _is_one_hot(found: Tensor) -> bool:
    """Whether every row of [N, C] is a one among zeros, or one of two classes in [N, 2]."""
    zeros_and_ones = bool(((found == 0) | (found == 1)).all())
    return found.shape[1] > 1 and zeros_and_ones and bool((found.sum(dim=1) == 1).all())


def _no_tensor(found: Any) -> str:
    if isinstance(found, list | tuple) and found and isinstance(found[0], str):
        return (
            f"strings such as {found[0]!r}. Number the classes once, outside the loop: "
            "{name: i for i, name in enumerate(sorted(set(labels)))}."
        )
    return f"{type(found).__name__}. Numbers? Make them a tensor in the loader's collate_fn."
