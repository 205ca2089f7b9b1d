"""The benchmark's pieces, at sizes that measure nothing: what they run, and how rows are made."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import reducible.bench as bench
from reducible.data import fashion_mnist
from reducible.stores import IrreducibleLossStore
from reducible.types import StoreError

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
        "bfloat16",
        "bfloat16, channels last",
        "by an mlp-64",
        "by an mlp-64 that learns along",
        "by an mlp-64 that learns its predictions",
        "by its first blocks, up to 2, and a head",
    ]
    assert all(row["median"] > 0 for row in rows)


@pytest.mark.parametrize("name", ["lenet", "resnet-18-16", "mlp-512"])
def test_every_way_of_scoring_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of them on 320 candidates; those that learn along step once more on 32."""
    rows: list[int] = []
    inner = bench._new_model

    def new_model(made: str) -> Any:
        model, optimizer = inner("mlp-64" if made == name else "mlp-128")
        model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        return model, optimizer

    monkeypatch.setattr(bench, "_new_model", new_model)
    monkeypatch.setitem(bench._EXITS, name, "2")
    ways: dict[str, list[int]] = {}

    def in_turn(work: Any, **_: Any) -> Any:
        for way, run in work.items():
            rows.clear()
            run()
            ways[way] = [*rows]
        return {way: [1.0, 2.0] if way == "train" else [10.0] for way in work}

    monkeypatch.setattr(bench, "times_in_turn", in_turn)
    monkeypatch.setattr(bench.Scoring, "reduced", lambda _, batch: batch)  # an mlp takes no less
    costs = bench.scoring_costs(name, repeats=2)
    assert ways.pop("train") == [32]
    assert ways.pop("by an mlp-64 that learns along") == [320, 32]
    assert ways.pop("by an mlp-64 that learns its predictions") == [320, 32]
    assert ways.pop("by its first blocks, up to 2, and a head") == [320, 32]
    assert ("bfloat16, channels last, 14 × 14" in ways) == (name == "resnet-18-16")
    assert all(passes == [320] for passes in ways.values())
    # 10 s of 320 candidates over 1.5 s of 32 rows
    assert all(row["median"] == round((10 / 320) / (1.5 / 32), 4) for row in costs)


@pytest.mark.parametrize("fails", [False, True])
def test_compiled_scoring_is_a_row_or_left_out(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler, which takes half a minute, or is not there."""
    wanted: list[Any] = []

    def compile_(model: Any, **_: Any) -> Any:
        wanted.append(model)
        if fails:
            raise RuntimeError("No working C++ compiler found\nin a list")
        return model

    monkeypatch.setattr(torch, "compile", compile_)
    rows = bench.scoring_costs("lenet-8", repeats=1, compiled=True)
    what = [row["what"].split(", lenet-8: ")[1] for row in rows]
    assert ("compiled" in what) is not fails
    assert ("compiled, left out: No working C++ compiler found" in what) is fails
    assert len(wanted) == 1
    assert all(set(row) == KEYS for row in rows)


@pytest.mark.parametrize("rows", [1000, 1001, 4096])
def test_a_store_written_in_pieces_is_what_save_writes(rows: int, tmp_path: Path) -> None:
    values = torch.rand(512, generator=torch.Generator().manual_seed(0))
    path = tmp_path / "store.safetensors"
    bench.write_large_store(path, rows, piece=512)
    store = IrreducibleLossStore.load(path)  # verifies the checksum
    expected = values.repeat(8)[:rows]
    assert torch.equal(store.values, expected)
    assert store.lookup(torch.tensor([0, rows - 1])).tolist() == expected[[0, -1]].tolist()
    IrreducibleLossStore.from_tensor(expected).save(tmp_path / "saved")
    assert len(path.read_bytes()) == len((tmp_path / "saved").read_bytes())
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(StoreError, match="checksum does not match"):
        IrreducibleLossStore.load(path)


def test_looking_up_on_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bench.tempfile, "tempdir", str(tmp_path))
    memory = iter([7 * 2**20, 10 * 2**20])
    monkeypatch.setattr(bench, "own_memory_bytes", lambda: next(memory))
    lookup, opened, grown = bench.mapped_lookup(5000)
    assert lookup["what"] == "store look-up, 5,000 dense ids on disk"
    assert (lookup["unit"], lookup["runs"], lookup["median"] > 0) == ("µs per id", 50, True)
    assert (opened["unit"], opened["runs"]) == ("s", 1)
    assert (grown["unit"], grown["median"]) == ("MiB", 3.0)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_too_small_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "write_large_store", None)  # is not tried
    (row,) = bench.mapped_lookup(10**9, free=5 * 10**9)
    assert row["what"] == "store look-up, 1,000,000,000 dense ids on disk: left out, needs 5.1 GB"
    assert (row["median"], row["unit"]) == (5.0, "GB free")
    assert set(row) == KEYS


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by /proc")
def test_own_memory_is_that_which_no_file_backs(tmp_path: Path) -> None:
    size, path = 64 * 2**20, tmp_path / "file"
    path.write_bytes(b"\1" * size)
    before = bench.own_memory_bytes()
    mapped = torch.from_file(str(path), size=size, dtype=torch.uint8)
    assert int(mapped.sum()) == size  # every page is read
    assert bench.own_memory_bytes() - before < size // 4
    own = torch.ones(size, dtype=torch.uint8)
    assert bench.own_memory_bytes() - before > size * 3 // 4
    del own


@pytest.mark.parametrize("quick", [True, False])
def test_all_measurements_are_asked_for(quick: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, list[tuple[Any, Any]]] = {}
    one = ("step_overhead", "picking_time", "large_divbs", "lookup_time")
    several = ("scoring_costs", "fitting_costs", "flat_over_steps", "mapped_lookup")
    for name in (*one, *several):

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
    assert calls.get("mapped_lookup", []) == ([] if quick else [((10**9,), {})])
    assert calls["flat_over_steps"] == [((5_000 if quick else 100_000,), {})]
    repeats = {"repeats": rounds, "compiled": not quick}
    assert [c[1] for c in calls["scoring_costs"]] == [repeats] * 3
    assert len(calls["fitting_costs"]) == 1
