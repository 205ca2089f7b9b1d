"""Cheap scoring: what each way costs, and what it keeps of the accuracy of exact scoring."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reducible.lab.report.results import newest_results
from reducible.lab.report.statistics import median_iqr, paired_bootstrap
from reducible.lab.report.tables import percent

SHOWN: Mapping[str, str] = {
    "uniform": "uniform, nothing scored",
    "exact": "RHO-LOSS, scored exactly",
    "co-trained": "by an mlp-64 that learns the labels along",
    "co-trained-lenet": "by a LeNet that learns the labels along",
    "distilled": "by an mlp-64 that learns the model's predictions",
    "bfloat16": "in bfloat16, channels last",
    "small": "in bfloat16, channels last, at 14 × 14",
    "remembered": "with losses remembered for a pass and a half",
    "remembered-bfloat16": "in bfloat16, channels last, with losses remembered for 8.5 passes",
    "wider": "four updates from one pass over 1,280",
}
"""Ways, by the names the table gives them."""

_BASES = ("exact", "uniform")  # what accuracies are compared with


def accuracy_table(results: Path, family: str) -> str:
    """Markdown: a row per way that was run; all make the same number of updates.

    Accuracies at the end and shares are medians over seeds; differences to exact scoring's and to
    uniform's are of means, in points, with paired 95 % intervals. Where exact scoring or uniform
    was not run, that is said instead.

    Args:
        results: folder of the results files.
        family: of the recipes, ``<family>/<way>``.
    """
    runs = {
        way: _by_seed(newest_results(results, f"{family}/{way}"))
        for way in SHOWN
        if (results / family / way).is_dir()
    }
    missing = [base for base in _BASES if len(runs.get(base, {})) < 2]
    if missing:
        return (
            f"Not run yet: `reducible sweep '{family}/*' --seeds 0-4`. The table needs at least "
            f"two seeds of {' and of '.join(missing)}."
        )
    scored = _median(runs["exact"], "examples_scored")
    lines = [
        "| scoring | accuracy at the end | over exact scoring's | over uniform's | "
        "wrong labels among the chosen | rows scored, over exact scoring's |",
        "|---|---|---|---|---|---|",
    ]
    for way, mine in runs.items():
        cells = [
            SHOWN[way],
            percent(_median(mine, "final_accuracy")),
            *("–" if way == base else _over(mine, runs[base]) for base in _BASES),
            percent(_median(mine, "corrupted_share")),
            f"{_median(mine, 'examples_scored') / scored:.2f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _seeds(runs)])


def cost_table(result: Mapping[str, Any]) -> str:
    """Markdown: a row per way, over all seeds and batches, of what ``measure.py`` found.

    Args:
        result: of its results file: the settings, and per seed a list of ``Fidelity`` as mappings.
    """
    lines = [
        "| scoring | a candidate over training on an example | an update over a plain one | "
        "the same picks | rank correlation |",
        "|---|---|---|---|---|",
    ]
    ratio = result["n_candidates"] / result["n_b"]
    for rows in zip(*result["seeds"], strict=True):
        every = {
            name: [value for row in rows for value in row[name]]
            for name in ("costs", "overlaps", "rank_correlations")
        }
        cells = [
            rows[0]["way"],
            _spread(every["costs"], "{:.3f}".format),
            f"{1 + ratio * statistics.median(every['costs']):.2f}",
            _spread(every["overlaps"], percent),
            _spread(every["rank_correlations"], "{:.3f}".format),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds, machine = len(result["seeds"]), result["machine"]
    caption = (
        f"{result['network']} on Fashion-MNIST with one wrong label in ten, {result['n_b']} of "
        f"{result['n_candidates']}; {result['steps']} steps, compared in the last half. Medians "
        f"(quartiles) over {seeds} {'seed' if seeds == 1 else 'seeds'}; {result['repeats']} "
        f"timings each, in turn, on {machine['threads']} thread(s) of {machine['processor']} with "
        f"torch {result['versions']['torch']}."
    )
    return "\n".join([*lines, "", caption])


def _spread(values: Sequence[float], show: Callable[[float], str]) -> str:
    middle, low, high = (show(value) for value in median_iqr(values))
    return f"{middle} ({low} to {high})"


def _by_seed(result: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run["summary"] for run in result["seeds"]}


_Runs = Mapping[int, Mapping[str, Any]]


def _median(runs: _Runs, name: str) -> float:
    return statistics.median(run[name] for run in runs.values())


def _over(mine: _Runs, base: _Runs) -> str:
    """Difference in points over common seeds, with its 95 % interval."""
    seeds = sorted(set(mine) & set(base))
    if len(seeds) < 2:
        return "–"
    mean, low, high = paired_bootstrap(
        [mine[seed]["final_accuracy"] for seed in seeds],
        [base[seed]["final_accuracy"] for seed in seeds],
    )
    return f"{100 * mean:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def _seeds(runs: Mapping[str, _Runs]) -> str:
    fewest, most = (f(len(mine) for mine in runs.values()) for f in (min, max))
    return f"{fewest} seeds." if fewest == most else f"{fewest} to {most} seeds."
