"""Writes docs/film.md."""

from pathlib import Path

from reducible.lab.report.results import replace_block
from reducible.lab.studies.film.tables import collect, table


def write(docs: Path, results: Path) -> None:
    """What selection is worth to a pretrained encoder in Hugging Face's Trainer."""
    replace_block(docs / "film.md", "film", table(collect(results / "film")))
