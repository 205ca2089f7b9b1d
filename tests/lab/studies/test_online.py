"""The online study's block, on results made by hand; and its page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reducible.lab.records import write_json
from reducible.lab.studies.online.recipes import ONLINE, VARIANTS
from reducible.lab.studies.online.tables import Study, block, not_run, titles_list

ROOT = Path(__file__).parents[3]
VARIANTS_HERE = ["uniform", "rho", "plan"]
KINDS = ["clean", "flip-10"]


def _write(
    results: Path, name: str, finals: dict[int, float], wrong: float = 0.0, day: int = 1
) -> None:
    runs = [
        {"seed": s, "summary": {"final_accuracy": a, "corrupted_share": wrong}}
        for s, a in finals.items()
    ]
    held: dict[str, Any] = {
        "machine": {"finished": f"2026-01-{day:02}T00:00:00+00:00"}, "seeds": runs
    }  # fmt: skip
    folder = results / "online" / name
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"{day}.json", held)


def _cells(text: str) -> list[list[list[str]]]:
    """Tables of a text: cells of their lines, but for the rule under the heading."""
    tables = [part for part in text.split("\n\n") if part.startswith("|")]
    return [
        [[c.strip() for c in line.strip("|").split("|")] for line in table.split("\n")]
        for table in tables
    ]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    _write(tmp_path, "clean/uniform", {0: 0.80, 1: 0.82, 2: 0.84})
    _write(tmp_path, "flip-10/uniform", {0: 0.70, 1: 0.72, 2: 0.71}, 0.1)
    _write(tmp_path, "clean/rho", {2: 0.86, 0: 0.82, 1: 0.84, 9: 0.0})  # uniform lacks seed 9
    _write(tmp_path, "flip-10/rho", {0: 0.60, 1: 0.62, 2: 0.61}, 0.25)
    _write(tmp_path, "flip-10/plan", {0: 0.69, 1: 0.73}, 0.021)
    return tmp_path


def test_better_and_worse_than_uniform_are_marked(results: Path) -> None:
    text = block(Study.read(results, VARIANTS_HERE, KINDS), noisy=["flip-10"])
    accuracy, wrong = _cells(text)
    assert accuracy == [
        ["", "clean", "flip-10"],
        ["---", "---", "---"],
        ["uniform", "82.0 %", "71.0 %"],
        ["rho", "**+2.0 (+2.0 to +2.0)**", "*-10.0 (-10.0 to -10.0)*"],
        ["plan", "–", "+0.0 (-1.0 to +1.0)"],  # seeds −1 and +1 point: both means are drawn
    ]
    assert wrong == [
        ["", "flip-10"],
        ["---", "---"],
        ["uniform", "10.0 %"],
        ["rho", "25.0 %"],
        ["plan", "2.1 %"],
    ]
    assert "paired by seed, 2 to 3 seeds" in text
    assert text.endswith("Not run yet with two seeds of uniform's: plan (clean).")


def test_the_newest_results_count(results: Path) -> None:
    _write(results, "clean/rho", {0: 0.81, 1: 0.83, 2: 0.85}, day=2)
    study = Study.read(results, VARIANTS_HERE, KINDS)
    assert study.over_baseline("clean", "rho").mean == pytest.approx(0.01)


def test_without_results_it_says_so(tmp_path: Path) -> None:
    study = Study.read(tmp_path, VARIANTS_HERE, KINDS)
    assert block(study, noisy=["flip-10"]) == "Nothing has been run yet."


def test_one_seed_or_a_lacking_baseline_compares_with_nothing(tmp_path: Path) -> None:
    _write(tmp_path, "clean/uniform", {0: 0.80, 1: 0.82})
    _write(tmp_path, "clean/rho", {0: 0.9, 5: 0.9})
    _write(tmp_path, "flip-10/plan", {0: 0.9, 1: 0.9})
    text = block(Study.read(tmp_path, VARIANTS_HERE, KINDS), noisy=["flip-10"])
    accuracy, wrong = _cells(text)
    assert accuracy[2:] == [["uniform", "81.0 %", "–"]]
    assert wrong[2:] == []
    assert "2 seeds. Bold" in text
    assert text.endswith(": uniform (flip-10), rho, plan.")


def test_where_nothing_is_missing_nothing_is_said(results: Path) -> None:
    _write(results, "clean/plan", {0: 0.8, 1: 0.8})
    study = Study.read(results, VARIANTS_HERE, KINDS)
    assert not_run(study) == ""
    assert block(study, noisy=[]).endswith("|")


def test_the_page_says_what_each_variant_is() -> None:
    page = (ROOT / "docs" / "online.md").read_text(encoding="utf-8")
    steps = {recipe.name.split("/")[-1]: recipe.steps for recipe in ONLINE}
    titles = {name: variant.title for name, variant in VARIANTS.items()}
    assert "- **uniform** (3,000 updates): rows at random: the baseline" in page
    assert titles_list(titles, steps) in page, "run `make docs`"
