"""Whatever lies in a folder or is the matter with a disk: every command says so in a line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from reducible.files import checkpoints
from reducible.lab.cli import app
from reducible.lab.recipes import recipe
from reducible.lab.run import Run

SMALL = {
    "train_examples": "600",
    "holdout_examples": "300",
    "steps": "10",
    "evaluate_every": "4",
    "irreducible_epochs": "1",
    "model": "mlp-64",
    "irreducible_model": "mlp-64",
    "plan": "filter",
}
SET = [part for key, value in SMALL.items() for part in ("--set", f"{key}={value}")]


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _foreign(path: Path) -> None:
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 4)


def _another_object(path: Path) -> None:
    path.write_text('{"seed": "none", "settings": [1, 2]}\n')


def _list(path: Path) -> None:
    path.write_text("[]\n")


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.parent / "nowhere")


DAMAGES = (_empty, _halved, _foreign, _another_object, _list, _folder, _dangling, Path.unlink)
FINISHED = (
    "config.json",
    "irreducible_loss.safetensors",
    "metrics.jsonl",
    "model.safetensors",
    "picks.arrow",
    "plan.safetensors",
    "summary.json",
)
STOPPED = (*FINISHED[:3], *FINISHED[4:6], "checkpoint-4.safetensors", "checkpoint-8.safetensors")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A finished run, and one with two checkpoints, as killed after its last update."""
    root = tmp_path_factory.mktemp("runs")
    small = recipe("demo/rho").with_settings(SMALL)
    Run(small, root / "finished", progress=False).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "remove", lambda out: None)
        Run(small, root / "stopped", progress=False, checkpoint_every=4).start()
    for left in ("summary.json", "model.safetensors"):
        (root / "stopped" / left).unlink()
    return {name: root / name for name in ("finished", "stopped")}


def _call(*arguments: object) -> Result:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they are told, not raised; here they are errors
        return CliRunner().invoke(app, [str(a) for a in arguments])


def _in_a_line(result: Result, *, told: tuple[int, ...]) -> None:
    """It went well, or there is one line that says what did not."""
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code in (0, *told), result.output
    assert "Traceback" not in result.output
    if result.exit_code == 2:
        assert result.stderr.count("error: ") == 1


def test_these_are_the_files(folders: dict[str, Path]) -> None:
    for name, files in (("finished", FINISHED), ("stopped", STOPPED)):
        there = {path.name for path in folders[name].iterdir()}
        assert there - {"info.arrow", ".lock"} == set(files)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FINISHED)
def test_a_damaged_finished_run(
    folders: dict[str, Path], file: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["finished"], tmp_path / "run")
    damage(folder / file)
    checked = _call("check", folder)
    _in_a_line(checked, told=(1, 2))
    stopped = not (folder / "summary.json").exists()  # it looks like a run that is not finished
    assert checked.exit_code != 0 or stopped
    _in_a_line(_call("report", folder, "--out", tmp_path / "figure"), told=(2,))
    if not stopped:
        _in_a_line(_call("resume", folder), told=(2,))
    if file == "summary.json":
        run = _call("run", "demo/uniform", "--out", tmp_path / "b", "--baseline", folder, *SET)
        _in_a_line(run, told=(2,))
        assert run.exit_code == 2
        assert not (tmp_path / "b" / "summary.json").exists()


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", STOPPED)
def test_a_damaged_stopped_run(
    folders: dict[str, Path], file: str, damage: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["stopped"], tmp_path / "run")
    damage(folder / file)
    _in_a_line(_call("report", folder, "--out", tmp_path / "figure"), told=(2,))
    resumed = _call("resume", folder)
    _in_a_line(resumed, told=(2,))
    if resumed.exit_code == 0:  # from another checkpoint, or from the start: the same weights
        whole = (folders["finished"] / "model.safetensors").read_bytes()
        assert (folder / "model.safetensors").read_bytes() == whole
        assert _call("check", folder).exit_code == 0


# -- places that cannot be written ----------------------------------------------------------------


def _commands(out: Path, run: Path) -> dict[str, list[object]]:
    return {
        "run": ["run", "demo/rho", "--out", out, *SET],
        "demo": ["demo", "--out", out, "--max-steps", 4],
        "sweep to work": ["sweep", "demo/uniform", "--seeds", 0, "--work", out],
        "sweep to results": [
            *("sweep", "demo/uniform", "--seeds", 0, "--work", run.parent / "w", "--results", out)
        ],
        "resume": ["resume", out],
        "check": ["check", out],
        "report": ["report", run, "--out", out],
        "report of": ["report", out],
        "pages": ["pages", "--out", out],
    }


@pytest.mark.parametrize("place", ["file", "below a file", "no place for files"])
@pytest.mark.parametrize("command", sorted(_commands(Path(), Path())))
def test_a_place_that_cannot_be_written(
    folders: dict[str, Path],
    command: str,
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "file"
    file.write_text("not ours")
    if place == "no place for files" and not Path("/proc/self").exists():
        pytest.skip("needs a file system that takes no files from anybody, as Linux's /proc")
    out = {"file": file, "below a file": file / "x", "no place for files": Path("/proc/reducible")}
    run = shutil.copytree(folders["finished"], tmp_path / "runs" / "finished")
    said = _call(*_commands(out[place], run)[command])
    _in_a_line(said, told=(2,))
    assert said.exit_code == 2, said.output
    assert file.read_text() == "not ours"


_WITH_A_FULL_DISK = """
import resource, sys
from reducible.lab.cli import app
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
sys.argv[:] = ["reducible", *sys.argv[2:]]
app()
"""


@pytest.mark.parametrize("room", [0, 4_000, 60_000, 400_000])
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on the size of files")
def test_a_disk_that_fills_up(room: int, tmp_path: Path) -> None:
    """No file may grow beyond ``room`` bytes: the error that a full disk gives, at any write."""
    out = tmp_path / "run"
    ended = subprocess.run(
        [
            *(sys.executable, "-c", _WITH_A_FULL_DISK, str(room), "run", "demo/rho"),
            *("--out", str(out), "--checkpoint-every", "4", *SET),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stderr.count("error: ") == 1
    assert "File too large" in ended.stderr
    assert not (out / "summary.json").exists()
    assert not list(out.glob("*.tmp*"))
    if (out / "config.json").exists():
        _in_a_line(_call("resume", out), told=(2,))
