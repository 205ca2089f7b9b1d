"""Folders: finished runs, stopped runs, demos, and folders of something else."""

import ast
from pathlib import Path

import pytest
import torch

import reducible
from reducible.lab.records import MetricsWriter, PickWriter, write_json
from reducible.lab.report.folders import as_summary, read_runs, report
from reducible.types import ReducibleError

ENTRY = {
    "steps_to_target": 200,
    "seconds_to_target": 2.5,
    "final_accuracy": 0.9,
    "seconds": {"train": 2.0, "total": 4.0},
    "examples_scored": 0,
    "examples_trained": 640,
    "corrupted_share": 0.1,
    "already_correct_share": 0.5,
    "curve": [[0, 0.1, 0.1], [100, 1.2, 0.86], [200, 2.5, 0.9]],
}


def _finished(folder, recipe, seed=0, target=0.6):
    folder.mkdir()
    write_json(
        folder / "config.json",
        {"recipe": recipe, "seed": seed, "target_accuracy": target},
        sealed=True,
    )
    write_json(folder / "summary.json", ENTRY, sealed=True)
    return folder


def _stopped(folder):
    """Killed in the middle of its fifth line."""
    folder.mkdir()
    write_json(
        folder / "config.json",
        {"recipe": "rho_noisy", "seed": 1, "target_accuracy": 0.7, "dataset": "digits"},
        sealed=True,
    )
    chosen, corrupted = (90, 10, 0, 100), (0, 5, None, 5)
    with MetricsWriter(folder / "metrics.jsonl") as metrics:
        for i, accuracy in enumerate([0.5, 0.8, 0.7, 0.9]):
            known = corrupted[i]
            metrics.write(
                {
                    "step": 10 * i,
                    "seconds": 1.5 * i,
                    "accuracy": accuracy,
                    "loss": None,
                    "examples_scored": 320 * i,
                    "examples_trained": 32 * i,
                    "seconds_by_phase": {"train": 1.0 * i, "total": 1.6 * i},
                    "selected": {
                        "chosen": chosen[i],
                        "corrupted": known or 0,
                        "corrupted_share": None if known is None else known / chosen[i],
                        "already_correct": 0,
                        "already_correct_share": None,
                    },
                }
            )
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 40, "accu')
    with PickWriter(folder / "picks.arrow") as picks:
        picks.write(0, torch.tensor([3, 1]))
    return folder


def test_a_stopped_run_is_told_from_its_metrics(tmp_path):
    with pytest.warns(UserWarning, match="are no whole record and are left out"):
        (run,) = read_runs([_stopped(tmp_path / "run")])
    assert (run.name, run.seed, run.dataset, run.finished) == ("rho_noisy", 1, "digits", False)
    assert run.entry == {
        "steps_to_target": 30,  # (.8 + .7 + .9) / 3 = .8; (.5 + .8 + .7) / 3 is below .7
        "seconds_to_target": 4.5,
        "final_accuracy": 0.9,
        "seconds": {"train": 3.0, "total": 1.6 * 3},
        "examples_scored": 960,
        "examples_trained": 96,
        "corrupted_share": 10 / 200,  # totals over totals, of the choices where it was known
        "already_correct_share": None,
        "curve": [[0, 0.0, 0.5], [10, 1.5, 0.8], [20, 3.0, 0.7], [30, 4.5, 0.9]],
    }
    assert run.picks().to_pylist()[0]["ids"] == [3, 1]


def test_a_run_stopped_before_its_first_evaluation(tmp_path):
    (tmp_path / "run").mkdir()
    write_json(tmp_path / "run" / "config.json", {"recipe": "rho"}, sealed=True)
    (run,) = read_runs([tmp_path / "run"])
    assert (run.finished, run.entry["curve"], run.entry["final_accuracy"]) == (False, [], None)
    report([tmp_path / "run"], tmp_path / "out")
    assert (tmp_path / "out" / "curves.png").exists()


def test_runs_become_methods(tmp_path):
    runs = read_runs([_finished(tmp_path / "a", "uniform"), _finished(tmp_path / "b", "rho")])
    summary = as_summary(runs)
    assert summary["target_accuracy"] == 0.6
    assert summary["seed"] == 0
    assert summary["methods"] == {"uniform": ENTRY, "rho": ENTRY}


def test_runs_of_one_recipe_are_told_apart(tmp_path):
    seeds = read_runs([_finished(tmp_path / f"s{i}", "rho", seed=i) for i in (0, 1)])
    assert list(as_summary(seeds)["methods"]) == ["rho, seed 0", "rho, seed 1"]
    assert as_summary(seeds)["seed"] is None
    again = read_runs([tmp_path / "s0", _finished(tmp_path / "t0", "rho", target=0.9)])
    assert list(as_summary(again)["methods"]) == [
        f"rho, {tmp_path / 's0'}",
        f"rho, {tmp_path / 't0'}",
    ]
    assert as_summary(again)["target_accuracy"] is None


def test_a_demo_folder_beside_a_run(tmp_path):
    demo = {
        "target_accuracy": 0.6,
        "dataset": "digits",
        "seed": 0,
        "versions": {},
        "methods": {"uniform": ENTRY, "rho": ENTRY},
    }
    (tmp_path / "demo").mkdir()
    write_json(tmp_path / "demo" / "summary.json", demo, sealed=True)
    summary = as_summary(read_runs([tmp_path / "demo"]))
    assert summary == {k: demo[k] for k in ("target_accuracy", "dataset", "seed", "methods")}
    both = read_runs([tmp_path / "demo", _finished(tmp_path / "run", "grad_norm")])
    assert list(as_summary(both)["methods"]) == ["uniform", "rho", "grad_norm"]


def test_report_writes_picture_and_table(tmp_path):
    folders = [_finished(tmp_path / "a", "uniform"), _stopped(tmp_path / "b")]
    with pytest.warns(UserWarning, match="are no whole record"):
        table = report(folders, tmp_path / "out" / "deep")
    assert {f.name for f in (tmp_path / "out" / "deep").iterdir()} == {"curves.png", "table.md"}
    assert (tmp_path / "out" / "deep" / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert "| `rho_noisy` |" in (tmp_path / "out" / "deep" / "table.md").read_text("utf-8")
    assert [str(column.header) for column in table.columns] == ["", "uniform", "rho_noisy"]


def test_folders_without_a_run(tmp_path):
    with pytest.raises(ReducibleError, match=r"holds no run: no config.json, metrics.jsonl or"):
        read_runs([tmp_path])
    with pytest.raises(ReducibleError, match="absent is not a folder"):
        read_runs([tmp_path / "absent"])
    _finished(tmp_path / "b", "rho")
    _finished(tmp_path / "a", "rho")
    with pytest.raises(ReducibleError, match="but its sub-folders do: name a, b"):
        report([tmp_path], tmp_path / "out")
    with pytest.raises(ReducibleError, match="no folder was given"):
        report([], tmp_path / "out")
    (tmp_path / "a" / "summary.json").write_text("{")
    with pytest.raises(ReducibleError, match=r"summary.json is not JSON"):
        read_runs([tmp_path / "a"])


def test_reports_need_no_torch():
    package = Path(reducible.__file__).parent
    light = (
        *("files", "files.whole", "files.seals"),
        *("lab.records", "lab.logs", "lab.arrow_logs"),
    )
    paths = [package / Path(*name.split(".")) for name in light if name != "files"]
    paths = [path.with_suffix(".py") for path in paths]
    for path in [*(package / "lab" / "report").glob("*.py"), *paths]:
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                assert name.split(".")[0] != "torch", path
                ours = name.startswith("reducible")
                allowed = name.removeprefix("reducible.") in light
                assert allowed or name.startswith("reducible.lab.report.") or not ours, (path, name)
