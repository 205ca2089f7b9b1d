"""The equal-time study: who is better in the same time, and who reaches uniform's end sooner."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from reducible.report.statistics import paired_bootstrap
from reducible.report.studies import newest_results

BUDGETS: Mapping[str, float] = {"0.5x": 0.5, "1x": 1.0, "2x": 2.0}
SHARED = 10  # runs that one set of irreducible losses serves, in the second reckoning


@final
@dataclass(slots=True, eq=False)
class Outcome:
    """One rule in one setting of the study, over all budgets that were run.

    Attributes:
        rule: its name.
        accuracy: budget → seed → final accuracy.
        time: budget → time in the plateau's, everything charged.
        shared: the same with the irreducible losses shared by ten runs.
        seconds: budget → seed → seconds that its run was charged.
        wrong: share of wrong labels among the rows trained on at budget 1; the median.
    """

    rule: str
    accuracy: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    time: dict[str, float] = field(default_factory=dict[str, float])
    shared: dict[str, float] = field(default_factory=dict[str, float])
    seconds: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    wrong: float | None = None


def outcomes(
    results: Path, network: str, data: str, holdout: str, known: Mapping[str, Any]
) -> list[Outcome]:
    """What was found for one network and one kind of data; rules in the order of ``known``.

    Args:
        results: folder of the results files.
        network: key of ``known``.
        data: kind of data.
        holdout: "noisy" or "clean"; rules that read none are listed with both.
        known: what was measured beforehand: per network the plateau, and cost and fit per rule.
    """
    about = known[network]
    found: list[Outcome] = []
    for rule, cost in about["rules"].items():
        outcome = Outcome(rule)
        for budget in BUDGETS:
            for kind in ("any", holdout):
                name = f"equal-time/{network}/{data}/{kind}/{budget}/{rule}"
                if (results / name).is_dir():
                    _add(outcome, budget, newest_results(results, name), cost, about["plateau"])
        if outcome.accuracy:
            found.append(outcome)
    return found


def _add(
    outcome: Outcome,
    budget: str,
    result: Mapping[str, Any],
    cost: Mapping[str, float],
    plateau: int,
) -> None:
    runs = {run["seed"]: run["summary"] for run in result["seeds"]}
    trained = result["recipe"]["steps"] * cost["cost"]
    outcome.accuracy[budget] = {seed: run["final_accuracy"] for seed, run in runs.items()}
    outcome.time[budget] = (trained + cost["fit"]) / plateau
    outcome.shared[budget] = (trained + cost["fit"] / SHARED) / plateau
    outcome.seconds[budget] = {
        seed: run["seconds"]["total"] - run["seconds"]["evaluate"] for seed, run in runs.items()
    }
    if budget == "1x":
        outcome.wrong = statistics.median(run["corrupted_share"] for run in runs.values())


def time_to(target: float, time: Sequence[float], accuracy: Sequence[float]) -> float:
    """The time at which ``target`` is reached, between runs of different length; inf: never.

    Straight between neighbours in the logarithm of time. Where the shortest run reaches it, its
    time: the true one is shorter.

    >>> round(time_to(0.5, [1.0, 4.0], [0.4, 0.6]), 3)
    2.0
    >>> time_to(0.3, [1.0, 4.0], [0.4, 0.6]), time_to(0.7, [1.0, 4.0], [0.4, 0.6])
    (1.0, inf)
    """
    if accuracy[0] >= target:
        return time[0]
    for i in range(1, len(time)):
        if accuracy[i] >= target:
            share = (target - accuracy[i - 1]) / (accuracy[i] - accuracy[i - 1])
            return math.exp(
                math.log(time[i - 1]) + share * (math.log(time[i]) - math.log(time[i - 1]))
            )
    return math.inf


def times_to_uniform(mine: Outcome, uniform: Outcome, *, shared: bool = False) -> list[float]:
    """Per seed: the time to uniform's final accuracy at budget 1; inf: never in its budgets."""
    time = mine.shared if shared else mine.time
    budgets = [b for b in BUDGETS if b in mine.accuracy]
    seeds = set(uniform.accuracy["1x"]).intersection(*(mine.accuracy[b] for b in budgets))
    return [
        time_to(
            uniform.accuracy["1x"][seed],
            [time[b] for b in budgets],
            [mine.accuracy[b][seed] for b in budgets],
        )
        for seed in sorted(seeds)
    ]


def table(found: Sequence[Outcome]) -> str:
    """Markdown: a row per rule; differences to uniform in points, with paired 95 % intervals."""
    uniform = next(outcome for outcome in found if outcome.rule == "uniform")
    budgets = [b for b in BUDGETS if b in uniform.accuracy]
    lines = [
        "| rule | time to uniform's final accuracy | shared by ten runs | "
        + " | ".join(f"accuracy at {b}, over uniform's" for b in budgets)
        + " | seconds, over uniform's | wrong labels trained on |",
        "|" + "---|" * (len(budgets) + 5),
    ]
    for mine in found:
        cells = [
            mine.rule,
            *(_time(mine, uniform, shared=shared) for shared in (False, True)),
            *(_difference(mine, uniform, budget) for budget in budgets),
            _clock(mine, uniform),
            "–" if mine.wrong is None else f"{100 * mine.wrong:.1f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _time(mine: Outcome, uniform: Outcome, *, shared: bool) -> str:
    if "1x" not in mine.accuracy:
        return "–"
    if mine is uniform:
        return "1"
    times = times_to_uniform(mine, uniform, shared=shared)
    middle = statistics.median(times)
    if math.isinf(middle):
        return "never"
    shortest = min((mine.shared if shared else mine.time).values())
    return f"{'≤ ' if middle <= shortest else ''}{middle:.2f}"


def _difference(mine: Outcome, uniform: Outcome, budget: str) -> str:
    if budget not in mine.accuracy:
        return "–"
    seeds = sorted(set(mine.accuracy[budget]) & set(uniform.accuracy[budget]))
    own = [mine.accuracy[budget][s] for s in seeds]
    if mine is uniform:
        return f"{100 * statistics.median(own):.1f} %"
    other = [uniform.accuracy[budget][s] for s in seeds]
    mean, low, high = paired_bootstrap(own, other)
    return f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _clock(mine: Outcome, uniform: Outcome) -> str:
    if "1x" not in mine.seconds:
        return "–"
    seeds = sorted(set(mine.seconds["1x"]) & set(uniform.seconds["1x"]))
    return (
        f"{statistics.median(mine.seconds['1x'][s] / uniform.seconds['1x'][s] for s in seeds):.2f}"
    )
