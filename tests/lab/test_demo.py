"""The main job, shortened: real images, both comparisons, their summaries and pictures."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

import reducible as rd
from reducible.lab.demo import DATASET, run_demo
from reducible.lab.recipes import recipe
from reducible.lab.records import read_json, read_picks, summarise
from reducible.lab.studies.demo.recipes import RACE
from reducible.ledger import PHASES

LENGTH = 60  # updates


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, Any]]]:
    out = tmp_path_factory.mktemp("demo") / "new"
    return out, run_demo(out, seed=3, max_steps=LENGTH, progress=False)


def test_the_folder_holds_two_comparisons_with_a_run_of_each_method(demo: Any) -> None:
    out, found = demo
    assert {p.name for p in out.iterdir()} == {"in-seconds", "in-steps"} == set(found)
    race, paper = out / "in-seconds", out / "in-steps"
    files = {"summary.json", "curves.png"}
    assert {p.name for p in paper.iterdir()} == files | {"uniform", "rho"}
    assert {p.name for p in race.iterdir()} == files | {"every-row-in-turn", "rho-loss", "plan"}
    for name, recipe_name in (("uniform", "demo/uniform"), ("rho", "demo/rho")):
        config = read_json(paper / name / "config.json")
        assert (config["recipe"], config["seed"], config["steps"]) == (recipe_name, 3, LENGTH)
        picks = read_picks(paper / name / "picks.arrow").to_pydict()
        assert picks["step"] == list(range(LENGTH))
        assert (paper / name / "model.safetensors").exists()


def test_the_race_says_who_won_and_by_how_much(demo: Any) -> None:
    out, found = demo
    summary = found["in-seconds"]
    assert read_json(out / "in-seconds" / "summary.json", sealed=True) == summary
    assert list(summary["methods"]) == list(RACE) == ["every row in turn", "RHO-LOSS", "plan"]
    first, rho, plan = summary["methods"].values()
    assert first["updates"] == LENGTH
    assert first["over_first"] == {"mean": 0.0, "low": 0.0, "high": 0.0}
    for method in (rho, plan):
        over = method["over_first"]
        expected = method["final_accuracy"] - first["final_accuracy"]
        assert over["mean"] == pytest.approx(expected, abs=1e-9)
        assert over["low"] < over["mean"] < over["high"]
    assert " won" in summary["verdict"]
    assert rho["examples_scored"] == rho["updates"] * 320
    assert plan["examples_scored"] == first["examples_scored"] == 0


def test_the_summary_in_steps_says_what_is_promised(demo: Any) -> None:
    out, found = demo
    summary = found["in-steps"]
    assert read_json(out / "in-steps" / "summary.json") == summary
    assert set(summary) == {"target_accuracy", "dataset", "seed", "versions", "methods"}
    assert summary["dataset"] == DATASET
    assert summary["seed"] == 3
    assert {"reducible", "torch", "numpy", "python"} <= set(summary["versions"])
    assert list(summary["methods"]) == ["uniform", "rho"]
    for name, entry in summary["methods"].items():
        assert set(entry) >= {
            "steps_to_target", "seconds_to_target", "final_accuracy", "seconds",
            "examples_scored", "examples_trained", "corrupted_share", "already_correct_share",
            "curve",
        }  # fmt: skip
        assert set(entry["seconds"]) == {*PHASES, "total"}
        assert entry["examples_trained"] == LENGTH * 32
        assert entry["examples_scored"] == (LENGTH * 320 if name == "rho" else 0)
        assert (entry["seconds"]["irreducible_loss"] > 0) == (name == "rho")
        assert [len(point) for point in entry["curve"]] == [3] * len(entry["curve"])
        assert [point[0] for point in entry["curve"]] == [50, 60]
        assert 0.2 < entry["final_accuracy"] < 1
        assert entry == read_json(out / "in-steps" / name / "summary.json")


def test_the_target_in_steps_is_the_final_accuracy_of_uniform(demo: Any) -> None:
    _, found = demo
    summary = found["in-steps"]
    target = summary["target_accuracy"]
    assert target == summary["methods"]["uniform"]["final_accuracy"]
    for entry in summary["methods"].values():
        # two evaluations are not three in a row: never reached
        assert (entry["steps_to_target"], entry["seconds_to_target"]) == (None, None)
        assert summarise(entry["curve"], target) == (None, None)


@pytest.mark.parametrize("folder", ["in-seconds", "in-steps"])
def test_the_pictures_are_pictures(folder: str, demo: Any) -> None:
    out, _ = demo
    data = (out / folder / "curves.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert 600 <= width <= 4000
    assert 300 <= height <= 3000
    assert 10_000 < len(data) < 2_000_000


def test_a_used_folder_is_refused_and_not_touched(demo: Any) -> None:
    out, _ = demo
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with pytest.raises(
        rd.ConfigurationError, match=r"in-seconds holds a run already \(summary.json\)"
    ):
        run_demo(out, max_steps=1, progress=False)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


def test_a_demo_that_was_stopped_is_not_written_over(tmp_path: Path) -> None:
    (tmp_path / "in-steps").mkdir()
    (tmp_path / "in-steps" / "config.json").write_text("precious")
    with pytest.raises(rd.ConfigurationError, match=r"in-steps holds a run already"):
        run_demo(tmp_path, max_steps=1, progress=False)
    files = [p for p in tmp_path.rglob("*") if p.is_file()]
    assert [p.read_text() for p in files] == ["precious"]


def test_both_recipes_differ_in_the_rule_alone() -> None:
    uniform, rho = (recipe(f"demo/{n}").settings() for n in ("uniform", "rho"))
    differ = {key for key in uniform if uniform[key] != rho[key]}
    assert differ == {"name", "selector", "irreducible_smoothing"}
