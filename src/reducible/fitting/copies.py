"""Rows whose inputs are equal, found by a number per row."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from reducible.types import name_ids

_AT_ONCE = 1 << 22  # numbers that are mixed at a time: 32 MiB
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ODD = 0x9E3779B97F4A7C15 - 2**64  # 2**64 over the golden ratio, as int64


def input_hashes(batch: Any, targets: Tensor) -> Tensor | None:
    """Returns a number per row that is equal if all inputs are: [B] int64, or None.

    A multilinear hash of the bits, Σ_j v_ij·m_j mod 2^64: zeros behind the end change nothing, so
    that padding to another length makes no other row. Columns of whole numbers, [B], such as
    labels or lengths, are no inputs, nor are the targets; None if nothing is left.

    Args:
        batch: tensors that lead with B, nested as they may be.
        targets: of the task, [B] or [B, L].
    """
    total: Tensor | None = None  # [B]
    inputs = [t for t in _tensors(batch) if _is_input(t, targets)]
    for place, tensor in enumerate(inputs):
        mixed = _mixed(tensor.detach()) * _multipliers(place + 1, tensor.device)[-1]
        total = mixed if total is None else total + mixed
    return total


def warn_of_copies(hashes: Tensor, ids: Tensor, fold_of: Tensor) -> None:
    """Warn if rows of equal inputs lie in different folds, naming ids.

    Args:
        hashes: [N] int64 of ``input_hashes``.
        ids: [N] int64 of the same rows.
        fold_of: [N] int64.
    """
    order = hashes.argsort(stable=True)
    _, run = hashes[order].unique_consecutive(return_inverse=True)  # [N] which value it is
    folds = fold_of[order]
    runs = int(run[-1]) + 1
    least = torch.full((runs,), int(folds.max())).scatter_reduce_(0, run, folds, "amin")
    most = torch.zeros(runs, dtype=torch.int64).scatter_reduce_(0, run, folds, "amax")
    apart = ids[order][(least < most)[run]]  # rows with a copy in another fold
    if apart.numel():
        warnings.warn(
            f"{apart.numel()} of {ids.numel()} examples have an exact copy in another fold, ids "
            f"{name_ids(apart)}: each was scored by a model that had trained on its copy, so that "
            "its irreducible loss is too low. Keep copies together: "
            "cross_fit_irreducible_loss(…, groups=<the same number for all copies, by id>).",
            stacklevel=4,
        )


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    if isinstance(batch, Mapping):
        batch = [batch[key] for key in sorted(batch, key=str)]
    return [t for part in batch for t in _tensors(part)] if isinstance(batch, tuple | list) else []


def _is_input(tensor: Tensor, targets: Tensor) -> bool:
    if tensor.dim() == 0 or tensor.shape[0] != targets.shape[0]:
        return False
    if tensor.shape == targets.shape and tensor.data_ptr() == targets.data_ptr():
        return False
    return tensor.dim() > 1 or tensor.is_floating_point()


def _mixed(tensor: Tensor) -> Tensor:
    """[B] int64: Σ_j v_ij·m_j of the bits v of each row."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.dtype == torch.bool:
        tensor = tensor.to(torch.uint8)
    rows = tensor.reshape(tensor.shape[0], -1).contiguous()  # [B, D]
    bits = rows.view(_BITS[rows.element_size()]) if rows.is_floating_point() else rows
    by = _multipliers(bits.shape[1], bits.device)  # [D]
    width = max(1, _AT_ONCE // max(1, bits.shape[0]))
    total = torch.zeros(bits.shape[0], dtype=torch.int64, device=bits.device)
    for begin in range(0, bits.shape[1], width):
        part = slice(begin, begin + width)
        total += (bits[:, part].long() * by[part]).sum(dim=1)
    return total


def _multipliers(count: int, device: torch.device) -> Tensor:
    """[count] odd int64 in disorder, the same for every count: a counter, mixed as splitmix64."""
    m = torch.arange(1, count + 1, device=device) * _ODD
    for shift, by in ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64)):
        m = (m ^ (m >> shift)) * by
    return m ^ (m >> 31) | 1
