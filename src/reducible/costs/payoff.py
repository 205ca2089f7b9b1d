"""Measures what selection must save on a user's own model before it pays."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import nn

from reducible.batches import gather
from reducible.costs.updates import plain_update
from reducible.scoring import Scoring, least_rows, measure
from reducible.tasks import Classification, Task
from reducible.types import Candidates, ConfigurationError, DataError, require_between

_LOSS = frozenset({"loss"})
SCORINGS: Mapping[str, Scoring] = {
    "exact": Scoring(),
    "bfloat16": Scoring(precision="bfloat16"),
    "remembered": Scoring(precision="bfloat16", max_age=10**6, rescore=1 / 8),
}
"""Ways of scoring that need nothing but the model, and ids that are known beforehand."""


@final
@dataclass(frozen=True, slots=True)
class Setting:
    """One way to select, and what it must save.

    Attributes:
        scoring: name of the way candidates are scored.
        ratio: n_B/n_b.
        discount: s, its cost per candidate over that of exact scoring. Where losses are
            remembered, the share that is scored all the same is charged: ``rescore``, or the 32
            rows that batch normalisation takes its statistics of. Where one scoring serves several
            updates, each is charged its part.
        update_cost: cost of an update over a plain one, 1 + (n_B/n_b)·f·s.
        steps_to_save: share of the steps that selection must save to break even, 1 − 1/cost.
    """

    scoring: str
    ratio: float
    discount: float
    update_cost: float
    steps_to_save: float


@final
@dataclass(frozen=True, slots=True)
class BreakEven:
    """Holds what was measured on a model, and prints it.

    Attributes:
        forward_over_step: f, scoring one example exactly over training on one.
        settings: dearest last.

    >>> setting = Setting("exact", ratio=10, discount=1.0, update_cost=4.0, steps_to_save=0.75)
    >>> BreakEven(0.3, (setting,)).cheapest.steps_to_save
    0.75
    """

    forward_over_step: float
    settings: tuple[Setting, ...]

    @property
    def cheapest(self) -> Setting:
        """The setting that has least to save."""
        return self.settings[0]

    def __str__(self) -> str:
        lines = [
            f"scoring an example costs {self.forward_over_step:.2f} of training on it (f)",
            f"{'scoring':<14}{'n_B/n_b':>8}{'s':>7}{'update costs':>14}{'steps to save':>15}",
        ]
        lines += [
            f"{s.scoring:<14}{s.ratio:>8g}{s.discount:>7.2f}{s.update_cost:>13.2f}×"
            f"{s.steps_to_save:>14.0%} "
            for s in self.settings
        ]
        best = self.cheapest
        lines.append(
            f"cheapest: {best.scoring} scoring at n_B/n_b = {best.ratio:g}; it pays once selection "
            f"saves more than {best.steps_to_save:.0%} of the steps. The cost of fitting "
            "irreducible losses comes on top."
        )
        return "\n".join(lines)


def break_even(
    model: nn.Module,
    batch: Any,
    *,
    task: Task | None = None,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
    ratios: Sequence[float] = (2, 4, 10),
    scorings: Mapping[str, Scoring] | None = None,
    repeats: int = 7,
) -> BreakEven:
    """Measure what an update with selection costs over a plain one.

    One update costs 1 + (n_B/n_b)·f·s: f is scoring an example over training on it, s the discount
    of cheap scoring. Works on a copy of the model; measurements take turns, medians count.

    Args:
        model: in train mode, on its device.
        batch: a batch of the size that is trained on, n_b; on the model's device.
        task: what it means; ``Classification()`` by default.
        make_optimizer: parameters → optimizer.
        ratios: n_B/n_b to show, each > 1.
        scorings: ways of scoring to compare, ``"exact"`` among them.
        repeats: measurements of each.

    Raises:
        ConfigurationError: a setting that cannot work, such as losses remembered with rescore=0.

    >>> model, batch = nn.Linear(4, 2), (torch.randn(8, 4), torch.arange(8) % 2)
    >>> costs = break_even(model, batch, ratios=(2,), repeats=1)
    >>> costs.cheapest.ratio
    2
    """
    task = task or Classification()
    scorings = dict(scorings or SCORINGS)
    _check_settings(ratios, scorings, repeats)
    targets = task.targets(batch)
    if targets is None:
        raise DataError("the task has no targets, so there is no step to measure.")
    size, widest = len(targets), round(max(ratios))
    model = copy.deepcopy(model).train()
    repeated = gather(batch, torch.arange(size).repeat(widest), size)
    candidates = Candidates(torch.arange(size * widest), repeated)
    optimizer = make_optimizer(model.parameters())

    train = partial(plain_update, model, optimizer, task, batch)
    work: dict[str, Callable[[], Any]] = {"train": train}
    work |= {
        name: partial(measure, model, candidates, _LOSS, s, task=task)
        for name, s in scorings.items()
    }
    devices = [] if targets.device.type == "cpu" else [targets.device]
    with torch.random.fork_rng(devices, device_type=targets.device.type):  # dropout draws
        seconds = medians_in_turn(work, repeats=repeats, device=targets.device)
    f = (seconds["exact"] / candidates.ids.numel()) / (seconds["train"] / size)
    settings: list[Setting] = []
    for name, scoring in scorings.items():
        for ratio in ratios:
            share = _share_scored(model, scoring, ratio * size)
            settings.append(_setting(name, ratio, f, share * seconds[name] / seconds["exact"]))
    return BreakEven(f, tuple(sorted(settings, key=lambda s: s.update_cost)))


def _setting(name: str, ratio: float, f: float, s: float) -> Setting:
    cost = 1.0 + ratio * f * s
    return Setting(name, ratio, s, cost, 1.0 - 1.0 / cost)


def _check_settings(ratios: Sequence[float], scorings: Mapping[str, Scoring], repeats: int) -> None:
    for name, scoring in scorings.items():
        if scoring.max_age and not scoring.rescore:
            raise ConfigurationError(
                f"{name!r} remembers losses for {scoring.max_age} updates, but how many candidates "
                "are older depends on the data. Say which share is scored anew: rescore=0.125."
            )
    if "exact" not in scorings:
        raise ConfigurationError(
            "scorings must hold 'exact', which discounts are measured against."
        )
    require_between("repeats", repeats, 1, whole=True)
    if not ratios:
        raise ConfigurationError("ratios is empty: name at least one ratio n_B/n_b.")
    for ratio in ratios:
        require_between("ratios", ratio, 1, open_low=True, open_high=True)


def _share_scored(model: nn.Module, scoring: Scoring, candidates: float) -> float:
    """Passes over a candidate, of ``candidates`` at a time, that an update pays for."""
    anew = 1.0
    if scoring.max_age:
        anew = min(1.0, max(scoring.rescore, least_rows(model, scoring) / candidates))
    return anew / scoring.updates_per_scoring


def medians_in_turn(
    work: Mapping[str, Callable[[], Any]], *, repeats: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each piece of work, see ``times_in_turn``."""
    taken = times_in_turn(work, repeats=repeats, device=device)
    return {name: statistics.median(values) for name, values in taken.items()}


def times_in_turn(
    work: Mapping[str, Callable[[], Any]], *, repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each piece of work; they take turns, so that a drift falls on all alike."""
    for run in work.values():
        run()  # caches, compilation
    taken: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(repeats):
        names = list(work) if turn % 2 == 0 else list(work)[::-1]
        for name in names:
            _wait(device)
            began = time.perf_counter()
            work[name]()
            _wait(device)
            taken[name].append(time.perf_counter() - began)
    return taken


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)
