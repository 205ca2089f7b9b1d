"""The protocol of tasks, and losses example by example."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from reducible.types import DataError


class Outputs(NamedTuple):
    """Results of a forward pass."""

    logits: Tensor  # [B, C]
    features: Tensor | None  # [B, D] input of the last linear layer, if asked for


class Task(ABC):
    """Runs a model on a batch, and says what its loss is, example by example.

    >>> class SeveralLabels(Task):
    ...     def targets(self, batch):
    ...         return batch[1]  # [B, L]
    ...     def forward(self, model, batch, *, features=False):
    ...         return Outputs(model(batch[0]), None)
    ...     def loss(self, logits, targets):
    ...         return (logits - targets).square().mean(1)  # [B]
    >>> import torch
    >>> SeveralLabels().loss(torch.zeros(2, 3), torch.ones(2, 3))
    tensor([1., 1.])
    """

    gives: frozenset[str] = frozenset({"loss", "logits", "features", "mc_logits", "groups"})
    """Evidence that rules may ask of it beside the targets; a rule that needs more is refused."""

    needs_targets: bool = True
    """Whether its loss reads targets; if not, examples without any have a loss all the same."""

    @abstractmethod
    def targets(self, batch: Any) -> Tensor | None:
        """[B] int64 labels of the batch; None if the task has none."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """Run the model in the mode it is in; features only if asked for."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B] loss of each example."""

    def labels(self, targets: Tensor) -> Tensor:
        """[B] or [B, L]: what data are known by; the targets themselves, if they have one shape."""
        return targets

    def unpadded(self, batch: Any) -> Any:
        """``batch`` without padding that no row needs; as it is if there is none."""
        return batch

    def logits_of(self, output: Any) -> Tensor | None:
        """[B, C] logits in what a model returned by itself, in a pass that the task did not make.

        So a scorer can learn from the training pass. None, as here, for a task that reads outputs
        in a way of its own: the model is then run once more.

        Raises:
            DataError: an output without logits.
        """
        return None

    def side_by_side(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, M] loss of each example under each of M logits, [B, C, M]."""
        rows, _, several = logits.shape
        flat = logits.transpose(1, 2).flatten(0, 1)  # [B·M, C]
        loss = self.loss(flat, targets.repeat_interleave(several))
        return per_example(loss, rows * several).view(rows, several)


def per_example(loss: Tensor, rows: int) -> Tensor:
    """``loss`` if it is [rows]; raises DataError if it was reduced.

    >>> import torch
    >>> per_example(torch.ones(3), 3).shape
    torch.Size([3])
    """
    if loss.shape != (rows,):
        raise DataError(
            f"a loss of shape {tuple(loss.shape)} for {rows} rows: it is already reduced. Compute "
            "it with reduction='none', one number per example."
        )
    return loss
