"""Accuracy by method in the same time, paired by seed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from reducible.lab.records import read_json
from reducible.lab.report.paired import by_seed, paired_cell

TITLES = {
    "plain": "plain `Trainer`: every row in turn",
    "train_loss": "the highest losses, 16 of 64",
    "grad_norm_is": "gradient norm, weighted, 16 of 64",
    "rho": "RHO-LOSS, 16 of 64",
    "plan": "plan: labels below the noise floor left out",
}


def collect(folder: Path) -> dict[str, Any]:
    """Joins what ``measure`` wrote below ``folder``; raises ReducibleError if there is nothing."""
    seeds = by_seed(folder, "python -m reducible.lab.studies.film.measure runs")
    return {"costs": read_json(folder / "costs.json"), "seeds": seeds}


def table(results: Mapping[str, Any]) -> str:
    """Markdown: a row per method; differences of accuracy in points."""
    seeds = [seed for seed in results["seeds"] if "plain" in seed]
    lines = [
        "| | accuracy in the same time | updates made | cost of an update | learning rate |",
        "|---|---|---|---|---|",
    ]
    for method, title in TITLES.items():
        if method == "plain":
            cell = f"{100 * statistics.mean(s['plain']['accuracy'] for s in seeds):.1f} %"
        else:
            cell = paired_cell(seeds, method, "plain", "accuracy", show=_points)
        made = next((seed[method] for seed in seeds if method in seed), None)
        steps, rate = (f"{made['steps']:,}", f"{made['rate']:g}") if made else ("–", "–")
        cost = results["costs"]["update"][method]
        lines.append(f"| {title} | {cell} | {steps} | {cost:.2f} | {rate} |")
    lines += [
        "",
        f"Accuracy on {seeds[0]['plain']['rows']:,} sentences with their true labels; below it the "
        "difference from plain's in points, paired by seed, with a 95 % interval. Bold: better, "
        f"the interval excludes zero; italic: worse. {len(seeds)} seeds. Fitting the reference "
        f"took as long as {results['costs']['reference']} plain updates, charged to RHO-LOSS and "
        "the plan.",
    ]
    return "\n".join(lines)


def _points(difference: float) -> str:
    return f"{100 * difference:+.1f}"
