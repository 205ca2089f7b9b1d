"""Candidate batches from the loader that a training script has already, and states by process."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch.utils.data import (
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
)

from reducible.loading.ranks import candidate_loader
from reducible.stores import WithIds, collate_with_ids, known_ids
from reducible.types import ConfigurationError


def here() -> tuple[int, int]:
    """Returns this process's rank, and how many there are."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def candidates_like(
    loader: DataLoader[Any], keep: float, *, seed: int, updates: int = 1
) -> DataLoader[Any]:
    """Builds the loader of candidates to what ``loader`` would train on without selection.

    Args:
        loader: a DataLoader as it is without selection: its batch size is n_b of a batch. Its data
            set gets ids if it has none, and its collate function learns of them.
        keep: n_b / n_B.
        seed: of the order, if the loader shuffles; a sampler of one's own stays.
        updates: batches of the loader that are chosen together.

    Raises:
        ConfigurationError: a loader of another kind, or of fewer rows than a candidate batch.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise ConfigurationError(
            f"a DataLoader over a map-style data set was expected, got {type(loader).__name__}. "
            "Streams: build reducible.SelectingLoader over the stream yourself."
        )
    if loader.batch_size is None:
        raise ConfigurationError(
            "the loader cuts its batches by a batch_sampler of its own, so it is not known how to "
            "cut larger ones: give it batch_size and, if need be, sampler."
        )
    dataset, collate = loader.dataset, loader.collate_fn
    if known_ids(dataset) is None:
        dataset = WithIds(dataset)
    collate = collate if collate is default_collate else collate_with_ids(collate)
    rank, ranks = here()
    order: Any = loader.sampler
    if isinstance(order, DistributedSampler):
        raise ConfigurationError(
            "the loader's DistributedSampler shares the rows among processes, and so does this. "
            "Pass the loader with shuffle=True instead."
        )
    if type(order) is RandomSampler and not order.replacement:
        # Drawn anew by the seed, unless only some rows are drawn of each pass.
        order = None if order.num_samples == len(order.data_source) else order  # pyright: ignore[reportArgumentType]
    elif type(order) is SequentialSampler:
        order = SequentialSampler(dataset)  # pyright: ignore[reportArgumentType]
    return candidate_loader(
        dataset,
        math.floor(loader.batch_size * updates / keep + 0.5),
        seed=seed,
        rank=rank,
        ranks=ranks,
        sampler=order,
        collate_fn=collate,
        num_workers=loader.num_workers,
        pin_memory=loader.pin_memory,
        persistent_workers=loader.persistent_workers,
        prefetch_factor=loader.prefetch_factor,
        multiprocessing_context=loader.multiprocessing_context,
        worker_init_fn=loader.worker_init_fn,
    )


def state_of_all_ranks(state: Mapping[str, Any]) -> dict[str, Any]:
    """Gathers what every process would save, for trainers that write one process's state."""
    _, ranks = here()
    if ranks == 1:
        return {"ranks": [dict(state)]}
    states: list[Any] = [None] * ranks
    dist.all_gather_object(states, dict(state))
    return {"ranks": states}


def state_of_this_rank(state: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what this process saved; raises ConfigurationError if there were more or fewer."""
    rank, ranks = here()
    states = state["ranks"]
    if len(states) != ranks:
        raise ConfigurationError(
            f"the state is of {len(states)} processes, and there are {ranks} now: each of them "
            "had candidates of its own. Resume with as many, or begin the candidates anew."
        )
    return states[rank]
