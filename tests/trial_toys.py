"""What the tests of trials need: a clock that scripted work moves, and all that a gate looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

import reducible as rd
from reducible.loop.evidence import Moment
from reducible.loop.gate import Gate
from reducible.loop.seeds import stream_seed
from reducible.loop.trials import GateTrials
from reducible.selectors import Choice

B, K, D, C, SEED = 16, 4, 3, 2, 9


class Model(nn.Module):
    """A linear model that takes a second of scoring for a row; its first pass takes 100 more.

    What is normalised by the running statistics is not changed by more than 1e-5 of it.
    """

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(D)
        self.linear = nn.Linear(D, C)
        self._clock, self._cold = clock, 100.0
        self.seen: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self._clock.now += x.shape[0] + self._cold
        self._cold = 0.0
        self.seen.append(x.shape[0])
        return self.linear(self.norm(x))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class LastRows:
    """A selector that takes the last k rows, weighted 1, 2, 3 …, in ``seconds`` for a row."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.seconds = 0.5
        self.calls: list[tuple[int, int, int]] = []

    def choose(self, look: Any, k: int, *, generator: torch.Generator) -> Choice:
        candidates = look()
        m = candidates.ids.numel()
        self.calls.append((m, k, generator.initial_seed()))
        self._clock.now += m * self.seconds
        weight = torch.arange(1.0, k + 1)
        selection = rd.Selection(index=torch.arange(m - k, m), weight=weight)
        return Choice(rd.Evidence(ids=candidates.ids), selection)


class Source:
    """Gives the candidates themselves to look at, and remembers what for."""

    def __init__(self) -> None:
        self.asked: list[Moment] = []

    def view(self, selector: Any, candidates: rd.Candidates, moment: Moment) -> Any:
        self.asked.append(moment)
        return lambda: candidates


def moment_of(step: int) -> Moment:
    return Moment(epoch=3, step=step, seed=stream_seed(SEED, step))


class Bench:
    """The trials of a gate with all that they look at."""

    def __init__(self, *, held_out: Any = None, rows: int = B, task: Any = None, **gate: Any):
        self.clock = Clock()
        torch.manual_seed(0)
        self.model, self.selector = Model(self.clock), LastRows(self.clock)
        self.source, self.ledger = Source(), rd.Ledger(clock=self.clock)
        g = torch.Generator().manual_seed(1)
        x, y = torch.randn(rows, D, generator=g), torch.randint(C, (rows,), generator=g)
        self.candidates = rd.Candidates(torch.arange(rows), (x, y))
        self.held = torch.randn(5, D, generator=g), torch.randint(C, (5,), generator=g)
        self.gate = Gate(**{"budget": 1.0, "trials": 2, "settings": (1.0, 0.5), **gate})
        self.trials = GateTrials(
            self.gate,
            self.model,
            cast(Any, self.selector),
            cast(Any, self.source),
            task or rd.Classification(features="linear"),
            [self.held] if held_out is None else held_out,
            self.ledger,
            seed=SEED,
        )

    def let_through(self, step: int, k: int = K) -> rd.Candidates | None:
        """The candidates that the selector chooses from; None if the update is plain."""
        candidates, plain = self.trials.decide(self.candidates, k, moment_of(step))
        return candidates if plain is None else None

    @contextmanager
    def update(self, seconds: float) -> Iterator[None]:
        """What the loop does around a batch that is handed out."""
        yield
        self.trials.handed_out()
        with self.ledger.phase("train"):
            self.clock.now += seconds

    def select(self, rows: int = B) -> None:
        """Open the gate by hand."""
        self.gate.state, self.gate.candidates = "selecting", rows
        self.gate.events.append({"step": -1})


def due_for_a_trial(**options: Any) -> Bench:
    bench = Bench(**options)
    for _ in range(32):
        bench.gate.update_took(1000.0, plain=True)
    bench.gate.probed(1, per_row=1.0, seconds=0.0)
    return bench
