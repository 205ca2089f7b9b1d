"""The demo over seeds: numbers worked by hand, runs that never arrive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reducible.lab.records import write_json
from reducible.lab.studies.demo.tables import _ratios, _step_ratio, demo_table


def _curve(*accuracies: float) -> list[list[float]]:
    """One evaluation every ten steps, a second apart."""
    return [[10.0 * (i + 1), float(i + 1), a] for i, a in enumerate(accuracies)]


def _run(seed: int, curve: list[list[float]], **summary: Any) -> dict[str, Any]:
    final = sum(a for _, _, a in curve[-5:]) / len(curve[-5:])
    shares = {"corrupted_share": 0.1, "already_correct_share": 0.5}
    held = shares | {"final_accuracy": final} | summary
    return {"seed": seed, "curve": curve, "ledger": {}, "summary": held}


def _write(results: Path, recipe: str, runs: list[Any], commit: str = "abc", day: int = 1) -> Path:
    (results / recipe).mkdir(parents=True, exist_ok=True)
    path = results / recipe / f"{commit}.json"
    machine = {"finished": f"2026-01-{day:02}T00:00:00+00:00"}
    write_json(path, {"recipe": {"name": recipe}, "machine": machine, "seeds": runs})
    return path


# Reaches 0.6 for good at its sixth evaluation: the mean of 0.6, 0.6, 0.6.
SLOW = _curve(0.1, 0.2, 0.4, 0.6, 0.6, 0.6, 0.6, 0.6)
FAST = _curve(0.6, 0.6, 0.6, 0.7, 0.7, 0.7, 0.7, 0.7)  # there at its third
NEVER = _curve(0.1, 0.1, 0.1, 0.5, 0.5, 0.5, 0.5, 0.5)


def test_ratios_of_steps_to_the_baselines_accuracy() -> None:
    base = _run(0, SLOW, final_accuracy=0.6)
    assert _step_ratio(FAST, base) == 30 / 60
    assert _step_ratio(SLOW, base) == 1
    assert _step_ratio(NEVER, base) is None
    assert _step_ratio(FAST, _run(0, NEVER, final_accuracy=0.9)) is None  # nothing to compare with


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        ([0.5], "0.50 (0.50 to 0.50)"),
        ([0.4, 0.2, 0.3, 0.1, 1.0], "0.30 (0.20 to 0.40)"),
        ([0.0, 1.2, 0.8, 0.4], "0.60 (0.30 to 0.90)"),
        ([0.1, None, 0.3, 0.2, 0.4], "0.30 (0.20 to 0.40), never in 1 of 5"),
        ([0.1, None, 0.3, None, 0.2], "0.30 (0.20 to never), never in 2 of 5"),
        ([0.1, None, None, None, 0.2], "never (0.20 to never), never in 3 of 5"),
        ([0.1, None], "never (never to never), never in 1 of 2"),
        ([None, None, None], "never (never to never), never in 3 of 3"),
    ],
)
def test_medians_with_quartiles_where_never_is_the_slowest(ratios: Any, text: str) -> None:
    assert _ratios(ratios) == text


def test_the_table_by_hand(tmp_path: Path) -> None:
    shares = {"corrupted_share": 0.04, "already_correct_share": 0.25}
    _write(tmp_path, "uniform", [_run(s, SLOW, final_accuracy=0.6) for s in range(4)])
    mine = [
        _run(0, FAST, final_accuracy=0.70, **shares),
        _run(1, FAST, final_accuracy=0.70, **shares),
        _run(2, SLOW, final_accuracy=0.70, **shares),
        _run(3, NEVER, final_accuracy=0.70, **shares),
    ]
    _write(tmp_path, "rho", mine)
    table = demo_table(tmp_path, {"uniform": "uniform", "rho": "RHO-LOSS"}, "uniform")
    lines = table.splitlines()
    cells = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    assert {len(row) for row in cells} == {6}
    assert cells[2] == [
        "uniform", "1", "60.0 % (60.0 % to 60.0 %)", "–", "10.0 % (10.0 % to 10.0 %)",
        "50.0 % (50.0 % to 50.0 %)",
    ]  # fmt: skip
    # ratios ½, ½, 1 and never: the median lies between ½ and 1, the upper quartile beyond reach
    assert cells[3] == [
        "RHO-LOSS", "0.75 (0.50 to never), never in 1 of 4", "70.0 % (70.0 % to 70.0 %)",
        "+10.00 points (+10.00 to +10.00)", "4.0 % (4.0 % to 4.0 %)",
        "25.0 % (25.0 % to 25.0 %)",
    ]  # fmt: skip
    assert "over 4 seeds, paired by seed" in lines[-1]


def test_runs_are_paired_by_seed_not_by_position(tmp_path: Path) -> None:
    """A gain of one point for each seed, whatever the order, though a seed is missing."""
    finals = {0: 0.5, 1: 0.6, 2: 0.7}
    _write(tmp_path, "uniform", [_run(s, SLOW, final_accuracy=a) for s, a in finals.items()])
    mine = [_run(s, FAST, final_accuracy=finals[s] + 0.01) for s in (2, 0)]
    mine.append(_run(7, FAST, final_accuracy=0.99))  # the baseline lacks this seed
    _write(tmp_path, "rho", mine)
    table = demo_table(tmp_path, {"rho": "RHO"}, "uniform")
    assert "+1.00 points (+1.00 to +1.00)" in table


def test_a_loss_is_said_with_its_sign(tmp_path: Path) -> None:
    _write(tmp_path, "uniform", [_run(s, SLOW, final_accuracy=0.6) for s in range(3)])
    _write(tmp_path, "bad", [_run(s, NEVER, final_accuracy=0.55) for s in range(3)])
    table = demo_table(tmp_path, {"bad": "bad"}, "uniform")
    assert "-5.00 points (-5.00 to -5.00)" in table
    assert "never (never to never), never in 3 of 3" in table
