"""The loss that goes with chosen rows, and a look at whether losses are finite."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reducible.tasks import per_example
from reducible.types import SelectionError, name_ids


def weighted_mean(per_example_loss: Tensor, weight: Tensor, *, ids: Tensor | None = None) -> Tensor:
    """Σ w_i·L_i / K over the K rows given; never divided by Σ w, which would bias it.

    Args:
        per_example_loss: [K].
        weight: [K].
        ids: [K] int64, named in errors; rows are named by their number if None.

    Returns:
        [] of the loss's dtype.

    Raises:
        DataError: the loss is already reduced, or the shapes differ.
        SelectionError: a loss is not finite. On an accelerator this is not looked at, because the
            mean would have to be waited for.

    >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5]))
    tensor(1.2500)
    """
    loss = per_example(per_example_loss, weight.shape[0])
    mean = (loss * weight.to(loss.dtype)).sum() / weight.shape[0]
    if mean.is_cpu and not torch.compiler.is_compiling() and not math.isfinite(mean.detach()):
        rows = torch.arange(loss.numel()) if ids is None else ids.cpu()
        for what, values in (("the training loss", loss.detach()), ("the weight", weight)):
            require_finite_rows(what, values, rows, "rows" if ids is None else "ids")
    return mean


def require_finite_rows(what: str, values: Tensor, names: Tensor, called: str) -> None:
    """Raise SelectionError naming the rows at which ``values`` ([K]) are not finite."""
    if math.isfinite(values.sum()):
        return
    bad = ~values.isfinite()
    if bool(bad.any()):
        raise SelectionError(
            f"{what} is not finite for {int(bad.sum())} of {values.numel()} rows, {called} "
            f"{name_ids(names[bad])}: the model has diverged (learning rate too high?), or its "
            "inputs hold NaN. Nothing is trained on it."
        )
