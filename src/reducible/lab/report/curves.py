"""The picture: accuracy against steps and seconds, and what was selected.

Drawn with matplotlib's objects on their own canvas: no pyplot, no global state, and every colour
and size is set here, so a user's style does not reach it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FuncFormatter, MaxNLocator, StrMethodFormatter

from reducible.lab.report.lines import Line, compared, lines_of
from reducible.lab.report.tables import count, duration, heading, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.text import Text

INK, MUTED, FAINT = "#1f2430", "#6a7080", "#d9dce3"
WIDTH, HEIGHT, DPI = 16.0, 6.0, 160  # inches, dots per inch
LOWEST, HIGHEST = 0.04, 0.955  # of a panel's height: where labels of curves may be
TOP, BOTTOM = 0.77, 0.115  # of the figure: where the panels are
HALO = [withStroke(linewidth=3.5, foreground="white")]


def plot_curves(
    summary: Mapping[str, Any], path: str | Path, *, headline: str | None = None
) -> None:
    """Draw a demo's ``summary.json`` to ``path``, as PNG.

    Left and middle: accuracy against steps, and against seconds with everything charged. Bold is
    the mean of three consecutive evaluations, which decides when the target counts as reached; the
    evaluations themselves are behind it. Right: what the chosen points were. The baseline is the
    method ``uniform``, or the first one; the method that needs fewest steps is compared with it,
    and the headline says so, unless another is given.
    """
    lines = lines_of(summary["methods"])
    figure = Figure(figsize=(WIDTH, HEIGHT), dpi=DPI, facecolor="white")
    canvas = FigureCanvasAgg(figure)
    margin = max(_width(figure, line.name, 11, "bold") for line in lines) + 0.012
    left, gap, bars = 0.052, 0.054, 0.155
    panel = (1 - left - gap - 3 * margin - 0.03 - bars - 0.05) / 2
    starts = [left, left + panel + margin + gap, left + 2 * (panel + margin) + gap + 0.03]
    height = TOP - BOTTOM
    target = summary.get("target_accuracy")

    figure.text(
        left - 0.02, 0.94, headline or _headline(lines, target), size=19, weight="bold", color=INK
    )
    figure.text(left - 0.02, 0.892, heading(summary), size=11.5, color=MUTED)
    for axis in (0, 1):
        ax = figure.add_axes((starts[axis], BOTTOM, panel, height))
        _draw_accuracy(ax, lines, axis, target)
        title, note = _title(axis, lines)
        _heading(ax, title, note)
    ax = figure.add_axes((starts[2] + margin, BOTTOM, bars, height))
    _draw_selected(ax, lines)
    _heading(ax, "What was selected", "share of the points trained on", shift=-margin / bars)
    temporary = Path(path).with_name(f".{Path(path).name}.{os.getpid()}.tmp")
    try:
        canvas.print_png(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# Words


def _headline(lines: Sequence[Line], target: float | None) -> str:
    baseline, best = compared(lines)
    if target is None:
        return "Accuracy by training step and by second"
    goal = f"{100 * target:.4g} % accuracy"
    if best is None:
        steps = baseline.crossing(0)
        if steps is None:
            return f"{goal} was not reached"
        only = f"{baseline.name} reached {goal} after {count(int(steps))} steps"
        return only if len(lines) == 1 else f"{only}, no other method did"
    if baseline.crossing(0) is None:
        return f"{best.name} reached {goal}, {baseline.name} did not"
    steps, time = (_ratio(baseline, best, axis) for axis in (0, 1))
    than = "as" if time == _EVEN[1] else "than"
    return f"{best.name} reached {goal} in {steps} and {time} {than} {baseline.name}"


_EVEN = ("as many steps", "as much time")


def _ratio(baseline: Line, best: Line, axis: int) -> str:
    """Says how much less the best method needed, or more."""
    unit, less = (("steps", "fewer"), ("time", "less"))[axis]
    ours, theirs = best.crossing(axis), baseline.crossing(axis)
    if not ours or not theirs or round(max(ours, theirs) / min(ours, theirs), 1) <= 1:
        return _EVEN[axis]
    ratio = max(ours, theirs) / min(ours, theirs)
    number = f"{ratio:.1f}" if ratio < 9.95 else f"{ratio:.0f}"
    return f"{number}× {less if ours < theirs else 'more'} {unit}"


def _title(axis: int, lines: Sequence[Line]) -> tuple[str, str]:
    if axis == 0:
        return "Accuracy by training step", "bold: mean of three evaluations"
    fits = {line.method.get("seconds", {}).get("irreducible_loss") or 0.0 for line in lines}
    if max(fits) == 0:
        return "Accuracy by second", "everything charged but evaluation"
    least, most = duration(min(fits - {0.0})), duration(max(fits))
    span = most if least == most else f"{least}–{most}"
    return "Accuracy by second", f"everything charged, {span} s for the irreducible loss too"


# Panels


def _heading(ax: Axes, title: str, note: str, *, shift: float = 0.0) -> None:
    ax.text(shift, 1.095, title, transform=ax.transAxes, size=13.5, weight="bold", color=INK)
    ax.text(shift, 1.04, note, transform=ax.transAxes, size=10, color=MUTED)


def _draw_accuracy(ax: Axes, lines: Sequence[Line], axis: int, target: float | None) -> None:
    drawn = [line for line in lines if line.points(axis)[0]]
    _limits(ax, drawn, axis, target)
    _frame(ax, ("training steps", "seconds")[axis])
    if not drawn:
        ax.text(
            0.5, 0.5, "no evaluation yet", transform=ax.transAxes, ha="center", color=MUTED, size=12
        )
        return
    if target is not None:
        ax.axhline(target, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=1.5)
        _name_target(ax, target)
    baseline, best = compared(lines)
    for line in drawn:
        x, raw = line.points(axis)
        bold = 3.0 if line in (baseline, best) or len(lines) <= 3 else 1.8
        ax.plot(x, raw, color=line.colour, linewidth=1, alpha=0.35, zorder=2)
        ax.plot(
            x,
            _mean_of_three(raw),
            color=line.colour,
            linewidth=bold,
            linestyle=line.dashes,
            solid_capstyle="round",
            zorder=4 if line is best else 3,
        )
    if target is not None:
        _mark_crossings(ax, lines, axis, target)
    _label_ends(ax, drawn, axis)


def _name_target(ax: Axes, target: float) -> None:
    """The target among the labels of the y-axis, in the place of those it would overlap."""
    low, high = ax.get_ylim()
    ticks = [y for y in ax.get_yticks() if low <= y <= high]
    ax.set_yticks([y for y in ticks if abs(y - target) > 0.06 * (high - low)])
    at, where = (0, target), {"xycoords": ax.get_yaxis_transform(), "textcoords": "offset points"}
    ax.annotate(
        f"{100 * target:.4g} %", at, (-5, 0), ha="right", va="center", size=10.5, weight="bold",
        color=INK, **where,
    )  # fmt: skip
    ax.annotate("target", at, (3, 4), size=10, color=INK, path_effects=HALO, zorder=2.5, **where)


def _mean_of_three(values: Sequence[float]) -> list[float]:
    """Each value averaged with the two before it, as far as there are two."""
    windows = (values[max(0, i - 2) : i + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _limits(ax: Axes, drawn: Sequence[Line], axis: int, target: float | None) -> None:
    """x from zero; y down to where curves start, but the upper part is never squeezed."""
    ends = [max(line.points(axis)[0]) for line in drawn]
    heights = [y for line in drawn for y in line.points(axis)[1]]
    heights += [target] if target is not None else []
    right = max(ends, default=0)
    ax.set_xlim(0, right * 1.01 if right > 0 else 1)
    if not heights:
        ax.set_ylim(0, 1)
        return
    top, low = max(heights), min(heights)
    low = max(low, top - 0.4)
    room = max(top - low, 0.02)
    ax.set_ylim(low - 0.12 * room, top + 0.08 * room)


def _frame(ax: Axes, label: str) -> None:
    ax.set_facecolor("white")
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color(MUTED)
    ax.set_xlabel(label, size=11, color=MUTED, labelpad=6)
    ax.tick_params(axis="x", colors=MUTED, labelcolor=MUTED, labelsize=10.5, length=4, width=0.8)
    ax.tick_params(axis="y", colors=MUTED, labelcolor=MUTED, labelsize=10.5, length=0)
    ax.xaxis.set_major_locator(MaxNLocator(5))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:,.12g}"))
    ax.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{100 * y:.4g} %"))
    ax.grid(axis="y", color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)


def _mark_crossings(ax: Axes, lines: Sequence[Line], axis: int, target: float) -> None:
    """A dot where each method reached the target, and between the two compared ones how far."""
    baseline, best = compared(lines)
    for line in lines:
        at = line.crossing(axis)
        if at is None:
            continue
        x, raw = line.points(axis)
        height = dict(zip(x, _mean_of_three(raw), strict=True)).get(at, target)
        if line in (baseline, best):
            ax.plot([at, at], [ax.get_ylim()[0], height], color=line.colour, lw=1.2, ls=":")
        ax.plot(
            [at],
            [height],
            marker="o",
            markersize=9,
            color=line.colour,
            markeredgecolor="white",
            markeredgewidth=1.6,
            zorder=5,
        )
    _compare(ax, baseline, best, axis)


def _compare(ax: Axes, baseline: Line, best: Line | None, axis: int) -> None:
    """An arrow from crossing to crossing near the bottom, where curves have left, and its words."""
    show = (lambda x: count(int(x))) if axis == 0 else (lambda x: f"{duration(x)} s")
    ends = [line.crossing(axis) for line in (baseline, best) if line is not None]
    reached = [x for x in ends if x is not None]
    if not reached:
        return
    hero = best if best is not None else baseline
    if best is not None and len(reached) == 2:
        bold = _ratio(baseline, best, axis)
        small = f"{show(reached[1])} against {show(reached[0])}"
        ax.annotate(
            "",
            (reached[1], 0.09),
            (reached[0], 0.09),
            xycoords=ax.get_xaxis_transform(),
            textcoords=ax.get_xaxis_transform(),
            arrowprops={"arrowstyle": "-|>", "color": hero.colour, "lw": 1.6, "shrinkA": 0},
        )
    else:
        bold = f"{show(reached[0])}{' steps' if axis == 0 else ''}"
        small = "to the target" if best is None else f"{baseline.name}: never"
    options: dict[str, Any] = {"transform": ax.get_xaxis_transform(), "path_effects": HALO}
    words = [
        ax.text(0, 0.115, bold, size=13, weight="bold", color=hero.colour, zorder=6, **options),
        ax.text(0, 0.035, small, size=10.5, color=MUTED, zorder=6, **options),
    ]
    _place_between(ax, words, min(reached), max(reached))


def _place_between(ax: Axes, words: Sequence[Text], low: float, high: float) -> None:
    """Centre ``words`` between two x, or put them right of one, or left, if there is room."""
    canvas = ax.get_figure(root=True).canvas  # pyright: ignore[reportOptionalMemberAccess]
    renderer = canvas.get_renderer()  # pyright: ignore[reportAttributeAccessIssue]
    wide = max(word.get_window_extent(renderer).width for word in words)
    to_data = ax.transData.inverted()
    length = to_data.transform((wide, 0))[0] - to_data.transform((0, 0))[0]
    pad = 0.012 * ax.get_xlim()[1]
    if length + pad <= high - low:
        x, side = (low + high) / 2, "center"
    else:
        room = [x + pad for x in (high, low) if x + pad + length <= ax.get_xlim()[1]]
        x, side = (room[0], "left") if room else (low - pad, "right")
        if not room and length > x:  # nowhere; the headline says it too
            for word in words:
                word.remove()
            return
    for word in words:
        word.set_x(x)
        word.set_horizontalalignment(side)


def _label_ends(ax: Axes, drawn: Sequence[Line], axis: int) -> None:
    """Each method's name beside its last point, moved apart if they would overlap."""
    low, high = ax.get_ylim()
    right = ax.get_xlim()[1]
    ends = [(_mean_of_three(line.points(axis)[1])[-1], line) for line in drawn]
    places = [(y - low) / (high - low) for y, _ in ends]
    two_lines = len(drawn) <= 10
    size = min(11.0, 200 / len(drawn))
    for (y, line), place in zip(ends, _apart(places, 0.115), strict=True):
        end = line.points(axis)[0][-1]
        if end < 0.985 * right:  # lead the eye from where this curve stops
            ax.plot([end, right], [y, y], color=line.colour, lw=1, ls=(0, (1, 2.5)), alpha=0.8)
        options: dict[str, Any] = {"transform": ax.transAxes, "color": line.colour}
        side = "bottom" if two_lines else "center"
        ax.text(1.02, place, line.name, va=side, size=size, weight="bold", **options)
        if two_lines:
            ax.text(1.02, place - 0.008, _end(line, axis), va="top", size=9.5, **options)


def _end(line: Line, axis: int) -> str:
    """Says where a curve ends: its accuracy, or its seconds."""
    if axis == 0:
        return percent(line.method.get("final_accuracy"))
    total = line.method.get("seconds", {}).get("total")
    return "" if total is None else f"{duration(total)} s"


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """``places`` moved as little as a few passes can, so that neighbours keep ``gap``."""
    gap = min(gap, (HIGHEST - LOWEST) / max(1, len(places) - 1))
    order = sorted(range(len(places)), key=lambda i: places[i])
    moved = [places[i] for i in order]
    for _ in range(200):
        for i in range(len(moved) - 1):
            short = gap - (moved[i + 1] - moved[i])
            if short > 1e-6:
                moved[i], moved[i + 1] = moved[i] - short / 2, moved[i + 1] + short / 2
        moved = [min(max(y, LOWEST), HIGHEST) for y in moved]
    result = [0.0] * len(places)
    for i, y in zip(order, moved, strict=True):
        result[i] = y
    return result


_GROUPS = (
    ("corrupted_share", "corrupted labels"),
    ("already_correct_share", "already classified correctly"),
)


def _draw_selected(ax: Axes, lines: Sequence[Line]) -> None:
    """Two groups of bars, one bar per method."""
    ax.set_axis_off()
    shares = [line.method.get(key) for key, _ in _GROUPS for line in lines]
    longest = max((share for share in shares if share is not None), default=0.0) or 1.0
    ax.set_xlim(0, longest)
    title_room = 0.85 + 0.07 * len(lines)  # in bars
    rows = len(lines) + title_room
    ax.set_ylim(2 * rows + 0.25, 0)
    size = min(11.0, 110 / len(lines))
    for g, (key, title) in enumerate(_GROUPS):
        y = g * (rows + 0.25)
        ax.text(0, y + 0.72 * title_room, title, size=11, color=INK)
        for i, line in enumerate(lines, start=1):
            share, middle = line.method.get(key), y + title_room + i - 0.55
            options: dict[str, Any] = {"va": "center", "size": size, "color": line.colour}
            ax.annotate(
                line.name,
                (0, middle),
                (-8, 0),
                textcoords="offset points",
                ha="right",
                weight="bold",
                **options,
            )
            ax.barh(middle, share or 0.0, height=0.72, color=line.colour)
            ax.annotate(
                "not known" if share is None else percent(share),
                (share or 0.0, middle),
                (6, 0),
                textcoords="offset points",
                **options,
            )
        ax.plot([0, 0], [y + title_room - 0.03, y + rows - 0.07], color=MUTED, linewidth=0.8)


def _width(figure: Figure, words: str, size: float, weight: str) -> float:
    """Measures how wide ``words`` are, as a share of the figure."""
    text = figure.text(0, 0, words, size=size, weight=weight)
    extent = text.get_window_extent(figure.canvas.get_renderer())  # pyright: ignore[reportAttributeAccessIssue]
    text.remove()
    return extent.width / figure.bbox.width
