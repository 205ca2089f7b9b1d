"""Single-label classification by cross-entropy; how the model is called is left open."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import torch.nn.functional as F
from torch import Tensor, nn

from reducible.loading.labels import class_labels
from reducible.tasks.base import Outputs, Task
from reducible.tasks.fields import Field, find_targets, logits_in
from reducible.types import DataError, require_between

_NO_LABEL_IS_IGNORED = -(2**62)


class CrossEntropy(Task):
    """Single-label classification by cross-entropy; how the model is called is left open."""

    def __init__(
        self, *, targets: Field | None, features: str | None, label_smoothing: float
    ) -> None:
        require_between("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
        self._targets = targets
        self._features = features
        self._smoothing = label_smoothing
        self._heads: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    @abstractmethod
    def _call(self, model: nn.Module, batch: Any) -> Any:
        """Returns what the model returns for the inputs of the batch."""

    def targets(self, batch: Any) -> Tensor:
        """[B] int64 labels, of whole numbers [B] or [B, 1]."""
        found = find_targets(batch, self._targets, self._name)
        return class_labels(
            found, f"Other labels are named as {self._name}(targets=<key, position or function>)."
        )

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """Logits [B, C], and the input of the last linear layer [B, D] if asked for."""
        if not features:
            return Outputs(logits_in(self._call(model, batch)), None)
        head = self._head(model, batch)
        caught: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            logits = logits_in(self._call(model, batch))
        finally:
            hook.remove()
        found = self._pooled(caught[-1], batch) if caught else None
        if found is None or found.dim() != 2:
            shape = "nothing" if found is None else tuple(found.shape)
            raise DataError(
                f"the last linear layer saw {shape}, not [B, D]. Name the layer whose input are "
                f"the features: {self._name}(features='<module name>')."
            )
        return Outputs(logits, found)

    def logits_of(self, output: Any) -> Tensor:
        """A tensor itself, its ``.logits``, or the first entry of a tuple: [B, C]."""
        return logits_in(output)

    def _pooled(self, seen: Tensor, batch: Any) -> Tensor:
        """One row per example of what a layer took in or put out."""
        return seen

    def _head(self, model: nn.Module, batch: Any) -> nn.Module:
        """The last linear layer: by name, or the one whose output are the logits."""
        if self._features is not None:
            try:
                return model.get_submodule(self._features)
            except AttributeError as error:
                raise DataError(f"the model has no module {self._features!r}: {error}") from error
        if model in self._heads:
            return self._heads[model]
        made: list[tuple[nn.Module, int, int]] = []

        def note(module: nn.Module, _: Any, out: Tensor) -> None:
            # The size too: what was let go of may lie where the logits lie now.
            made.append((module, out.data_ptr(), out.numel()))

        logits = self._call_watched(model, batch, note)
        here = (logits.data_ptr(), logits.numel())
        found = next((module for module, *at in reversed(made) if tuple(at) == here), None)
        if found is None and made:
            found = self._head_before_pooling(model, batch, made[-1][0])
        if found is not None:
            self._heads[model] = found
            return found
        raise DataError(
            "no nn.Linear of the model puts out the logits, so the features cannot be found. "
            f"Name the layer whose input they are: {self._name}(features='<module name>')."
        )

    def _call_watched(
        self, model: nn.Module, batch: Any, watch: Callable[[nn.Module, Any, Tensor], None]
    ) -> Tensor:
        """The logits of a pass whose linear layers are watched."""
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        hooks = [module.register_forward_hook(watch) for module in linear]
        try:
            return logits_in(self._call(model, batch))
        finally:
            for hook in hooks:
                hook.remove()

    def _head_before_pooling(
        self, model: nn.Module, batch: Any, last: nn.Module
    ) -> nn.Module | None:
        """The linear layer that ran last, if the logits are pooled from its output."""
        return None

    @property
    def _name(self) -> str:
        return type(self).__name__

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
