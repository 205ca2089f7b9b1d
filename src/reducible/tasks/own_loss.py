"""A loss of one's own, example by example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

from torch import Tensor, nn

from reducible.tasks.base import Outputs, Task
from reducible.types import ConfigurationError, DataError


@final
class PerExampleLoss(Task):
    """Takes the loss of each example from a function: detection, ranking, contrastive pairs, ….

    Rules that choose by loss go with it, and rules that need none; others are refused.

    Args:
        loss_of: (model, batch) → [B] losses, one per example. Called without a graph to score.
        targets_of: batch → [B] or [B, …] labels, by which a store tells data from other data;
            None: ids alone tell.

    >>> import torch
    >>> def distance(model, batch):
    ...     return (model(batch["x"]) - batch["y"]).norm(dim=1)
    >>> task = PerExampleLoss(distance)
    >>> batch = {"x": torch.ones(2, 3), "y": torch.zeros(2, 3)}
    >>> task.loss(task.forward(nn.Identity(), batch).logits, task.targets(batch))
    tensor([1.7321, 1.7321])
    """

    gives = frozenset({"loss"})
    needs_targets = False

    def __init__(
        self,
        loss_of: Callable[[Any, Any], Tensor],
        *,
        targets_of: Callable[[Any], Tensor] | None = None,
    ) -> None:
        if not callable(loss_of):
            raise ConfigurationError(
                f"loss_of must be a function (model, batch) → [B], got {type(loss_of).__name__}."
            )
        self._loss_of, self._targets_of = loss_of, targets_of

    def targets(self, batch: Any) -> Tensor | None:
        """What ``targets_of`` says; None without it."""
        return None if self._targets_of is None else self._targets_of(batch)

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """The losses themselves, [B], in the logits' stead."""
        found = self._loss_of(model, batch)
        if not isinstance(found, Tensor) or found.dim() != 1:
            shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise DataError(
                f"loss_of returned {shape}, not [B]: one loss per example was expected. Leave out "
                "the mean over the batch (reduction='none')."
            )
        return Outputs(found, None)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B], as they were computed."""
        return logits
