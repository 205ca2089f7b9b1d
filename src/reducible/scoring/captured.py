"""Captures what a model predicts in its training pass, for those who learn from it."""

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
class CapturedPredictions:
    """Captures what a model predicts of a batch in its training pass, which costs no other pass.

    The first forward pass with gradients that gives logits of as many rows is captured; scoring and
    evaluation are without gradients. Nothing is captured if rows come in smaller parts, if the task
    reads its logits in a way of its own, or inside ``torch.compile``. A compiled model is captured
    if it is itself the one that is given here.

    Args:
        model: the model being trained.
        task: finds the logits in what the model returns, see ``Task.logits_of``.
        rows: K, how many are trained on.
        layers: capture the layers too, from whose inputs the task takes features.

    Attributes:
        predictions: [K, C] its softmax; None before the pass.
        replay: stands in for the model: returns again what it and its layers returned for these
            rows, without a pass; None before.
    """

    def __init__(self, model: nn.Module, task: Task, rows: int, *, layers: bool = False) -> None:
        self.predictions: Tensor | None = None
        self.replay: nn.Module | None = None
        self._task, self._rows = task, rows
        self._calls: list[_Call] = []  # of layers, in the pass that runs
        self._handles = [model.register_forward_hook(_CaptureHook(self))]
        if layers:
            inside = [(name, module) for name, module in model.named_modules() if name]
            hooks = [(module, _CaptureHook(self, name)) for name, module in inside]
            self._handles += [module.register_forward_hook(hook) for module, hook in hooks]
        weakref.finalize(self, _remove, self._handles).atexit = False

    def note(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        """Take in what a layer was given and returned."""
        if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
            linear = isinstance(module, nn.Linear)
            self._calls.append(_Call(name, linear, args[0].detach(), output.detach()))

    def capture(self, output: Any) -> None:
        """Take in what the model returned if it is of these rows; then the hooks are removed."""
        calls, self._calls = self._calls, []
        try:
            logits = self._task.logits_of(output)
        except DataError:
            return
        if logits is not None and logits.dim() == 2 and logits.shape[0] == self._rows:
            logits = logits.detach()
            self.predictions = logits.float().softmax(1)
            self.replay = _Replay(logits, calls)
            _remove(self._handles)


def _remove(handles: list[RemovableHandle]) -> None:
    for handle in handles:
        handle.remove()


class _Call(NamedTuple):
    """A layer by name, with what it was given and returned."""

    name: str
    linear: bool
    given: Tensor
    returned: Tensor


class _CaptureHook:
    """Hands on what a module returned. In copies of the model, and files of it, it does nothing."""

    def __init__(self, captures: CapturedPredictions | None = None, layer: str = "") -> None:
        self._captures = (lambda: None) if captures is None else weakref.ref(captures)
        self._layer = layer

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        captures = self._captures()
        if captures is None:
            return
        if self._layer:
            captures.note(self._layer, module, args, output)
        else:
            captures.capture(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _CaptureHook, ()


@final
class _Replay(nn.Module):
    """Stands in for a model that has run already, its layers for those that were captured."""

    def __init__(self, output: Any, calls: Sequence[_Call] = ()) -> None:
        super().__init__()
        self._output = output
        self._given = [call.given for call in calls]
        self._layers = nn.ModuleList(
            (_ReplayedLinear if call.linear else _ReplayedLayer)(call.returned) for call in calls
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


class _ReplayedLayer(nn.Module):
    """Stands in for a layer."""

    def __init__(self, output: Tensor) -> None:
        nn.Module.__init__(self)
        self._output = output

    def forward(self, input: Tensor) -> Tensor:
        return self._output


class _ReplayedLinear(_ReplayedLayer, nn.Linear):
    """Stands in for a linear layer."""
