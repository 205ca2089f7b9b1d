"""Writes docs/scoring.md."""

from pathlib import Path

from reducible.lab.report.results import newest_results, replace_block
from reducible.lab.studies.scoring.recipes import STUDIES
from reducible.lab.studies.scoring.tables import accuracy_table, cost_table


def write(docs: Path, results: Path) -> None:
    """What cheap scoring costs, and what it keeps of the accuracy per step."""
    page = docs / "scoring.md"
    for network in ("lenet", "resnet-18-16"):
        replace_block(page, network, cost_table(newest_results(results / "fidelity", network)))
    for study in STUDIES:
        table = accuracy_table(results, f"scoring/{study}")
        replace_block(page, f"accuracy-{study}", table)
