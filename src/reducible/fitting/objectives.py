"""Defines what a fit minimises, and holds what it says of examples that it never saw."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor, nn

from reducible.tasks import Task, per_example
from reducible.types import Candidates


@dataclass(slots=True)
class Scores:
    """Holds what one model says of the examples it never saw."""

    ids: Tensor  # [N] int64
    labels: Tensor | None  # [N] int64, or [N, L] if an example has several; None: no targets
    loss: Tensor  # [N] float32, or [N, G]
    floor_rows: Tensor | None  # [M, C] p(k | x) of a bounded number of rows, of classes
    floor_labels: Tensor | None  # [M] int64, or [M, L], labels of the same rows
    hashes: Tensor | None = None  # [N] int64 of the inputs, if asked for
    model_name: str = ""
    kept_epoch: float = 0.0
    mean_losses: list[float] = field(default_factory=list[float])


class Objective(Protocol):
    """Defines what a fit minimises, how it scores, and the loss that picks the checkpoint."""

    def update_loss(self, model: nn.Module, candidates: Candidates, targets: Tensor) -> Tensor:
        """[B] loss of each example in an update."""
        ...

    def score(
        self, model: nn.Module, candidates: Candidates, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Loss [B] or [B, G] of examples never trained on, and logits [B, C]."""
        ...

    def criterion(self, scores: Scores) -> float:
        """The lowest decides which checkpoint is kept."""
        ...

    def whole(self) -> Objective:
        """Scores the kept checkpoint; itself if ``score`` leaves nothing out."""
        ...


@dataclass(frozen=True, slots=True)
class MeanLoss:
    """The task's loss, each example weighted by ``weight(candidates, targets)`` if given.

    Attributes:
        task: what batches mean.
        smoothing: of the labels, in updates only.
        weight: (ids [B], targets [B]) → [B].
    """

    task: Task
    smoothing: float = 0.0
    weight: Callable[[Tensor, Tensor], Tensor] | None = None

    def update_loss(self, model: nn.Module, candidates: Candidates, targets: Tensor) -> Tensor:
        """(1 − s)·L_i + s·mean_c(−log p_ic), weighted."""
        logits = self.task.forward(model, candidates.batch).logits  # [B, C]
        loss = per_example(self.task.loss(logits, targets), candidates.ids.numel())  # [B]
        if self.smoothing:
            spread = -logits.log_softmax(1).mean(1)  # [B] loss against the uniform label
            loss = (1.0 - self.smoothing) * loss + self.smoothing * spread
        return loss if self.weight is None else loss * self.weight(candidates.ids, targets)

    def score(
        self, model: nn.Module, candidates: Candidates, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """L_i without weights or smoothing."""
        logits = self.task.forward(model, candidates.batch).logits  # [B, C]
        if logits.dim() == 2:
            logits = logits.float()
        loss = per_example(self.task.loss(logits, targets), candidates.ids.numel())  # [B]
        return loss, logits

    def criterion(self, scores: Scores) -> float:
        """The (weighted) mean loss."""
        if self.weight is None:
            return float(scores.loss.double().mean())
        assert scores.labels is not None  # weights are of labels
        w = self.weight(scores.ids, scores.labels).double()
        return float((scores.loss * w).sum() / w.sum())

    def whole(self) -> MeanLoss:
        """Itself."""
        return self
