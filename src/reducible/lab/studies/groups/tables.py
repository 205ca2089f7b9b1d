"""Final and worst-class accuracy per recipe."""

from __future__ import annotations

from pathlib import Path

from reducible.lab.report.results import newest_results
from reducible.lab.report.statistics import median_iqr, paired_bootstrap
from reducible.lab.report.tables import percent

RECIPES = {
    "groups/uniform": "uniform",
    "groups/rho": "RHO-LOSS",
    "groups/models": "REDUCR, a model per class",
    "groups/shared": "REDUCR, one shared network",
}


def table(results: Path) -> str:
    """Markdown: final and worst-class accuracy per recipe, paired by seed against uniform."""
    lines = [
        "| | final accuracy | worst class | worst class over uniform's (95 % interval) |",
        "|---|---|---|---|",
    ]
    runs = {
        n: {r["seed"]: r["summary"] for r in newest_results(results, n)["seeds"]} for n in RECIPES
    }
    base = runs["groups/uniform"]
    for name, title in RECIPES.items():
        seeds = sorted(set(base) & set(runs[name]))
        columns = []
        for key in ("final_accuracy", "worst_class_accuracy"):
            middle, low, high = median_iqr([runs[name][s][key] for s in seeds])
            columns.append(f"{percent(middle)} ({percent(low)} to {percent(high)})")
        worst = [[r[s]["worst_class_accuracy"] for s in seeds] for r in (runs[name], base)]
        mean, low, high = paired_bootstrap(*worst)
        gain = (
            "–"
            if name == "groups/uniform"
            else f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
        )
        lines.append(f"| {title} | {columns[0]} | {columns[1]} | {gain} |")
    return "\n".join(lines)
