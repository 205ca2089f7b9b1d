"""Writes docs/demo.md."""

from pathlib import Path

from reducible.lab.report.results import replace_block
from reducible.lab.studies.demo.recipes import PAPER
from reducible.lab.studies.demo.tables import demo_table


def write(docs: Path, results: Path) -> None:
    """The paper's comparison over seeds."""
    titles = {made.name: title for title, made in PAPER.items()}
    table = demo_table(results, titles, baseline=PAPER["uniform"].name)
    replace_block(docs / "demo.md", "demo", table)
