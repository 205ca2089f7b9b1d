"""Adding a rule as CONTRIBUTING.md says: one score file with its row; everything else follows."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import reducible

ROOT = Path(__file__).parents[1]
NAME = "confidence_gap"


def _example() -> tuple[str, str]:
    """Path and content of the score file that CONTRIBUTING.md adds."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"^1\. `(\S+)`\n\n( +)```python\n(.*?)^ +```", text, re.M | re.S)
    assert found is not None
    return found[1], textwrap.dedent(found[3])


def _files(folder: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and "__pycache__" not in p.parts
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package with the score added; the folder to put on PYTHONPATH."""
    src = tmp_path_factory.mktemp("copy") / "src"
    package = Path(reducible.__file__).parent
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(package, src / "reducible", ignore=skip)
    path, content = _example()
    (src.parent / path).write_text(content, encoding="utf-8")

    table = src / "reducible" / "scores" / "__init__.py"
    text = table.read_text(encoding="utf-8")
    first = "from reducible.scores.conditional_entropy import"
    row = f"{NAME.upper()}_ROW"
    text = text.replace(first, f"from reducible.scores.{NAME} import {row}, {NAME}\n{first}", 1)
    assert "RHO_CALIBRATED_ROW)" in text
    text = text.replace("RHO_CALIBRATED_ROW)", f"RHO_CALIBRATED_ROW, {row})")
    table.write_text(text, encoding="utf-8")
    before, after = _files(package), _files(src / "reducible")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed == {
        "scores/__init__.py",
        f"scores/{NAME}.py",
    }  # and its place in the table
    assert set(before) <= set(after)
    return src


def _python(source: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments],
        env=os.environ | {"PYTHONPATH": str(source), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_rule_selects(source: Path) -> None:
    """And what it selects are the largest gaps, worked out here."""
    code = """
import json, sys, torch, reducible as rd
assert rd.__file__.startswith(sys.argv[1]), rd.__file__
logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [1.0, 0.0], [3.0, 0.0]])
targets = torch.tensor([0, 0, 1, 1])
rule = rd.selector("confidence_gap", power=2.0)
evidence = rd.Evidence(ids=torch.arange(4), logits=logits, targets=targets)
chosen = rule.select(evidence, 3, generator=torch.Generator())
print(json.dumps([sorted(rule.needs), chosen.index.tolist(), chosen.info["score"].tolist()]))
"""
    needs, index, scores = json.loads(_python(source, "-c", code, str(source)))
    assert needs == ["logits", "targets"]
    assert index == [3, 1, 2]
    gaps = torch.tensor([3.0, 2.0, 1.0]) / 2  # p − (1 − p) = tanh(z / 2)
    assert scores == pytest.approx((gaps.tanh() ** 2).tolist(), abs=1e-6)


def test_the_command_line_lists_it_and_the_pages_have_it(source: Path, tmp_path: Path) -> None:
    rows = json.loads(_python(source, "-m", "reducible", "selectors", "--json"))
    (row,) = [row for row in rows if row["name"] == NAME]
    assert row["hyperparameters"] == ["power=1.0 (> 0)"]
    assert row["cost per candidate"] == "one forward pass"
    assert row["needs"] == ["logits", "targets"]
    _python(source, "-m", "reducible", "pages", "--out", str(tmp_path))
    assert "Confident mistakes." in (tmp_path / f"{NAME}.md").read_text()


def test_it_passes_the_contract_of_all_rules(source: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "-k", NAME]
    said = _python(source, "-m", "pytest", *options, "tests/contract/test_rows.py")
    passed = re.search(r"(\d+) passed", said)
    assert passed is not None
    assert int(passed[1]) >= 15
    assert "failed" not in said
