"""Finds inputs, targets and logits in batches and outputs of any structure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from reducible.types import DataError

TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_INPUT_KEYS = ("inputs", "input", "x", "image", "images", "pixel_values")

Field = str | int | Callable[[Any], Any]
"""Place of something in a batch: a key, a position, or a function of the batch."""


def call_on_inputs(model: nn.Module, batch: Any, inputs: Field | None, task: str) -> Any:
    """Returns what ``model`` makes of the inputs of a batch; raises DataError if there are none.

    Args:
        model: anything callable.
        batch: a tuple that starts with the inputs, or a mapping.
        inputs: where they are; found if None.
        task: its name, for the error.
    """
    if inputs is not None:
        return model(part_of(batch, inputs, "inputs"))
    if isinstance(batch, tuple | list) and batch:
        return model(batch[0])
    if isinstance(batch, Mapping):
        key = next((k for k in _INPUT_KEYS if k in batch), None)
        if key is not None:
            return model(batch[key])
        return model(**{k: v for k, v in batch.items() if k not in TARGET_KEYS})
    raise DataError(
        f"cannot find the inputs in a batch of {describe(batch)}. Name them: "
        f"{task}(inputs=<key, position or function>, targets=…)."
    )


def find_targets(batch: Any, targets: Field | None, task: str) -> Any:
    """Returns the targets in a batch, as they are; raises DataError if there are none.

    Args:
        batch: an (inputs, targets) pair, or a mapping.
        targets: where they are; found if None.
        task: its name, for the error.
    """
    if targets is not None:
        return part_of(batch, targets, "targets")
    if isinstance(batch, tuple | list):
        if len(batch) == 2:
            return batch[1]
    elif isinstance(batch, Mapping):
        key = next((k for k in TARGET_KEYS if k in batch), None)
        if key is not None:
            return batch[key]
    raise DataError(
        f"cannot find the labels in a batch of {describe(batch)}. Name them: "
        f"{task}(targets=<key, position or function>)."
    )


def part_of(batch: Any, field: Field, what: str) -> Any:
    """Finds a part of a batch; raises DataError, naming ``what`` it should be, if there is none."""
    if callable(field):
        return field(batch)
    try:
        return batch[field]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"no {what} at {field!r} in a batch of {describe(batch)}.") from error


def logits_in(output: Any) -> Tensor:
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


def describe(batch: Any) -> str:
    """Says in a few words what a batch is, for errors."""
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with keys {sorted(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of length {len(batch)}"
    return type(batch).__name__
