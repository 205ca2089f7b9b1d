"""Loaders read batch by batch as their own iterators give them."""

from __future__ import annotations

import inspect
import marshal
import re
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    WeightedRandomSampler,
)

from reducible.lab.data import TensorSet
from reducible.loading.order import (
    OrderDigest,
    Reordered,
    as_given,
    as_it_is,
    batches_of,
    even_size,
    is_rest,
    rebuilt,
    whole_batches,
    why_repeats,
)
from reducible.types import DataError


class Single(Dataset[Tensor]):
    """Items one by one."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([index, index**2])


class Many(Single):
    """Whole lists of items too, marked so that it shows."""

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        return [self[i] + 100 for i in indices]


class Whole(Single):
    """Batches by list."""

    def __getitem__(self, index: Any) -> Tensor:
        return torch.tensor(index) * 2


def _aimed(source: Any, **changes: Any) -> Reordered:
    order = Reordered()
    order.aim(source, **({"skip": 0, "draw": as_given, "known": (0, 0), "vain": 0} | changes))
    return order


def _loader(kind: str, generator: torch.Generator | None) -> DataLoader[Any]:
    if kind == "whole":
        batches = BatchSampler(RandomSampler(Single(), generator=generator), 3, drop_last=False)
        return DataLoader(Whole(), batch_size=None, sampler=batches, generator=generator)
    if kind == "tensors":
        return TensorSet(torch.rand(10, 2), torch.arange(10)).loader(3, generator=generator)
    if kind == "reordered":
        source = BatchSampler(RandomSampler(Single(), generator=generator), 3, drop_last=False)
        plain = DataLoader(Whole(), batch_size=None, sampler=source, generator=generator)
        return rebuilt(plain, _aimed(source, skip=1, draw=lambda _, indices: indices[::-1]))
    data = Many() if kind == "many" else Single()
    return DataLoader(data, batch_size=3, shuffle=True, generator=generator)


def _flat(batch: Any) -> list[Any]:
    return batch.tolist() if isinstance(batch, Tensor) else [_flat(part) for part in batch]


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("kind", ["single", "many", "whole", "tensors", "reordered"])
def test_the_same_batches_from_the_same_streams(kind: str, own: bool) -> None:
    seen: list[Any] = []
    for read in (batches_of, iter):
        with torch.random.fork_rng([]):
            torch.manual_seed(3)
            generator = torch.Generator().manual_seed(5) if own else None
            loader = _loader(kind, generator)
            passes = [[_flat(batch) for batch in read(loader)] for _ in range(2)]
            states = [torch.get_rng_state().tolist()]
            states += [generator.get_state().tolist()] if generator is not None else []
            seen.append((passes, states))
    assert seen[0] == seen[1]
    first, second = seen[0][0]
    assert first != second  # shuffled anew


def test_what_loads_elsewhere_is_left_to_its_own_iterator() -> None:
    worked = DataLoader(Single(), batch_size=5, num_workers=1)
    assert type(batches_of(worked)) is type(iter(worked))
    with pytest.warns(
        UserWarning, match="pin_memory"
    ):  # of torch, where there is nothing to pin for
        pinned = batches_of(DataLoader(Single(), batch_size=5, pin_memory=True))
    assert "DataLoaderIter" in type(pinned).__name__
    numbers = [1, 2]
    assert list(batches_of(numbers)) == numbers


def test_collates_nothing_where_told_so() -> None:
    loader = DataLoader(Single(), batch_size=5, collate_fn=as_it_is)
    assert [len(batch) for batch in batches_of(loader)] == [5, 5]


@pytest.mark.parametrize("collate", [as_it_is, lambda batch: batch + 1])
def test_whole_batches_are_collated_by_the_loader(collate: Callable[[Any], Any]) -> None:
    batches = BatchSampler(range(6), 3, drop_last=False)
    loader = DataLoader(Whole(), batch_size=None, sampler=batches, collate_fn=collate)
    more = 0 if collate is as_it_is else 1
    assert [batch.tolist() for batch in batches_of(loader)] == [
        [0 + more, 2 + more, 4 + more],
        [6 + more, 8 + more, 10 + more],
    ]


class Streamed(IterableDataset[int]):
    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


@pytest.mark.parametrize(("workers", "size"), [(0, 3), (1, 3), (2, None)])
def test_a_stream_is_cut_evenly_by_one_process(workers: int, size: int | None) -> None:
    assert even_size(DataLoader(Streamed(), batch_size=3, num_workers=workers)) == size
    own = DataLoader(Streamed(), batch_size=3, num_workers=workers, collate_fn=list)
    assert even_size(own) is None


class Endless(Sampler[int]):
    """Tells no length."""

    def __iter__(self) -> Iterator[int]:
        return iter(range(10))


def test_the_short_rest_is_what_comes_after_the_whole_batches() -> None:
    def rests(loader: DataLoader[Any]) -> list[bool]:
        return [is_rest(loader, position) for position in range(1, 5)]

    assert rests(DataLoader(Single(), batch_size=4)) == [False, False, True, True]
    assert rests(DataLoader(Single(), batch_size=9)) == [False, True, True, True]
    assert rests(DataLoader(Single(), batch_size=11)) == [False, True, True, True]  # the only one
    assert rests(DataLoader(Streamed(), batch_size=4)) == [False, True, True, True]
    assert rests(DataLoader(Single(), batch_size=4, sampler=Endless())) == [False] * 4
    assert [whole_batches(DataLoader(Single(), batch_size=n)) for n in (4, 5, 9, 11)] == [
        2,
        2,
        1,
        1,
    ]


class Padding:
    """Batches that are filled up, as accelerate's are."""

    even_batches = True
    batch_size = 4

    def __iter__(self) -> Iterator[list[int]]:
        return iter([[0, 1, 2, 3]])


WEIGHTS = [1.0] * 10


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"sampler": WeightedRandomSampler(WEIGHTS, 10)},
            "WeightedRandomSampler draws with replacement.*by the selector",
        ),
        (
            {"sampler": RandomSampler(Single(), replacement=True)},
            "RandomSampler draws with replacement.*Pass replacement=False.$",
        ),
        (
            {"sampler": RandomSampler(Single(), num_samples=11)},
            "draws num_samples=11 of 10 rows.*Leave num_samples out",
        ),
        (
            {"sampler": DistributedSampler(Single(), num_replicas=3, rank=0)},
            "DistributedSampler pads the rows.*drop_last=True",
        ),
        ({"batch_sampler": Padding()}, "Padding fills the last batches.*even_batches=False"),
        ({"sampler": Endless()}, "The loader's Endless draws rows more than once"),
        (
            {"sampler": WeightedRandomSampler(WEIGHTS, 5, replacement=False)},
            "The loader's WeightedRandomSampler draws rows more than once",
        ),
        (
            {"sampler": RandomSampler(Single(), num_samples=10)},
            "Either the loader's collate function repeats rows",
        ),
        (
            {"sampler": DistributedSampler(Single(), num_replicas=2, rank=0)},
            "The loader's DistributedSampler draws rows more than once",
        ),
        ({"batch_sampler": [[0, 1]]}, "The loader's list draws rows more than once"),
        ({}, "Either the loader's collate function repeats rows, or two items"),
    ],
)
def test_why_a_loader_may_repeat_rows(options: dict[str, Any], said: str) -> None:
    assert re.search(said, why_repeats(DataLoader(Single(), **options)))


def test_why_what_is_no_map_style_loader_may_repeat_rows() -> None:
    assert why_repeats([1]).startswith("list gives rows more than once")
    assert why_repeats(DataLoader(Streamed())).startswith("Streamed gives rows more than once")


# -- the same loader over another order -----------------------------------------------------------


def _nothing(worker: int) -> None:
    pass


OTHER: dict[str, Any] = {  # than the defaults
    "num_workers": 2,
    "collate_fn": as_it_is,
    "pin_memory": True,
    "timeout": 3.0,
    "worker_init_fn": _nothing,
    "multiprocessing_context": "spawn",
    "generator": torch.Generator(),
    "prefetch_factor": 5,
    "persistent_workers": True,
    "pin_memory_device": "cuda",
    "in_order": False,
}
OF_THE_ORDER = {"self", "dataset", "batch_size", "shuffle", "sampler", "batch_sampler", "drop_last"}


def test_every_argument_of_a_loader_is_carried_over() -> None:
    there = set(inspect.signature(DataLoader.__init__).parameters) - OF_THE_ORDER
    assert there <= set(OTHER)  # an argument that is new in torch wants a value here
    options = {name: value for name, value in OTHER.items() if name in there}
    data = Single()
    loader = DataLoader(data, batch_size=3, **options)
    again = rebuilt(loader, Reordered())
    assert again.dataset is data
    for name, value in options.items():
        if name == "multiprocessing_context":
            assert again.multiprocessing_context is loader.multiprocessing_context
        else:
            assert getattr(again, name) == value, name
    assert rebuilt(loader, Reordered(), num_workers=1).num_workers == 1


# -- orders ---------------------------------------------------------------------------------------


def _digest(parts: list[Any], known: tuple[int, int] = (0, 0)) -> OrderDigest:
    digest = OrderDigest(known)
    for part in parts:
        digest.add(part)
    return digest


@pytest.mark.parametrize(
    "other", [[[1, 3], [2]], [[2, 1], [3]], [[1, 2], [3], [4]], [[1], [2, 3]], [[1, 2], [4]]]
)
def test_a_digest_tells_orders_apart(other: list[Any]) -> None:
    seen = _digest([[1, 2], [3]])
    known = seen.count, seen.digest
    assert (_digest(other).count, _digest(other).digest) != known
    assert _digest([[1, 2], [3], [9]], known).count == 3
    if len(other) == 2:
        with pytest.raises(DataError, match="gave 2 batches that are not those of before"):
            _digest(other, known)
    with pytest.raises(DataError, match="1 batches, where there were 2, of before"):
        _digest([[1, 2]], known).end()


@pytest.mark.parametrize(
    "same", [range(1, 3), torch.tensor([1, 2]), [torch.tensor(1), torch.tensor(2)]]
)
def test_a_digest_is_of_the_numbers(same: Any) -> None:
    assert _digest([same]).digest == _digest([[1, 2]]).digest
    assert _digest([same]).digest != _digest([[2, 1]]).digest


def test_a_digest_is_the_same_in_every_version() -> None:
    """States of an earlier version hold it."""
    assert _digest([[1, 2], [3]]).digest == _digest([torch.tensor([1, 2]), range(3, 4)]).digest
    assert _digest([[1, 2], [3]]).digest == zlib.crc32(
        marshal.dumps([3], 0), zlib.crc32(marshal.dumps([1, 2], 0))
    )


def test_what_is_no_number_is_counted_only() -> None:
    assert _digest([object()]).digest == _digest([Single()]).digest


def test_an_order_is_drawn_as_far_as_it_was() -> None:
    drawn: list[int] = []

    def source() -> Iterator[list[int]]:
        for i in range(6):
            drawn.append(i)
            yield [i]

    seen = _digest([[i] for i in range(4)])
    order = _aimed(Walk(source), skip=2, known=(seen.count, seen.digest), vain=2)
    iter(order)
    assert drawn == []
    order.prime()
    assert drawn == [0, 1, 2, 3]
    assert [next(order) for _ in range(6)] == [[2], [2], [2], [3], [4], [5]]
    assert list(order.ends) == [3, 4, 5, 6]
    with pytest.raises(StopIteration):
        next(order)
    iter(order)
    order.prime()
    assert next(order) == [2]
    iter(order)  # another pass, which what is left of this one says nothing of
    assert list(order.ends) == []
    order.aim(Walk(source), skip=0, draw=as_given, known=(0, 0), vain=0)
    iter(order)
    assert [next(order) for _ in range(6)] == [[i] for i in range(6)]


class Walk:
    """Walks anew each time."""

    def __init__(self, walk: Callable[[], Iterator[list[int]]]) -> None:
        self._walk = walk

    def __iter__(self) -> Iterator[list[int]]:
        return self._walk()
