"""The picture: drawn for every kind of summary, with the words that the numbers bear out."""

import math
from itertools import pairwise

import matplotlib as mpl
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imread

from reducible.lab.records import summarise
from reducible.lab.report import curves
from reducible.lab.report.curves import plot_curves


def _method(tau, top=0.9, per_step=0.01, fit=0.0, target=0.85, **changes):
    curve = [
        [step, fit + per_step * step, top - (top - 0.1) * math.exp(-step / tau)]
        for step in range(0, 1001, 25)
    ]
    steps, seconds = summarise(curve, target)
    return {
        "steps_to_target": steps,
        "seconds_to_target": seconds,
        "final_accuracy": curve[-1][2],
        "seconds": {"irreducible_loss": fit, "total": curve[-1][1] + 1},
        "corrupted_share": 0.1,
        "already_correct_share": 0.7,
        "curve": curve,
        **changes,
    }


def _draw(tmp_path, monkeypatch, methods, target: float | None = 0.85, dpi=50):
    """All words of the picture, and its panels."""
    figures = []

    class Recorded(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(curves, "Figure", Recorded)
    monkeypatch.setattr(curves, "DPI", dpi)
    summary = {"target_accuracy": target, "dataset": "digits", "seed": 0, "methods": methods}
    plot_curves(summary, tmp_path / "curves.png")
    (figure,) = figures
    texts = [t for part in (figure, *figure.axes) for t in part.texts]
    return [t.get_text() for t in texts], figure


def test_the_demo_picture(tmp_path, monkeypatch):
    methods = {
        "uniform": _method(240),
        "rho": _method(80, per_step=0.015, fit=0.5, corrupted_share=0.032),
    }
    words, figure = _draw(tmp_path, monkeypatch, methods, dpi=curves.DPI)
    fast, slow = (methods[name]["steps_to_target"] for name in ("rho", "uniform"))
    assert (fast, slow) == (250, 700)
    assert "rho reached 85 % accuracy in 2.8× fewer steps and 1.6× less time than uniform" in words
    assert {"2.8× fewer steps", "250 against 700", "1.6× less time", "4.2 s against 7.0 s"} <= {
        *words
    }
    assert {"10.0 %", "3.2 %", "85 %"} <= {*words}
    assert "everything charged, 0.5 s for the irreducible loss too" in words
    crossings = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert sorted(line.get_xdata()[0] for line in crossings) == [fast, slow]
    height, width, _ = imread(tmp_path / "curves.png").shape
    assert width / height == pytest.approx(16 / 6, abs=0.01)
    assert width >= 16 * 150
    assert [f.name for f in tmp_path.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("number", [2, 5, 10])
def test_labels_of_curves_do_not_overlap_or_leave_the_picture(tmp_path, monkeypatch, number):
    methods = {f"some_method_{i}": _method(100, top=0.9 + 0.0001 * i) for i in range(number)}
    _, figure = _draw(tmp_path, monkeypatch, methods)
    canvas = figure.canvas
    assert isinstance(canvas, FigureCanvasAgg)
    for axes in figure.axes[:2]:
        boxes = [
            text.get_window_extent(canvas.get_renderer())
            for text in axes.texts
            if text.get_text() in methods
        ]
        boxes.sort(key=lambda box: box.y0)
        assert len(boxes) == number
        assert all(a.y1 <= b.y0 for a, b in pairwise(boxes))
    everything = [t for part in (figure, *figure.axes) for t in part.texts if t.get_text()]
    for text in everything:
        box = text.get_window_extent(canvas.get_renderer())
        assert 0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        assert 0 <= box.y0 <= box.y1 <= figure.bbox.y1, text


@pytest.mark.parametrize(
    ("methods", "headline"),
    [
        ({"rho": _method(80)}, "rho reached 85 % accuracy after 250 steps"),
        ({"rho": _method(80, top=0.8)}, "85 % accuracy was not reached"),
        (
            {"uniform": _method(80, top=0.8), "rho": _method(80)},
            "rho reached 85 % accuracy, uniform did not",
        ),
        (
            {"uniform": _method(80), "rho": _method(80, top=0.8)},
            "uniform reached 85 % accuracy after 250 steps, no other method did",
        ),
        (
            {"uniform": _method(80), "rho": _method(80, per_step=0.02)},
            "rho reached 85 % accuracy in as many steps and 2.0× more time than uniform",
        ),
        (
            {"uniform": _method(80), "rho": _method(240, per_step=0.01 * 250 / 700)},
            "rho reached 85 % accuracy in 2.8× more steps and as much time as uniform",
        ),
        ({"rho": {"curve": []}, "loss": {}}, "85 % accuracy was not reached"),
        (
            {f"a_rather_long_name_of_method_{i}": _method(80 + i / 9) for i in range(20)},
            "a_rather_l…f_method_1 reached 85 % accuracy in as many steps "
            "and as much time as a_rather_l…f_method_0",
        ),
    ],
)
def test_headlines(tmp_path, monkeypatch, methods, headline):
    words, _ = _draw(tmp_path, monkeypatch, methods)
    assert headline in words


def test_without_target_or_evaluations(tmp_path, monkeypatch):
    words, _ = _draw(tmp_path, monkeypatch, {"a": {"curve": []}, "b": {}}, target=None)
    assert words.count("no evaluation yet") == 2
    assert words.count("not known") == 4
    words, _ = _draw(tmp_path, monkeypatch, {"a": _method(80), "b": {}}, target=None)
    assert "Accuracy by training step and by second" in words
    assert not any("target" in word for word in words)


def test_one_evaluation_at_step_zero(tmp_path, monkeypatch):
    words, _ = _draw(tmp_path, monkeypatch, {"a": {"curve": [[0, 0.0, 0.1]]}})
    assert "a" in words


def test_the_users_style_and_a_failed_write_change_nothing(tmp_path, monkeypatch):
    before = dict(mpl.rcParams)
    _draw(tmp_path, monkeypatch, {"a": _method(80)})
    assert dict(mpl.rcParams) == before
    old = (tmp_path / "curves.png").read_bytes()

    def full_disk(_, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FigureCanvasAgg, "print_png", full_disk)
    with pytest.raises(OSError, match="No space left"):
        _draw(tmp_path, monkeypatch, {"b": _method(80)})
    assert (tmp_path / "curves.png").read_bytes() == old
    assert [f.name for f in tmp_path.iterdir()] == ["curves.png"]


def test_places_move_apart_and_stay_inside():
    moved = curves._apart([0.5, 0.5, 0.9, 0.1], 0.1)
    assert moved[0] == pytest.approx(0.45)
    assert moved[1] == pytest.approx(0.55)
    assert moved[2:] == [0.9, 0.1]
    crowded = curves._apart([1.0] * 8, 0.115)
    assert min(b - a for a, b in pairwise(crowded)) > 0.1
    assert max(crowded) <= curves.HIGHEST
    assert curves._mean_of_three([0.3, 0.6, 0.9, 0.0]) == pytest.approx([0.3, 0.45, 0.6, 0.5])
