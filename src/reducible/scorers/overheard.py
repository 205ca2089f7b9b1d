"""What a model says in its training pass, for a scorer that learns from it."""

from __future__ import annotations

import weakref
from typing import Any, final

import torch
from torch import Tensor, nn

from reducible.tasks import Classification, SequenceClassification, Task
from reducible.types import DataError


@final
class Overheard:
    """What a model predicts of a batch in its training pass; listening costs no pass of its own.

    Heard is the first forward pass with gradients that gives logits of as many rows; scoring and
    evaluation are without gradients. Nothing is heard where rows come in smaller parts, where the
    task reads its logits in a way of its own, or from inside ``torch.compile``; a compiled model is
    heard where it is itself the one that is listened to.

    Args:
        model: the model being trained.
        task: what the batch means.
        batch: the rows.
        rows: K, their number.

    Attributes:
        predictions: [K, C] its softmax; None before the pass.
    """

    def __init__(self, model: nn.Module, task: Task, batch: Any, rows: int) -> None:
        self.predictions: Tensor | None = None
        self._task, self._batch, self._rows = task, batch, rows
        self._handle = model.register_forward_hook(_Ear(self))
        weakref.finalize(self, self._handle.remove).atexit = False

    def hear(self, output: Any) -> None:
        """Take in what the model returned, where it is of these rows; listens no longer then."""
        if not isinstance(self._task, Classification | SequenceClassification):
            return
        try:
            logits = self._task.forward(_Says(output), self._batch).logits.detach()
        except DataError:
            return
        if logits.dim() == 2 and logits.shape[0] == self._rows:
            self.predictions = logits.float().softmax(1)
            self._handle.remove()


class _Ear:
    """The hook of one who listens. Copies of the model and files of it have one that is deaf."""

    def __init__(self, listener: Overheard | None = None) -> None:
        self._listener = (lambda: None) if listener is None else weakref.ref(listener)

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        listener = self._listener()
        if listener is not None:
            listener.hear(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ear, ()


@final
class _Says(nn.Module):
    """Stands in for a model that has run already."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._output
