"""The benchmark asks for all its measurements."""

from __future__ import annotations

from typing import Any

import pytest

from reducible.lab import bench


@pytest.mark.parametrize("quick", [True, False])
def test_all_measurements_are_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[tuple[Any, Any]]] = {}
    steps = ("step_overhead", "watching_overhead", "gate_bookkeeping")
    one = (*steps, "picking_time", "large_divbs", "lookup_time")
    several = ("scoring_costs", "fitting_costs", "flat_over_steps", "mapped_lookup")
    for name in (*one, *several):

        def stand_in(*args: Any, _name: str = name, **options: Any) -> Any:
            calls.setdefault(_name, []).append((args, options))
            row = {"what": _name}
            return row if _name in one else [row]

        monkeypatch.setattr(bench, name, stand_in)
    bench.run_bench(quick=quick)
    rounds = 3 if quick else 15
    for name in steps:
        assert calls[name] == [((of,), {"rounds": rounds}) for of in ("lenet", "mlp-512")]
    assert [c[0][0] for c in calls["picking_time"]] == list(bench.SELECTORS)
    assert ("large_divbs" in calls) is not quick
    assert calls["lookup_time"] == [((10**6 if quick else 10**8,), {})]
    assert calls.get("mapped_lookup", []) == ([] if quick else [((10**9,), {})])
    assert calls["flat_over_steps"] == [((5_000 if quick else 100_000,), {})]
    repeats = {"repeats": rounds, "compiled": not quick}
    assert [c[1] for c in calls["scoring_costs"]] == [repeats] * 3
    assert len(calls["fitting_costs"]) == 1
