"""What a model says in its training pass, for those who learn from it."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from reducible.tasks import Task
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
        task: finds the logits in what the model returns, see ``Task.logits_of``.
        rows: K, how many are trained on.
        layers: listen to the layers too, from whose inputs the task takes features.

    Attributes:
        predictions: [K, C] its softmax; None before the pass.
        replay: stands in for the model, says again what it and its layers said, on these rows and
            without a pass; None before.
    """

    def __init__(self, model: nn.Module, task: Task, rows: int, *, layers: bool = False) -> None:
        self.predictions: Tensor | None = None
        self.replay: nn.Module | None = None
        self._task, self._rows = task, rows
        self._calls: list[_Call] = []  # of layers, in the pass that runs
        self._handles = [model.register_forward_hook(_Ear(self))]
        if layers:
            inside = [(name, module) for name, module in model.named_modules() if name]
            self._handles += [m.register_forward_hook(_Ear(self, name)) for name, m in inside]
        weakref.finalize(self, _remove, self._handles).atexit = False

    def note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Take in what a layer was given and returned."""
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            linear = isinstance(module, nn.Linear)
            self._calls.append(_Call(name, linear, args[0].detach(), output.detach()))

    def hear(self, output: Any) -> None:
        """Take in what the model returned, where it is of these rows; listens no longer then."""
        calls, self._calls = self._calls, []
        try:
            logits = self._task.logits_of(output)
        except DataError:
            return
        if logits is not None and logits.dim() == 2 and logits.shape[0] == self._rows:
            logits = logits.detach()
            self.predictions = logits.float().softmax(1)
            self.replay = _Says(logits, calls)
            _remove(self._handles)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class _Call(NamedTuple):
    """What a layer was given and returned."""

    name: str
    linear: bool
    given: Tensor
    returned: Tensor


class _Ear:
    """The hook of one who listens. Copies of the model and files of it have one that is deaf."""

    def __init__(self, listener: Overheard | None = None, layer: str = "") -> None:
        self._listener = (lambda: None) if listener is None else weakref.ref(listener)
        self._layer = layer

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        listener = self._listener()
        if listener is None:
            return
        if self._layer:
            listener.note(self._layer, module, args, output)
        else:
            listener.hear(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ear, ()


@final
class _Says(nn.Module):
    """Stands in for a model that has run already, its layers for those that were listened to."""

    def __init__(self, output: Any, calls: Sequence[_Call] = ()) -> None:
        super().__init__()
        self._output = output
        self._given = [call.given for call in calls]
        self._layers = nn.ModuleList(
            (_SaysLinear if call.linear else _SaysLayer)(call.returned) for call in calls
        )
        self._named = {call.name: at for at, call in enumerate(calls)}

    def get_submodule(self, target: str) -> nn.Module:
        """The layer of that name, as it ran last."""
        if target not in self._named:
            raise AttributeError(f"no layer {target!r} was seen to take in and return a tensor")
        return self._layers[self._named[target]]

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        for layer, given in zip(self._layers, self._given, strict=True):
            layer(given)
        return self._output


class _SaysLayer(nn.Module):
    """Stands in for a layer."""

    def __init__(self, output: Tensor) -> None:
        nn.Module.__init__(self)
        self._output = output

    def forward(self, input: Tensor) -> Tensor:
        return self._output


class _SaysLinear(_SaysLayer, nn.Linear):
    """Stands in for a linear layer."""
