"""Writes docs/noise-floor.md."""

from pathlib import Path

from reducible.lab.report.results import newest_results, replace_block
from reducible.lab.studies.noise_floor.tables import noise_floor_table


def write(docs: Path, results: Path) -> None:
    """What plans drop of clean and of flipped labels."""
    fits = newest_results(results, "noise-floor")["fits"]
    replace_block(docs / "noise-floor.md", "noise-floor", noise_floor_table(fits))
