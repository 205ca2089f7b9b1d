"""What selection costs on this machine, beside its floor. Ratios within one process, medians."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

from reducible.break_even import times_in_turn
from reducible.data import TensorSet, fashion_mnist
from reducible.irreducible import fit_group_irreducible_loss, fit_irreducible_loss
from reducible.ledger import peak_memory_bytes
from reducible.loop import SelectingLoader, weighted_mean
from reducible.measure import Scoring, measure
from reducible.models import MODELS
from reducible.scorers import CoTrained, early_exit
from reducible.selectors import SELECTORS, selector
from reducible.stores import IrreducibleLossStore
from reducible.stores.irreducible import _FORMAT, _checksum
from reducible.tasks import Classification
from reducible.types import Candidates, Evidence

_N_B, _N_CANDIDATES = 32, 320


def run_bench(*, quick: bool = False) -> list[dict[str, Any]]:
    """All measurements, one row each: what, the ratio or time, its unit, and the spread."""
    rounds = 3 if quick else 15
    repeats = 3 if quick else 15
    return [
        *(step_overhead(name, rounds=rounds) for name in ("lenet", "mlp-512")),
        *(
            row
            for name in _SCORED
            for row in scoring_costs(name, repeats=repeats, compiled=not quick)
        ),
        *fitting_costs(epochs=1 if quick else 6, repeats=1 if quick else 9),
        *(picking_time(name, repeats=repeats) for name in SELECTORS),
        *([] if quick else [large_divbs()]),
        lookup_time(10**6 if quick else 10**8),
        *([] if quick else mapped_lookup(10**9)),
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
    return model, _adamw(model)


def _adamw(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), fused=True)


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
    return _row(f"store look-up, {rows:,} dense ids", _lookups(store), "µs per id")


def _lookups(store: IrreducibleLossStore) -> list[float]:
    """Microseconds per id of each of 50 look-ups that were made once before."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(len(store), (_N_CANDIDATES,), generator=generator) for _ in range(50)]
    times: list[float] = []
    for ids in batches * 2:
        start = time.perf_counter()
        store.lookup(ids)
        times.append((time.perf_counter() - start) / _N_CANDIDATES * 1e6)
    return times[len(batches) :]


def mapped_lookup(rows: int, *, free: int | None = None) -> list[dict[str, Any]]:
    """The same in a store on disk that is opened there, and the memory that this takes.

    The memory is what belongs to this process alone; pages of the file that the system keeps are
    given up where memory is short. ``free`` bytes of disk: those of the temporary folder.
    """
    what = f"store look-up, {rows:,} dense ids on disk"
    free = shutil.disk_usage(tempfile.gettempdir()).free if free is None else free
    needed = 4 * rows + 2**30
    if free < needed:
        return [_row(f"{what}: left out, needs {needed / 1e9:.1f} GB", [free / 1e9], "GB free")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.safetensors")
        write_large_store(path, rows)
        before = own_memory_bytes()
        start = time.perf_counter()
        store = IrreducibleLossStore.load(path)
        opened = time.perf_counter() - start
        times = _lookups(store)
        grown = (own_memory_bytes() - before) / 2**20
    return [
        _row(what, times, "µs per id"),
        _row(f"{what}: opened, its checksum verified", [opened], "s"),
        _row(f"{what}: own memory grown", [grown], "MiB"),
    ]


def write_large_store(path: Path, rows: int, *, piece: int = 1 << 24) -> None:
    """Write a dense store of made-up losses as ``IrreducibleLossStore.save`` would, in pieces."""
    metadata = {"format": _FORMAT, "fingerprint": "", "header": "{}", "checksum": "0" * 32}
    values = torch.rand(piece, generator=torch.Generator().manual_seed(0))
    with open(path, "wb") as file:
        file.write(_header(metadata, rows))
        for first in range(0, rows, piece):
            file.write(values[: rows - first].numpy().data)
    with safe_open(path, framework="pt") as written:
        metadata["checksum"] = _checksum({"values": written.get_tensor("values")}, metadata)
    with open(path, "r+b") as file:  # of the same length
        file.write(_header(metadata, rows))


def _header(metadata: Mapping[str, str], rows: int) -> bytes:
    """How a safetensors file of one tensor begins, its values at a multiple of 8 bytes."""
    tensor = {"dtype": "F32", "shape": [rows], "data_offsets": [0, 4 * rows]}
    header = {"__metadata__": dict(metadata), "values": tensor}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


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


def own_memory_bytes() -> int:
    """Memory of this process that no file backs; all of it where /proc does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["RssAnon"].split()[0]) * 1024
    except (FileNotFoundError, KeyError):
        return resident_bytes()


_SCORED = ("lenet", "resnet-18-16", "mlp-512")
_EXITS = {"lenet": "2", "lenet-8": "2", "resnet-18-16": "4", "mlp-512": "2"}


def scoring_costs(name: str, *, repeats: int, compiled: bool = False) -> list[dict[str, Any]]:
    """Scoring a candidate over training on an example, for each way of scoring a network.

    Scorers that learn along are charged for their step on the 32 chosen of the 320 as well.
    ``compiled``: torch.compile too, which takes half a minute to begin with.
    """
    model, optimizer = _new_model(name)
    scorer, _ = _new_model("mlp-64")
    ids, (x, y) = fashion_mnist("train")[list(range(_N_CANDIDATES))]
    candidates = Candidates(ids, (x, y))
    ways: dict[str, tuple[nn.Module, Scoring]] = {
        "exact": (model, Scoring()),
        "bfloat16": (model, Scoring(precision="bfloat16")),
        "bfloat16, channels last": (model, Scoring(precision="bfloat16", channels_last=True)),
        "by an mlp-64": (scorer, Scoring()),
    }
    if name.startswith("resnet"):
        half = Scoring(precision="bfloat16", channels_last=True, resolution=14)
        ways["bfloat16, channels last, 14 × 14"] = (model, half)
    left_out = _cannot_compile(model, candidates) if compiled else ""
    if compiled and not left_out:
        ways["compiled"] = (model, Scoring(compile=True))
    work: dict[str, Callable[[], Any]] = {
        "train": lambda: _update(model, optimizer, x[:_N_B], y[:_N_B], torch.ones(_N_B))
    }
    for way, (runs, scoring) in ways.items():
        work[way] = partial(measure, runs, candidates, frozenset({"loss"}), scoring)
    learners = {
        "by an mlp-64 that learns along": CoTrained(scorer, _adamw(scorer)),
        "by an mlp-64 that learns its predictions": CoTrained(scorer, _adamw(scorer), distil=True),
        f"by its first blocks, up to {_EXITS[name]}, and a head": early_exit(
            model, _EXITS[name], num_classes=10
        ),
    }
    chosen, ones = (x[:_N_B], y[:_N_B]), torch.ones(_N_B)
    overheard = torch.full((_N_B, 10), 0.1)  # which training tells, for nothing

    def learn_along(learner: CoTrained) -> None:
        measure(learner.model, candidates, frozenset({"loss"}))
        learner.step(Classification(), chosen, ones, predictions=overheard)

    for way, learner in learners.items():
        work[way] = partial(learn_along, learner)
    taken = times_in_turn(work, repeats=repeats, device=x.device)
    trained = statistics.median(taken["train"]) / _N_B
    what = f"scoring a candidate over training on one, {name}"
    rows = [
        _row(f"{what}: {way}", [t / _N_CANDIDATES / trained for t in taken[way]], "ratio")
        for way in (*ways, *learners)
    ]
    return (
        [*rows, _row(f"{what}: compiled, left out: {left_out}", [0.0], "–")] if left_out else rows
    )


def _cannot_compile(model: nn.Module, candidates: Candidates) -> str:
    """Why the model cannot be scored compiled on this machine; empty where it can."""
    try:
        measure(model, candidates, frozenset({"loss"}), Scoring(compile=True))
    except RuntimeError as error:
        return str(error).strip().split("\n")[0]
    return ""


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
