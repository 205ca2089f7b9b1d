"""Single-label classification of anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

from torch import nn

from reducible.tasks.cross_entropy import TARGET_KEYS, CrossEntropy, Field, describe, part_of
from reducible.types import DataError

_INPUT_KEYS = ("inputs", "input", "x", "image", "images", "pixel_values")


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
        if self._inputs is not None:
            return model(part_of(batch, self._inputs, "inputs"))
        if isinstance(batch, tuple | list) and batch:
            return model(batch[0])
        if isinstance(batch, Mapping):
            key = next((k for k in _INPUT_KEYS if k in batch), None)
            if key is not None:
                return model(batch[key])
            return model(**{k: v for k, v in batch.items() if k not in TARGET_KEYS})
        raise DataError(
            f"cannot find the inputs in a batch of {describe(batch)}. Name them: "
            "Classification(inputs=<key, position or function>, targets=…)."
        )
