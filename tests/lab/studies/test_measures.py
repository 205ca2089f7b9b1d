"""What studies measure besides their runs, on small data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from reducible.lab.studies.equal_time import prepare
from reducible.lab.studies.equal_time.recipes import setting
from reducible.lab.studies.groups import measure as groups
from reducible.lab.studies.noise_floor.measure import Case, judged

SMALL = {"train_examples": 320, "holdout_examples": 160, "n_candidates": 80, "n_b": 8}


def test_flips_among_two_gaussians_are_found() -> None:
    found = judged(Case("few", 2, 0.6, apart=5.0, flips=0.2, seed=0))
    assert found["examples"] == 1000
    for floor in ("learned", "medians"):
        assert found[floor]["found"] > 0.5 * found["wrong"]
        assert 0 <= found[floor]["right_lost"] < 0.2 * found["examples"]


def test_a_store_picks_what_it_picks_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(groups.REDUCR, **SMALL, irreducible_epochs=1)
    monkeypatch.setattr(groups, "REDUCR", small)
    store, seconds = groups.fit(True, 0)
    assert seconds > 0
    assert groups.overlap([store, store], 0, steps=5) == 1.0
    other, _ = groups.fit(True, 0, again=True)
    assert 0.0 < groups.overlap([store, other], 0, steps=5) < 1.0


@pytest.mark.parametrize("rule", ["uniform", "rho", "plan-floor"])
def test_costs_are_taken_of_real_updates(rule: str, tmp_path: Path) -> None:
    recipe = setting("mlp", "flip-10", "noisy", rule).changed(**SMALL | {"n_candidates": 160})
    updates = prepare._updates(recipe, tmp_path / "run")
    fitting = next(updates)
    assert (fitting == 0) == (rule == "uniform")
    assert prepare._seconds(updates, 3) > 0  # over the end of an epoch, which has two batches
