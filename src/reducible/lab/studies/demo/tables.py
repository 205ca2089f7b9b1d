"""The demo's comparison over seeds: every recipe against the baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from reducible.lab.records import summarise
from reducible.lab.report.results import newest_results
from reducible.lab.report.statistics import median_iqr, paired_bootstrap
from reducible.lab.report.tables import percent


def demo_table(results: Path, recipes: Mapping[str, str], baseline: str) -> str:
    """Markdown: every recipe against the baseline, paired by seed, medians and quartiles.

    Args:
        results: folder of results files.
        recipes: recipe → what to call it.
        baseline: recipe whose final accuracy (mean of the last five evaluations) is the target.
    """
    base = _by_seed(newest_results(results, baseline))
    lines = [
        "| | steps to target, over uniform's | final accuracy | over uniform's (95 % interval) | "
        "wrong labels among the chosen | correct already among the chosen |",
        "|---|---|---|---|---|---|",
    ]
    for name, title in recipes.items():
        mine = _by_seed(newest_results(results, name))
        seeds = sorted(set(base) & set(mine))
        ratios = [_step_ratio(mine[s]["curve"], base[s]) for s in seeds]
        finals = [mine[s]["summary"]["final_accuracy"] for s in seeds]
        gain = "–"
        if name != baseline:
            other = [base[s]["summary"]["final_accuracy"] for s in seeds]
            mean, low, high = paired_bootstrap(finals, other)
            gain = f"{100 * mean:+.2f} points ({100 * low:+.2f} to {100 * high:+.2f})"
        shares = [
            _spread([mine[s]["summary"][key] for s in seeds], percent)
            for key in ("corrupted_share", "already_correct_share")
        ]
        ratio = "1" if name == baseline else _ratios(ratios)
        cells = [title, ratio, _spread(finals, percent), gain, *shares]
        lines.append("| " + " | ".join(cells) + " |")
    count = len(base)
    lines += [
        "",
        f"Medians (quartiles) over {count} seeds, paired by seed; the target is uniform's final "
        "accuracy with the same seed, reached where the mean of three evaluations is at or above "
        "it.",
    ]
    return "\n".join(lines)


def _by_seed(results: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    return {run["seed"]: run for run in results["seeds"]}


def _step_ratio(curve: Sequence[Sequence[float]], base: Mapping[str, Any]) -> float | None:
    """Steps to the baseline's final accuracy over the baseline's own; None: never reached."""
    target = base["summary"]["final_accuracy"]
    steps, _ = summarise(curve, target)
    own, _ = summarise(base["curve"], target)
    return None if steps is None or own is None else steps / own


def _ratios(ratios: Sequence[float | None]) -> str:
    """Median and quartiles; a run that never reached the target counts as infinitely slow."""
    ordered = sorted(float("inf") if r is None else r for r in ratios)
    low, middle, high = (_quantile(ordered, q) for q in (0.25, 0.5, 0.75))
    never = sum(r is None for r in ratios)
    missed = f", never in {never} of {len(ratios)}" if never else ""
    return f"{_number(middle)} ({_number(low)} to {_number(high)}){missed}"


def _quantile(ordered: Sequence[float], q: float) -> float:
    """Linear between neighbours; infinite as soon as a neighbour that counts is."""
    at = q * (len(ordered) - 1)
    below, above = ordered[int(at)], ordered[min(int(at) + 1, len(ordered) - 1)]
    share = at - int(at)
    return below if share == 0 else below * (1 - share) + above * share


def _number(ratio: float) -> str:
    return "never" if ratio == float("inf") else f"{ratio:.2f}"


def _spread(values: Sequence[float | None], show: Any) -> str:
    known = [v for v in values if v is not None]
    median, low, high = median_iqr(known)
    return f"{show(median)} ({show(low)} to {show(high)})"
