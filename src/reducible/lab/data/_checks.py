"""Checks labels, for every function that reads them."""

import torch
from torch import Tensor

from reducible.types import ConfigurationError, DataError


def check_targets(targets: Tensor, num_classes: int) -> None:
    """Raise DataError unless ``targets`` is [N] int64, N ≥ 1, every label in [0, num_classes)."""
    if targets.dtype != torch.int64 or targets.dim() != 1:
        raise DataError(
            f"targets must be [N] int64, one class per example; got {targets.dtype} of shape "
            f"{tuple(targets.shape)}. One-hot or float labels? Use targets.argmax(1) or "
            "targets.long()."
        )
    if not targets.numel():
        raise DataError(
            "the data set is empty: targets has no rows. Did a filter, or a share of 0, drop all?"
        )
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise DataError(
            f"targets must lie in [0, {num_classes}); got {low} to {high}. Labels that start at 1, "
            "or a 'no label' mark such as -1? Shift or drop them, or raise num_classes."
        )


def check_classes(num_classes: int, least: int, why: str) -> None:
    """Raise ConfigurationError unless there are at least ``least`` classes; ``why`` says why."""
    if num_classes < least:
        raise ConfigurationError(f"{why} needs at least {least} classes, got {num_classes}.")
