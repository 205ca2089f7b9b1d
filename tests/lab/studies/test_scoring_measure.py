"""The comparison of ways to score, from a run to the table."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest

from reducible.costs.fidelity import Fidelity
from reducible.lab.report.results import newest_results
from reducible.lab.studies.scoring import measure
from reducible.lab.studies.scoring.tables import cost_table


@pytest.mark.parametrize("network", ["lenet", "resnet-18-16"])
def test_the_table_is_made_of_every_way(
    network: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = replace(
        measure.DEMO, train_examples=96, holdout_examples=64, n_candidates=24, n_b=4,
        irreducible_epochs=1,
    )  # fmt: skip
    rows = measure.compare(
        network, 0, made=tiny, steps=9, compared=3, repeats=2, compiled=False
    )  # fmt: skip
    ways = [row.way for row in rows]
    for part in ("exact", "bfloat16", "half of", "2 updates", "4 updates", "remembered", "exit"):
        assert any(part in way for way in ways), part
    assert sum("mlp-64" in way for way in ways) == sum("exit" in way for way in ways) == 2
    assert any("14 × 14" in way for way in ways) == (network != "lenet")
    assert [row.overlap for row in rows if row.way == "exact"] == [1.0]
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.write(network, [rows, rows], 9, 2)
    result = newest_results(tmp_path, network)
    lines = cost_table(result).splitlines()
    assert [line.split(" | ")[0] for line in lines if line.startswith("| ")][1:] == [
        f"| {way}" for way in ways
    ]
    assert lines[-1].startswith(f"{network} on Fashion-MNIST")
    assert "9 steps" in lines[-1]
    assert "over 2 seeds; 2 timings" in lines[-1]


def test_a_line_of_the_table_by_hand() -> None:
    seeds = [
        [asdict(Fidelity("x", (0.1, 0.2), (0.5, 0.5), (0.1, 0.1)))],
        [asdict(Fidelity("x", (0.3, 0.4), (0.7, 0.7), (0.3, 0.3)))],
    ]
    result = {
        "network": "lenet", "n_b": 32, "n_candidates": 320, "steps": 9, "repeats": 2,
        "seeds": seeds, "versions": {"torch": "2.4"},
        "machine": {"processor": "here", "threads": 1},
    }  # fmt: skip
    line = cost_table(result).splitlines()[2]
    assert line == (
        "| x | 0.200 (0.100 to 0.300) | 3.00 | 60.0 % (50.0 % to 70.0 %) | 0.250 (0.175 to 0.325) |"
    )
    assert "over 1 seed;" in cost_table(result | {"seeds": seeds[:1]})
