"""How rows are made."""

from __future__ import annotations

from reducible.lab.bench.rows import row


def test_a_row_is_median_and_spread() -> None:
    made = row("x", [3.0, 1.00004, 2.0, 10.0], "ratio")
    assert made == {"what": "x", "median": 2.5, "unit": "ratio", "min": 1.0, "max": 10.0, "runs": 4}
