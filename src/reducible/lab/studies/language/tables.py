"""Loss on text that no model saw, by method and budget, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reducible.lab.records import read_json
from reducible.lab.report.paired import by_seed, paired_cell

TITLES = {
    "plain": "plain",
    "plan": "plan: the tenth of highest irreducible loss left out",
    "tokens": "tokens: three in five of each batch, by reducible loss",
    "sequences": "sequences: 32 of 128, by reducible loss",
}
BUDGETS = {
    "tokens": "equal tokens",
    "shared": "equal time, the reference given",
    "time": "equal time, everything charged",
}


def collect(folder: Path) -> dict[str, Any]:
    """Joins what ``measure`` wrote below ``folder``; raises ReducibleError if there is nothing."""
    seeds = by_seed(folder, "python -m reducible.lab.studies.language.measure runs")
    return {"costs": read_json(folder / "costs.json"), "seeds": seeds}


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row per method; differences of loss per token in nats, below zero is better."""
    seeds = [s for s in results["seeds"] if "plain-tokens" in s]
    base = [s["plain-tokens"]["loss"] for s in seeds]
    lines = [
        f"| | {' | '.join(BUDGETS.values())} | cost of an update |",
        "|---|" + "---|" * (len(BUDGETS) + 1),
    ]
    for method, title in TITLES.items():
        if method == "plain":
            mean = statistics.mean(base)
            cells = [f"{mean:.3f} nats (perplexity {math.exp(mean):.1f})"] + ["–"] * 2
        else:
            cells = [_cell(seeds, method, budget) for budget in BUDGETS]
        cost = results["costs"]["update"][method]
        lines.append(f"| {title} | {' | '.join(cells)} | {cost:.2f} |")
    steps = seeds[0]["plain-tokens"]["steps"]
    characters = sum(results["costs"]["corpus"]["characters"].values())
    lines += [
        "",
        f"Mean loss of a token of files that no model saw; below it the difference from plain's, "
        "paired by seed, with a 95 % interval. Bold: better, the interval excludes zero; italic: "
        f"worse. {len(seeds)} seeds, {steps:,} plain updates of 32 "
        f"sequences, {characters / 1e6:.1f} million characters; the reference model and its scores "
        f"took as long as {results['costs']['reference']} plain updates.",
    ]
    return "\n".join(lines)


def _cell(seeds: Sequence[Mapping[str, Any]], method: str, budget: str) -> str:
    if budget == "shared" and not any(f"{method}-shared" in seed for seed in seeds):
        return "as at equal tokens"  # an update costs what a plain one does
    return paired_cell(
        seeds, f"{method}-{budget}", "plain-tokens", "loss",
        show="{:+.3f}".format, less_is_better=True,
    )  # fmt: skip
