"""Loss on text that no model saw, by method and budget, paired by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reducible.lab.records import read_json, record_error
from reducible.lab.report.statistics import paired_bootstrap

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
    seeds = sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    if not seeds:
        raise record_error(f"no runs in {folder}: see reducible.lab.studies.language.measure.")
    runs = [
        {"seed": seed} | {p.stem: read_json(p) for p in sorted((folder / str(seed)).glob("*.json"))}
        for seed in seeds
    ]
    return {"costs": read_json(folder / "costs.json"), "seeds": runs}


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
        f"paired by seed, with a 95 % interval. {len(seeds)} seeds, {steps:,} plain updates of 32 "
        f"sequences, {characters / 1e6:.1f} million characters; the reference model and its scores "
        f"took as long as {results['costs']['reference']} plain updates.",
    ]
    return "\n".join(lines)


def _cell(seeds: list[Mapping[str, Any]], method: str, budget: str) -> str:
    name = f"{method}-{budget}"
    both = [s for s in seeds if name in s]
    if len(both) < 2:
        return "not run"
    mean, low, high = paired_bootstrap(
        [s[name]["loss"] for s in both], [s["plain-tokens"]["loss"] for s in both]
    )
    text = f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"
    if high < 0:
        return f"**{text}**"
    return f"*{text}*" if low > 0 else text
