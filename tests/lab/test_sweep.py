"""Sweeps: every run once, whatever was stopped before; one results file per recipe."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reducible as rd
import reducible.lab.sweep
from reducible.files import checkpoints
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, read_picks, write_json
from reducible.lab.run import Run
from reducible.lab.sweep import collect, parse_seeds, run_sweep
from reducible.ledger import PHASES
from toys import killed_at

TINY = Recipe(
    name="tiny/uniform",
    selector="uniform",
    model="mlp-64",
    train_examples=600,
    holdout_examples=100,
    n_b=8,
    n_candidates=80,
    steps=12,
    evaluate_every=4,
    irreducible_model="mlp-64",
    irreducible_epochs=1,
)
RHO = replace(TINY, name="tiny/rho", selector="rho")


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Path]]:
    """Two recipes with two seeds, of which one run was finished before and one stopped."""
    root = tmp_path_factory.mktemp("sweep")
    work, results = root / "work", root / "results"
    Run(TINY, work / "tiny/uniform" / "3", seed=3, progress=False).start()
    _stopped(RHO, work / "tiny/rho" / "4", seed=4)
    done = work / "tiny/uniform/3"
    marks = {p.name: p.stat().st_mtime_ns for p in done.iterdir()}
    store = (work / "tiny/rho/4/irreducible_loss.safetensors").stat().st_mtime_ns
    paths = run_sweep([TINY, RHO], [3, 4], work=work, results=results, processes=1, progress=False)
    assert {p.name: p.stat().st_mtime_ns for p in done.iterdir()} == marks  # not run again
    # the stopped one went on: what it had fitted was not fitted again
    assert (work / "tiny/rho/4/irreducible_loss.safetensors").stat().st_mtime_ns == store
    return work, results, paths


def _stopped(recipe: Recipe, out: Path, *, seed: int) -> None:
    with killed_at(7):
        Run(recipe, out, seed=seed, progress=False, checkpoint_every=5).start()


def test_all_runs_are_there_and_complete(swept: Any) -> None:
    work, _, _ = swept
    for recipe in (TINY, RHO):
        for seed in (3, 4):
            folder = work / recipe.name / str(seed)
            assert read_json(folder / "config.json")["seed"] == seed
            assert read_json(folder / "summary.json")["curve"][-1][0] == 12
            assert read_picks(folder / "picks.arrow").to_pydict()["step"] == list(range(12))
            assert not checkpoints.saved(folder)


def test_runs_of_other_settings_are_no_results(swept: Any, tmp_path: Path) -> None:
    work, _, _ = swept
    changed = replace(TINY, learning_rate=0.5)
    with pytest.raises(
        rd.ConfigurationError, match=r"with other settings than tiny/uniform has now \(lear"
    ):
        collect(changed, [3], work=work, results=tmp_path, commit="abc")


def test_a_run_of_a_sweep_is_the_run_alone(swept: Any, tmp_path: Path) -> None:
    work, _, _ = swept
    for recipe, seed in ((RHO, 3), (RHO, 4)):
        alone = tmp_path / str(seed)
        Run(recipe, alone, seed=seed, progress=False).start()
        mine = work / recipe.name / str(seed)
        name = "model.safetensors"
        assert (mine / name).read_bytes() == (alone / name).read_bytes()
        picks = [read_picks(f / "picks.arrow").to_pydict() for f in (mine, alone)]
        assert picks[0]["ids"] == picks[1]["ids"]


def test_the_results_file_holds_what_tables_are_made_of(swept: Any) -> None:
    work, results, paths = swept
    assert [p.parent for p in paths] == [results / "tiny/uniform", results / "tiny/rho"]
    assert sorted(p for p in results.rglob("*") if p.is_file()) == sorted(paths)
    for recipe, path in zip((TINY, RHO), paths, strict=True):
        held = read_json(path)
        assert set(held) == {"recipe", "command", "versions", "machine", "seeds"}
        assert Recipe.from_settings(held["recipe"]) == recipe
        assert held["command"] == f"reducible sweep {recipe.name} --seeds 3-4"
        assert held["versions"]["torch"] == torch.__version__
        assert held["machine"]["cores"] == os.cpu_count()
        assert held["machine"]["threads_per_run"] == 1
        assert [run["seed"] for run in held["seeds"]] == [3, 4]
        for run in held["seeds"]:
            assert set(run) == {"seed", "commit", "curve", "ledger", "summary"}
            summary = read_json(work / recipe.name / str(run["seed"]) / "summary.json")
            assert run["curve"] == summary["curve"]
            assert run["ledger"] == summary["ledger"]
            for key in ("final_accuracy", "corrupted_share", "already_correct_share", "seconds"):
                assert run["summary"][key] == summary[key]
            assert set(run["summary"]["seconds"]) == {*PHASES, "total"}
        assert "NaN" not in path.read_text()


def test_a_finished_sweep_starts_no_process(
    swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _, paths = swept

    def refuse(*_: Any) -> None:
        raise AssertionError("a run was started")

    monkeypatch.setattr(reducible.lab.sweep, "_run", refuse)
    monkeypatch.setattr(BaseProcess, "start", refuse)
    again = run_sweep([TINY, RHO], [3, 4], work=work, results=tmp_path, progress=False)
    for new, old in zip(again, paths, strict=True):
        assert read_json(new) == read_json(old)


def test_a_run_that_finished_as_the_sweep_was_killed_is_collected(
    swept: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _, (_, complete) = swept
    held = read_json(complete)
    stale = tmp_path / "tiny/rho" / "of-then.json"
    stale.parent.mkdir(parents=True)
    write_json(stale, held | {"seeds": held["seeds"][:1]})
    monkeypatch.setattr(reducible.lab.sweep, "current_commit", lambda: "now")
    again = {"work": work, "results": tmp_path, "progress": False}
    assert run_sweep([RHO], [3], **again) == [stale]  # all that was asked for is in it
    (path,) = run_sweep([RHO], [3, 4], **again)
    assert path.name == "now.json"
    assert read_json(path)["seeds"] == held["seeds"]


def test_a_seed_or_recipe_named_twice_is_run_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, int]] = []

    class Inline:
        """A pool of this process alone, that runs nothing."""

        def __init__(self, *_: Any, **__: Any) -> None: ...

        def shutdown(self, **_: Any) -> None: ...

        def submit(self, _: Any, job: Any) -> Any:
            from concurrent.futures import Future

            asked.append((job.recipe.name, job.seed))
            assert job.folder == tmp_path / "w" / job.recipe.name / str(job.seed)
            done: Future[None] = Future()
            done.set_result(None)
            return done

    monkeypatch.setattr(reducible.lab.sweep, "ProcessPoolExecutor", Inline)
    options: dict[str, Any] = {"work": tmp_path / "w", "results": tmp_path / "r"}
    paths = run_sweep([TINY, RHO, TINY], [1, 0, 1], **options, progress=False)
    assert asked == [(r.name, seed) for seed in (0, 1) for r in (TINY, RHO)]
    assert len(paths) == 2


def test_collecting_takes_only_what_is_finished(swept: Any, tmp_path: Path) -> None:
    work, _, _ = swept
    path = collect(TINY, [4, 9, 3], work=work, results=tmp_path, commit="abc")
    assert path == tmp_path / "tiny/uniform/abc.json"
    assert [run["seed"] for run in read_json(path)["seeds"]] == [3, 4]
    assert json.loads(path.read_text())["recipe"] == json.loads(json.dumps(TINY.settings()))


def test_a_sweep_of_nothing(tmp_path: Path) -> None:
    options: dict[str, Any] = {"work": tmp_path, "results": tmp_path, "progress": False}
    for recipes, seeds in (([], [0]), ([TINY], [])):
        with pytest.raises(rd.ConfigurationError, match="at least one recipe and one seed"):
            run_sweep(recipes, seeds, **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("0", [0]), ("0-2", [0, 1, 2]), ("4,0-2", [0, 1, 2, 4]), ("1,1-2,2", [1, 2]), ("7-7", [7])],
)
def test_seeds(text: str, seeds: list[int]) -> None:
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "-1", "3-1", "1,,2", "1.5", "0-1-2", "0 to 3"])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=rf"seeds are like 0-9 or 0-4,7; got '{text}'"):
        parse_seeds(text)


@settings(deadline=None)
@given(st.sets(st.integers(0, 30), min_size=1))
def test_seeds_are_named_so_that_they_can_be_read_back(seeds: set[int]) -> None:
    assert parse_seeds(reducible.lab.sweep._as_ranges(sorted(seeds))) == sorted(seeds)


def test_every_run_has_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    with reducible.lab.sweep._one_thread_each():
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert os.environ["OMP_NUM_THREADS"] == "5"
    monkeypatch.delenv("OMP_NUM_THREADS")
    with reducible.lab.sweep._one_thread_each():
        assert os.environ["OMP_NUM_THREADS"] == "1"
    assert "OMP_NUM_THREADS" not in os.environ


def test_the_estimate_runs_each_recipe_once_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started: list[Path] = []
    inner = Run.start

    def start(self: Run, *args: Any) -> Any:
        started.append(self.out)
        return inner(self, *args)

    monkeypatch.setattr(Run, "start", start)
    threads = torch.get_num_threads()
    jobs = [(TINY, 0), (RHO, 0), (TINY, 1)]
    costs = reducible.lab.sweep._costs(jobs, jobs, work=tmp_path)
    assert len(started) == 2
    assert not any(path.exists() for path in started)
    assert costs[0] == costs[2] > 0
    assert torch.get_num_threads() == threads


def test_the_estimate_is_taken_from_finished_runs_that_cost_alike(
    swept: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, _, _ = swept

    def refuse(*_: Any) -> Any:
        raise AssertionError("a trial was made")

    monkeypatch.setattr(reducible.lab.sweep, "_trial", refuse)
    longer = replace(TINY, name="tiny/longer", steps=24, learning_rate=0.5, label_noise=0.4)
    known = [(TINY, 3), (longer, 0)]
    (seconds,) = reducible.lab.sweep._costs([(longer, 0)], known, work=work)
    took = read_json(work / "tiny/uniform/3/summary.json")["seconds"]
    assert seconds == pytest.approx(24 / 12 * took["total"])
    other = replace(TINY, name="tiny/other", n_candidates=40)
    with pytest.raises(AssertionError, match="a trial was made"):
        reducible.lab.sweep._costs([(other, 0)], [*known, (other, 0)], work=work)
