"""Measures a step of selection on an accelerator, beside the same arithmetic by hand."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reducible.lab.bench.rows import row
from reducible.lab.bench.training import adamw
from reducible.lab.models import resnet18
from reducible.lab.records import PickWriter
from reducible.loop import SelectingLoader, weighted_mean
from reducible.scoring import Scoring
from reducible.selectors import selector
from reducible.stores import IrreducibleLossStore
from reducible.types import Candidates

Step = Callable[[], None]


def accelerator_steps(
    device: torch.device,
    *,
    keep: int,
    candidates: int,
    rounds: int = 9,
    steps: int = 20,
    width: int = 64,
) -> list[dict[str, Any]]:
    """Returns what a step of RHO-LOSS costs over the same by hand, and over a plain update.

    A ResNet-18 on images of 3×32×32, all in bfloat16 by autocast. Each way has a model of its own
    and gets the same candidates, from pinned memory; blocks of ``steps`` steps take turns and end
    with the device's queue empty. By hand means what the arithmetic needs alone: the forward pass
    with the candidates' statistics, the look-up, top-k, gathering, the update. Ours checks ties and
    finiteness, keeps its ledger and writes its choices to a file besides.

    Args:
        device: of models and batches.
        keep: n_b.
        candidates: n_B.
        rounds: pairs of blocks.
        steps: of a block.
        width: of the network; less than 64 for a trial on a CPU.
    """
    data = _Data(device, keep, candidates, width)
    writes = find_spec("pyarrow") is not None
    with (
        TemporaryDirectory() as folder,
        PickWriter(Path(folder) / "picks.arrow") if writes else nullcontext() as record,
    ):
        ways: dict[str, Step] = {
            "loop": _by_loop(data, record),
            "hand": _by_hand(data),
            "plain": _plain(data),
        }
        for step in ways.values():
            _seconds(step, 5, device)
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(rounds):
            order = list(ways) if number % 2 == 0 else list(ways)[::-1]
            for name in order:
                times[name].append(_seconds(ways[name], steps, device) / steps)
    where = f"ResNet-18 in bfloat16, {keep} of {candidates}, {_name(device)}"
    where += "" if writes else ", without a file of choices because pyarrow is missing"
    over = {
        "loop over the same by hand": ("loop", "hand"),
        "loop over a plain update": ("loop", "plain"),
        "by hand over a plain update": ("hand", "plain"),
    }
    ratios = [
        row(
            f"step, {what}, {where}",
            [a / b for a, b in zip(times[ours], times[other], strict=True)],
            "ratio",
        )
        for what, (ours, other) in over.items()
    ]
    plain = row(f"plain update, {where}", [t * 1e3 for t in times["plain"]], "ms")
    return [*ratios, plain]


class _Data:
    """Yields the same batches of candidates to every way, over and over."""

    def __init__(self, device: torch.device, keep: int, candidates: int, width: int) -> None:
        g = torch.Generator().manual_seed(0)
        self.device, self.keep, self.width = device, keep, width
        examples = 8 * candidates
        x = torch.randn(examples, 3, 32, 32, generator=g)
        y = torch.randint(10, (examples,), generator=g)
        if device.type == "cuda":
            x, y = x.pin_memory(), y.pin_memory()
        ids = torch.arange(examples)
        self.batches = [
            Candidates(ids[rows], (x[rows], y[rows]))
            for rows in (slice(i, i + candidates) for i in range(0, examples, candidates))
        ]
        self.store = IrreducibleLossStore.from_tensor(torch.rand(examples, generator=g))

    def network(self) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            return resnet18(in_channels=3, width=self.width).to(self.device)

    def endless(self) -> Iterator[Candidates]:
        while True:
            yield from self.batches

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


def _update(data: _Data, model: nn.Module, optimizer: Any, x: Tensor, y: Tensor, w: Tensor) -> None:
    with data.autocast():
        logits = model(x)
    loss = weighted_mean(F.cross_entropy(logits.float(), y, reduction="none"), w)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _by_loop(data: _Data, record: PickWriter | None) -> Step:
    model = data.network()
    optimizer = adamw(model)
    batches = SelectingLoader(
        data.batches,
        model,
        selector("rho"),
        keep=data.keep,
        store=data.store,
        scoring=Scoring(precision="bfloat16"),
        record=record,
    )

    def forever() -> Iterator[None]:
        while True:
            for chosen in batches:
                x, y = chosen.batch
                _update(data, model, optimizer, x, y, chosen.weights)
                yield

    walk = forever()
    return lambda: next(walk)


def _by_hand(data: _Data) -> Step:
    model = data.network()
    optimizer = adamw(model)
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    supply, irreducible = data.endless(), data.store.values
    ones = torch.ones(data.keep, device=data.device)

    def step() -> None:
        ids, (x, y) = next(supply)
        x, y = x.to(data.device, non_blocking=True), y.to(data.device, non_blocking=True)
        for norm in norms:
            norm.track_running_stats = False
        with torch.no_grad(), data.autocast():
            logits = model(x)
        for norm in norms:
            norm.track_running_stats = True
        loss = F.cross_entropy(logits.float(), y, reduction="none")  # [B]
        rho = loss - irreducible[ids].to(data.device, non_blocking=True)
        index = rho.topk(data.keep).indices
        _update(data, model, optimizer, x[index], y[index], ones)

    return step


def _plain(data: _Data) -> Step:
    model = data.network()
    optimizer = adamw(model)
    supply, ones = data.endless(), torch.ones(data.keep, device=data.device)

    def step() -> None:
        _, (x, y) = next(supply)
        x, y = (t[: data.keep].to(data.device, non_blocking=True) for t in (x, y))
        _update(data, model, optimizer, x, y, ones)

    return step


def _seconds(step: Step, steps: int, device: torch.device) -> float:
    _wait(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
