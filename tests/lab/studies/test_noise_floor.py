"""The table of what plans drop, by hand."""

from __future__ import annotations

from typing import Any

from reducible.lab.studies.noise_floor.tables import noise_floor_table


def _fit(largest: float, wrong: int, **judged: tuple[int, int, float]) -> dict[str, Any]:
    names = ("found", "right_lost", "most_of_a_class")
    case = {"data": "images 0-6", "classes": 2, "largest": largest, "examples": 100, "wrong": wrong}
    return case | {kind: dict(zip(names, values, strict=True)) for kind, values in judged.items()}


def test_the_table_by_hand() -> None:
    fits = [
        _fit(-1.0, 0, learned=(0, 0, 0.0), medians=(0, 20, 0.2)),
        _fit(-1.0, 20, learned=(9, 8, 0.0), medians=(10, 40, 0.5)),
        _fit(0.9, 0, learned=(0, 1, 0.0099), medians=(0, 1, 0.01)),
        _fit(0.9, 10, learned=(9, 9, 0.0), medians=(5, 18, 0.2)),
        _fit(0.9, 20, learned=(20, 0, 0.0), medians=(10, 0, 0.2)),
        _fit(0.9, 40, learned=(20, 6, 0.0), medians=(10, 6, 0.2)),
    ]
    lines = noise_floor_table(fits).splitlines()
    row = "| 2, images | 90 % | 4 | 1.00 % | 0.99 % | 50.0 % | 90.0 % | 10.0 % | 10.0 % |"
    assert lines[2] == row
    assert (
        lines[3]
        == "| 2, images | a tail | 2 | 20.00 % | 0.00 % | 50.0 % | 45.0 % | 50.0 % | 10.0 % |"
    )
    assert lines[5] == (
        "6 fits. Of clean labels, no class of more than 100 examples loses more than 0.99 % in any "
        "of 2 fits; medians take more than 1 % of one in 1. Of flipped ones, fewer are found than "
        "by medians in 1 of 4 fits, by 10.0 % at most; over all fits 58 are found where medians "
        "find 35, and 23 right labels are lost where medians lose 64."
    )
