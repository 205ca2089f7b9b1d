"""The built wheels, installed into environments that hold nothing else of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def _run(*command: object, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    clean["OMP_NUM_THREADS"] = "1"
    arguments = [str(part) for part in command]
    return subprocess.run(
        arguments, capture_output=True, text=True, env=clean, cwd=folder, timeout=300
    )


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of the library and of its data."""
    folder = tmp_path_factory.mktemp("wheels")
    for name, source in (("reducible", ROOT), ("reducible_data", ROOT / "packages" / "data")):
        built = _run(
            *(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / name),
            folder=source,
        )
        assert built.returncode == 0, built.stderr
    return {path.name: next(path.iterdir()) for path in folder.iterdir()}


def test_the_library_is_small_and_needs_three_packages(wheels: dict[str, Path]) -> None:
    library = wheels["reducible"]
    assert library.stat().st_size < 500_000
    with zipfile.ZipFile(library) as contents:
        metadata = contents.read(next(n for n in contents.namelist() if n.endswith("METADATA")))
    needs = [line for line in metadata.decode().splitlines() if line.startswith("Requires-Dist")]
    core = {line.split()[1].split(">")[0] for line in needs if "extra ==" not in line}
    assert core == {"torch", "numpy", "safetensors"}


def test_installed_alone_and_then_with_the_laboratory(
    wheels: dict[str, Path], tmp_path: Path
) -> None:
    """Real installations: without the extra the library works, with it the demo runs."""
    venv.create(tmp_path / "env", with_pip=True)
    python = Path(sysconfig.get_path("scripts", vars={"base": str(tmp_path / "env")})) / "python"
    found = [f"--find-links={wheel.parent}" for wheel in wheels.values()]
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", *found]

    done = _run(*install, wheels["reducible"])
    assert done.returncode == 0, done.stderr
    said = _run(python, "-c", _LIBRARY_ALONE, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    kept, file = json.loads(said.stdout.splitlines()[-1])
    assert kept == 32
    assert Path(file).is_relative_to(tmp_path)
    command = _run(python.parent / "reducible", "selectors", folder=tmp_path)
    assert command.returncode == 2
    assert "pip install 'reducible[lab]'" in command.stderr
    assert len(command.stderr.splitlines()) == 1

    done = _run(*install, f"{wheels['reducible']}[lab]")
    assert done.returncode == 0, done.stderr
    demo = ("demo", "--out", "demo", "--max-steps", 6)
    said = _run(python.parent / "reducible", *demo, folder=tmp_path)
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "demo" / "in-seconds" / "curves.png").stat().st_size > 10_000


_LIBRARY_ALONE = """
import json
import torch
import reducible as rd

x = torch.randn(64, 4)
data = rd.WithIds(torch.utils.data.TensorDataset(x, (x[:, 0] > 0).long()))
holdout, train = (torch.utils.data.Subset(data, rows) for rows in (range(32), range(32, 64)))
store = rd.fit_irreducible_loss(lambda: torch.nn.Linear(4, 2), holdout, train, epochs=1)
labels = data.dataset.tensors[1][32:]
plan = rd.Plan.from_irreducible_loss(store, range(32, 64), labels, noise_floor=torch.zeros(2))
plan.save("plan")
print(json.dumps([len(rd.Plan.load("plan").ids), rd.__file__]))
"""
