"""Tabulates what plans drop by a learned noise floor and by medians: docs/noise-floor.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from reducible.lab.report.tables import percent

_KINDS = ("medians", "learned")
Fits = Sequence[Mapping[str, Any]]


def noise_floor_table(fits: Fits) -> str:
    """Markdown: clean labels lost and wrong ones found, for each number and share of classes.

    Args:
        fits: of a results file of ``measure.py``.
    """
    lines = [
        "| classes | largest | fits | clean: most that a class loses, medians | learned | "
        "flips: found, medians | learned | right labels lost, medians | learned |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    kinds = {(f["data"].split()[0], f["classes"], f["largest"]) for f in fits}
    for kind in sorted(kinds, key=_order):
        mine = [f for f in fits if (f["data"].split()[0], f["classes"], f["largest"]) == kind]
        clean, noisy = _clean(mine), _noisy(mine)
        cells = [f"{kind[1]}, {kind[0]}", _share(kind[2]), str(len(mine))]
        cells += [_hundredths(max(f[k]["most_of_a_class"] for f in clean)) for k in _KINDS]
        cells += [percent(median(f[k]["found"] / f["wrong"] for f in noisy)) for k in _KINDS]
        cells += [percent(median(_lost(f, k) for f in noisy)) for k in _KINDS]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", _summary(fits)])


def _summary(fits: Fits) -> str:
    """The two promises, counted over all fits."""
    clean, noisy = _clean(fits), _noisy(fits)
    most = max(f["learned"]["most_of_a_class"] for f in clean)
    fewer = [f for f in noisy if f["learned"]["found"] < f["medians"]["found"]]
    by = max((1 - f["learned"]["found"] / f["medians"]["found"] for f in fewer), default=0.0)
    totals = [sum(f[k]["found"] for f in noisy) for k in _KINDS]
    lost = [sum(f[k]["right_lost"] for f in noisy) for k in _KINDS]
    return (
        f"{len(fits)} fits. Of clean labels, no class of more than 100 examples loses more than "
        f"{_hundredths(most)} in any of {len(clean)} fits; medians take more than 1 % of one in "
        f"{sum(f['medians']['most_of_a_class'] > 0.01 for f in clean)}. Of flipped ones, fewer are "
        f"found than by medians in {len(fewer)} of {len(noisy)} fits, by {percent(by)} at most; "
        f"over all fits {totals[1]:,} are found where medians find {totals[0]:,}, and "
        f"{lost[1]:,} right labels are lost where medians lose {lost[0]:,}."
    )


def _clean(fits: Fits) -> Fits:
    return [f for f in fits if not f["wrong"]]


def _noisy(fits: Fits) -> Fits:
    return [f for f in fits if f["wrong"]]


def _lost(fit: Mapping[str, Any], kind: str) -> float:
    """The share of the right labels that is dropped."""
    return fit[kind]["right_lost"] / (fit["examples"] - fit["wrong"])


def _order(kind: tuple[str, int, float]) -> tuple[str, int, float]:
    """A tail of rarer and rarer classes last."""
    data, classes, largest = kind
    return data, classes, largest if largest >= 0 else 1.0


def _share(largest: float) -> str:
    if largest < 0:
        return "a tail"
    return f"{100 * largest:.0f} %" if largest else "all alike"


def _hundredths(share: float) -> str:
    return f"{100 * share:.2f} %"
