"""One process at a time writes to a folder, and none goes on when the one that began it is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import reducible as rd
from reducible.lab.cli import app
from reducible.lab.demo import run_demo
from reducible.lab.recipe import Recipe
from reducible.lab.recipes import recipe
from reducible.lab.records import read_json
from reducible.lab.run import Run
from reducible.lab.sweep import run_sweep

SMALL = {
    "train_examples": "600",
    "holdout_examples": "100",
    "steps": "100000",
    "evaluate_every": "100000",
    "model": "mlp-64",
}
WAIT = 60.0  # seconds after which a process that should do something has failed to

STARTER = """
import sys, time
import reducible.lab.recipes, reducible.lab.run
from reducible.lab.cli import app

inner = reducible.lab.run.refuse_used_folder

def slowly(out):
    inner(out)
    time.sleep(1)  # the other one looks, too, before anything is written

reducible.lab.run.refuse_used_folder = slowly
print("ready", flush=True)
sys.stdin.readline()
app(sys.argv[1:])
"""
SWEEPER = """
import multiprocessing, sys, threading, time
from pathlib import Path
from reducible.lab.recipes import recipe
from reducible.lab.sweep import run_sweep

def tell():
    while len(found := multiprocessing.active_children()) < 2:
        time.sleep(0.05)
    print(*(child.pid for child in found), flush=True)

if __name__ == "__main__":
    threading.Thread(target=tell, daemon=True).start()
    settings = dict(pair.split("=") for pair in sys.argv[2:])
    chosen, root = recipe("demo/uniform").with_settings(settings), Path(sys.argv[1])
    run_sweep([chosen], [0, 1], work=root / "work", results=root / "results", progress=False)
"""


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a Python process; those that still live at the end of the test are ended."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        started.append(child)
        return child

    yield begin
    for child in started:
        child.kill()
        child.communicate()


def _line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def _until(holds: Callable[[], object], what: str) -> None:
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a process that nobody waits for has ended all the same
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


def _arguments(out: Path, **settings: str) -> list[str]:
    pairs = [part for k, v in (SMALL | settings).items() for part in ("--set", f"{k}={v}")]
    return ["run", "demo/uniform", "--out", str(out), *pairs]


def _recipe(**settings: str) -> Recipe:
    return recipe("demo/uniform").with_settings(SMALL | settings)


def test_of_two_runs_started_at_once_one_wins(start, tmp_path: Path) -> None:
    out = tmp_path / "run"
    short = _arguments(out, steps="300", evaluate_every="100")
    both = [start("-c", STARTER, *short, "--seed", str(seed)) for seed in (1, 2)]
    assert [_line(child) for child in both] == ["ready", "ready"]
    for child in both:
        child.stdin.write("\n")
        child.stdin.flush()
    said = [child.communicate(timeout=WAIT)[1] for child in both]
    codes = [child.returncode for child in both]
    assert sorted(codes) == [0, 2], said
    loser = codes.index(2)
    assert said[loser].startswith(f"error: {out} ")
    assert said[loser].count("\n") == 1
    assert read_json(out / "config.json")["seed"] == 2 - loser
    assert read_json(out / "summary.json")["curve"][-1][0] == 300


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_killed_process_leaves_no_lock(start, workers: str, tmp_path: Path) -> None:
    out = tmp_path / "run"
    child = start("-m", "reducible", *_arguments(out, workers=workers))
    _until(lambda: list(out.glob("picks.arrow")), "the run did not begin")
    run = Run(_recipe(workers=workers), out, max_steps=20, progress=False)
    with pytest.raises(rd.ConfigurationError, match=f"run is in use by process {child.pid}; noth"):
        run.resume()
    child.kill()
    child.wait()
    (out / ".picks.arrow.123.tmp").write_bytes(b"half of")
    run.resume()  # loader workers may outlive the run by seconds
    assert not [path.name for path in out.iterdir() if path.name.startswith(".")]


def test_workers_end_with_a_killed_sweep(start, tmp_path: Path) -> None:
    settings = [f"{key}={value}" for key, value in SMALL.items()]
    script = tmp_path / "sweeper.py"  # a file, as workers import it
    script.write_text(SWEEPER)
    child = start(str(script), str(tmp_path), *settings)
    pids = [int(pid) for pid in _line(child).split()]
    assert len(pids) == 2
    folders = [tmp_path / "work/demo/uniform" / seed for seed in "01"]
    _until(lambda: all(list(f.glob("picks.arrow")) for f in folders), "no run began")
    assert all(map(_lives, pids))
    child.kill()
    child.wait()
    try:
        _until(lambda: not any(map(_lives, pids)), "workers outlive the sweep")
    finally:
        for pid in filter(_lives, pids):
            os.kill(pid, signal.SIGKILL)


def test_who_holds_a_folder_is_told_in_one_line(tmp_path: Path) -> None:
    from reducible.lab.locks import locked

    work, results = tmp_path / "work", tmp_path / "results"
    with locked(work):
        said = f"{work} is in use by process {os.getpid()}; nothing was touched"
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(rd.ConfigurationError, match=said):
            run_sweep([_recipe()], [0], work=work, results=results, progress=False)
        with pytest.raises(rd.ConfigurationError, match=said):
            run_demo(work, max_steps=1, progress=False)
        for arguments in (_arguments(work), ["demo", "--out", str(work)]):
            result = CliRunner().invoke(app, arguments)
            assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
            assert said in result.stderr
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    with locked(work):
        pass
    assert list(work.iterdir()) == []


def test_a_lock_that_names_nobody(tmp_path: Path) -> None:
    from reducible.lab.locks import LOCK, locked

    with locked(tmp_path):
        (tmp_path / LOCK).write_text("")
        with (
            pytest.raises(rd.ConfigurationError, match="in use by another process"),
            locked(tmp_path),
        ):
            pass


def test_only_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    from reducible.lab.locks import locked

    mine = [".notes.tmp", "a.12.tmp", ".hidden", ".a.12.tmp.bak"]
    for name in [*mine, ".config.json.4711.tmp", ".picks.arrow.1.tmp"]:
        (tmp_path / name).write_text("x")
    with locked(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == set(mine)
