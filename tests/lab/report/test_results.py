"""Which results file is read, and blocks of documents."""

from __future__ import annotations

from pathlib import Path

import pytest

from reducible.lab.records import write_json
from reducible.lab.report.results import newest_results, replace_block
from reducible.types import ReducibleError


def _write(results: Path, recipe: str, seed: int, *, commit: str, day: int) -> None:
    (results / recipe).mkdir(parents=True, exist_ok=True)
    machine = {"finished": f"2026-01-{day:02}T00:00:00+00:00"}
    path = results / recipe / f"{commit}.json"
    write_json(path, {"recipe": {"name": recipe}, "machine": machine, "seeds": [{"seed": seed}]})


def test_the_newest_results_are_read(tmp_path: Path) -> None:
    _write(tmp_path, "rho", 1, commit="aaa", day=2)
    _write(tmp_path, "rho", 0, commit="zzz", day=1)
    assert [run["seed"] for run in newest_results(tmp_path, "rho")["seeds"]] == [1]


def test_results_that_are_missing(tmp_path: Path) -> None:
    with pytest.raises(ReducibleError, match=r"no results of demo/rho in .*: run `reducible sweep"):
        newest_results(tmp_path, "demo/rho")


# -- blocks of documents --------------------------------------------------------------------------

DOCUMENT = "# Title\n\n<!-- demo -->\nold\ntext\n<!-- /demo -->\n\n<!-- b -->\n<!-- /b -->\nend\n"


def test_a_block_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(DOCUMENT, encoding="utf-8")
    assert replace_block(path, "demo", r"| new | \1 ρ |") is True
    expected = DOCUMENT.replace("old\ntext", r"| new | \1 ρ |")
    assert path.read_text(encoding="utf-8") == expected
    assert replace_block(path, "demo", r"| new | \1 ρ |") is False  # there already
    assert replace_block(path, "b", "filled") is True  # an empty block
    assert path.read_text(encoding="utf-8") == expected.replace("<!-- b -->", "<!-- b -->\nfilled")


@pytest.mark.parametrize("name", ["c", "dem", ".*"])
def test_a_block_that_is_not_there(name: str, tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(DOCUMENT, encoding="utf-8")
    with pytest.raises(ReducibleError, match=r"README\.md has no block .*: mark it <!-- "):
        replace_block(path, name, "x")
    assert path.read_text(encoding="utf-8") == DOCUMENT
