"""Tasks: how to get inputs, labels, logits, features and per-example losses from (model, batch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from reducible.types import DataError, require_between

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_INPUT_KEYS = ("inputs", "input", "x", "image", "images", "pixel_values")
_NO_LABEL_IS_IGNORED = -(2**62)

Field = str | int | Callable[[Any], Any]
"""Where something stands in a batch: a key, a position, or a function of the batch."""


class Outputs(NamedTuple):
    """What a forward pass gives."""

    logits: Tensor  # [B, C]
    features: Tensor | None  # [B, D] input of the last linear layer, where asked for


class Task(ABC):
    """How a model is run on a batch, and what its loss is, example by example."""

    @abstractmethod
    def targets(self, batch: Any) -> Tensor | None:
        """[B] int64 labels of the batch; None where the task has none."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """Run the model in the mode it is in; features only where asked for."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B] loss of each example."""

    def side_by_side(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, M] loss of each example under each of M logits, [B, C, M]."""
        rows, _, several = logits.shape
        flat = logits.transpose(1, 2).flatten(0, 1)  # [B·M, C]
        loss = self.loss(flat, targets.repeat_interleave(several))
        return per_example(loss, rows * several).view(rows, several)


@final
class Classification(Task):
    """Single-label classification by cross-entropy.

    Batches are ``(inputs, targets)`` pairs or mappings; what is not named is found: the targets
    under one of labels, label, targets, target, y; the inputs under inputs, input, x, image,
    images, pixel_values, else all that is not the target is passed to the model by keyword.

    Args:
        inputs: key, position or function of the batch.
        targets: the same, for the labels.
        features: name of the last linear layer; found by a trial pass where None.
        label_smoothing: of the cross-entropy, in [0, 1).
    """

    def __init__(
        self,
        *,
        inputs: Field | None = None,
        targets: Field | None = None,
        features: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        require_between("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
        self._inputs = inputs
        self._targets = targets
        self._features = features
        self._smoothing = label_smoothing
        self._heads: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    def targets(self, batch: Any) -> Tensor:
        """[B] int64 labels."""
        found = self._find_targets(batch)
        if not isinstance(found, Tensor) or found.is_floating_point() or found.dim() != 1:
            what = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(
                found, Tensor
            ) else type(found).__name__  # fmt: skip
            raise DataError(
                f"labels must be a tensor of whole numbers of shape [B], got {what}. Name the "
                "labels: Classification(targets=<key, position or function>)."
            )
        return found.long()

    def _find_targets(self, batch: Any) -> Any:
        if self._targets is not None:
            return _get(batch, self._targets, "targets")
        if isinstance(batch, Mapping):
            key = next((k for k in _TARGET_KEYS if k in batch), None)
            if key is not None:
                return batch[key]
        elif isinstance(batch, tuple | list) and len(batch) == 2:
            return batch[1]
        raise DataError(
            f"cannot find the labels in a batch of {_describe(batch)}. Name them: "
            "Classification(inputs=…, targets=<key, position or function>)."
        )

    def _call(self, model: nn.Module, batch: Any) -> Any:
        if self._inputs is not None:
            return model(_get(batch, self._inputs, "inputs"))
        if isinstance(batch, Mapping):
            key = next((k for k in _INPUT_KEYS if k in batch), None)
            if key is not None:
                return model(batch[key])
            return model(**{k: v for k, v in batch.items() if k not in _TARGET_KEYS})
        if isinstance(batch, tuple | list) and batch:
            return model(batch[0])
        raise DataError(
            f"cannot find the inputs in a batch of {_describe(batch)}. Name them: "
            "Classification(inputs=<key, position or function>, targets=…)."
        )

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """Logits [B, C], and the input of the last linear layer [B, D] where asked for."""
        if not features:
            return Outputs(_logits(self._call(model, batch)), None)
        head = self._head(model, batch)
        caught: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            logits = _logits(self._call(model, batch))
        finally:
            hook.remove()
        if not caught or caught[-1].dim() != 2:
            shape = tuple(caught[-1].shape) if caught else "nothing"
            raise DataError(
                f"the last linear layer saw {shape}, not [B, D]. Name the layer whose input are "
                "the features: Classification(features='<module name>')."
            )
        return Outputs(logits, caught[-1])

    def _head(self, model: nn.Module, batch: Any) -> nn.Module:
        """The last linear layer: by name, or the one whose output are the logits."""
        if self._features is not None:
            try:
                return model.get_submodule(self._features)
            except AttributeError as error:
                raise DataError(f"the model has no module {self._features!r}: {error}") from error
        if model in self._heads:
            return self._heads[model]
        made: list[tuple[nn.Module, int]] = []
        hooks = [
            module.register_forward_hook(lambda m, _, out: made.append((m, out.data_ptr())))
            for module in model.modules()
            if isinstance(module, nn.Linear)
        ]
        try:
            logits = _logits(self._call(model, batch))
        finally:
            for hook in hooks:
                hook.remove()
        for module, pointer in reversed(made):
            if pointer == logits.data_ptr():
                self._heads[model] = module
                return module
        raise DataError(
            "no nn.Linear of the model puts out the logits, so the features cannot be found. "
            "Name the layer whose input they are: Classification(features='<module name>')."
        )

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """−log softmax(z_i)[y_i]: [B]."""
        try:
            return F.cross_entropy(
                logits,
                targets,
                reduction="none",
                label_smoothing=self._smoothing,
                ignore_index=_NO_LABEL_IS_IGNORED,
            )
        except (IndexError, RuntimeError, ValueError) as error:
            raise DataError(self._why(logits, targets)) from error

    def side_by_side(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, M] from [B, C, M]: a tenth of the time that B·M rows would take."""
        return self.loss(logits, targets.unsqueeze(1).expand(-1, logits.shape[2]))

    def _why(self, logits: Tensor, targets: Tensor) -> str:
        if logits.dim() != 2 or logits.shape[0] != targets.shape[0]:
            return (
                f"the model gave logits of shape {tuple(logits.shape)} for {targets.shape[0]} "
                "labels; [B, C] was expected."
            )
        outside = targets[(targets < 0) | (targets >= logits.shape[1])].unique()
        return (
            f"labels outside [0, {logits.shape[1]}): {outside[:5].tolist()}. The model has "
            f"{logits.shape[1]} classes; number the classes from 0, and leave out rows that are "
            "marked to be ignored."
        )


def _get(batch: Any, field: Field, what: str) -> Any:
    if callable(field):
        return field(batch)
    try:
        return batch[field]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"no {what} at {field!r} in a batch of {_describe(batch)}.") from error


def _logits(output: Any) -> Tensor:
    """The logits of a model output: a tensor, ``.logits``, or the first entry of a tuple."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple | list) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise DataError(
            f"the model returned {type(output).__name__}: a tensor of logits [B, C], an object "
            "with .logits, or a tuple that starts with them was expected."
        )
    return logits


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with keys {sorted(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of length {len(batch)}"
    return type(batch).__name__


def per_example(loss: Tensor, rows: int) -> Tensor:
    """``loss`` if it is [rows]; raises DataError where it was reduced.

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
