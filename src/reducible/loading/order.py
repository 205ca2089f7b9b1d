"""Orders of a DataLoader: read ahead of loading, drawn again after a stop, and checked."""

from __future__ import annotations

import inspect
import marshal
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from operator import getitem
from typing import Any, final

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    WeightedRandomSampler,
    default_collate,
    default_convert,
)

from reducible.loading.fetching import fetcher_of, items_at
from reducible.types import DataError

Indices = list[int]


def index_batches(loader: Any) -> Iterable[Indices] | None:
    """Finds what yields the index lists of ``loader``'s batches; None if there is no such thing.

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
    # So that the streams stand where they would after `iter(loader)`.
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

    So it is if batches are cut from one walk over the data set and collated as usual.
    """
    batches = index_batches(loader)
    if type(batches) is not BatchSampler or loader.collate_fn not in _AS_USUAL:
        return False
    # Exactly these classes: what a subclass yields is not known.
    order = batches.sampler
    if type(order) is RandomSampler:
        return not order.replacement and order.num_samples <= len(order.data_source)
    return type(order) is SequentialSampler


_AS_USUAL = (as_it_is, default_collate, default_convert)


def batch_size_of(loader: Any) -> int | None:
    """Rows per batch of a loader, if it says so."""
    for owner in (loader, getattr(loader, "batch_sampler", None), getattr(loader, "sampler", None)):
        size = getattr(owner, "batch_size", None)
        if isinstance(size, int):
            return size
    return None


def even_size(loader: Any) -> int | None:
    """Rows of every batch but the last, if the loader cuts them evenly; None if sizes may vary.

    Known of DataLoaders whose sampler of batches is torch's BatchSampler itself, or torchdata's;
    and over an iterable data set, if it is read in one process and collated as usual.
    """
    if not isinstance(loader, DataLoader):
        return None
    if isinstance(loader.dataset, IterableDataset):
        plain = loader.num_workers <= 1 and loader.collate_fn in _AS_USUAL
        return loader.batch_size if plain else None
    batches = _batch_sampler(loader)
    return batches.batch_size if _cuts_evenly(batches) else None


def _cuts_evenly(batches: Any) -> bool:
    """Whether it is torch's BatchSampler, or torchdata's: one of another kind may do anything."""
    kind = type(batches)
    return kind is BatchSampler or f"{kind.__module__}.{kind.__name__}" == _TORCHDATAS


_TORCHDATAS = "torchdata.stateful_dataloader.sampler.BatchSampler"


def _batch_sampler(loader: DataLoader[Any]) -> Any:
    return loader.sampler if loader.batch_sampler is None else loader.batch_sampler


def whole_batches(loader: Any) -> int:
    """Batches of a pass, without the short rest of an evenly cut one unless it is the only batch.

    Raises:
        TypeError: the loader has no length.
    """
    size = even_size(loader)
    if size is None:
        return len(loader)
    iterable = isinstance(loader.dataset, IterableDataset)
    rows = loader.dataset if iterable else _batch_sampler(loader).sampler
    return len(rows) // size or len(loader)


def is_rest(loader: DataLoader[Any], position: int) -> bool:
    """Whether the batch at ``position``, from 1, is the rest of a pass that is cut evenly.

    Asked of batches with fewer rows than the others. Of rows that stream in nothing is left out
    before they are batched, so that one of these is the last. False for the only batch.
    """
    if isinstance(loader.dataset, IterableDataset):
        return position > 1
    try:
        return position > max(1, whole_batches(loader))
    except TypeError:  # a sampler without a length
        return False


def refuse_repeats(loader: Any) -> None:
    """Raise DataError, with the sampler's name, if it says that it draws with replacement."""
    if getattr(_row_sampler(loader), "replacement", False) is True:
        raise DataError(why_repeats(loader))


def why_repeats(loader: Any) -> str:
    """Says why ``loader`` may give rows more than once, and what to do."""
    order = _row_sampler(loader)
    name = type(order).__name__
    once = "so a candidate batch may hold a row more than once, which would be trained on twice"
    if isinstance(order, WeightedRandomSampler) and order.replacement:
        return (
            f"The loader's {name} draws with replacement, {once}. Pass replacement=False, with "
            "num_samples up to the number of rows of weight above 0; or weigh rows by the "
            "selector: shuffle=True and a rule that chooses by score."
        )
    if getattr(order, "replacement", False) is True:
        return f"The loader's {name} draws with replacement, {once}. Pass replacement=False."
    if isinstance(order, RandomSampler) and _is_longer(order):
        return (
            f"The loader's {name} draws num_samples={order.num_samples} of "
            f"{len(order.data_source)} rows, {once}, where one walk ends and the next begins. "  # pyright: ignore[reportArgumentType]
            "Leave num_samples out, and iterate over more passes."
        )
    if isinstance(order, DistributedSampler) and _is_padded(order):
        return (
            f"The loader's {name} pads the rows until every rank has as many, {once}. Pass "
            "drop_last=True."
        )
    batches = getattr(loader, "batch_sampler", None)
    if getattr(batches, "even_batches", False) is True:
        return (
            f"The loader's {type(batches).__name__} fills the last batches with rows from the "
            "beginning. Pass even_batches=False, or drop_last=True to the loader."
        )
    samplers = (None if _cuts_evenly(batches) else batches, order)
    own = [type(by).__name__ for by in samplers if by is not None and type(by) not in _ONCE]
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        what = loader.dataset if isinstance(loader, DataLoader) else loader
        return f"{type(what).__name__} gives rows more than once: let it give each of them once."
    if own:
        return (
            f"The loader's {' over '.join(dict.fromkeys(own))} draws rows more than once, or its "
            "collate function repeats them. Let the sampler draw without replacement, and leave "
            "the last batch short instead of padding it."
        )
    return (
        "Either the loader's collate function repeats rows, or two items of its data set have one "
        "id, as when a Subset names a row twice."
    )


_ONCE = (SequentialSampler, RandomSampler)


def _row_sampler(loader: Any) -> Any:
    """Finds what draws the rows of a loader's batches, as far down as it can be seen."""
    order: Any = getattr(loader, "batch_sampler", None)
    if order is None:
        order = getattr(loader, "sampler", None)
    # Samplers wrap samplers (Accelerate, Lightning): the innermost draws rows.
    while getattr(order, "replacement", False) is not True and hasattr(order, "sampler"):
        order = order.sampler
    return order


def _is_padded(order: DistributedSampler[Any]) -> bool:
    return order.total_size > len(order.dataset)  # pyright: ignore[reportArgumentType]


def _is_longer(order: RandomSampler) -> bool:
    return order.num_samples > len(order.data_source)  # pyright: ignore[reportArgumentType]


@final
class OrderDigest:
    """A running digest of an order, which tells when one that is drawn again is another.

    Args:
        known: how many parts the order had when it was left, and their digest.
    """

    def __init__(self, known: tuple[int, int] = (0, 0)) -> None:
        self.count = self.digest = 0
        self._known, self._expected = known

    def add(self, part: Any) -> None:
        """Takes in the next part: a list of integers, or bytes. What is neither is only counted.

        Raises:
            DataError: the order is not the one that was left.
        """
        self.count += 1
        # A checksum, not a list: the order of 10^8 rows must fit into a state.
        self.digest = zlib.crc32(_as_bytes(part), self.digest)
        if self.count == self._known and self.digest != self._expected:
            raise self._another(f"{self.count} batches that are not those")

    def end(self) -> None:
        """Raises DataError if the order ends before the place at which it was left."""
        if self.count < self._known:
            raise self._another(f"{self.count} batches, where there were {self._known},")

    def _another(self, what: str) -> DataError:
        return DataError(
            "the order of the pass in which the run was stopped cannot be drawn again: the loader "
            f"gave {what} of before. Either it has other data, another batch size or seed; or a "
            "sampler shuffles by something that a state does not hold. Let it draw from a "
            "torch.Generator, random.Random or NumPy generator that is its attribute, or shuffle "
            "by a set_epoch(epoch) that sets its attribute `epoch`; or resume from a state that "
            "was taken between passes."
        )


def _as_bytes(part: Any) -> bytes:
    """Returns the same bytes for the same part in every process; none for an unknown kind."""
    try:
        return marshal.dumps(part, 0)  # faster than an array of the list; version 0 knows no names
    except ValueError:
        pass
    try:
        return marshal.dumps([int(i) for i in part], 0)  # a tensor, a range, a list of tensors
    except (TypeError, ValueError):
        return b""


Drawn = Callable[[int, Indices], Indices | None]


def as_given(given: int, indices: Indices) -> Indices:
    """The list itself: what an order is drawn with whose batches are loaded whole."""
    return indices


@final
class Reordered:
    """Index lists of the source that it is aimed at, each passed through a draw.

    Lazy, as samplers are: a DataLoader draws its own seed before the sampler draws the order.

    Attributes:
        ends: of every list given and not yet taken off it, how far the source had been read.
        seen: the digest of the lists read.
    """

    def __init__(self) -> None:
        self.ends: deque[int] = deque()
        self._ready: deque[Indices] = deque()
        self.seen = OrderDigest()

    def aim(
        self,
        source: Iterable[Indices],
        *,
        skip: int,
        draw: Drawn,
        known: tuple[int, int],
        vain: int,
    ) -> None:
        """Gives another order from the next pass on.

        Args:
            source: of index lists.
            skip: how many of them to leave out first.
            draw: gets the number of lists it has given before, and the list; None drops the list.
            known: parts that the order had when it was left, and their digest.
            vain: how often the first list is given before it counts.
        """
        self._source, self._skip, self._draw, self._known = source, skip, draw, known
        self._vain = vain

    def __iter__(self) -> Iterator[Indices]:
        self._ready.clear()
        self.ends.clear()
        self.seen = OrderDigest(self._known)
        self._given = 0
        self._lists = iter(self._source)
        return self

    def __next__(self) -> Indices:
        return self._ready.popleft() if self._ready else self._following()

    def _following(self) -> Indices:
        # Drawn and thrown away, because samplers cannot be told to begin in the middle.
        while self.seen.count < self._skip:
            self._list()
        while True:
            drawn = self._draw(self._given, self._list())
            if drawn is not None:
                self._given += 1
                self.ends.append(self.seen.count)
                if self._vain:
                    self._ready.extend([drawn] * self._vain)
                    self._vain = 0
                return drawn

    def prime(self) -> None:
        """Draws all that had been drawn when the order was left, from the streams as they are."""
        with suppress(StopIteration):
            while self.seen.count < self._known[0]:
                if self.seen.count < self._skip:
                    self._list()
                else:
                    self._ready.append(self._following())

    def _list(self) -> Indices:
        try:
            indices = next(self._lists)
        except StopIteration:
            self.seen.end()
            raise
        self.seen.add(indices)
        return indices


def rebuilt(loader: DataLoader[Any], order: Reordered, **changes: Any) -> DataLoader[Any]:
    """Builds the same loader over another order; ``changes`` are arguments of its own."""
    batching: dict[str, Any] = (
        {"batch_sampler": order}
        if loader.batch_sampler is not None
        else {"batch_size": None, "sampler": order}
    )
    same = {name: getattr(loader, name) for name in _CARRIED}
    return DataLoader(**(same | batching | changes))


_OF_THE_ORDER = {"batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"}
_CARRIED = [
    name
    for name in inspect.signature(DataLoader.__init__).parameters
    if name not in _OF_THE_ORDER | {"self"}
]
"""Arguments of a DataLoader, whatever torch's version has: each is an attribute too."""
