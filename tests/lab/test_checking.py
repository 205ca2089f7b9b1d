"""`reducible check`: sound folders pass, and no damaged file of a run does."""

import random
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

import reducible as rd
from reducible.files import checkpoints
from reducible.lab.checking import check_folder
from reducible.lab.cli import app
from reducible.lab.recipes import recipe
from reducible.lab.records import write_json
from reducible.lab.run import Run

SMALL = {
    "train_examples": "600",
    "holdout_examples": "300",
    "steps": "12",
    "evaluate_every": "4",
    "irreducible_epochs": "1",
    "plan": "filter",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """A finished run, and one with checkpoints, as killed right after the second."""
    root = tmp_path_factory.mktemp("runs")
    small = recipe("demo/rho").with_settings(SMALL)
    Run(small, root / "finished", progress=False).start()
    kept = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "remove", lambda out: kept.append(out))
        Run(small, root / "stopped", progress=False, checkpoint_every=4).start()
    (root / "stopped" / "summary.json").unlink()
    assert kept
    return {name: root / name for name in ("finished", "stopped")}


def _check(folder):
    return CliRunner().invoke(app, ["check", str(folder)])


def test_sound_folders_pass(folders):
    for folder in folders.values():
        said = _check(folder)
        assert said.exit_code == 0, said.output
        assert said.output.count("ok ") == len(list(folder.iterdir()))
    assert _check(folders["finished"].parent).exit_code == 0  # of all below


@pytest.mark.parametrize("name", ["finished", "stopped"])
def test_no_flip_or_cut_of_any_file_passes(folders, name, tmp_path):
    folder = shutil.copytree(folders[name], tmp_path / "run")
    chance = random.Random(1)
    for path in sorted(folder.iterdir()):
        whole = path.read_bytes()
        for turn in range(12):
            damaged = bytearray(whole)
            if turn % 2:
                damaged = damaged[: chance.randrange(len(whole))]
            else:
                bit = chance.randrange(8 * len(whole))
                damaged[bit // 8] ^= 1 << bit % 8
            path.write_bytes(damaged)
            wrong = {finding.path.name for finding in check_folder(folder) if finding.problem}
            assert path.name in wrong or any("checkpoint" in name for name in wrong), path.name
        path.write_bytes(whole)
    assert not [finding for finding in check_folder(folder) if finding.problem]


def test_what_is_missing_or_does_not_belong_is_named(folders, tmp_path):
    folder = shutil.copytree(folders["finished"], tmp_path / "run")
    (folder / "picks.arrow").unlink()
    shutil.copy(folders["stopped"] / "metrics.jsonl", folder)
    said = _check(folder)
    assert said.exit_code == 1
    for name in ("picks.arrow", "metrics.jsonl"):
        assert f"DAMAGED {folder / name}" in said.output
    assert said.output.count("is not as it was when the run finished") == 2
    write_json(folder / "config.json", {"recipe": "demo/rho"}, sealed=True)
    assert "of another shape than was written (KeyError('settings'))" in _check(folder).output


def test_a_folder_without_a_run(tmp_path):
    with pytest.raises(rd.ConfigurationError, match=r"holds no run: there is no config\.json in"):
        check_folder(tmp_path)
    assert _check(tmp_path / "absent").exit_code == 2
