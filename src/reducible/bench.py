"""What selection costs on this machine, beside its floor. Ratios within one process, medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.data import TensorSet, fashion_mnist
from reducible.loop import SelectingLoader, weighted_mean
from reducible.models import MODELS
from reducible.selectors import selector
from reducible.stores import IrreducibleLossStore

_N_B, _N_CANDIDATES = 32, 320


def run_bench(*, quick: bool = False) -> list[dict[str, Any]]:
    """All measurements, one row each: what, the ratio or time, its unit, and the spread."""
    rounds = 3 if quick else 15
    return [
        *(step_overhead(name, rounds=rounds) for name in ("lenet", "mlp-512")),
        lookup_time(10**6 if quick else 10**8),
        flat_over_steps(5_000 if quick else 100_000),
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
    same initialisation. They take turns, the order alternating, so that a drift of the machine
    falls on both.
    """
    data = fashion_mnist("train")
    store = IrreducibleLossStore.from_tensor(torch.rand(len(data)))
    ours = _steps_by_loader(data, model_name, store)
    by_hand = _steps_by_hand(data, model_name, store)
    for steps_of in (ours, by_hand):
        _seconds(steps_of, 5)
    ratios: list[float] = []
    for turn in range(rounds):
        pair: dict[bool, float] = {}
        for mine in (True, False) if turn % 2 == 0 else (False, True):
            pair[mine] = _seconds(ours if mine else by_hand, steps)
        ratios.append(pair[True] / pair[False])
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


def flat_over_steps(steps: int) -> dict[str, Any]:
    """Time of the last tenth of ``steps`` steps of a tiny model over that of the first tenth."""
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

    tenths = [_seconds(steps_of, steps // 10) for steps_of in [walk()] for _ in range(10)]
    row = _row(
        f"{steps:,} steps of a tiny model: every tenth over the first",
        [t / tenths[0] for t in tenths[1:]],
        "ratio",
    )
    return row
