"""Targets that are numbers, several labels at once, and a label per pixel."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.tasks.base import Outputs, Task
from reducible.tasks.fields import Field, call_on_inputs, find_targets, logits_in
from reducible.types import DataError, require_one_of


class _OfInputs(Task):
    """A model of inputs alone whose output is compared with targets of its shape, or nearly so."""

    gives = frozenset({"loss"})

    def __init__(self, *, inputs: Field | None = None, targets: Field | None = None) -> None:
        self._inputs, self._targets = inputs, targets

    @property
    def _name(self) -> str:
        return type(self).__name__

    def targets(self, batch: Any) -> Tensor:
        """The targets of the batch, as a tensor that leads with B."""
        found = find_targets(batch, self._targets, self._name)
        return found if isinstance(found, Tensor) else torch.as_tensor(found)

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """The model's output, or the ``.logits`` in it."""
        return Outputs(logits_in(call_on_inputs(model, batch, self._inputs, self._name)), None)

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B] loss of each example."""

    def _require_like(self, logits: Tensor, targets: Tensor, expected: torch.Size) -> None:
        if targets.shape != expected:
            raise DataError(
                f"{self._name}: targets of shape {tuple(targets.shape)} for an output of "
                f"{tuple(logits.shape)}; {tuple(expected)} was expected. Reshape one of them: "
                "broadcasting would compare every row with every other."
            )


@final
class Regression(_OfInputs):
    """Numbers as targets: the mean error over an example's outputs.

    Batches are as for ``Classification``.

    Args:
        error: ``"squared"``, ``"absolute"``, or ``"huber"`` (quadratic up to 1, then linear).
        inputs: key, position or function of the batch.
        targets: the same, for the targets: [B] or [B, …], floating or whole.

    >>> task = Regression()
    >>> task.loss(torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[1.0, 0.0], [3.0, 3.0]]))
    tensor([2., 9.])
    """

    def __init__(
        self, error: str = "squared", *, inputs: Field | None = None, targets: Field | None = None
    ) -> None:
        super().__init__(inputs=inputs, targets=targets)
        require_one_of("error", error, tuple(_ERRORS))
        self._error = _ERRORS[error]

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean error over each example's outputs: [B]."""
        if logits.shape == (*targets.shape, 1):
            logits = logits.squeeze(-1)
        self._require_like(logits, targets, logits.shape)
        error = self._error(logits, targets.to(logits.dtype), reduction="none")
        return error.flatten(1).mean(1) if error.dim() > 1 else error


_ERRORS = {"squared": F.mse_loss, "absolute": F.l1_loss, "huber": F.smooth_l1_loss}


@final
class MultiLabel(_OfInputs):
    """Any number of labels per example: binary cross-entropy, the mean over an example's labels.

    Batches are as for ``Classification``; targets are [B, L], 1 at labels that apply.

    Args:
        inputs: key, position or function of the batch.
        targets: the same, for the labels.

    >>> MultiLabel().loss(torch.zeros(2, 3), torch.tensor([[1, 0, 1], [0, 0, 0]]))
    tensor([0.6931, 0.6931])
    """

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean of −log p(label) over each example's labels: [B]."""
        self._require_like(logits, targets, logits.shape)
        loss = F.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), reduction="none"
        )
        return loss.flatten(1).mean(1)


@final
class DensePrediction(_OfInputs):
    """A class per pixel: cross-entropy, summed over an image's pixels.

    Logits are [B, C, H, W] (or with more or fewer sides), targets [B, H, W] int64.

    Args:
        ignore: label of pixels that count for nothing.
        reduce: ``"sum"`` over the pixels that count, or their ``"mean"``, which is comparable
            between images of which different shares are labelled.
        inputs: key, position or function of the batch.
        targets: the same, for the labels.

    >>> task = DensePrediction()
    >>> targets = torch.tensor([[[0, 1]], [[-100, 1]]])
    >>> task.loss(torch.zeros(2, 4, 1, 2), targets)
    tensor([2.7726, 1.3863])
    """

    def __init__(
        self,
        *,
        ignore: int = -100,
        reduce: str = "sum",
        inputs: Field | None = None,
        targets: Field | None = None,
    ) -> None:
        super().__init__(inputs=inputs, targets=targets)
        require_one_of("reduce", reduce, ("sum", "mean"))
        self._ignore, self._reduce = ignore, reduce

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Sum (or mean) of −log p(label) over each image's pixels: [B]; 0 if none counts."""
        self._require_like(logits, targets, torch.Size((logits.shape[0], *logits.shape[2:])))
        loss = F.cross_entropy(logits, targets, reduction="none", ignore_index=self._ignore)
        total = loss.flatten(1).sum(1)
        if self._reduce == "sum":
            return total
        return total / (targets != self._ignore).flatten(1).sum(1).clamp(min=1)
