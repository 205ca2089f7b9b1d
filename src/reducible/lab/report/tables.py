"""Summaries as tables: for the terminal (one column per method), and as Markdown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

PHASES = ("irreducible_loss", "load", "score", "pick", "train", "evaluate", "total")


def percent(share: float | None) -> str:
    """A share to a tenth of a per cent; a dash if it is not known.

    >>> percent(0.0321), percent(None)
    ('3.2 %', '–')
    """
    return "–" if share is None else f"{100 * share:.1f} %"


def duration(seconds: float | None) -> str:
    """Seconds to a tenth, from a thousand on whole.

    >>> duration(3.14), duration(1234.5), duration(None)
    ('3.1', '1,234', '–')
    """
    if seconds is None:
        return "–"
    return f"{seconds:.1f}" if seconds < 1000 else f"{seconds:,.0f}"


def count(number: int | None, absent: str = "–") -> str:
    """A whole number with its thousands apart, or ``absent``.

    >>> count(12345), count(None, "never")
    ('12,345', 'never')
    """
    return absent if number is None else f"{number:,}"


def _to_target(show: Callable[..., str], key: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda method: "never" if method.get(key) is None else show(method[key])


def _phase(name: str) -> Callable[[Mapping[str, Any]], str]:
    return lambda method: duration(method.get("seconds", {}).get(name))


_MEASURES: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "steps to target": _to_target(count, "steps_to_target"),
    "seconds to target": _to_target(duration, "seconds_to_target"),
    "final accuracy": lambda method: percent(method.get("final_accuracy")),
    "corrupted share": lambda method: percent(method.get("corrupted_share")),
    "already-correct share": lambda method: percent(method.get("already_correct_share")),
    "examples scored": lambda method: count(method.get("examples_scored")),
    "examples trained": lambda method: count(method.get("examples_trained")),
    **{f"seconds: {name.replace('_', ' ')}": _phase(name) for name in PHASES},
}


def _measures(summary: Mapping[str, Any]) -> dict[str, Callable[[Mapping[str, Any]], str]]:
    """The measures that apply: none to a target if the summary names none."""
    if summary.get("target_accuracy") is not None:
        return _MEASURES
    return {name: show for name, show in _MEASURES.items() if not name.endswith("target")}


def heading(summary: Mapping[str, Any]) -> str:
    """Says what was run, in one line.

    >>> heading({"dataset": "digits", "target_accuracy": 0.85, "seed": 0, "methods": {}})
    'digits · target 85 % · seed 0'
    """
    parts = []
    if summary.get("dataset") is not None:
        parts.append(str(summary["dataset"]))
    if summary.get("target_accuracy") is not None:
        parts.append(f"target {100 * summary['target_accuracy']:.4g} %")
    if summary.get("seed") is not None:
        parts.append(f"seed {summary['seed']}")
    return " · ".join(parts)


def summary_table(summary: Mapping[str, Any]) -> Table:
    """A demo's ``summary.json`` for the terminal: one column per method, one row per measure."""
    table = Table(title=Text(heading(summary)), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in summary["methods"]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    for measure, show in _measures(summary).items():
        table.add_row(measure, *(show(method) for method in summary["methods"].values()))
    return table


def race_table(summary: Mapping[str, Any]) -> Table:
    """The summary of a race for the terminal: one column per method, the same seconds for each."""
    table = Table(title=Text(heading(summary)), title_justify="left", box=None, pad_edge=False)
    table.add_column("", no_wrap=True)
    for name in summary["methods"]:
        table.add_column(Text(name), justify="right", no_wrap=True)
    first = next(iter(summary["methods"]))
    rows: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "final accuracy": lambda method: percent(method["final_accuracy"]),
        f"points over {first}": lambda method: f"{100 * method['over_first']['mean']:+.1f}",
        "95 % interval": _interval,
        "updates": lambda method: count(method["updates"]),
        **{f"seconds: {name.replace('_', ' ')}": _phase(name) for name in PHASES[:5]},
    }
    for measure, show in rows.items():
        table.add_row(measure, *(show(method) for method in summary["methods"].values()))
    return table


def _interval(method: Mapping[str, Any]) -> str:
    low, high = (100 * method["over_first"][end] for end in ("low", "high"))
    return f"{low:+.1f} to {high:+.1f}"


def summary_markdown(summary: Mapping[str, Any]) -> str:
    """A demo's ``summary.json`` as a Markdown table: one row per method, one column per measure."""
    measures = _measures(summary)
    rows = [
        [f"`{name}`", *(show(method) for show in measures.values())]
        for name, method in summary["methods"].items()
    ]
    lines = [
        ["method", *measures],
        ["---", *("---:" for _ in measures)],
        *rows,
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{heading(summary)}\n\n{table}\n"
