"""What a Hugging Face Trainer's model and data mean for selection."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from reducible.files import checkpoints
from reducible.loop import SelectingLoader, TokenSelection
from reducible.stores import IrreducibleLossStore, TokenLossStore, WithIds, collate_with_ids
from reducible.tasks import CausalLM, Classification, SequenceClassification, Task
from reducible.types import ConfigurationError


def rows_of(trainer: Any, column: str | None) -> tuple[WithIds, Callable[[list[Any]], Any]]:
    """The rows of a Trainer's training set with their ids, and how they are collated.

    As the Trainer reads them: without the columns that its model does not take.

    Args:
        trainer: with a map-style training set.
        column: that holds the ids; positions if None.

    Raises:
        ConfigurationError: a streamed set, or no such column of whole numbers, each once.
    """
    dataset, collate = trainer.train_dataset, trainer.data_collator
    if isinstance(dataset, IterableDataset):
        raise ConfigurationError(
            "a streamed data set cannot be scored beforehand. Pass store=, made with "
            "reducible.LossColumn or of a data set that is on disk."
        )
    ids = None if column is None else _ids_in(dataset, column)
    if hasattr(dataset, "column_names"):
        dataset = trainer._remove_unused_columns(dataset, description="Training")
    else:
        collate = trainer._get_collator_with_removed_columns(collate, description="Training")
    return WithIds(dataset, ids=ids), collate_with_ids(collate)


def check(trainer: Any, store: Any, plan: Any, *, by_token: bool) -> None:
    """Refuses what cannot work whatever the rows; raises ConfigurationError."""
    if getattr(trainer, "padding_free", False):
        raise ConfigurationError(
            "the trainer flattens examples into one row (padding_free, or packing as TRL does "
            "it by default), so that no row is one example. Turn both off, or pack with "
            "packing_strategy='wrapped', whose rows are examples."
        )
    wanted = TokenLossStore if by_token else IrreducibleLossStore
    if store is not None and not isinstance(store, wanted):
        raise ConfigurationError(
            f"the store is a {type(store).__name__}, and "
            f"{'tokens' if by_token else 'rows'} are chosen, by a {wanted.__name__}. "
            "SelectionArguments(token_keep=…) chooses tokens."
        )
    if by_token and not isinstance(trainer.task, CausalLM):
        raise ConfigurationError(
            f"token_keep chooses tokens of a causal language model, and this is "
            f"{type(trainer.model).__name__}. Leave it out to choose rows."
        )
    if plan is not None and isinstance(trainer.train_dataset, IterableDataset):
        raise ConfigurationError(
            "a plan is of rows with positions, and the data set is streamed. Filter the stream "
            "itself: dataset.filter(…)."
        )


def take_over(path: Path, batches: SelectingLoader, tokens: TokenSelection | None) -> None:
    """Goes on from what a checkpoint says of selection.

    Raises:
        ConfigurationError: it says nothing, or was saved with other settings.
    """
    if not path.is_file():
        raise ConfigurationError(
            f"{path} is missing: the checkpoint was saved without selection, or by another "
            "number of processes. Pass ignore_data_skip=True to begin the candidates anew."
        )
    state = checkpoints.load(path)
    try:
        batches.load_state_dict(state["batches"])
    except ConfigurationError as error:
        raise ConfigurationError(
            f"{error} The checkpoint was saved with other settings of selection (keep, rule, "
            "batch size, seed); pass ignore_data_skip=True to begin the candidates anew."
        ) from error
    if tokens is not None and state["tokens"] is not None:
        tokens.load_state_dict(state["tokens"])


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
    found = dataset.with_format(None)[name][:]
    if not all(isinstance(i, int) for i in found):
        raise ConfigurationError(
            f"the column {name!r} holds {type(found[0]).__name__}, and ids are whole numbers. "
            "Leave ids_column out, so that rows are counted by position, or number them."
        )
    ids = torch.tensor(found, dtype=torch.int64)
    if ids.unique().numel() < ids.numel():
        raise ConfigurationError(
            f"the column {name!r} has {ids.numel()} rows and {ids.unique().numel()} different "
            "values: it does not tell rows apart. Name another column, or leave ids_column out."
        )
    return ids


def streamed(trainer: Any, column: str | None) -> tuple[Any, Callable[[list[Any]], Any]]:
    """The part of a streamed training set that this process reads, and how it is collated.

    Args:
        trainer: with a streamed training set.
        column: that holds the ids.

    Raises:
        ConfigurationError: no column of ids.
    """
    dataset, args = trainer.train_dataset, trainer.args
    if column is None:
        raise ConfigurationError(
            "a streamed data set has no positions to count its rows by: name the column "
            "of their ids with SelectionArguments(ids_column=…)."
        )
    if args.world_size > 1:
        dataset = of_rank(dataset, args.process_index, args.world_size)
    collate = trainer._get_collator_with_removed_columns(trainer.data_collator, "Training")
    return dataset, collate_with_ids(collate, ids=column)


def of_rank(dataset: Any, rank: int, ranks: int) -> Any:
    """The rows of a stream that one of several processes reads: every so many, as Trainer does.

    One that was split among processes already (``datasets.distributed``) stays as it is.
    """
    if getattr(dataset, "_distributed", None) is not None:
        return dataset
    return _EverySoMany(dataset, rank, ranks)


class _EverySoMany(IterableDataset[Any]):
    def __init__(self, stream: Any, first: int, every: int) -> None:
        self._stream, self._first, self._every = stream, first, every

    def __iter__(self) -> Iterator[Any]:
        return islice(self._stream, self._first, None, self._every)


class Ticks(IterableDataset[int]):
    """The ticks of a clock whose data set has no length."""

    def __iter__(self) -> Iterator[int]:
        while True:
            yield 0
