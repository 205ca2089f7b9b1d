"""The equal-time study: who is better in the same time, and who reaches uniform's end sooner."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from reducible.lab.report.results import newest_results
from reducible.lab.report.statistics import paired_bootstrap

BUDGETS = ("0.5x", "0.75x", "1x", "2x")
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
        alone: seed → seconds charged, of runs at budget 1 that had the machine to themselves.
        gate: reports of the gate, over all budgets and seeds.
        wrong: share of wrong labels among the rows trained on at budget 1; the median.
    """

    rule: str
    accuracy: dict[str, dict[int, float]] = field(default_factory=dict[str, dict[int, float]])
    time: dict[str, float] = field(default_factory=dict[str, float])
    shared: dict[str, float] = field(default_factory=dict[str, float])
    alone: dict[int, float] = field(default_factory=dict[int, float])
    gate: list[Mapping[str, Any]] = field(default_factory=list[Mapping[str, Any]])
    wrong: float | None = None


def outcomes(
    results: Path,
    network: str,
    data: str,
    holdout: str,
    known: Mapping[str, Any],
    *,
    seeds: int = 5,
) -> list[Outcome]:
    """Holds what was found for one network and one kind of data; rules in the order of ``known``.

    Args:
        results: folder of the results files.
        network: key of ``known``.
        data: kind of data.
        holdout: "noisy" or "clean"; rules that read none are listed with both.
        known: what was measured beforehand: per network the plateau, and cost and fit per rule.
        seeds: what was run with fewer is left out.
    """
    about = known[network]
    found: list[Outcome] = []
    for rule, cost in about["rules"].items():
        outcome = Outcome(rule)
        for budget in BUDGETS:
            for kind in ("any", holdout):
                name = f"equal-time/{network}/{data}/{kind}/{budget}/{rule}"
                if not (results / name).is_dir():
                    continue
                result = newest_results(results, name)
                if len(result["seeds"]) >= seeds:
                    _add(outcome, budget, result, cost, about["plateau"])
        for kind in ("any", holdout):
            name = f"on-the-clock/{network}/{data}/{kind}/1x/{rule}"
            if (results / name).is_dir():
                outcome.alone = _seconds(newest_results(results, name))
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
    outcome.gate += [run["gate"] for run in runs.values() if "gate" in run]
    if budget == "1x":
        outcome.wrong = statistics.median(run["corrupted_share"] for run in runs.values())


def _seconds(result: Mapping[str, Any]) -> dict[int, float]:
    """Seed → seconds charged."""
    charged: dict[int, float] = {}
    for run in result["seeds"]:
        seconds = run["summary"]["seconds"]
        charged[run["seed"]] = seconds["total"] - seconds["evaluate"]
    return charged


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
        + " | seconds on the clock, over uniform's | wrong labels trained on |",
        "|" + "---|" * (len(budgets) + 5),
    ]
    for mine in found:
        cells = [
            mine.rule,
            *(_time(mine, uniform, shared=shared) for shared in (False, True)),
            *(_difference(mine, uniform, budget) for budget in budgets),
            _ratio(mine.alone, uniform.alone),
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
    if mine is uniform:
        return f"{100 * statistics.median(mine.accuracy[budget].values()):.1f} %"
    return _points(*compare(mine, uniform, budget))


def _points(mean: float, low: float, high: float) -> str:
    return f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _ratio(mine: Mapping[int, float], uniform: Mapping[int, float]) -> str:
    """Median over common seeds."""
    seeds = sorted(set(mine) & set(uniform))
    return f"{statistics.median(mine[s] / uniform[s] for s in seeds):.2f}" if seeds else "–"


def gate_note(by_data: Mapping[str, Sequence[Outcome]]) -> str:
    """Says what the gate's trials cost in all runs, and in how many it opened; or nothing."""
    reports = [report for found in by_data.values() for o in found for report in o.gate]
    if not reports:
        return ""
    most = max(report["share_of_planned_time"] for report in reports)
    opened = sum(any(e["to"] == "selecting" for e in report["events"]) for report in reports)
    return (
        f"The gate: trials and probes took at most {100 * most:.2f} % of the time of the planned "
        f"updates in {len(reports)} runs; selection was let in in {opened} of them."
    )


SHOWN: Mapping[str, str] = {
    "uniform-128": "uniform in batches of 128",
    "rs2": "every row in turn",
    "rs2-128": "every row in turn, batches of 128",
    "uniform-all": "uniform, the holdout too",
    "rs2-all": "every row in turn, the holdout too",
    "rs2-all-128": "every row in turn, batches of 128, the holdout too",
    "holdout-only": "the holdout alone",
    "label-smoothing": "label smoothing",
    "generalised": "generalised cross-entropy",
    "infobatch": "InfoBatch",
    "train-loss": "the highest losses, 32 of 320",
    "rho": "RHO-LOSS, 32 of 320",
    "rho-cheap": "RHO-LOSS, losses remembered",
    "rho-gate": "RHO-LOSS behind the gate",
    "plan-filter": "strict plan",
    "plan-cross-fit": "strict plan, cross-fitted, the holdout too",
    "plan-weights": "fixed weights",
    "plan": "strict plan, fixed weights",
    "plan-floor": "mild plan",
    "plan-floor-128": "mild plan, batches of 128",
    "plan-floor-all": "mild plan, the holdout too",
    "plan-full": "mild plan, fixed weights, the holdout too",
    "plan-floor-all-128": "mild plan, batches of 128, the holdout too",
    "plan-full-128": "mild plan, fixed weights, batches of 128, the holdout too",
    "plan-online": "strict plan, then train loss, 128 of 192",
}
"""Rules of the overview, by the names it gives them."""


def overview(
    by_data: Mapping[str, Sequence[Outcome]],
    *,
    rules: Sequence[str] = tuple(SHOWN),
    budget: str = "1x",
) -> str:
    """Markdown: a row per rule of SHOWN that is among ``rules``, a column per kind of data.

    A cell says the accuracy over uniform's in the same time, with its paired 95 % interval, and the
    time to uniform's final accuracy. Bold: better, the interval excludes zero; italic: worse.
    """
    lines = [
        "| in the same time, everything charged | " + " | ".join(by_data) + " |",
        "|" + "---|" * (len(by_data) + 1),
    ]
    there = {o.rule for found in by_data.values() for o in found} & set(rules)
    uniforms = {d: next(o for o in found if o.rule == "uniform") for d, found in by_data.items()}
    medians = [statistics.median(base.accuracy[budget].values()) for base in uniforms.values()]
    cells = ["uniform", *(f"{100 * median:.1f} %" for median in medians)]
    lines.append("| " + " | ".join(cells) + " |")
    for rule, title in SHOWN.items():
        if rule not in there:
            continue
        cells = [title]
        for data, found in by_data.items():
            mine = next((o for o in found if o.rule == rule and budget in o.accuracy), None)
            cells.append("–" if mine is None else _cell(mine, uniforms[data], budget))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(mine: Outcome, uniform: Outcome, budget: str) -> str:
    said = _marked(*compare(mine, uniform, budget))
    return f"{said}, time {_time(mine, uniform, shared=False)}"


def _marked(mean: float, low: float, high: float) -> str:
    """Points with their interval; bold if it lies above zero, italic if below zero."""
    mark = "**" if low > 0 else "*" if high < 0 else ""
    return f"{mark}{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}){mark}"


def compare(mine: Outcome, uniform: Outcome, budget: str) -> tuple[float, float, float]:
    """Mean difference of accuracy over common seeds, and its 95 % interval."""
    return _compared(mine.accuracy[budget], uniform.accuracy[budget])


def _compared(mine: Mapping[int, float], other: Mapping[int, float]) -> tuple[float, float, float]:
    seeds = sorted(set(mine) & set(other))
    return paired_bootstrap([mine[s] for s in seeds], [other[s] for s in seeds])


LIKE_WITH_LIKE: Mapping[str, tuple[str, str]] = {
    "plan-floor": ("rs2", "batches of 32 from D"),
    "plan-full": ("rs2-all", "batches of 32 from D and the holdout, fixed weights"),
    "plan-floor-128": ("rs2-128", "batches of 128 from D"),
    "plan-floor-all-128": ("rs2-all-128", "batches of 128 from D and the holdout"),
    "plan-full-128": ("rs2-all-128", "the same, fixed weights"),
}
"""Plans → plain training on the same data in batches of the same size, every row in its turn."""


def like_with_like(by_data: Mapping[str, Sequence[Outcome]], *, budget: str = "1x") -> str:
    """Markdown: a row per rule of LIKE_WITH_LIKE, a column per kind of data; or nothing.

    A cell says the accuracy over that of its counterpart in the same time, as in ``overview``.
    """
    rows = {
        title: cells
        for rule, (_, title) in LIKE_WITH_LIKE.items()
        if (cells := _over_its_like(by_data, rule, budget))
    }
    return _alike(f"plan with noise-floor loss, over plain training alike, {budget}", rows, by_data)


def like_over_budgets(by_network: Mapping[str, Mapping[str, Sequence[Outcome]]], rule: str) -> str:
    """Markdown: a row per network and budget, ``rule`` of LIKE_WITH_LIKE alone; or nothing."""
    rows = {
        f"{network}, {budget}": cells
        for network, by_data in by_network.items()
        for budget in BUDGETS
        if (cells := _over_its_like(by_data, rule, budget))
    }
    title = f"plan, {LIKE_WITH_LIKE[rule][1]}, over plain training alike"
    return _alike(title, rows, next(iter(by_network.values())))


def between_note(found: Sequence[Outcome]) -> str:
    """Shows where rules ended, over uniform's end at budget 1, if uniform lacks the budget."""
    uniform = next(outcome for outcome in found if outcome.rule == "uniform")
    ends = {
        (mine.rule, budget): _points(*_compared(mine.accuracy[budget], uniform.accuracy["1x"]))
        for mine in found
        for budget in BUDGETS
        if budget in mine.accuracy and budget not in uniform.accuracy
    }
    said = [f"at {budget} {rule} ended {end} over" for (rule, budget), end in ends.items()]
    return f"Between budgets, {' and '.join(said)} uniform's end at 1x." if ends else ""


def _over_its_like(
    by_data: Mapping[str, Sequence[Outcome]], rule: str, budget: str
) -> list[str] | None:
    """A cell per kind of data; None if it lacks one."""
    plain, _ = LIKE_WITH_LIKE[rule]
    cells: list[str] = []
    for found in by_data.values():
        here = {o.rule: o for o in found if budget in o.accuracy}
        if rule not in here or plain not in here:
            return None
        cells.append(_marked(*compare(here[rule], here[plain], budget)))
    return cells


def _alike(title: str, rows: Mapping[str, Sequence[str]], kinds: Iterable[str]) -> str:
    if not rows:
        return ""
    lines = [[title, *kinds], *([name, *cells] for name, cells in rows.items())]
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def seeds_of(found: Sequence[Outcome], budget: str = "1x") -> int:
    """The least number of seeds that any rule was run with."""
    return min(len(o.accuracy[budget]) for o in found if budget in o.accuracy)


def seeds_note(found: Sequence[Outcome], budgets: Sequence[str] = BUDGETS) -> str:
    """Says how many seeds stand behind a table of ``budgets``, and what was run with more."""
    least = seeds_of(found)
    parts = [f"{least} seeds"]
    for budget in budgets:
        number = {o.rule: len(o.accuracy.get(budget, {})) for o in found}
        for n in sorted({n for n in number.values() if n > least}):
            rules = [rule for rule, seeds in number.items() if seeds == n]
            parts.append(f"at {budget} {n} of {', '.join(rules)}")
    return "; ".join(parts) + "."
