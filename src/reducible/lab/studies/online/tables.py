"""The online study: every variant beside uniform in the same time, by kind of data."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from reducible.lab.report.results import newest_results
from reducible.lab.report.statistics import Difference, paired_bootstrap
from reducible.lab.report.tables import percent

BASELINE = "uniform"
_FEWEST = 2  # seeds in common with the baseline's, for an interval


@final
@dataclass(frozen=True, slots=True)
class Study:
    """Holds what was run of a study.

    Attributes:
        variants: in the order of their rows; the baseline is one of them.
        kinds: of data, in the order of their columns.
        runs: (kind, variant) → seed → the run's summary.
    """

    variants: Sequence[str]
    kinds: Sequence[str]
    runs: Mapping[tuple[str, str], Mapping[int, Mapping[str, Any]]]

    @classmethod
    def read(
        cls, results: Path, variants: Sequence[str], kinds: Sequence[str], *, family: str = "online"
    ) -> Study:
        """The newest results of ``<family>/<kind>/<variant>``, if there are any."""
        runs: dict[tuple[str, str], Mapping[int, Mapping[str, Any]]] = {}
        for kind in kinds:
            for variant in variants:
                name = f"{family}/{kind}/{variant}"
                if any((results / name).glob("*.json")):
                    seeds = newest_results(results, name)["seeds"]
                    runs[kind, variant] = {run["seed"]: run["summary"] for run in seeds}
        return cls(variants, kinds, runs)

    def seeds(self, kind: str, variant: str) -> list[int]:
        """Seeds that the variant and the baseline were both run with."""
        mine, base = (self.runs.get((kind, v), {}) for v in (variant, BASELINE))
        return sorted(set(mine) & set(base))

    def has(self, kind: str, variant: str) -> bool:
        """Whether there are seeds enough to compare."""
        return len(self.seeds(kind, variant)) >= _FEWEST

    def values(self, kind: str, variant: str, key: str) -> list[Any]:
        """Reads ``key`` of the summaries, by seed, of seeds shared with the baseline."""
        return [self.runs[kind, variant][seed][key] for seed in self.seeds(kind, variant)]

    def over_baseline(self, kind: str, variant: str) -> Difference:
        """Mean difference of final accuracy to the baseline's, with its paired 95 % interval."""
        mine, seeds = self.runs[kind, variant], self.seeds(kind, variant)
        base = self.runs[kind, BASELINE]
        return paired_bootstrap(
            [mine[seed]["final_accuracy"] for seed in seeds],
            [base[seed]["final_accuracy"] for seed in seeds],
        )


def block(study: Study, *, noisy: Sequence[str]) -> str:
    """Markdown: the table of accuracies, that of wrong labels, and what is missing.

    Args:
        study: what was run.
        noisy: kinds of data that have wrong labels.
    """
    missing = not_run(study)
    if not any(study.has(kind, BASELINE) for kind in study.kinds):
        return missing
    counts = [len(study.seeds(*cell)) for cell in study.runs if study.has(*cell)]
    least, most = min(counts), max(counts)
    seeds = f"{most} seeds" if least == most else f"{least} to {most} seeds"
    parts = [
        accuracy_table(study),
        f"Points of final accuracy over uniform's in the same time, paired by seed, {seeds}. Bold: "
        "the 95 % interval is above zero; italic: below. Uniform's own row is the median.",
        "Wrong labels among the rows trained on:",
        wrong_table(study, noisy),
        missing,
    ]
    return "\n\n".join(part for part in parts if part)


def accuracy_table(study: Study) -> str:
    """Markdown: a row per variant, a column per kind of data."""

    def cell(kind: str, variant: str) -> str:
        if variant == BASELINE:
            return percent(statistics.median(study.values(kind, variant, "final_accuracy")))
        return points(study.over_baseline(kind, variant))

    return _table(study, study.kinds, cell)


def wrong_table(study: Study, kinds: Sequence[str]) -> str:
    """Markdown: the median share of wrong labels among the rows trained on."""

    def cell(kind: str, variant: str) -> str:
        return percent(statistics.median(study.values(kind, variant, "corrupted_share")))

    return _table(study, kinds, cell)


def points(difference: Difference) -> str:
    """A difference in points, bold if its interval is above zero, italic if below.

    >>> points(Difference(0.01, 0.002, 0.018)), points(Difference(-0.01, -0.03, 0.0))
    ('**+1.0 (+0.2 to +1.8)**', '-1.0 (-3.0 to +0.0)')
    """
    mean, low, high = (f"{100 * value:+.1f}" for value in difference)
    mark = "**" if difference.low > 0 else "*" if difference.high < 0 else ""
    return f"{mark}{mean} ({low} to {high}){mark}"


def not_run(study: Study) -> str:
    """Says what is missing, in a sentence; nothing if nothing is."""
    lacking = {
        variant: [kind for kind in study.kinds if not study.has(kind, variant)]
        for variant in study.variants
    }
    if all(len(kinds) == len(study.kinds) for kinds in lacking.values()):
        return "Nothing has been run yet."
    said = [
        variant if len(kinds) == len(study.kinds) else f"{variant} ({', '.join(kinds)})"
        for variant, kinds in lacking.items()
        if kinds
    ]
    return f"Not run yet with two seeds of uniform's: {', '.join(said)}." if said else ""


def titles_list(titles: Mapping[str, str], steps: Mapping[str, int]) -> str:
    """Markdown: a line per variant that says what it is, and how many updates it has."""
    lines = (f"- **{name}** ({steps[name]:,} updates): {title}" for name, title in titles.items())
    return "\n".join(lines)


def _table(study: Study, kinds: Sequence[str], cell: Callable[[str, str], str]) -> str:
    """A row per variant that has any cell, a column per kind; a dash if there is none."""
    lines = ["| | " + " | ".join(kinds) + " |", "|" + "---|" * (len(kinds) + 1)]
    for variant in study.variants:
        known = [study.has(kind, variant) for kind in kinds]
        if any(known):
            cells = [
                cell(kind, variant) if there else "–"
                for kind, there in zip(kinds, known, strict=True)
            ]
            lines.append("| " + " | ".join([variant, *cells]) + " |")
    return "\n".join(lines)
