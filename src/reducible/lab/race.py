"""Trains several recipes in one process for the same seconds, advanced in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, final

import torch
from rich.progress import Progress
from torch import Tensor

from reducible import schedules
from reducible.lab.evaluation import correctness
from reducible.lab.info_records import StepWriter
from reducible.lab.provenance import versions
from reducible.lab.recipe import Recipe
from reducible.lab.records import MetricsWriter, write_json
from reducible.lab.run import write_config
from reducible.lab.setup import irreducible_store, make_plan
from reducible.lab.splits import Splits, make_splits
from reducible.lab.training import METRICS, Trainer, marks_of
from reducible.ledger import Ledger

EVALUATIONS = 20
_WITHOUT_END = 2**62  # updates: the clock ends these runs


@final
class Stopwatch:
    """Counts the seconds inside ``with``; a clock for a Ledger.

    >>> ticks = iter([5.0, 7.0, 20.0, 21.0])
    >>> watch = Stopwatch(clock=lambda: next(ticks))
    >>> with watch:
    ...     pass
    >>> with watch:
    ...     pass
    >>> watch()
    3.0
    """

    def __init__(self, *, clock: Any = time.perf_counter) -> None:
        self._clock = clock
        self._before = 0.0
        self._since: float | None = None

    def __call__(self) -> float:
        """Seconds so far."""
        return self._before + (0.0 if self._since is None else self._clock() - self._since)

    def __enter__(self) -> None:
        self._since = self._clock()

    def __exit__(self, *_: object) -> None:
        self._before, self._since = self(), None


@final
class _Runner:
    """One recipe in the race, in a folder of its own."""

    def __init__(
        self, recipe: Recipe, splits: Splits, out: Path, seed: int, bar: Progress, files: ExitStack
    ) -> None:
        self._watch = Stopwatch()
        self.ledger = Ledger(clock=self._watch)
        self._out, self._evaluations = out, 0
        out.mkdir(parents=True)
        write_config(out, recipe, seed=seed, steps=recipe.steps, target=None, checkpoint_every=0)
        with self._watch, torch.random.fork_rng([]):  # fitting is charged
            store = irreducible_store(recipe, splits, seed, out, ledger=self.ledger, progress=bar)
            plan = make_plan(recipe, splits, store, out)
            self._steps = files.enter_context(StepWriter(out))
            self._metrics = files.enter_context(MetricsWriter(out / METRICS))
            self.trainer = Trainer(
                recipe,
                splits,
                store,
                plan,
                out,
                seed=seed,
                ledger=self.ledger,
                steps=self._steps,
                metrics=self._metrics,
                progress=bar,
            )
        self._updates: Iterator[None] = self.trainer.updates(_WITHOUT_END)

    def turn(self, share: float) -> None:
        """Makes an update; evaluates if ``share`` of the race says that it is time."""
        with self._watch:
            next(self._updates)
            if share * EVALUATIONS >= self._evaluations + 1:
                self._evaluate(share)

    def end(self) -> None:
        """Evaluates at the end, if the last update was not evaluated."""
        curve = self.trainer.curve
        if not curve or curve[-1][0] < self.trainer.step:
            with self._watch:
                self._evaluate(1.0)

    def _evaluate(self, share: float) -> None:
        with self.ledger.phase("evaluate"):
            self.trainer.evaluate()
        self._evaluations = int(share * EVALUATIONS)

    def finish(self) -> dict[str, Any]:
        """Writes and returns the summary."""
        summary = self.trainer.finish(marks_of(self._steps, self._metrics))
        summary["updates"] = self.trainer.step
        write_json(self._out / "summary.json", summary, sealed=True)
        return summary


def run_race(
    out: Path,
    recipes: Mapping[str, Recipe],
    *,
    seed: int,
    steps: int | None = None,
    progress: Progress,
    dataset: str,
) -> dict[str, Any]:
    """Train every recipe for as many seconds as the first one takes for its updates.

    At every turn, the run with the fewest seconds makes an update, so that a machine whose speed
    drifts is as slow for one as for all. Fitting, loading, scoring, picking and training are
    charged, evaluation is not. All learning rates decay by a cosine over the share of the first
    run's updates that are made.

    Args:
        out: an empty or new folder; a folder for each run and a summary are written into it.
        recipes: by name, the first of which the others are compared with; of the same data.
        seed: of everything.
        steps: updates of the first run; as many as its recipe says if None.
        progress: shows a bar.
        dataset: what to call the data in the summary.

    Returns:
        The summary: seconds, and by name each run's own summary, with the difference of its
        accuracy to the first run's and the 95 % interval that the test images leave open.
    """
    first, *_ = recipes
    splits = make_splits(recipes[first], seed)
    with ExitStack() as files:
        runners = {
            name: _Runner(recipe, splits, out / slug(name), seed, progress, files)
            for name, recipe in recipes.items()
        }
        _advance(list(runners.values()), steps or recipes[first].steps, progress)
        methods = {name: runner.finish() for name, runner in runners.items()}
        right = {
            name: correctness(runner.trainer.model, splits.test, recipes[name].task)
            for name, runner in runners.items()
        }
    for name in methods:
        methods[name] |= {"over_first": difference(right[name], right[first])}
    summary = {
        "target_accuracy": None,
        "dataset": dataset,
        "seed": seed,
        "seconds": runners[first].ledger.charged,
        "versions": versions(),
        "verdict": verdict(right),
        "methods": methods,
    }
    write_json(out / "summary.json", summary, sealed=True)
    return summary


def _advance(runners: list[_Runner], steps: int, bar: Progress) -> None:
    """Makes all updates of all runs."""
    first = runners[0]
    shown = bar.add_task("in turns, for the same seconds", total=steps)

    def share() -> float:
        return first.trainer.step / steps

    for runner in runners:
        runner.trainer.decay = lambda _: schedules.cosine(
            first.trainer.step - 1, start=0, end=steps
        )
    running = list(runners)
    while running:
        behind = min(running, key=lambda runner: runner.ledger.charged)
        over = first.trainer.step == steps
        if over and (behind is first or behind.ledger.charged >= first.ledger.charged):
            behind.end()
            running.remove(behind)
            continue
        behind.turn(share())
        bar.update(shown, completed=first.trainer.step)


def slug(name: str) -> str:
    """A name as that of a folder.

    >>> slug("every row in turn")
    'every-row-in-turn'
    """
    return "-".join(name.lower().split())


def difference(right: Tensor, other: Tensor) -> dict[str, float]:
    """Measures how much more often ``right`` ([N] bool) is true than ``other`` ([N]).

    Returns:
        The mean difference and its 95 % interval, by the normal approximation.

    >>> difference(torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 0, 1]))["mean"]
    0.25
    """
    each = right.double() - other.double()  # [N]
    half = 1.96 * float(each.std()) / math.sqrt(each.numel())
    mean = float(each.mean())
    return {"mean": mean, "low": mean - half, "high": mean + half}


def verdict(right: Mapping[str, Tensor]) -> str:
    """Who won, from which examples each got right: the best, if it is beyond chance over the next.

    >>> verdict({"a": torch.ones(100), "b": torch.zeros(100)})
    'a won, by 100.0 points (+100.0 to +100.0) over b'
    """
    order = sorted(right, key=lambda name: float(right[name].double().mean()), reverse=True)
    best, second = order[:2]
    d = difference(right[best], right[second])
    points = f"{100 * d['mean']:.1f} points ({100 * d['low']:+.1f} to {100 * d['high']:+.1f})"
    if d["low"] > 0:
        return f"{best} won, by {points} over {second}"
    return f"Nobody won: {best} is ahead of {second} by {points}, which may be chance"
