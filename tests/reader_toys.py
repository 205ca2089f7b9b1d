"""What the tests of going on with a pass need: rows, samplers, runs that are stopped and go on."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, DistributedSampler, Sampler

import reducible as rd

N, N_B, K = 104, 16, 4  # six whole candidate batches and one short one
FULL = N // N_B


class Examples(Dataset[tuple[Tensor, int]]):
    """Rows that are shifted at random where that is asked for, from all three streams."""

    def __init__(self, augment: bool = False) -> None:
        self.x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
        self.targets = (self.x.sum(1) > 0).long()
        self.augment = augment

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        x = self.x[index]
        if self.augment:
            x = x + torch.rand(4) + np.random.rand() + random.random()  # noqa: NPY002
        return x, int(self.targets[index])


class Shuffles(Sampler[int]):
    """Shuffles by ``draw``, when its first index is asked for."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        yield from (int(i) for i in self.draw())


def by_python() -> list[int]:
    return random.sample(range(N), N)


def by_numpy() -> Any:
    return np.random.permutation(N)  # noqa: NPY002


class Holding(Sampler[int]):
    """Shuffles by a generator of its own, under a name of its own."""

    def __init__(self, source: Any) -> None:
        self.rng = source

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        if isinstance(self.rng, random.Random):
            return iter(self.rng.sample(range(N), N))
        return iter(self.rng.permutation(N).tolist())


class ByEpoch(Sampler[int]):
    """Shuffles by the epoch that it is told of."""

    def __init__(self) -> None:
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(N, generator=torch.Generator().manual_seed(self.epoch)).tolist()


class Counting(ByEpoch):
    """Counts its epochs itself."""

    set_epoch = None  # pyright: ignore[reportAssignmentType]

    def __iter__(self) -> Iterator[int]:
        self.epoch += 1
        return super().__iter__()


class Around(Sampler[int]):
    """A sampler inside another one."""

    def __init__(self, inner: Sampler[int]) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter(list(self.inner)[::-1])


class BatchesByEpoch(BatchSampler):
    """Index lists in an order by epoch."""

    def __init__(self) -> None:
        super().__init__(range(N), N_B, drop_last=False)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[int]]:
        lists = list(super().__iter__())
        order = torch.randperm(FULL, generator=torch.Generator().manual_seed(self.epoch))
        yield from (lists[i] for i in order.tolist())


SAMPLERS: dict[str, Callable[[], Any]] = {
    "python": lambda: Shuffles(by_python),
    "numpy": lambda: Shuffles(by_numpy),
    "own python": lambda: Holding(random.Random(3)),
    "own numpy": lambda: Holding(np.random.default_rng(3)),
    "own numpy of old": lambda: Holding(np.random.RandomState(3)),
    "epoch": ByEpoch,
    "counted epoch": Counting,
    "distributed": lambda: DistributedSampler(Examples(), num_replicas=1, rank=0),
    "around python": lambda: Around(Shuffles(by_python)),
    "around epoch": lambda: Around(ByEpoch()),
    "batches by epoch": BatchesByEpoch,
}


class Opaque(DataLoader[Any]):
    """Its order cannot be read ahead."""


def loader_of(
    sampler: Any = None, *, make: Any = DataLoader, data: Any = None, **options: Any
) -> Any:
    data = rd.WithIds(Examples()) if data is None else data
    if isinstance(sampler, BatchSampler):
        return make(data, batch_sampler=sampler, **options)
    return make(data, batch_size=N_B, sampler=sampler, **options)


def batches_of(rule: str, loader: Any, **options: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
    store = rd.IrreducibleLossStore.from_tensor(torch.linspace(0, 1, N))
    store = store if rule == "rho" else None
    return rd.SelectingLoader(loader, model, rd.selector(rule), keep=K, store=store, **options)


Seen = list[tuple[list[int], list[list[float]]]]


def run_until(
    batches: Any, until: int, *, stop: int = -1, draws: bool = True, between: bool = False
) -> tuple[Seen, bytes]:
    """What is handed out up to step ``until``, and a checkpoint of ``stop``.

    Training draws from all three streams. Samplers are told of the epoch, as users do.
    """
    seen: Seen = []
    saved = io.BytesIO()
    while batches.step < until:
        tell_epoch(batches)
        for chosen in batches:
            seen.append((chosen.ids.tolist(), chosen.batch[0].tolist()))
            if draws:
                _ = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
            if batches.step == stop and not between:
                torch.save(checkpoint_of(batches), saved)
            if batches.step >= until:
                break
        if batches.step == stop and between:
            torch.save(checkpoint_of(batches), saved)
    return seen, saved.getvalue()


def tell_epoch(batches: Any) -> None:
    """Of the pass that is about to begin; nobody tells a run that goes on inside one."""
    loader = batches._passes._loader
    if batches._passes.resuming:
        return
    for owner in (loader.sampler, loader.batch_sampler, getattr(loader.sampler, "inner", None)):
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(batches.epoch + 1)


def checkpoint_of(batches: Any) -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "loader": batches.state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "pos": int(numpy_state["state"]["pos"]),
    }


def restore(batches: Any, saved: bytes) -> None:
    state = torch.load(io.BytesIO(saved), weights_only=True)
    batches.load_state_dict(state["loader"])
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    key = state["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, state["pos"], 0, 0.0))  # noqa: NPY002


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def assert_resumes(make: Callable[[], Any], stop: int, **how: Any) -> None:
    """Stopped at ``stop`` and gone on with in new objects, a run sees what it would have seen."""
    until = 2 * FULL * make()._passes._updates + 3
    seed_all(21)
    expected, saved = run_until(make(), until, stop=stop, **how)
    end = (torch.get_rng_state().tolist(), random.getstate(), np.random.rand())  # noqa: NPY002
    seed_all(99)
    again = make()
    restore(again, saved)
    assert again.step == stop
    found, _ = run_until(again, until, **how)
    assert [ids for ids, _ in found] == [ids for ids, _ in expected[stop:]]
    assert found == expected[stop:]
    assert (torch.get_rng_state().tolist(), random.getstate(), np.random.rand()) == end  # noqa: NPY002
