"""Single-label classification of anything."""

from __future__ import annotations

from typing import Any, final

from torch import nn

from reducible.tasks.cross_entropy import CrossEntropy
from reducible.tasks.fields import Field, call_on_inputs


@final
class Classification(CrossEntropy):
    """Single-label classification by cross-entropy.

    Batches are ``(inputs, targets)`` pairs or mappings; what is not named is found: the targets
    under one of labels, label, targets, target, y; the inputs under inputs, input, x, image,
    images, pixel_values, else all that is not the target is passed to the model by keyword.

    Args:
        inputs: key, position or function of the batch.
        targets: the same, for the labels.
        features: name of the last linear layer; found by a trial pass if None.
        label_smoothing: of the cross-entropy, in [0, 1).

    >>> import torch
    >>> task = Classification(inputs="photo", targets="kind")
    >>> task.targets({"photo": torch.zeros(2, 3), "kind": torch.tensor([1, 0])})
    tensor([1, 0])
    """

    def __init__(
        self,
        *,
        inputs: Field | None = None,
        targets: Field | None = None,
        features: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(targets=targets, features=features, label_smoothing=label_smoothing)
        self._inputs = inputs

    def _call(self, model: nn.Module, batch: Any) -> Any:
        return call_on_inputs(model, batch, self._inputs, self._name)
