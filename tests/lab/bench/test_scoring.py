"""Costs of scoring, at sizes that measure nothing: what runs, and how often."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from reducible.lab.bench import scoring

KEYS = {"what", "median", "unit", "min", "max", "runs"}


def test_scoring_costs_name_every_way() -> None:
    rows = scoring.scoring_costs("lenet-8", repeats=1)
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
    inner = scoring.new_model

    def new_model(made: str) -> Any:
        model, optimizer = inner("mlp-64" if made == name else "mlp-128")
        model.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        return model, optimizer

    monkeypatch.setattr(scoring, "new_model", new_model)
    monkeypatch.setitem(scoring._EXITS, name, "2")
    ways: dict[str, list[int]] = {}

    def in_turn(work: Any, **_: Any) -> Any:
        for way, run in work.items():
            rows.clear()
            run()
            ways[way] = [*rows]
        return {way: [1.0, 2.0] if way == "train" else [10.0] for way in work}

    monkeypatch.setattr(scoring, "times_in_turn", in_turn)
    monkeypatch.setattr(scoring.Scoring, "reduced", lambda _, batch: batch)  # an mlp takes no less
    costs = scoring.scoring_costs(name, repeats=2)
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
    rows = scoring.scoring_costs("lenet-8", repeats=1, compiled=True)
    what = [row["what"].split(", lenet-8: ")[1] for row in rows]
    assert ("compiled" in what) is not fails
    assert ("compiled, left out: No working C++ compiler found" in what) is fails
    assert len(wanted) == 1
    assert all(set(row) == KEYS for row in rows)
