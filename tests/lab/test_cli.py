"""The command line: what it prints, what it refuses, and the folders it leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import reducible as rd
from reducible.lab.cli import app
from reducible.lab.method_pages import describe
from reducible.lab.recipes import RECIPES
from reducible.lab.records import read_json
from toys import killed_at

SMALL = {
    "train_examples": 1000,
    "holdout_examples": 300,
    "evaluate_every": 5,
    "irreducible_epochs": 1,
    "model": "mlp-64",
    "irreducible_model": "mlp-64",
}
SET = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(a) for a in arguments])


def _fails(*arguments: object) -> str:
    """What a call that a user can mend says: one message, exit status 2, nothing on stdout."""
    result = _call(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    return result.stderr


# -- tables ---------------------------------------------------------------------------------------


def test_selectors_as_json() -> None:
    result = _call("selectors", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == list(rd.SELECTORS)
    assert rows == json.loads(json.dumps([describe(r) for r in rd.SELECTORS.values()]))
    reducr = next(row for row in rows if row["name"] == "reducr")
    assert "eta=0.0001 (≥ 0)" in reducr["hyperparameters"]


def test_recipes_as_json() -> None:
    result = _call("recipes", "--json")
    rows = json.loads(result.stdout)
    assert [row["name"] for row in rows] == list(RECIPES)
    for row in rows:
        assert rd.selector(row["selector"], **row["hyperparameters"])


@pytest.mark.parametrize(("command", "table"), [("selectors", rd.SELECTORS), ("recipes", RECIPES)])
def test_tables_in_a_pipe_are_whole(command: str, table: Any) -> None:
    """Tab-separated, one line a row, nothing cut off, however narrow the terminal is."""
    result = CliRunner(env={"COLUMNS": "20"}).invoke(app, [command])
    assert result.exit_code == 0
    assert "…" not in result.stdout
    head, *rows = [line.split("\t") for line in result.stdout.splitlines()]
    assert head[0] == "name"
    assert [row[0] for row in rows] == list(table)
    assert {len(row) for row in rows} == {len(head)}
    if command == "selectors":
        for row, one in zip(rows, rd.SELECTORS.values(), strict=True):
            said = dict(zip(head, row, strict=True))
            assert said["rule"] == one.equation
            assert said["source"] == one.paper
            assert said["against"] == one.against
            assert said["needs"] == ", ".join(sorted(one.needs))


def test_names_are_whole_on_a_terminal_too(monkeypatch: pytest.MonkeyPatch) -> None:
    import reducible.lab.cli

    monkeypatch.setenv("COLUMNS", "60")
    rows = [{"name": n, "rule": r.equation} for n, r in rd.SELECTORS.items()]

    def show() -> None:
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        reducible.lab.cli._print_rows(rows, as_json=False)

    import typer

    shown = typer.Typer()
    shown.command()(show)
    output = CliRunner(env={"COLUMNS": "60"}).invoke(shown, []).stdout
    assert "\t" not in output
    for name in rd.SELECTORS:
        assert f"{name} " in output


def test_help_of_the_module_and_of_every_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "reducible", "--help"], capture_output=True, text=True, check=True
    )
    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    assert {"demo", "run", "resume", "selectors", "recipes", "report", "bench"} <= set(names)
    assert all(name in done.stdout for name in names)
    for name in names:
        result = _call(name, "--help")
        assert result.exit_code == 0, name
        assert "Usage" in result.stdout
    assert _call().exit_code == 2  # without a command: help


# -- mistakes -------------------------------------------------------------------------------------


def test_an_unknown_recipe(tmp_path: Path) -> None:
    said = _fails("run", "demo/roh", "--out", tmp_path / "r")
    assert "no recipe 'demo/roh'. Did you mean 'demo/rho'" in said
    assert not (tmp_path / "r").exists()
    said = _fails("sweep", "demo/unifrom", "--work", tmp_path / "w", "--results", tmp_path / "x")
    assert "Did you mean 'demo/uniform'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("steps", "--set takes KEY=VALUE, got 'steps'"),
        ("stepz=3", "a recipe has no setting 'stepz'"),
        ("steps=many", "steps='many' is no int"),
        ("selector=roh", "no selector 'roh'. Did you mean 'rho'"),
        ("n_b=400", "n_b must be a whole number in [1, 320]"),
        ("learning_rate=-1", "learning_rate must be a number in (0.0, inf]"),
    ],
)
def test_a_setting_that_cannot_work(setting: str, message: str, tmp_path: Path) -> None:
    said = _fails("run", "demo/uniform", "--out", tmp_path / "r", "--set", setting)
    assert message in said
    assert not (tmp_path / "r").exists()


def test_a_used_folder(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text("precious")
    for command in (("run", "demo/uniform", "--out"), ("demo", "--out")):
        said = _fails(*command, tmp_path)
        assert "holds a run already (summary.json); nothing was touched" in said
    assert [p.read_text() for p in tmp_path.iterdir()] == ["precious"]


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    assert "holds no run" in _fails("report", tmp_path)
    assert "is not a folder" in _fails("report", tmp_path / "none")
    assert "config.json" in _fails("resume", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_seeds_that_are_none(tmp_path: Path) -> None:
    options = ("--work", tmp_path / "w", "--results", tmp_path / "r")
    said = _fails("sweep", "demo/uniform", "--seeds", "a-b", *options)
    assert "seeds are like 0-9 or 0-4,7; got 'a-b'" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [("run",), ("run", "demo/uniform"), ("runn",), ("run", "x", "--max-steps", "0"), ("demo", "x")],
)
def test_usage_errors_are_exit_status_2_too(arguments: tuple[str, ...]) -> None:
    result = _call(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.output


# -- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    out = tmp_path_factory.mktemp("cli") / "rho"
    return out, _call("run", "demo/rho", "--out", out, "--seed", 5, "--max-steps", 20, *SET)


def test_run_with_settings_and_fewer_steps(finished: tuple[Path, Result]) -> None:
    out, result = finished
    assert result.exit_code == 0, result.output
    config, summary = read_json(out / "config.json"), read_json(out / "summary.json")
    assert (config["recipe"], config["seed"], config["steps"]) == ("demo/rho", 5, 20)
    assert {k: config["settings"][k] for k in SMALL} == SMALL
    assert [point[0] for point in summary["curve"]] == [5, 10, 15, 20]
    assert f"final accuracy {summary['final_accuracy']:.4f}; written: {out}" in result.stdout


def test_a_finished_run_is_not_resumed(finished: tuple[Path, Result]) -> None:
    out, _ = finished
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    result = _call("resume", out)
    assert result.exit_code == 0
    assert "is complete; nothing to do" in result.stdout
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_stopped_run_is_resumed_with_its_own_settings(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    out, (whole, _) = tmp_path / "stopped", finished
    with killed_at(12):
        options = ("--seed", 5, "--max-steps", 20, *SET)
        stopped = _call("run", "demo/rho", "--out", out, *options)
        assert stopped.exception is not None
        raise stopped.exception
    assert not (out / "summary.json").exists()
    result = _call("resume", out)
    assert result.exit_code == 0, result.output
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    configs = [read_json(folder / "config.json") for folder in (out, whole)]
    for config in configs:
        config.pop("irreducible_loss")  # the checksum of a store that says what it cost
    assert configs[0] == configs[1]
    accuracies = [[p[2] for p in read_json(f / "summary.json")["curve"]] for f in (out, whole)]
    assert accuracies[0] == accuracies[1]


def test_report_of_a_run(finished: tuple[Path, Result], tmp_path: Path) -> None:
    out, _ = finished
    result = _call("report", out, "--out", tmp_path / "report")
    assert result.exit_code == 0, result.output
    assert "demo/rho" in result.stdout
    assert {p.name for p in (tmp_path / "report").iterdir()} == {"curves.png", "table.md"}
    accuracy = read_json(out / "summary.json")["final_accuracy"]
    assert f"{100 * accuracy:.1f} %" in result.stdout


def test_pages(tmp_path: Path) -> None:
    result = _call("pages", "--out", tmp_path)
    assert result.exit_code == 0
    assert f"{len(rd.SELECTORS) + 1} pages in {tmp_path}" in result.stdout
    assert {p.stem for p in tmp_path.iterdir()} == {"README", *rd.SELECTORS}


def test_bench_prints_its_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    import reducible.lab.bench

    asked: list[bool] = []

    def run_bench(*, quick: bool = False) -> list[dict[str, Any]]:
        asked.append(quick)
        return [{"what": "a step", "median": 1.01, "unit": "ratio"}]

    monkeypatch.setattr(reducible.lab.bench, "run_bench", run_bench)
    assert json.loads(_call("bench", "--quick", "--json").stdout)[0]["median"] == 1.01
    assert _call("bench").stdout.splitlines() == ["what\tmedian\tunit", "a step\t1.01\tratio"]
    assert asked == [True, False]


def test_demo_and_sweep_are_given_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reducible.lab.sweep

    calls: list[Any] = []

    def run_sweep(recipes: Any, seeds: Any, **options: Any) -> list[Path]:
        calls.append(([r.name for r in recipes], seeds, options))
        return [tmp_path / "a.json"]

    monkeypatch.setattr(reducible.lab.sweep, "run_sweep", run_sweep)
    result = _call(
        "sweep", "demo/uniform", "demo/rho", "--seeds", "0-2,7", "--work", tmp_path / "w",
        "--results", tmp_path / "r", "--processes", 3, "--checkpoint-every", 25,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert calls == [
        (
            ["demo/uniform", "demo/rho"],
            [0, 1, 2, 7],
            {
                "work": tmp_path / "w",
                "results": tmp_path / "r",
                "processes": 3,
                "checkpoint_every": 25,
            },
        )
    ]
    assert str(tmp_path / "a.json") in result.stdout
