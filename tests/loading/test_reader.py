"""Passes gone on with after a stop: the same batches as without one, or an error that says why."""

from __future__ import annotations

import gc
import io
import multiprocessing
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    Sampler,
    Subset,
)
from torchdata.stateful_dataloader import StatefulDataLoader

import reducible as rd

# torchdata 0.11 calls what torch 2.13 takes no more notice of.
pytestmark = pytest.mark.filterwarnings("ignore:'set_vital' is deprecated:UserWarning")

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


# -- samplers -------------------------------------------------------------------------------------


class Shuffles(Sampler[int]):
    """Shuffles by ``draw``, when its first index is asked for."""

    def __init__(self, draw: Callable[[], Any]) -> None:
        self.draw = draw

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        yield from (int(i) for i in self.draw())


def _by_python() -> list[int]:
    return random.sample(range(N), N)


def _by_numpy() -> Any:
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


class Lazy(Sampler[int]):
    """Draws every index when it is asked for, from Python's stream."""

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        left = list(range(N))
        while left:
            yield left.pop(random.randrange(len(left)))


class Hidden(Sampler[int]):
    """Shuffles by what nobody else can see."""

    def __init__(self) -> None:
        seeds = iter(range(1000))
        self.draw = lambda: next(seeds)

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        return iter(
            torch.randperm(N, generator=torch.Generator().manual_seed(self.draw())).tolist()
        )


SAMPLERS: dict[str, Callable[[], Any]] = {
    "python": lambda: Shuffles(_by_python),
    "numpy": lambda: Shuffles(_by_numpy),
    "own python": lambda: Holding(random.Random(3)),
    "own numpy": lambda: Holding(np.random.default_rng(3)),
    "own numpy of old": lambda: Holding(np.random.RandomState(3)),
    "epoch": ByEpoch,
    "counted epoch": Counting,
    "distributed": lambda: DistributedSampler(Examples(), num_replicas=1, rank=0),
    "around python": lambda: Around(Shuffles(_by_python)),
    "around epoch": lambda: Around(ByEpoch()),
    "batches by epoch": BatchesByEpoch,
}


class Opaque(DataLoader[Any]):
    """Its order cannot be read ahead."""


def _loader(
    sampler: Any = None, *, make: Any = DataLoader, data: Any = None, **options: Any
) -> Any:
    data = rd.WithIds(Examples()) if data is None else data
    if isinstance(sampler, BatchSampler):
        return make(data, batch_sampler=sampler, **options)
    return make(data, batch_size=N_B, sampler=sampler, **options)


# -- running --------------------------------------------------------------------------------------


def _batches(rule: str, loader: Any, **options: Any) -> Any:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Linear(4, 2)
    store = rd.IrreducibleLossStore.from_tensor(torch.linspace(0, 1, N))
    store = store if rule == "rho" else None
    return rd.SelectingLoader(loader, model, rd.selector(rule), keep=K, store=store, **options)


Seen = list[tuple[list[int], list[list[float]]]]


def _run(
    batches: Any, until: int, *, stop: int = -1, draws: bool = True, between: bool = False
) -> tuple[Seen, bytes]:
    """What is handed out up to step ``until``, and a checkpoint of ``stop``.

    Training draws from all three streams. Samplers are told of the epoch, as users do.
    """
    seen: Seen = []
    saved = io.BytesIO()
    while batches.step < until:
        _tell_epoch(batches)
        for chosen in batches:
            seen.append((chosen.ids.tolist(), chosen.batch[0].tolist()))
            if draws:
                _ = torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
            if batches.step == stop and not between:
                torch.save(_checkpoint(batches), saved)
            if batches.step >= until:
                break
        if batches.step == stop and between:
            torch.save(_checkpoint(batches), saved)
    return seen, saved.getvalue()


def _tell_epoch(batches: Any) -> None:
    """Of the pass that is about to begin; nobody tells a run that goes on inside one."""
    loader = batches._passes._loader
    if batches._passes.resuming:
        return
    for owner in (loader.sampler, loader.batch_sampler, getattr(loader.sampler, "inner", None)):
        set_epoch = getattr(owner, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(batches.epoch + 1)


def _checkpoint(batches: Any) -> dict[str, Any]:
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    return {
        "loader": batches.state_dict(),
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
        "pos": int(numpy_state["state"]["pos"]),
    }


def _restore(batches: Any, saved: bytes) -> None:
    state = torch.load(io.BytesIO(saved), weights_only=True)
    batches.load_state_dict(state["loader"])
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    key = state["key"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", key, state["pos"], 0, 0.0))  # noqa: NPY002


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002


def _assert_resumes(make: Callable[[], Any], stop: int, **how: Any) -> None:
    """Stopped at ``stop`` and gone on with in new objects, a run sees what it would have seen."""
    until = 2 * FULL * make()._passes._updates + 3
    _seed(21)
    expected, saved = _run(make(), until, stop=stop, **how)
    end = (torch.get_rng_state().tolist(), random.getstate(), np.random.rand())  # noqa: NPY002
    _seed(99)
    again = make()
    _restore(again, saved)
    assert again.step == stop
    found, _ = _run(again, until, **how)
    assert [ids for ids, _ in found] == [ids for ids, _ in expected[stop:]]
    assert found == expected[stop:]
    assert (torch.get_rng_state().tolist(), random.getstate(), np.random.rand()) == end  # noqa: NPY002


PLACES = {"inside": (FULL + 2, False), "between": (FULL, True)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("make", [DataLoader, Opaque])
@pytest.mark.parametrize("rule", ["rho", "uniform"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_order_is_drawn_again(sampler: str, rule: str, make: Any, place: str) -> None:
    stop, between = PLACES[place]
    build = SAMPLERS[sampler]
    _assert_resumes(lambda: _batches(rule, _loader(build(), make=make)), stop, between=between)


@pytest.mark.parametrize("sampler", ["python", "epoch", "own numpy"])
def test_an_order_is_drawn_again_for_workers(sampler: str) -> None:
    build = SAMPLERS[sampler]
    _assert_resumes(lambda: _batches("rho", _loader(build(), num_workers=2)), FULL + 2)


@pytest.mark.parametrize("rule", ["rho", "uniform"])
def test_an_order_that_is_drawn_bit_by_bit_goes_on(rule: str) -> None:
    _assert_resumes(lambda: _batches(rule, _loader(Lazy())), FULL + 2, draws=False)


def test_an_order_is_drawn_again_where_several_updates_share_a_batch() -> None:
    scoring = rd.Scoring(updates_per_scoring=3)
    make = SAMPLERS["python"]
    for stop in (1, 3 * FULL + 4, 3 * FULL + 5, 3 * FULL + 6):
        _assert_resumes(lambda: _batches("rho", _loader(make()), scoring=scoring), stop)


def test_augmentations_of_this_process_go_on() -> None:
    data = Examples(augment=True)
    for rule in ("rho", "uniform"):
        _assert_resumes(lambda: _batches(rule, _loader(data=rd.WithIds(data))), FULL + 2)  # noqa: B023


def test_a_pass_that_is_broken_off_lets_its_workers_go() -> None:
    """Without waiting for a search for cycles, which may come when the process forks again."""
    gc.collect()
    gc.disable()
    try:
        for rule in ("rho", "uniform"):
            batches = _batches(rule, _loader(range(N), num_workers=1, persistent_workers=True))
            next(iter(batches))
            assert len(multiprocessing.active_children()) == 1
            del batches
            assert multiprocessing.active_children() == []
    finally:
        gc.enable()


# -- what cannot be drawn again -------------------------------------------------------------------


@pytest.mark.parametrize("make", [DataLoader, Opaque])
@pytest.mark.parametrize("build", [Hidden, Lazy])
def test_an_order_that_cannot_be_drawn_again_is_told(build: Any, make: Any) -> None:
    def batches() -> Any:
        return _batches("rho", _loader(build(), make=make))

    _seed(5)
    first = batches()
    _, saved = _run(first, FULL + 4, stop=FULL + 3)
    again = batches()
    _restore(again, saved)
    before = torch.get_rng_state(), random.getstate()
    with pytest.raises(rd.DataError, match=r"cannot be drawn again.* 3 batches .*set_epoch"):
        next(iter(again))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]


@pytest.mark.parametrize("make", [DataLoader, Opaque])
def test_an_order_that_has_become_shorter_is_told(make: Any) -> None:
    first = _batches("rho", _loader(range(N), make=make))
    _, saved = _run(first, 4, stop=3)
    again = _batches("rho", _loader(range(2 * N_B), make=make))
    _restore(again, saved)
    with pytest.raises(rd.DataError, match="2 batches, where there were 3, of before"):
        next(iter(again))


def test_a_loader_with_other_generators_is_told() -> None:
    first = _batches("rho", _loader(SAMPLERS["own numpy"]()))
    _, saved = _run(first, 3, stop=2)
    again = _batches("rho", _loader(range(N)))
    _restore(again, saved)
    with pytest.raises(rd.DataError, match=r"1 generators and 0 epochs .* 0 and 0\. Resume with"):
        next(iter(again))


def test_batches_that_come_as_they_are_ready_are_refused() -> None:
    with pytest.raises(rd.ConfigurationError, match=r"in_order=False.*Leave in_order=True"):
        _batches("rho", _loader(range(N), num_workers=2, in_order=False))
    assert len(_run(_batches("rho", _loader(range(N), in_order=False)), 3)[0]) == 3


# -- workers that draw ----------------------------------------------------------------------------


def _augmented(make: Any = DataLoader, rule: str = "rho", **options: Any) -> Callable[[], Any]:
    updates = options.pop("updates", 1)
    scoring = rd.Scoring(updates_per_scoring=updates)
    options = {"num_workers": 2, "shuffle": True} | options

    def build() -> Any:
        data = options.get("data") or rd.WithIds(Examples(augment=True))
        rest = {k: v for k, v in options.items() if k != "data"}
        loader = make(data, batch_size=N_B, **rest)
        return _batches(rule, loader, scoring=scoring)

    return build


WORKED = [
    ("rho", FULL + 3, {}),
    ("rho", FULL + 1, {}),  # not all workers have loaded a batch of the pass
    ("uniform", FULL + 3, {}),
    ("uniform", FULL + 1, {"generator": True}),
    ("rho", FULL + 3, {"persistent_workers": True}),
    ("rho", 2, {"persistent_workers": True, "generator": True}),
    ("uniform", FULL + 3, {"persistent_workers": True}),
    ("rho", 2 * FULL + 3, {"updates": 2}),
    ("rho", 2 * FULL + 1, {"updates": 2}),
]


@pytest.mark.parametrize(("rule", "stop", "options"), WORKED)
def test_augmentations_of_workers_go_on(rule: str, stop: int, options: dict[str, Any]) -> None:
    options = dict(options)
    own = options.pop("generator", False)

    def build() -> Any:
        more = {"generator": torch.Generator().manual_seed(4)} if own else {}
        return _augmented(rule=rule, **options, **more)()

    _assert_resumes(build, stop)


@pytest.mark.parametrize("rule", ["rho", "uniform"])
def test_persistent_workers_go_on_between_passes(rule: str) -> None:
    _assert_resumes(_augmented(rule=rule, persistent_workers=True), FULL, between=True)


def test_a_run_resumed_twice_goes_on() -> None:
    build, until = _augmented(), FULL + 6
    _seed(3)
    expected, saved = _run(build(), until, stop=FULL + 3)
    middle = build()
    _restore(middle, saved)
    _, saved = _run(middle, FULL + 4, stop=FULL + 4)
    last = build()
    _restore(last, saved)
    assert _run(last, until)[0] == expected[FULL + 4 :]


@pytest.mark.parametrize(
    ("stop", "between", "options"),
    [
        (FULL + 3, False, {}),
        (FULL + 1, False, {}),
        (FULL, True, {}),
        (2 * FULL + 3, False, {"updates": 2}),
        (2 * FULL + 1, False, {"updates": 2}),
        (FULL + 3, False, {"persistent_workers": True}),
        (FULL, True, {"persistent_workers": True}),
        (FULL + 2, False, {"snapshot_every_n_steps": 3}),
        (FULL + 3, False, {"num_workers": 0}),
        (FULL + 3, False, {"shuffle": False, "sampler": "python"}),
    ],
)
def test_a_loader_that_keeps_a_state_goes_on(
    stop: int, between: bool, options: dict[str, Any]
) -> None:
    def build() -> Any:
        more = {"sampler": SAMPLERS[options["sampler"]]()} if "sampler" in options else {}
        return _augmented(StatefulDataLoader, **(options | more))()

    _assert_resumes(build, stop, between=between)


class Halves(IterableDataset[Any]):
    """Every worker yields rows of its own, shifted at random."""

    def __iter__(self) -> Iterator[rd.Candidates]:
        info = torch.utils.data.get_worker_info()
        first, step = (0, 1) if info is None else (info.id, info.num_workers)
        for i in range(first, N, step):
            yield rd.Candidates(torch.tensor(i), (torch.rand(4), i % 2))  # pyright: ignore


def test_workers_whose_batches_are_loaded_again_go_on() -> None:
    def build() -> Any:
        return _batches("rho", DataLoader(Halves(), batch_size=N_B, num_workers=2))

    _assert_resumes(build, 3)


# -- what cannot be the same ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ({}, {"num_workers": 1}, "stopped with num_workers=2.*Resume with as many"),
        ({"num_workers": 0}, {}, "stopped with num_workers=0"),
        ({"make": Opaque, "persistent_workers": True}, None, "persist.*StatefulDataLoader"),
        (
            {"make": StatefulDataLoader, "data": Subset(rd.WithIds(Examples(True)), range(N))},
            None,
            r"its data set does not.*WithIds\(Subset",
        ),
    ],
)
def test_augmentations_that_will_differ_are_told_once(
    before: dict[str, Any], after: dict[str, Any] | None, message: str
) -> None:
    _seed(8)
    _, saved = _run(_augmented(**before)(), FULL + 2, stop=FULL + 2)
    again = _augmented(**(before if after is None else after))()
    _restore(again, saved)
    with pytest.warns(UserWarning, match=message):
        chosen = next(iter(again))
    _restore(again, saved)
    assert next(iter(again)).ids.numel() == chosen.ids.numel() == K  # without a word
