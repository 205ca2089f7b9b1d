"""Writes docs/language.md."""

from pathlib import Path

from reducible.lab.report.results import replace_block
from reducible.lab.studies.language.tables import collect, table


def write(docs: Path, results: Path) -> None:
    """What tokens, sequences and a plan are worth to a small language model."""
    replace_block(docs / "language.md", "language", table(collect(results / "language")))
