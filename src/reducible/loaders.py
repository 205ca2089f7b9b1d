"""Orders of a DataLoader: read ahead of loading, remembered, begun again where they began."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    default_collate,
    default_convert,
)

from reducible.fetching import fetcher_of, items_at

Indices = list[int]


def index_batches(loader: Any) -> Iterable[Indices] | None:
    """What yields the index lists of ``loader``'s batches; None where it has no such thing.

    That is a plain DataLoader over a map-style data set which batches by index. A subclass may
    add behaviour of its own, so it is left alone.
    """
    if type(loader) is not DataLoader or isinstance(loader.dataset, IterableDataset):
        return None
    if loader.batch_sampler is not None:
        return loader.batch_sampler
    return loader.sampler if isinstance(loader.sampler, BatchSampler | Reordered) else None


def batches_of(loader: Any) -> Iterator[Any]:
    """The batches of a pass over ``loader``.

    A plain DataLoader that loads in this process is read here, by its own sampler, data set and
    collate function: the same batches from the same random streams as from its iterator, which
    opens a span for profilers around every batch. Data sets that can are asked for whole batches.
    """
    indices = index_batches(loader)
    if indices is None or loader.num_workers or loader.pin_memory:
        return iter(loader)
    dataset, collate = loader.dataset, loader.collate_fn
    order = iter(indices)
    torch.empty((), dtype=torch.int64).random_(generator=loader.generator)  # as DataLoader does
    if loader.batch_sampler is None:
        whole = partial(getitem, dataset)
        return map(whole, order) if collate is as_it_is else map(collate, map(whole, order))
    if collate is default_collate:
        fetch = fetcher_of(dataset)
        if fetch is not None:
            return map(fetch, order)
    return map(collate, map(partial(items_at, dataset), order))


def as_it_is(batch: Any) -> Any:
    """Collates nothing: what a data set that hands over whole batches wants."""
    return batch


def never_repeats(loader: Any) -> bool:
    """Whether no batch of ``loader`` can hold an item twice, as far as can be told.

    So it is where batches are cut from one walk over the data set and collated as usual.
    """
    batches = index_batches(loader)
    if type(batches) is not BatchSampler or loader.collate_fn not in _AS_USUAL:
        return False
    order = batches.sampler
    if type(order) is RandomSampler:
        return not order.replacement and order.num_samples <= len(order.data_source)
    return type(order) is SequentialSampler


_AS_USUAL = (as_it_is, default_collate, default_convert)


def batch_size_of(loader: Any) -> int | None:
    """Rows per batch of a loader, where it says so."""
    for owner in (loader, getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        size = getattr(owner, "batch_size", None)
        if isinstance(size, int):
            return size
    return None


def whole_batches(loader: Any) -> int:
    """Batches of a pass, without a last, shorter one where the loader's sampler tells of it."""
    if isinstance(loader, DataLoader) and not isinstance(loader.dataset, IterableDataset):
        sampler = loader.batch_sampler or loader.sampler
        if type(sampler) is BatchSampler:
            return len(sampler.sampler) // sampler.batch_size or len(sampler)  # pyright: ignore[reportArgumentType]
    return len(loader)


class Reordered:
    """Index lists of a source from the ``skip``-th on, each passed through ``draw``.

    Lazy, as samplers are: a DataLoader draws its own seed before the sampler draws the order.
    ``draw`` gets the number of lists it has given before, and the list; None drops the list.
    ``ends`` holds, for every list given and not yet taken off it, how far the source had been read.
    """

    def __init__(
        self, source: Iterable[Indices], skip: int, draw: Callable[[int, Indices], Indices | None]
    ) -> None:
        self._source = source
        self._skip = skip
        self._draw = draw
        self._live: Iterator[Indices] | None = None
        self._first: list[Indices] = []
        self.ends: deque[int] = deque()

    def __iter__(self) -> Iterator[Indices]:
        self._first = []
        self._live = self._walk()
        return self

    def __next__(self) -> Indices:
        if self._first:
            return self._first.pop()
        assert self._live is not None
        return next(self._live)

    def prime(self) -> None:
        """Draw the first index list now, so that the order comes from the streams as they are."""
        if self._live is not None and not self._first:
            self._first = [i for i in [next(self._live, None)] if i is not None]

    def _walk(self) -> Iterator[Indices]:
        given = 0
        for position, indices in enumerate(self._source):
            if position < self._skip:
                continue
            drawn = self._draw(given, list(indices))
            if drawn is not None:
                given += 1
                self.ends.append(position + 1)
                yield drawn


def rebuilt(loader: DataLoader[Any], order: Reordered) -> DataLoader[Any]:
    """The same loader over another order of index lists."""
    batching: dict[str, Any] = (
        {"batch_sampler": order}
        if loader.batch_sampler is not None
        else {"batch_size": None, "sampler": order}
    )
    return DataLoader(
        loader.dataset,
        **batching,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
    )


def generators(loader: Any) -> list[torch.Generator]:
    """The generators that a loader and its samplers own, in a fixed order."""
    found: list[torch.Generator] = []
    for path in ("", "sampler", "batch_sampler", "batch_sampler.sampler", "sampler.sampler"):
        owner: Any = loader
        for name in filter(None, path.split(".")):
            owner = getattr(owner, name, None)
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and all(generator is not g for g in found):
            found.append(generator)
    return found


def order_state(loader: Any) -> dict[str, Any]:
    """All that the order of the loader's next epoch depends on."""
    return {
        "own": [g.get_state() for g in generators(loader)],
        "global": torch.get_rng_state(),
    }


@contextmanager
def replayed(loader: Any, state: dict[str, Any]) -> Iterator[None]:
    """Draw the order in the body as it was drawn from ``state``; the global stream is put back."""
    mine = torch.get_rng_state()
    set_order_state(loader, state)
    torch.set_rng_state(state["global"])
    try:
        yield
    finally:
        torch.set_rng_state(mine)


def set_order_state(loader: Any, state: dict[str, Any]) -> None:
    """Set the loader's own generators; leaves the global stream alone."""
    saved: list[Tensor] = state["own"]
    for generator, own in zip(generators(loader), saved, strict=True):
        generator.set_state(own)
