"""Loaders read batch by batch as their own iterators give them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler

from reducible.data import TensorSet
from reducible.loaders import Reordered, as_it_is, batches_of, rebuilt


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


def _loader(kind: str, generator: torch.Generator | None) -> DataLoader[Any]:
    if kind == "whole":
        batches = BatchSampler(RandomSampler(Single(), generator=generator), 3, drop_last=False)
        return DataLoader(Whole(), batch_size=None, sampler=batches, generator=generator)
    if kind == "tensors":
        return TensorSet(torch.rand(10, 2), torch.arange(10)).loader(3, generator=generator)
    if kind == "reordered":
        source = BatchSampler(RandomSampler(Single(), generator=generator), 3, drop_last=False)
        plain = DataLoader(Whole(), batch_size=None, sampler=source, generator=generator)
        return rebuilt(plain, Reordered(source, 1, lambda _, indices: indices[::-1]))
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
