"""The benchmark's pieces, at sizes that measure nothing: what they run, and how rows are made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import reducible.bench as bench
from reducible.data import fashion_mnist
from reducible.stores import IrreducibleLossStore

KEYS = {"what", "median", "unit", "min", "max", "runs"}


def test_a_row_is_median_and_spread() -> None:
    row = bench._row("x", [3.0, 1.00004, 2.0, 10.0], "ratio")
    assert row == {"what": "x", "median": 2.5, "unit": "ratio", "min": 1.0, "max": 10.0, "runs": 4}


def test_the_loop_and_its_floor_do_the_same_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    """Same candidates, same choice, same updates: only so is their ratio the loop's overhead."""
    data = fashion_mnist("train")
    store = IrreducibleLossStore.from_tensor(torch.rand(len(data)))
    models: list[torch.nn.Module] = []
    inner = bench._new_model

    def new_model(name: str) -> Any:
        made = inner(name)
        models.append(made[0])
        return made

    monkeypatch.setattr(bench, "_new_model", new_model)
    for steps_of in (
        bench._steps_by_loader(data, "mlp-64", store),
        bench._steps_by_hand(data, "mlp-64", store),
    ):
        for _ in itertools.islice(steps_of, 5):
            pass
    ours, by_hand = (m.state_dict() for m in models)
    torch.testing.assert_close(ours, by_hand)
    fresh = inner("mlp-64")[0].state_dict()
    assert not torch.equal(ours["1.weight"], fresh["1.weight"])


def test_step_overhead_takes_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []

    def steps(name: str) -> Any:
        def made(*_: Any) -> Iterator[None]:
            while True:
                turns.append(name)
                yield

        return made

    monkeypatch.setattr(bench, "_steps_by_loader", steps("ours"))
    monkeypatch.setattr(bench, "_steps_by_hand", steps("hand"))
    row = bench.step_overhead("mlp-64", rounds=3, steps=2)
    assert turns[:10] == ["ours"] * 5 + ["hand"] * 5  # warm-up
    assert turns[10:] == ["ours", "hand", "hand", "ours"] * 3
    assert set(row) == KEYS
    assert row["runs"] == 3
    assert "mlp-64" in row["what"]


def test_step_overhead_is_a_ratio() -> None:
    row = bench.step_overhead("mlp-64", rounds=2, steps=2)
    assert row["unit"] == "ratio"
    assert 0 < row["min"] <= row["median"] <= row["max"]


def test_lookup_time_and_flatness() -> None:
    row = bench.lookup_time(1000)
    assert set(row) == KEYS
    assert (row["unit"], row["runs"]) == ("µs per id", 50)
    assert "1,000 dense ids" in row["what"]
    assert row["median"] > 0
    flat, grown = bench.flat_over_steps(50)
    assert (flat["unit"], flat["runs"]) == ("ratio", 9)
    assert flat["min"] > 0
    assert (grown["unit"], grown["runs"]) == ("MiB", 1)


def test_picking_times_of_every_rule() -> None:
    for name in bench.SELECTORS:
        row = bench.picking_time(name, repeats=1)
        assert (row["unit"], row["runs"], row["median"] > 0) == ("ms", 2, True)
        assert name in row["what"]


def test_scoring_costs_name_every_way() -> None:
    rows = bench.scoring_costs("lenet-8", repeats=1)
    assert [row["what"].split(": ")[1] for row in rows] == [
        "exact",
        "bfloat16, channels last",
        "by an mlp-64",
    ]
    assert all(row["median"] > 0 for row in rows)


@pytest.mark.parametrize("quick", [True, False])
def test_all_measurements_are_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[tuple[Any, Any]]] = {}
    one = ("step_overhead", "picking_time", "large_divbs", "lookup_time")
    for name in (*one, "scoring_costs", "fitting_costs", "flat_over_steps"):

        def stand_in(*args: Any, _name: str = name, **options: Any) -> Any:
            calls.setdefault(_name, []).append((args, options))
            row = {"what": _name}
            return row if _name in one else [row]

        monkeypatch.setattr(bench, name, stand_in)
    bench.run_bench(quick=quick)
    rounds = 3 if quick else 15
    assert [c[1] for c in calls["step_overhead"]] == [{"rounds": rounds}] * 2
    assert [c[0][0] for c in calls["picking_time"]] == list(bench.SELECTORS)
    assert ("large_divbs" in calls) is not quick
    assert calls["lookup_time"] == [((10**6 if quick else 10**8,), {})]
    assert calls["flat_over_steps"] == [((5_000 if quick else 100_000,), {})]
    assert len(calls["scoring_costs"]) == 3
    assert len(calls["fitting_costs"]) == 1
