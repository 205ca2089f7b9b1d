"""Measures a step of the loop beside the same arithmetic by hand, and whether that lasts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from reducible.lab.bench.memory import resident_bytes
from reducible.lab.bench.rows import row
from reducible.lab.bench.training import N_B, N_CANDIDATES, new_model, update
from reducible.lab.data import TensorSet, fashion_mnist
from reducible.lab.records import PickWriter
from reducible.loop import Gate, SelectingLoader, stream_seed
from reducible.selectors import Selector, selector
from reducible.stores import IrreducibleLossStore


def step_overhead(model_name: str, *, rounds: int, steps: int = 40) -> dict[str, Any]:
    """Seconds of a step of SelectingLoader over those of the same arithmetic by hand.

    Both do the same loading, forward, top-k, gather and update; each has its own model from the
    same initialisation. Ours keeps its ledger and writes its choices to a file besides. They take
    turns step by step, the order alternating, so that a drift of the machine falls on both; a round
    is the ratio of the medians of ``steps`` such pairs. Every round makes both anew: where memory
    happens to lie makes one of two equal loops up to a percent faster for as long as it lives.
    """
    data = fashion_mnist("train")
    store = IrreducibleLossStore.from_tensor(torch.rand(len(data)))
    ratios = _in_turn(
        lambda: _steps_by_loader(data, model_name, store),
        lambda: _steps_by_hand(data, model_name, store),
        rounds,
        steps,
    )
    return row(f"step, SelectingLoader over by hand, {model_name}, 32 of 320", ratios, "ratio")


def watching_overhead(model_name: str, *, rounds: int, steps: int = 40) -> dict[str, Any]:
    """Seconds of a step that a gate only watches over those of plain training by hand.

    Both train on 32 rows drawn at random of 320 before they are loaded, the same ones, in turns as
    above. The gate's budget is too small for any trial: what is left is its bookkeeping.
    """
    data = fashion_mnist("train")
    ratios = _in_turn(
        lambda: _watched_steps(data, model_name),
        lambda: _plain_steps_by_hand(data, model_name),
        rounds,
        steps,
    )
    what = "step, gate watching and no trial, over plain training by hand"
    return row(f"{what}, {model_name}, 32 of 320", ratios, "ratio")


def gate_bookkeeping(model_name: str, *, rounds: int, steps: int = 40) -> dict[str, Any]:
    """Seconds of a step that a gate only watches over those of uniform sampling, by one loader.

    What the gate itself costs between its trials; the loader's own cost is in both.
    """
    data = fashion_mnist("train")
    ratios = _in_turn(
        lambda: _watched_steps(data, model_name),
        lambda: _uniform_steps(data, model_name),
        rounds,
        steps,
    )
    what = "step, gate watching and no trial, over uniform by the same loader"
    return row(f"{what}, {model_name}, 32 of 320", ratios, "ratio")


Steps = Generator[None, None, None]
"""Training that makes a step whenever it is asked for one."""


def _in_turn(
    ours: Callable[[], Steps], by_hand: Callable[[], Steps], rounds: int, steps: int
) -> list[float]:
    """Per round: our median time of a step over that by hand, which take turns."""
    ratios: list[float] = []
    for number in range(rounds):
        mine_first = number % 2 == 0
        made = {mine: (ours if mine else by_hand)() for mine in (mine_first, not mine_first)}
        for steps_of in made.values():
            _seconds(steps_of, 5)
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(steps):
            for mine in (True, False) if turn % 2 == 0 else (False, True):
                times[mine].append(_seconds(made[mine], 1))
        ratios.append(statistics.median(times[True]) / statistics.median(times[False]))
        for steps_of in made.values():
            steps_of.close()
    return ratios


def _seconds(steps_of: Steps, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        next(steps_of)
    return time.perf_counter() - start


def _endless(data: TensorSet) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from data.loader(N_CANDIDATES, generator=generator)


def _steps_by_loader(data: TensorSet, name: str, store: IrreducibleLossStore) -> Steps:
    model, optimizer = new_model(name)
    loader = data.loader(N_CANDIDATES, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory() as folder, PickWriter(Path(folder) / "picks.arrow") as record:
        batches = SelectingLoader(
            loader, model, selector("rho"), keep=N_B, store=store, record=record
        )
        while True:
            for chosen in batches:
                x, y = chosen.batch
                update(model, optimizer, x, y, chosen.weights)
                yield


def _steps_by_hand(data: TensorSet, name: str, store: IrreducibleLossStore) -> Steps:
    model, optimizer = new_model(name)
    irreducible, ones = store.values, torch.ones(N_B)
    for ids, (x, y) in _endless(data):
        with torch.inference_mode():
            loss = F.cross_entropy(model(x), y, reduction="none")  # [B]
            index = (loss - irreducible[ids]).topk(N_B).indices  # [K]
        index = index.clone()
        update(model, optimizer, x[index], y[index], ones)
        yield


def _watched_steps(data: TensorSet, name: str) -> Steps:
    watching = {"gate": Gate(budget=1e-12), "held_out": data.loader(512, shuffle=False)}
    return _blind_steps(data, name, selector("train_loss"), **watching)


def _uniform_steps(data: TensorSet, name: str) -> Steps:
    return _blind_steps(data, name, selector("uniform"))


def _blind_steps(data: TensorSet, name: str, rule: Selector, **options: Any) -> Steps:
    """Makes steps by the loader, on rows drawn before they are loaded."""
    model, optimizer = new_model(name)
    loader = data.loader(N_CANDIDATES, generator=torch.Generator().manual_seed(0))
    batches = SelectingLoader(loader, model, rule, keep=N_B, **options)
    while True:
        for chosen in batches:
            x, y = chosen.batch
            update(model, optimizer, x, y, chosen.weights)
            yield


def _plain_steps_by_hand(data: TensorSet, name: str) -> Steps:
    model, optimizer = new_model(name)
    generator, ones = torch.Generator().manual_seed(0), torch.ones(N_B)
    loader = data.loader(N_CANDIDATES, generator=generator)
    few = DataLoader(
        data,
        batch_size=None,
        sampler=_FewOf(loader.sampler),
        collate_fn=loader.collate_fn,
        generator=generator,
    )
    while True:
        for _, (x, y) in few:
            update(model, optimizer, x, y, ones)
            yield


@final
class _FewOf:
    """Lists of positions, each cut to N_B at random, as the loop with seed 0 draws them."""

    def __init__(self, lists: Iterable[list[int]]) -> None:
        self._lists, self._step = lists, 0

    def __iter__(self) -> Iterator[list[int]]:
        for positions in self._lists:
            draws = torch.Generator().manual_seed(stream_seed(0, self._step))
            self._step += 1
            few = torch.randperm(len(positions), generator=draws)[:N_B]
            yield [positions[i] for i in few.tolist()]


def flat_over_steps(steps: int) -> list[dict[str, Any]]:
    """Time of every later tenth of ``steps`` steps over the first, and the memory they grew by."""
    generator = torch.Generator().manual_seed(0)
    data = TensorSet(
        torch.rand(1024, 4, generator=generator),
        torch.randint(2, (1024,), generator=generator),
    )
    model = nn.Linear(4, 2)
    batches = SelectingLoader(
        data.loader(64, generator=generator), model, selector("train_loss"), keep=8
    )

    def walk() -> Steps:
        while True:
            for _ in batches:
                yield

    steps_of = walk()
    _seconds(steps_of, 5)  # the first one counts FLOPs, for which torch imports as long as a tenth
    tenths = [_seconds(steps_of, steps // 10)]
    before = resident_bytes()
    tenths += [_seconds(steps_of, steps // 10) for _ in range(9)]
    grown = (resident_bytes() - before) / 2**20
    what = f"{steps:,} steps of a tiny model"
    return [
        row(
            f"{what}: every later tenth over the first",
            [t / tenths[0] for t in tenths[1:]],
            "ratio",
        ),
        row(f"{what}: memory grown after the first tenth", [grown], "MiB"),
    ]
