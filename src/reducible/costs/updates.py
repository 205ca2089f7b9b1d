"""A plain update, for measurements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from reducible.tasks import Task, per_example
from reducible.types import DataError


def plain_update(
    model: nn.Module, optimizer: torch.optim.Optimizer, task: Task, batch: Any
) -> Tensor:
    """Makes one update on the mean loss of ``batch``; returns the losses before it, [K].

    Raises:
        DataError: the task has no targets.
    """
    targets = task.targets(batch)
    if targets is None:
        raise DataError("the task has no targets, so there is no step to measure.")
    loss = per_example(task.loss(task.forward(model, batch).logits, targets), len(targets))
    optimizer.zero_grad()
    loss.mean().backward()
    optimizer.step()
    return loss.detach()
