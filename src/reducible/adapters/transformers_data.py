"""What a Hugging Face Trainer's model and data mean for selection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from reducible.stores import WithIds, collate_with_ids
from reducible.tasks import CausalLM, Classification, SequenceClassification, Task
from reducible.types import ConfigurationError


def rows_of(trainer: Any, column: str | None) -> tuple[WithIds, Callable[[list[Any]], Any]]:
    """The rows of a Trainer's training set with their ids, and how they are collated.

    As the Trainer reads them: without the columns that its model does not take.

    Args:
        trainer: with a map-style training set.
        column: that holds the ids; positions if None.

    Raises:
        ConfigurationError: there is no such column.
    """
    dataset, collate = trainer.train_dataset, trainer.data_collator
    ids = None if column is None else _ids_in(dataset, column)
    if hasattr(dataset, "column_names"):
        dataset = trainer._remove_unused_columns(dataset, description="Training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="Training")
    return WithIds(dataset, ids=ids), collate_with_ids(collate)


def task_of(model: Any) -> Task:
    """Says what batches of a transformers model mean: by its class, and by what it reads."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if type(inner).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        return CausalLM()
    if getattr(inner, "main_input_name", "input_ids") == "input_ids":
        return SequenceClassification()
    return Classification()


def _ids_in(dataset: Any, name: str) -> Tensor:
    """[N] int64 ids in a column of a data set."""
    names = getattr(dataset, "column_names", None)
    if names is None or name not in names:
        raise ConfigurationError(
            f"there is no column {name!r} of ids in the training set: it has {names}. Was it lost "
            "in map(…, remove_columns=…)? Leave ids_column out to count rows by position."
        )
    return torch.as_tensor(dataset.with_format(None)[name][:], dtype=torch.int64)


class Ticks(IterableDataset[int]):
    """The ticks of a clock whose data set has no length."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0
