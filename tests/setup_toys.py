"""What the tests of a recipe's ingredients need: tiny recipes, their runs, stores and options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

import reducible as rd
from reducible.lab.models import MODELS
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_picks
from reducible.lab.run import Run
from reducible.lab.setup import irreducible_store, loader_options
from reducible.lab.splits import Splits, make_splits

STEPS, N_B = 6, 8
LEARNT: dict[str, Any] = {"irreducible_epochs": 6, "irreducible_batch": 8}  # from 200 images


def tiny_recipe(selector: str = "rho", **settings: Any) -> Recipe:
    tiny: dict[str, Any] = {
        "train_examples": 400, "holdout_examples": 200, "steps": STEPS, "evaluate_every": 3,
        "n_b": N_B, "n_candidates": 40, "irreducible_epochs": 2, "model": "mlp-64",
        "irreducible_model": "mlp-64",
    }  # fmt: skip
    return Recipe.from_settings({"name": "tiny", "selector": selector} | tiny | settings)


def summary_of(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    summary = Run(recipe, out, seed=3, progress=False, **options).start()
    assert summary["curve"][-1][0] == recipe.steps
    return summary


def picked_ids(out: Path) -> list[list[int]]:
    return read_picks(out / "picks.arrow").to_pydict()["ids"]


def fitted_store(recipe: Recipe, out: Path) -> tuple[Splits, rd.IrreducibleLossStore]:
    splits = make_splits(recipe, 3)
    out.mkdir(exist_ok=True)
    ledger = rd.Ledger()
    store = irreducible_store(recipe, splits, 3, out, ledger=ledger, progress=False)
    assert store is not None
    assert ledger.seconds["irreducible_loss"] > 0
    return splits, store


def options_of(recipe: Recipe, splits: Splits, out: Path) -> tuple[dict[str, Any], Any]:
    model = MODELS[recipe.model]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with Progress(disable=True) as bar:
        options = loader_options(
            recipe, splits, 3, out, optimizer, ledger=rd.Ledger(), progress=bar
        )
    return options, optimizer
