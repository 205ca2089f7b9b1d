"""Pairs of methods, by seed, from files that a study keeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from reducible.lab.records import kept
from reducible.lab.report.paired import by_seed, paired_cell
from reducible.types import ReducibleError


def _seeds(ours: list[float], base: list[float]) -> list[dict[str, dict[str, float]]]:
    return [{"ours": {"hits": a}, "base": {"hits": b}} for a, b in zip(ours, base, strict=True)]


@pytest.mark.parametrize(
    ("ours", "less_is_better", "cell"),
    [
        ([3.0, 4.0], False, "**+2.0 (+2.0 to +2.0)**"),
        ([3.0, 4.0], True, "*+2.0 (+2.0 to +2.0)*"),
        ([0.0, 1.0], False, "*-1.0 (-1.0 to -1.0)*"),
        ([0.0, 1.0], True, "**-1.0 (-1.0 to -1.0)**"),
        ([0.0, 4.0], False, "+0.5 (-1.0 to +2.0)"),
    ],
)
def test_bold_is_better_and_italic_worse(
    ours: list[float], less_is_better: bool, cell: str
) -> None:
    seeds = _seeds(ours, [1.0, 2.0])
    show = "{:+.1f}".format
    got = paired_cell(seeds, "ours", "base", "hits", show=show, less_is_better=less_is_better)
    assert got == cell


def test_seeds_without_both_do_not_pair() -> None:
    seeds = [*_seeds([3.0, 4.0], [1.0, 2.0]), {"base": {"hits": 9.0}}, {"ours": {"hits": 9.0}}]
    assert paired_cell(seeds, "ours", "base", "hits", show="{:+.0f}".format).startswith("**+2 ")
    assert paired_cell(seeds[1:], "ours", "base", "hits", show=str) == "not run"


def test_what_is_kept_is_made_once_and_read_in_order(tmp_path: Path) -> None:
    made: list[int] = []

    def make(seed: int, *, hits: float) -> dict[str, float]:
        made.append(seed)
        return {"hits": hits}

    for _ in range(2):
        for seed in (10, 9):
            got = kept(tmp_path / str(seed) / "ours.json", make, seed, hits=1.5)
            assert got == {"hits": 1.5}
    assert made == [10, 9]
    (tmp_path / "rates").mkdir()  # no seed
    ours = {"hits": 1.5}
    assert by_seed(tmp_path, "") == [{"seed": 9, "ours": ours}, {"seed": 10, "ours": ours}]


def test_a_folder_without_runs_says_what_makes_them(tmp_path: Path) -> None:
    with pytest.raises(ReducibleError, match="python -m study"):
        by_seed(tmp_path, "python -m study")
