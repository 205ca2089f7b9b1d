"""The equal-time study in one picture: who is better than uniform sampling in the same time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MultipleLocator

from reducible.lab.report.curves import DPI, INK, MUTED, WIDTH
from reducible.lab.report.lines import COLOURS
from reducible.lab.studies.equal_time.tables import SHOWN, Outcome, compare

BETTER, WORSE = COLOURS[2], COLOURS[1]
PANEL = "#f2f3f6"
MARKERS = ("o", "s", "D", "^")
APART = 0.34  # between the networks of a row, of the distance between rows
WORST = -3.0  # points; what lies below stands at the edge, with its number

ByData = Mapping[str, Sequence[Outcome]]


def plot_overview(
    by_network: Mapping[str, ByData], path: Path, *, rules: Sequence[str] = tuple(SHOWN)
) -> None:
    """``draw_overview`` as a PNG."""
    FigureCanvasAgg(draw_overview(by_network, rules=rules)).print_png(path)


def draw_overview(
    by_network: Mapping[str, ByData], *, rules: Sequence[str] = tuple(SHOWN)
) -> Figure:
    """A panel per kind of data, a row per rule, a mark per network.

    Args:
        by_network: name of the network → kind of data → outcomes; the kinds are the same for all.
        rules: rows to show, of those that were run; in the order of SHOWN.
    """
    kinds = list(next(iter(by_network.values())))
    every = [o.rule for by_data in by_network.values() for found in by_data.values() for o in found]
    rows = [rule for rule in SHOWN if rule in rules and rule in every]
    figure = Figure(figsize=(WIDTH, 1.6 + 0.5 * len(rows)), dpi=DPI, facecolor="white")
    axes = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
    for ax, data in zip(axes, kinds, strict=True):
        for i, by_data in enumerate(by_network.values()):
            shift = APART * (i / (len(by_network) - 1) - 0.5) if len(by_network) > 1 else 0.0
            _draw(ax, by_data[data], rows, shift, MARKERS[i % len(MARKERS)])
        _frame(ax, data, rows)
    for ax in axes:
        ax.set_xlim(left=WORST - 0.6)
    _say(figure, list(by_network))
    return figure


def _draw(
    ax: Axes, found: Sequence[Outcome], rows: Sequence[str], shift: float, marker: str
) -> None:
    """The marks of one network in one panel."""
    uniform = next(o for o in found if o.rule == "uniform")
    for row, rule in enumerate(rows):
        mine = next((o for o in found if o.rule == rule and "1x" in o.accuracy), None)
        if mine is None:
            continue
        mean, low, high = (100 * value for value in compare(mine, uniform, "1x"))
        colour = BETTER if low > 0 else WORSE if high < 0 else MUTED
        y = row + shift
        if mean < WORST:
            ax.plot([WORST - 0.25], [y], "<", color=colour, markersize=5)
            ax.text(
                WORST + 0.15, y, f"{mean:+.1f}", color=colour, fontsize=8.5, va="center_baseline"
            )
            continue
        ends = [max(low, WORST), high]
        ax.plot(ends, [y, y], color=colour, linewidth=2.0, solid_capstyle="butt")
        ax.plot([mean], [y], marker, color=colour, markersize=6)


def _frame(ax: Axes, title: str, rows: Sequence[str]) -> None:
    ax.axvline(0.0, color=MUTED, linewidth=1.0, zorder=1.5)  # above the grid, below the marks
    ax.set_title(title, fontsize=12, color=INK)
    ax.set_facecolor(PANEL)
    ax.set_yticks(range(len(rows)), [SHOWN[rule] for rule in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.tick_params(labelsize=10, colors=INK, length=0)
    ax.xaxis.set_major_locator(MultipleLocator(2.0))
    ax.grid(axis="x", color="white")
    ax.set_axisbelow(True)
    for side in ax.spines.values():
        side.set_visible(False)


def _say(figure: Figure, networks: Sequence[str]) -> None:
    """Writes what is shown, above and below the panels."""
    marks = [
        Line2D([], [], color=INK, linestyle="", marker=MARKERS[i % len(MARKERS)], label=name)
        for i, name in enumerate(networks)
    ]
    means = (("better", BETTER), ("undecided", MUTED), ("worse", WORSE))
    marks += [Line2D([], [], color=c, linewidth=3.0, label=word) for word, c in means]
    figure.tight_layout(rect=(0.0, 0.03, 1.0, 0.93))
    figure.suptitle(
        "Points of accuracy over uniform's in the same time, everything charged",
        x=0.01,
        y=0.985,
        ha="left",
        fontsize=13,
        color=INK,
        weight="bold",
    )
    figure.legend(handles=marks, loc="upper right", ncols=len(marks), frameon=False, fontsize=10.5)
    figure.text(
        0.99,
        0.012,
        "bars: paired 95 % intervals; numbers at the left edge: off the scale",
        ha="right",
        fontsize=10,
        color=MUTED,
    )
