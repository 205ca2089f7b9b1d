"""Times of picking."""

from __future__ import annotations

from reducible.lab.bench.picking import picking_time
from reducible.selectors import SELECTORS


def test_picking_times_of_every_rule() -> None:
    for name in SELECTORS:
        row = picking_time(name, repeats=1)
        assert (row["unit"], row["runs"], row["median"] > 0) == ("ms", 2, True)
        assert name in row["what"]
