"""The study's tables and picture, on results made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from reducible.lab.records import write_json
from reducible.lab.report.curves import MUTED
from reducible.lab.studies.equal_time.picture import BETTER, WORSE, draw_overview, plot_overview
from reducible.lab.studies.equal_time.tables import (
    SHOWN,
    Outcome,
    between_note,
    gate_note,
    like_over_budgets,
    like_with_like,
    outcomes,
    overview,
    seeds_note,
    seeds_of,
    table,
    time_to,
    times_to_uniform,
)

KNOWN = {
    "mlp": {
        "plateau": 1000,
        "rules": {
            "uniform": {"cost": 1.0, "fit": 0},
            "plan-filter": {"cost": 1.0, "fit": 100},
            "rho": {"cost": 3.0, "fit": 100},
        },
    }
}


def _write(
    results: Path,
    name: str,
    steps: int,
    accuracies: list[float],
    wrong: float,
    *,
    total: float | None = None,
    gates: Sequence[dict[str, Any]] = (),
) -> None:
    runs = [
        {
            "seed": seed,
            "curve": [],
            "ledger": {},
            "summary": {
                "final_accuracy": accuracy,
                "corrupted_share": wrong,
                "seconds": {"total": total or 10.0 * (seed + 1), "evaluate": 1.0},
                **({"gate": gates[seed]} if gates else {}),
            },
        }
        for seed, accuracy in enumerate(accuracies)
    ]
    (results / name).mkdir(parents=True)
    held: dict[str, Any] = {
        "recipe": {"name": name, "steps": steps},
        "machine": {"finished": "2026-01-01T00:00:00+00:00"},
        "seeds": runs,
    }
    write_json(results / name / "abc.json", held)


@pytest.fixture
def found(tmp_path: Path) -> list[Outcome]:
    at = "equal-time/mlp/flip-10"
    _write(tmp_path, f"{at}/any/1x/uniform", 1000, [0.80, 0.82, 0.81], 0.1)
    _write(tmp_path, f"{at}/any/0.5x/uniform", 500, [0.70, 0.72, 0.71], 0.1)
    _write(tmp_path, f"{at}/noisy/1x/plan-filter", 900, [0.84, 0.86, 0.85], 0.02)
    _write(tmp_path, f"{at}/noisy/0.5x/plan-filter", 400, [0.76, 0.78, 0.77], 0.02)
    _write(tmp_path, f"{at}/noisy/1x/rho", 300, [0.70, 0.70, 0.70], 0.2)
    _write(
        tmp_path, f"{at}/clean/1x/plan-filter", 900, [0.0, 0.0, 0.0], 0.0
    )  # of the other holdout
    assert outcomes(tmp_path, "mlp", "flip-10", "noisy", KNOWN) == []  # three seeds are too few
    return outcomes(tmp_path, "mlp", "flip-10", "noisy", KNOWN, seeds=3)


def test_what_was_run_with_more_seeds_is_said(found: list[Outcome]) -> None:
    assert seeds_note(found) == "3 seeds."
    uniform, plan, rho = found
    uniform.accuracy["2x"] = dict.fromkeys(range(5), 0.9)
    plan.accuracy["1x"] |= {3: 0.8}
    rho.accuracy["2x"] = dict.fromkeys(range(5), 0.9)
    more = "at 2x 5 of uniform, rho"
    assert seeds_note(found) == f"3 seeds; at 1x 4 of plan-filter; {more}."
    assert seeds_note(found, ["2x"]) == f"3 seeds; {more}."


def test_outcomes_hold_accuracies_and_what_is_charged(found: list[Outcome]) -> None:
    assert [o.rule for o in found] == ["uniform", "plan-filter", "rho"]
    plan = found[1]
    assert plan.accuracy == {"0.5x": {0: 0.76, 1: 0.78, 2: 0.77}, "1x": {0: 0.84, 1: 0.86, 2: 0.85}}
    assert plan.time == {"0.5x": 0.5, "1x": 1.0}  # steps and the fit, in uniform steps
    assert plan.shared == {"0.5x": pytest.approx(0.41), "1x": pytest.approx(0.91)}
    assert found[2].time == {"1x": 1.0}  # 300 steps of 3, and 100
    assert plan.wrong == 0.02
    assert seeds_of(found) == 3


def test_the_time_to_uniforms_end(found: list[Outcome]) -> None:
    uniform, plan, rho = found
    # halfway from 0.76 to 0.84, in the logarithm of time
    assert times_to_uniform(plan, uniform) == pytest.approx([math.sqrt(0.5)] * 3)
    shared = times_to_uniform(plan, uniform, shared=True)
    assert shared == pytest.approx([math.sqrt(0.41 * 0.91)] * 3)
    assert times_to_uniform(rho, uniform) == [math.inf] * 3
    assert time_to(0.5, [1.0], [0.6]) == 1.0


def test_the_table_says_it(found: list[Outcome]) -> None:
    rows = [
        [c.strip() for c in line.strip("|").split("|")] for line in table(found).split("\n")[2:]
    ]
    uniform, plan, rho = rows
    assert uniform[:5] == ["uniform", "1", "1", "71.0 %", "81.0 %"]
    assert plan[:3] == ["plan-filter", "0.71", "0.61"]
    assert plan[3:5] == ["+6.00 (+6.00 to +6.00)", "+4.00 (+4.00 to +4.00)"]
    assert plan[5:] == ["–", "2.0 %"]
    assert rho[:4] == ["rho", "never", "never", "–"]
    assert rho[4].startswith("-11.00 (-1")


def test_seconds_are_those_of_runs_alone_on_the_machine(
    tmp_path: Path, found: list[Outcome]
) -> None:
    at = "on-the-clock/mlp/flip-10"
    _write(tmp_path, f"{at}/any/1x/uniform", 1000, [0.8], 0.1, total=11.0)
    _write(tmp_path, f"{at}/noisy/1x/plan-filter", 900, [0.8], 0.1, total=13.0)
    again = outcomes(tmp_path, "mlp", "flip-10", "noisy", KNOWN, seeds=3)
    assert [o.alone for o in again] == [{0: 10.0}, {0: 12.0}, {}]  # less the evaluation
    plan = table(again).split("\n")[3]
    assert plan.split("|")[-3].strip() == "1.20"


def test_the_gate_is_summed_up(tmp_path: Path, found: list[Outcome]) -> None:
    assert gate_note({"flip-10": found}) == ""
    shut = {"share_of_planned_time": 0.02, "events": []}
    let_in = {"share_of_planned_time": 0.0251, "events": [{"to": "selecting"}, {"to": "closed"}]}
    name = "equal-time/mlp/flip-10/noisy/1x/rho"
    for path in (tmp_path / name).glob("*.json"):
        path.unlink()
    (tmp_path / name).rmdir()
    _write(tmp_path, name, 300, [0.7] * 3, 0.2, gates=[shut, let_in, shut])
    again = outcomes(tmp_path, "mlp", "flip-10", "noisy", KNOWN, seeds=3)
    said = gate_note({"flip-10": again})
    assert "at most 2.51 % of the time" in said
    assert "in 3 runs; selection was let in in 1 of them" in said


def test_the_overview_marks_better_and_worse(found: list[Outcome]) -> None:
    text = overview({"flip-10": found})
    assert "**+4.0 (+4.0 to +4.0)**, time 0.71" in text
    assert "*-11.0 (" in text
    assert "81.0 %" in text
    few = overview({"flip-10": found}, rules=["plan-filter"])
    assert few.split("\n") == [line for line in text.split("\n") if "RHO-LOSS" not in line]


def test_plans_are_held_against_plain_training_alike(tmp_path: Path, found: list[Outcome]) -> None:
    assert like_with_like({"flip-10": found}) == ""
    known = {"mlp": {"plateau": 1000, "rules": {**KNOWN["mlp"]["rules"]}}}
    known["mlp"]["rules"] |= {"rs2": {"cost": 1.0, "fit": 0}, "plan-floor": {"cost": 1.0, "fit": 9}}
    at = "equal-time/mlp/flip-10"
    _write(tmp_path, f"{at}/any/1x/rs2", 1000, [0.84, 0.85, 0.86], 0.1)
    _write(tmp_path, f"{at}/noisy/1x/plan-floor", 900, [0.83, 0.84, 0.85], 0.1)
    again = outcomes(tmp_path, "mlp", "flip-10", "noisy", known, seeds=3)
    (row,) = like_with_like({"flip-10": again}).split("\n")[2:]
    assert row.split("|")[2].strip() == "*-1.0 (-1.0 to -1.0)*"  # though both are above uniform
    by_budget = like_over_budgets({"MLP": {"flip-10": again}}, "plan-floor").split("\n")
    assert "plan, batches of 32 from D, over plain training alike" in by_budget[0]
    assert by_budget[2:] == ["| MLP, 1x | *-1.0 (-1.0 to -1.0)* |"]
    assert like_over_budgets({"MLP": {"flip-10": again}}, "plan-full") == ""
    assert like_with_like({"flip-10": again}, budget="2x") == ""


def test_a_run_between_budgets_is_held_against_uniforms_end(found: list[Outcome]) -> None:
    assert between_note(found) == ""
    found[1].accuracy["0.75x"] = {0: 0.79, 1: 0.81, 2: 0.80}
    said = "Between budgets, at 0.75x plan-filter ended -1.00 (-1.00 to -1.00) over"
    assert between_note(found) == f"{said} uniform's end at 1x."
    found[1].time["0.75x"] = 0.75
    assert all(0.75 < time < 1.0 for time in times_to_uniform(found[1], found[0]))


def test_a_rule_that_reaches_it_in_its_shortest_run_is_marked(found: list[Outcome]) -> None:
    uniform, plan, _ = found
    plan.accuracy["0.5x"] = dict.fromkeys(range(3), 0.9)
    assert "≤ 0.50" in table([uniform, plan])


def test_a_network_of_one_kind_of_data_is_shown(tmp_path: Path) -> None:
    known = {"resnet": {"plateau": 500, "rules": KNOWN["mlp"]["rules"]}}
    _write(tmp_path, "equal-time/resnet/flip-40/any/1x/uniform", 500, [0.8] * 5, 0.4)
    _write(tmp_path, "equal-time/resnet/flip-40/noisy/1x/plan-filter", 400, [0.9] * 5, 0.1)
    found = outcomes(tmp_path, "resnet", "flip-40", "noisy", known)
    assert [(o.rule, o.time) for o in found] == [
        ("uniform", {"1x": 1.0}),
        ("plan-filter", {"1x": 1.0}),
    ]
    assert outcomes(tmp_path, "resnet", "clean", "noisy", known) == []
    assert overview({"flip-40": found}).split("\n")[2:] == [
        "| uniform | 80.0 % |",
        "| strict plan | **+10.0 (+10.0 to +10.0)**, time ≤ 1.00 |",
    ]
    plot_overview({"ResNet": {"flip-40": found}}, tmp_path / "one.png")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_says_who_is_better_and_who_is_off_the_scale(tmp_path: Path) -> None:
    def made(**accuracies: list[float]) -> list[Outcome]:
        return [
            Outcome(rule, {"1x": dict(enumerate(values))}, {"1x": 1.0})
            for rule, values in accuracies.items()
        ]

    base = [0.80, 0.81, 0.82]
    found = made(
        uniform=base,
        rs2=[a + d for a, d in zip(base, (0.01, -0.01, 0.0), strict=True)],
        infobatch=[a - 0.02 for a in base],
        rho=[a - 0.05 for a in base],
        plan=[a + 0.02 for a in base],
    )
    figure = draw_overview({"MLP": {"clean": found}, "CNN": {"clean": found}})
    (ax,) = figure.axes
    rows = [label.get_text() for label in ax.get_yticklabels()]
    marks = {
        (rows[round(float(line.get_ydata()[0]))], line.get_marker()): line  # pyright: ignore[reportIndexIssue, reportArgumentType]
        for line in ax.lines
        if line.get_marker() != "None"
    }
    seen = {
        (rule, marker): (round(float(line.get_xdata()[0]), 6), line.get_color())  # pyright: ignore[reportIndexIssue, reportArgumentType]
        for (rule, marker), line in marks.items()
        if marker != "<"
    }
    assert seen == {
        (SHOWN[rule], marker): expected
        for rule, expected in (
            ("rs2", (0.0, MUTED)),
            ("infobatch", (-2.0, WORSE)),
            ("plan", (2.0, BETTER)),
        )
        for marker in ("o", "s")
    }
    assert [text.get_text() for text in ax.texts] == ["-5.0"] * 2
    few = draw_overview({"MLP": {"clean": found}}, rules=["plan", "rho"])
    labels = [label.get_text() for label in few.axes[0].get_yticklabels()]
    assert labels == [SHOWN["rho"], SHOWN["plan"]]


def test_the_picture_is_written(found: list[Outcome], tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    plot_overview({"MLP": {"flip-10": found, "flip-40": found}}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
