"""Methods as they are drawn: one line each, with its colour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BASELINE_COLOUR = "#7a7f8c"
# Okabe and Ito, "Color universal design", 2008; yellow left out, it is too light for a line
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1.2)))
LONGEST = 20  # characters of a method's name


@dataclass(frozen=True, slots=True)
class Line:
    """One method as it is drawn."""

    name: str
    method: Mapping[str, Any]
    colour: str
    dashes: Any
    baseline: bool

    def points(self, axis: int) -> tuple[list[float], list[float]]:
        """Steps (``axis`` 0) or seconds (1), and accuracies."""
        curve = self.method.get("curve") or []
        return [point[axis] for point in curve], [point[2] for point in curve]

    def crossing(self, axis: int) -> float | None:
        """Steps or seconds to the target."""
        return self.method.get(("steps_to_target", "seconds_to_target")[axis])


def lines_of(methods: Mapping[str, Any]) -> list[Line]:
    """A line per method; the baseline is ``uniform``, or the first one."""
    baseline = "uniform" if "uniform" in methods else next(iter(methods))
    lines, others = [], 0
    for name, method in methods.items():
        shown = name if len(name) <= LONGEST else f"{name[: LONGEST // 2]}…{name[-LONGEST // 2 :]}"
        if name == baseline and len(methods) > 1:
            lines.append(Line(shown, method, BASELINE_COLOUR, "solid", True))
        else:
            dashes = DASHES[others // len(COLOURS) % len(DASHES)]
            lines.append(
                Line(shown, method, COLOURS[others % len(COLOURS)], dashes, name == baseline)
            )
            others += 1
    return lines


def compared(lines: Sequence[Line]) -> tuple[Line, Line | None]:
    """The baseline, and among the others the one that reached the target in fewest steps."""
    baseline = next(line for line in lines if line.baseline)
    reached = [line for line in lines if line is not baseline and line.crossing(0) is not None]
    return baseline, min(reached, key=lambda line: line.crossing(0) or 0, default=None)
