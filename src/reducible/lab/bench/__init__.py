"""Measures what selection costs on this machine, beside its floor: ratios in one process, medians.

- ``steps``: a step of the loop, choosing or watching, over the same by hand; flat over many steps
- ``scoring``, ``picking``, ``fitting``, ``plans``: parts of a step, and what comes before training
- ``stores``: look-ups in memory and on disk
- ``training``, ``rows``, ``memory``: what these share
"""

from __future__ import annotations

from typing import Any

from reducible.lab.bench.fitting import fitting_costs
from reducible.lab.bench.picking import large_divbs, picking_time
from reducible.lab.bench.plans import plan_costs
from reducible.lab.bench.scoring import SCORED, scoring_costs
from reducible.lab.bench.steps import (
    flat_over_steps,
    gate_bookkeeping,
    step_overhead,
    watching_overhead,
)
from reducible.lab.bench.stores import lookup_time, mapped_lookup
from reducible.selectors import SELECTORS


def run_bench(*, quick: bool = False) -> list[dict[str, Any]]:
    """All measurements, one row each: what, the ratio or time, its unit, and the spread."""
    rounds = 3 if quick else 15
    repeats = 3 if quick else 15
    return [
        *(step_overhead(name, rounds=rounds) for name in ("lenet", "mlp-512")),
        *(watching_overhead(name, rounds=rounds) for name in ("lenet", "mlp-512")),
        *(gate_bookkeeping(name, rounds=rounds) for name in ("lenet", "mlp-512")),
        *(
            row
            for name in SCORED
            for row in scoring_costs(name, repeats=repeats, compiled=not quick)
        ),
        *fitting_costs(epochs=1 if quick else 6, repeats=1 if quick else 9),
        *plan_costs(repeats=1 if quick else 9),
        *(picking_time(name, repeats=repeats) for name in SELECTORS),
        *([] if quick else [large_divbs()]),
        lookup_time(10**6 if quick else 10**8),
        *([] if quick else mapped_lookup(10**9)),
        *flat_over_steps(5_000 if quick else 100_000),
    ]
