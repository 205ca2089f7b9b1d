"""Several recipes for the same seconds: whose turn it is, how rates decay, and who won."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress

from reducible.lab import race
from reducible.lab.checking import check_folder
from reducible.lab.race import Stopwatch, difference, run_race, verdict
from reducible.lab.records import read_json, read_picks
from reducible.lab.studies.demo.recipes import RACE
from reducible.lab.training import Trainer
from reducible.schedules import cosine

STEPS = 40
SMALL = {"train_examples": 1200, "holdout_examples": 300, "irreducible_epochs": 1}


@pytest.fixture(autouse=True)
def few_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(race, "EVALUATIONS", 4)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """An update of a run takes so many seconds by its recipe, and nothing else takes any."""
    seconds: dict[str, float] = {}
    now = [0.0]
    monkeypatch.setattr(Stopwatch.__init__, "__kwdefaults__", {"clock": lambda: now[0]})
    update = Trainer._update

    def timed(self: Trainer, chosen: Any) -> None:
        now[0] += seconds[self.recipe.name]
        update(self, chosen)

    monkeypatch.setattr(Trainer, "_update", timed)
    return seconds


def _race(out: Path, steps: int = STEPS) -> dict[str, Any]:
    recipes = {name: replace(recipe, **SMALL) for name, recipe in RACE.items()}
    with Progress(disable=True) as bar:
        return run_race(out, recipes, seed=1, steps=steps, progress=bar, dataset="small")


def test_all_get_the_same_seconds_to_within_an_update(
    tmp_path: Path, scripted: dict[str, float]
) -> None:
    scripted |= {"demo/every-row": 1.0, "demo/rho-decayed": 2.5, "demo/plan": 1.25}
    summary = _race(tmp_path / "race")
    assert summary["seconds"] == STEPS
    updates = {name: method["updates"] for name, method in summary["methods"].items()}
    assert updates == {"every row in turn": 40, "RHO-LOSS": 16, "plan": 32}
    for name, method in summary["methods"].items():
        folder = tmp_path / "race" / "-".join(name.lower().split())
        assert read_json(folder / "summary.json", sealed=True)["updates"] == updates[name]
        picks = read_picks(folder / "picks.arrow").to_pydict()
        assert picks["step"] == list(range(updates[name]))
        assert method["curve"][-1][:2] == [updates[name], STEPS]
        assert 3 <= len(method["curve"]) <= 5
    assert read_json(tmp_path / "race" / "summary.json", sealed=True) == summary
    assert [finding.problem for finding in check_folder(tmp_path / "race")] == [None] * len(
        check_folder(tmp_path / "race")
    )


def test_all_rates_decay_with_the_share_of_the_first_runs_updates(
    tmp_path: Path, scripted: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted |= {"demo/every-row": 1.0, "demo/rho-decayed": 4.0, "demo/plan": 1.0}
    rates: dict[str, list[float]] = {}
    timed = Trainer._update

    def watched(self: Trainer, chosen: Any) -> None:
        rates.setdefault(self.recipe.name, []).append(self.decay(self.step - 1))
        timed(self, chosen)

    monkeypatch.setattr(Trainer, "_update", watched)
    _race(tmp_path / "race")
    assert rates["demo/every-row"] == [cosine(s, start=0, end=STEPS) for s in range(STEPS)]
    for ours, after in zip(rates["demo/rho-decayed"], range(0, STEPS, 4), strict=True):
        assert ours == pytest.approx(cosine(after, start=0, end=STEPS), abs=0.1)
    assert rates["demo/rho-decayed"] == sorted(rates["demo/rho-decayed"], reverse=True)


def test_a_fit_is_paid_before_the_first_update(tmp_path: Path) -> None:
    summary = _race(tmp_path / "race", steps=12)
    first, *others = summary["methods"].values()
    assert first["seconds"]["irreducible_loss"] == 0
    for method in others:
        assert method["seconds"]["irreducible_loss"] > 0
        charged = method["seconds"]["total"] - method["seconds"]["evaluate"]
        assert charged >= summary["seconds"] or method["updates"] == 0


def test_a_stopwatch_goes_only_inside() -> None:
    now = [0.0]
    watch = Stopwatch(clock=lambda: now[0])
    with watch:
        now[0] = 3.0
        assert watch() == 3.0
    now[0] = 100.0
    assert watch() == 3.0
    with watch:
        now[0] = 101.5
        assert watch() == 4.5


def test_a_difference_by_hand() -> None:
    a = torch.tensor([True] * 6 + [False] * 4)
    b = torch.tensor([True] * 3 + [False] * 5 + [True] * 2)
    found = difference(a, b)
    assert found["mean"] == pytest.approx(0.1)
    values = [0.0] * 3 + [1.0] * 3 + [0.0] * 2 + [-1.0] * 2
    deviation = math.sqrt(sum((v - 0.1) ** 2 for v in values) / 9)
    assert found["high"] - found["mean"] == pytest.approx(1.96 * deviation / math.sqrt(10))
    assert found["mean"] - found["low"] == pytest.approx(found["high"] - found["mean"])


def test_who_is_ahead_within_chance_has_not_won() -> None:
    a = torch.arange(1000) < 900
    assert verdict({"a": a, "b": torch.arange(1000) < 800}).startswith("a won, by 10.0 points (+8")
    assert verdict({"b": torch.arange(1000) < 800, "a": a}).startswith("a won")
    close = torch.arange(1000).flip(0) < 895  # other mistakes, so that half a point is little
    assert verdict({"a": a, "b": close}).startswith("Nobody won: a is ahead of b by 0.5 points")
