"""The method pages: generated from the table of rules, and committed as generated."""

from __future__ import annotations

from pathlib import Path

import pytest

import reducible as rd
from reducible.lab.method_pages import cost, describe, page, write_pages

COMMITTED = Path(__file__).parents[2] / "docs" / "methods"
ROWS = pytest.mark.parametrize("name", rd.SELECTORS)


def test_the_committed_pages_are_those_of_the_table(tmp_path: Path) -> None:
    written = write_pages(tmp_path)
    assert {p.name for p in COMMITTED.iterdir()} == {p.name for p in written}
    for path in written:
        committed = (COMMITTED / path.name).read_text(encoding="utf-8")
        assert committed == path.read_text(encoding="utf-8"), f"{path.name}: run `make docs`"


@ROWS
def test_every_hyperparameter_has_its_range_and_no_other_has(name: str) -> None:
    row = rd.SELECTORS[name]
    assert set(row.ranges) == set(row.hyperparameters)
    assert all(text == text.strip() != "" for text in row.ranges.values())


@ROWS
def test_a_page_says_all_that_the_table_says(name: str) -> None:
    row = rd.SELECTORS[name]
    text = page(row)
    assert text.startswith(f"# `{name}`\n")
    for said in (row.summary, row.against, row.equation.replace("|", "\\|"), cost(row)):
        assert said in text
    for need in row.needs:
        assert f"`{need}`" in text
    for parameter, default in row.hyperparameters.items():
        assert f"| `{parameter}` | `{default!r}` |" in text


@ROWS
def test_the_call_on_a_page_works(name: str) -> None:
    code = page(rd.SELECTORS[name]).split("```python\n")[1].split("\n```")[0]
    assert isinstance(eval(code, {"reducible": rd}), rd.Selector)


@ROWS
def test_tables_of_a_page_have_the_same_number_of_cells_in_every_row(name: str) -> None:
    for table in page(rd.SELECTORS[name]).split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.replace("\\|", "").count("|") for line in lines}) <= 1


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("uniform", "nothing"),
        ("rs2", "nothing"),
        ("infobatch", "nothing; training losses are remembered"),
        ("svp", "one forward pass of a proxy, once a run"),
        ("train_loss", "one forward pass"),
        ("irreducible_loss", "one look-up"),
        ("rho", "one forward pass, one look-up"),
        ("bald", "10 passes with dropout"),
        (
            "rho_bald",
            "one forward pass, 10 passes with dropout on the survivors, one look-up",
        ),
        (
            "rho_updating",
            "one forward pass, one pass of the irreducible-loss model, and its step on every "
            "chosen batch",
        ),
        ("reducr", "one forward pass, one look-up, a pass over the holdout per epoch"),
    ],
)
def test_costs(name: str, text: str) -> None:
    assert cost(rd.SELECTORS[name]) == text
    assert describe(rd.SELECTORS[name])["cost per candidate"] == text


def test_a_page_of_a_rule_that_is_no_more_goes_and_other_files_stay(tmp_path: Path) -> None:
    (tmp_path / "old_rule.md").write_text("# `old_rule`\n\nChose well once.\n")
    (tmp_path / "notes.md").write_text("# Notes\n\nOf a user.\n")
    (tmp_path / "picture.png").write_bytes(b"x")
    written = write_pages(tmp_path)
    names = {p.name for p in written} | {"notes.md", "picture.png"}
    assert {p.name for p in tmp_path.iterdir()} == names
    assert (tmp_path / "notes.md").read_text() == "# Notes\n\nOf a user.\n"


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    first = {p.name: p.read_bytes() for p in write_pages(tmp_path)}
    assert {p.name: p.read_bytes() for p in write_pages(tmp_path)} == first
