"""Tables: every number where it belongs, and nothing cut."""

import io

from rich.console import Console

from reducible.lab.report.tables import heading, summary_markdown, summary_table

SUMMARY = {
    "target_accuracy": 0.85,
    "dataset": "digits",
    "seed": 3,
    "methods": {
        "uniform": {
            "steps_to_target": None,
            "seconds_to_target": None,
            "final_accuracy": 0.8123,
            "seconds": {"irreducible_loss": 0.0, "train": 1234.56, "total": 1300.0},
            "examples_scored": 0,
            "examples_trained": 64000,
            "corrupted_share": 0.1,
            "already_correct_share": None,
        },
        "rho": {
            "steps_to_target": 1220,
            "seconds_to_target": 31.24,
            "final_accuracy": 0.9,
            "seconds": {"irreducible_loss": 4.2, "train": 12.0, "total": 40.0},
            "corrupted_share": 0.0,
            "already_correct_share": 0.5,
        },
    },
}


def _text(table, width=80):
    stream = io.StringIO()
    Console(file=stream, width=width, color_system=None).print(table)
    return stream.getvalue()


def test_summary_table():
    text = _text(summary_table(SUMMARY))
    assert "digits · target 85 % · seed 3" in text
    lines = [" ".join(line.split()) for line in text.splitlines()]
    assert "uniform rho" in lines
    assert "steps to target never 1,220" in lines
    assert "seconds to target never 31.2" in lines
    assert "final accuracy 81.2 % 90.0 %" in lines
    assert "corrupted share 10.0 % 0.0 %" in lines
    assert "already-correct share – 50.0 %" in lines
    assert "examples trained 64,000 –" in lines
    assert "seconds: irreducible loss 0.0 4.2" in lines
    assert "seconds: train 1,235 12.0" in lines
    assert "seconds: pick – –" in lines


def test_long_names_are_not_cut():
    names = ["rho_class_balanced_with_a_name", "[bold]loss"]
    text = _text(summary_table({**SUMMARY, "methods": {n: {} for n in names}}), width=120)
    assert all(name in text for name in names)


def test_markdown():
    heading_line, _, header, rule, *rows = summary_markdown(SUMMARY).splitlines()
    assert heading_line == "digits · target 85 % · seed 3"
    cells = [
        dict(
            zip(
                header.strip("| ").split(" | "),
                row.strip("| ").split(" | "),
                strict=True,
            )
        )
        for row in rows
    ]
    assert rule.count("---") == len(cells[0])
    assert [row["method"] for row in cells] == ["`uniform`", "`rho`"]
    assert [row["steps to target"] for row in cells] == ["never", "1,220"]
    assert [row["seconds: total"] for row in cells] == ["1,300", "40.0"]


def test_without_a_target_no_column_says_never():
    summary = {**SUMMARY, "target_accuracy": None}
    assert "target" not in summary_markdown(summary)
    assert "never" not in _text(summary_table(summary))
    assert heading({"methods": {}}) == ""
