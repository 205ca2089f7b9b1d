"""Random streams as text: they come back as they were, whatever draws from them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, Sampler, SequentialSampler

import reducible as rd
from reducible.loading.streams import order_state, packed, replayed, set_order_state, unpack


def _draws() -> list[float]:
    """Normal deviates too: NumPy and Python keep every second one for the next call."""
    drawn = [torch.rand(1).item(), float(torch.randn(1))]
    drawn += [np.random.rand(), np.random.randn()]  # noqa: NPY002
    return [*drawn, random.random(), random.gauss(0, 1)]


@pytest.fixture(autouse=True)
def _put_back(global_streams: Callable[[], Any]) -> Any:
    before = packed()
    yield
    unpack(before)


def test_streams_come_back_half_used_pairs_included() -> None:
    _draws()  # leaves the second of a pair of normal deviates behind
    text = packed()
    expected = _draws()
    _draws()
    unpack(text)
    assert _draws() == expected
    assert isinstance(json.loads(text), dict)


class Holds(Sampler[int]):
    """A sampler with any attributes."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Any:
        return iter(range(4))


SOURCES: list[Callable[[], Any]] = [
    lambda: torch.Generator().manual_seed(1),
    lambda: random.Random(1),
    lambda: np.random.RandomState(1),
    lambda: np.random.default_rng(1),
    lambda: np.random.Generator(np.random.Philox(1)),
    lambda: np.random.Generator(np.random.MT19937(1)),
    lambda: np.random.Generator(np.random.SFC64(1)),
]


def _draw(source: Any) -> float:
    if isinstance(source, torch.Generator):
        return float(torch.randn(1, generator=source))
    return source.gauss(0, 1) if isinstance(source, random.Random) else source.normal()


@pytest.mark.parametrize("make", SOURCES)
def test_generators_of_samplers_come_back(make: Callable[[], Any]) -> None:
    def loader(source: Any) -> Any:
        inner = Holds(anything=source, same=source)
        return DataLoader(range(4), sampler=Holds(inner=inner))  # pyright: ignore[reportArgumentType]

    source = make()
    _draw(source)
    state = json.loads(json.dumps(order_state(loader(source))))
    assert len(state["own"]) == 1
    expected = [_draw(source) for _ in range(3)]
    again = make()
    set_order_state(loader(again), state)
    assert [_draw(again) for _ in range(3)] == expected


def test_a_generator_of_the_operating_system_has_no_state() -> None:
    loader = DataLoader(range(4), sampler=Holds(rng=random.SystemRandom()))  # pyright: ignore[reportArgumentType]
    set_order_state(loader, order_state(loader))


def test_generators_are_found_once_each_and_in_order() -> None:
    first, second = torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)
    sampler = RandomSampler(range(4), generator=second)
    batches = BatchSampler(sampler, 2, drop_last=False)
    loader = DataLoader(range(4), batch_sampler=batches, generator=first)  # pyright: ignore[reportArgumentType]
    own = order_state(loader)["own"]
    assert len(own) == 2
    first.manual_seed(5)
    second.manual_seed(6)
    changed = order_state(loader)["own"]
    assert own[0] != changed[0]
    assert own[1] != changed[1]
    set_order_state(loader, {"own": own, "epochs": []})
    assert (first.initial_seed(), second.initial_seed()) == (1, 2)


class Told(Holds):
    times: int
    inner: Any

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch
        self.times += 1


class ToldData(list[int]):
    def __init__(self, epoch: int) -> None:
        super().__init__(range(4))
        self.epoch = epoch

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


def test_epochs_are_set_as_samplers_want_them_set() -> None:
    def loader(epochs: tuple[int, int]) -> tuple[Any, Any, Any]:
        told, counts = Told(epoch=epochs[0], times=0), Holds(epoch=epochs[1])
        told.inner = counts
        data = ToldData(epochs[0])
        return DataLoader(data, sampler=told), told, counts  # pyright: ignore[reportArgumentType]

    state = order_state(loader((3, 4))[0])
    assert state["epochs"] == [3, 4, 3]
    again, told, counts = loader((0, 1))
    set_order_state(again, state)
    assert (told.epoch, told.times, counts.epoch, again.dataset.epoch) == (3, 1, 4, 3)
    set_order_state(again, state)
    assert told.times == 1  # as it is already


def test_a_state_of_another_loader_is_refused() -> None:
    plain: Any = DataLoader(range(4), sampler=SequentialSampler(range(4)))  # pyright: ignore[reportArgumentType]
    epochs: Any = DataLoader(range(4), sampler=Holds(epoch=1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(rd.DataError, match=r"0 generators and 1 epochs .* has 0 and 0\."):
        set_order_state(plain, order_state(epochs))


def test_a_replay_leaves_the_streams_of_the_process_where_they_were() -> None:
    loader = DataLoader(range(4))  # pyright: ignore[reportArgumentType]
    state = order_state(loader)
    expected = _draws()
    now = packed()
    with replayed(loader, state):
        assert _draws() == expected
    assert packed() == now
    with pytest.raises(RuntimeError, match="no"), replayed(loader, state):
        raise RuntimeError("no")
    assert packed() == now
