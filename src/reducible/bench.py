"""What selection costs on this machine, beside its floor. Ratios within one process, medians."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.break_even import times_in_turn
from reducible.data import TensorSet, fashion_mnist
from reducible.irreducible import fit_group_irreducible_loss, fit_irreducible_loss
from reducible.ledger import peak_memory_bytes
from reducible.loop import SelectingLoader, weighted_mean
from reducible.measure import Scoring, measure
from reducible.models import MODELS
from reducible.selectors import SELECTORS, selector
from reducible.stores import IrreducibleLossStore
from reducible.types import Candidates, Evidence

_N_B, _N_CANDIDATES = 32, 320


def run_bench(*, quick: bool = False) -> list[dict[str, Any]]:
    """All measurements, one row each: what, the ratio or time, its unit, and the spread."""
    rounds = 3 if quick else 15
    repeats = 3 if quick else 15
    return [
        *(step_overhead(name, rounds=rounds) for name in ("lenet", "mlp-512")),
        *(row for name in _SCORED for row in scoring_costs(name, repeats=repeats)),
        *fitting_costs(epochs=1 if quick else 6, repeats=1 if quick else 9),
        *(picking_time(name, repeats=repeats) for name in SELECTORS),
        *([] if quick else [large_divbs()]),
        lookup_time(10**6 if quick else 10**8),
        *flat_over_steps(5_000 if quick else 100_000),
    ]


def _row(what: str, values: list[float], unit: str) -> dict[str, Any]:
    return {
        "what": what,
        "median": round(statistics.median(values), 4),
        "unit": unit,
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "runs": len(values),
    }


def step_overhead(model_name: str, *, rounds: int, steps: int = 40) -> dict[str, Any]:
    """Seconds of a step of SelectingLoader over those of the same arithmetic by hand.

    Both do the same loading, forward, top-k, gather and update; each has its own model from the
    same initialisation. They take turns step by step, the order alternating, so that a drift of the
    machine falls on both; a round is the ratio of the medians of ``steps`` such pairs.
    """
    data = fashion_mnist("train")
    store = IrreducibleLossStore.from_tensor(torch.rand(len(data)))
    ours = _steps_by_loader(data, model_name, store)
    by_hand = _steps_by_hand(data, model_name, store)
    for steps_of in (ours, by_hand):
        _seconds(steps_of, 5)
    ratios: list[float] = []
    for _ in range(rounds):
        times: dict[bool, list[float]] = {True: [], False: []}
        for turn in range(steps):
            for mine in (True, False) if turn % 2 == 0 else (False, True):
                times[mine].append(_seconds(ours if mine else by_hand, 1))
        ratios.append(statistics.median(times[True]) / statistics.median(times[False]))
    return _row(f"step, SelectingLoader over by hand, {model_name}, 32 of 320", ratios, "ratio")


def _seconds(steps_of: Iterator[None], steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        next(steps_of)
    return time.perf_counter() - start


def _new_model(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = MODELS[name]()
    return model, torch.optim.AdamW(model.parameters(), fused=True)


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor, weight: Tensor
) -> None:
    loss = weighted_mean(F.cross_entropy(model(x), y, reduction="none"), weight)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _endless(data: TensorSet) -> Iterator[Any]:
    generator = torch.Generator().manual_seed(0)
    while True:
        yield from data.loader(_N_CANDIDATES, generator=generator)


def _steps_by_loader(data: TensorSet, name: str, store: IrreducibleLossStore) -> Iterator[None]:
    model, optimizer = _new_model(name)
    loader = data.loader(_N_CANDIDATES, generator=torch.Generator().manual_seed(0))
    batches = SelectingLoader(loader, model, selector("rho"), keep=_N_B, store=store)
    while True:
        for chosen in batches:
            x, y = chosen.batch
            _update(model, optimizer, x, y, chosen.weights)
            yield


def _steps_by_hand(data: TensorSet, name: str, store: IrreducibleLossStore) -> Iterator[None]:
    model, optimizer = _new_model(name)
    irreducible, ones = store.values, torch.ones(_N_B)
    for ids, (x, y) in _endless(data):
        with torch.inference_mode():
            loss = F.cross_entropy(model(x), y, reduction="none")  # [B]
            index = (loss - irreducible[ids]).topk(_N_B).indices  # [K]
        index = index.clone()
        _update(model, optimizer, x[index], y[index], ones)
        yield


def lookup_time(rows: int) -> dict[str, Any]:
    """Microseconds per id of a look-up of 320 random ids in a dense store, warm."""
    store = IrreducibleLossStore.from_tensor(torch.zeros(rows))
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(rows, (_N_CANDIDATES,), generator=generator) for _ in range(50)]
    times: list[float] = []
    for ids in batches * 2:
        start = time.perf_counter()
        store.lookup(ids)
        times.append((time.perf_counter() - start) / _N_CANDIDATES * 1e6)
    return _row(f"store look-up, {rows:,} dense ids", times[len(batches) :], "µs per id")


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

    def walk() -> Iterator[None]:
        while True:
            for _ in batches:
                yield

    steps_of = walk()
    tenths = [_seconds(steps_of, steps // 10)]
    before = resident_bytes()
    tenths += [_seconds(steps_of, steps // 10) for _ in range(9)]
    grown = (resident_bytes() - before) / 2**20
    what = f"{steps:,} steps of a tiny model"
    return [
        _row(
            f"{what}: every later tenth over the first",
            [t / tenths[0] for t in tenths[1:]],
            "ratio",
        ),
        _row(f"{what}: memory grown after the first tenth", [grown], "MiB"),
    ]


def resident_bytes() -> int:
    """Resident size of this process now; its peak where /proc is not there."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return peak_memory_bytes()


_SCORED = ("lenet", "resnet-18-16", "mlp-512")


def scoring_costs(name: str, *, repeats: int) -> list[dict[str, Any]]:
    """Scoring a candidate over training on an example, for each way of scoring a network."""
    model, optimizer = _new_model(name)
    scorer, _ = _new_model("mlp-64")
    ids, (x, y) = fashion_mnist("train")[list(range(_N_CANDIDATES))]
    candidates = Candidates(ids, (x, y))
    ways: dict[str, tuple[nn.Module, Scoring]] = {
        "exact": (model, Scoring()),
        "bfloat16, channels last": (model, Scoring(precision="bfloat16", channels_last=True)),
        "by an mlp-64": (scorer, Scoring()),
    }
    if name.startswith("resnet"):
        half = Scoring(precision="bfloat16", channels_last=True, resolution=14)
        ways["bfloat16, channels last, 14 × 14"] = (model, half)
    work: dict[str, Callable[[], Any]] = {
        "train": lambda: _update(model, optimizer, x[:_N_B], y[:_N_B], torch.ones(_N_B))
    }
    for way, (runs, scoring) in ways.items():
        work[way] = partial(measure, runs, candidates, frozenset({"loss"}), scoring)
    taken = times_in_turn(work, repeats=repeats, device=x.device)
    trained = statistics.median(taken["train"]) / _N_B
    return [
        _row(
            f"scoring a candidate over training on one, {name}: {way}",
            [t / _N_CANDIDATES / trained for t in taken[way]],
            "ratio",
        )
        for way in ways
    ]


def fitting_costs(*, epochs: int, repeats: int) -> list[dict[str, Any]]:
    """Irreducible losses per group by one network with adapters, over one plain fit."""
    pool = fashion_mnist("train")
    holdout, train = pool.subset(torch.arange(10_000)), pool.subset(torch.arange(10_000, 30_000))
    clusters = torch.arange(len(pool)) % 100
    options: dict[str, Any] = {"epochs": epochs, "batch_size": 64, "progress": False}
    make = MODELS["mlp-128"]
    work: dict[str, Callable[[], Any]] = {
        "plain": lambda: fit_irreducible_loss(make, holdout, train, **options),
        "10 classes": lambda: fit_group_irreducible_loss(
            make, holdout, train, shared=True, **options
        ),
        "100 clusters": lambda: fit_group_irreducible_loss(
            make, holdout, train, shared=True, groups=clusters, **options
        ),
    }
    taken = times_in_turn(work, repeats=repeats, device=torch.device("cpu"))
    return [
        _row(
            f"fitting irreducible losses of {groups}, shared network over one plain fit",
            [mine / plain for mine, plain in zip(taken[groups], taken["plain"], strict=True)],
            "ratio",
        )
        for groups in ("10 classes", "100 clusters")
    ]


def picking_time(name: str, *, repeats: int) -> dict[str, Any]:
    """Milliseconds to pick 32 of 320 with 100 classes and 512 features, without the forward."""
    rule, evidence = selector(name), made_up_evidence(320, 100, 512)
    generator = torch.Generator().manual_seed(0)

    def pick() -> None:
        rule.observe(evidence, rule.select(evidence, 32, generator=generator))

    pick()
    times = [_milliseconds(pick) for _ in range(repeats * 2)]
    return _row(f"picking 32 of 320: {name}", times, "ms")


def large_divbs() -> dict[str, Any]:
    """Seconds to pick 512 of 4,096 by DivBS."""
    rule, evidence = selector("divbs"), made_up_evidence(4096, 100, 512)
    generator = torch.Generator().manual_seed(0)
    times = [
        _milliseconds(lambda: rule.select(evidence, 512, generator=generator)) / 1000
        for _ in range(3)
    ]
    return _row("picking 512 of 4,096: divbs", times, "s")


def made_up_evidence(candidates: int, classes: int, width: int) -> Evidence:
    """Everything that a rule may read, drawn at random."""
    g = torch.Generator().manual_seed(0)
    logits = 3.0 * torch.randn(candidates, classes, generator=g)
    targets = torch.randint(classes, (candidates,), generator=g)
    return Evidence(
        ids=torch.arange(candidates),
        targets=targets,
        loss=F.cross_entropy(logits, targets, reduction="none"),
        logits=logits,
        features=torch.randn(candidates, width, generator=g).relu(),
        mc_logits=logits + torch.randn(10, candidates, classes, generator=g),
        irreducible_loss=3.0 * torch.rand(candidates, generator=g),
        group_irreducible_loss=3.0 * torch.rand(candidates, classes, generator=g),
        groups=targets,
        context={
            "step": torch.tensor(5),
            "epoch": torch.tensor(1),
            "total_steps": torch.tensor(100),
            "group_holdout_loss": torch.rand(classes, generator=g),
        },
    )


def _milliseconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
