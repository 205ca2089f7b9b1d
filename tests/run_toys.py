"""What the tests of runs need: short runs of the demo recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reducible.lab.recipe import Recipe
from reducible.lab.recipes import recipe
from reducible.lab.records import read_json, read_metrics
from reducible.lab.run import Run

STEPS = 30
SHORT = {
    "train_examples": "2000",
    "holdout_examples": "500",
    "steps": str(STEPS),
    "evaluate_every": "10",
    "irreducible_epochs": "1",
    "model": "mlp-64",
    "irreducible_model": "mlp-64",
}
DEMO = ["demo/uniform", "demo/rho"]


def short_recipe(name: str, **settings: str) -> Recipe:
    return recipe(name).with_settings(SHORT | settings)


def short_run(name: str, out: Path, *, checkpoint_every: int = 500, **settings: str) -> Run:
    return Run(
        short_recipe(name, **settings),
        out,
        seed=1,
        progress=False,
        checkpoint_every=checkpoint_every,
    )


def contents_of(out: Path) -> dict[str, Any]:
    """What of a run's folder depends on the recipe and the seed alone."""
    config = read_json(out / "config.json")
    config.pop("irreducible_loss", None)  # the store's checksum; the store says what it cost
    return {
        "picks": (out / "picks.arrow").read_bytes(),
        "model": (out / "model.safetensors").read_bytes(),
        "config": config,
        "curve": [
            (m["step"], m["accuracy"], m["loss"]) for m in read_metrics(out / "metrics.jsonl")
        ],
        "selected": [m["selected"] for m in read_metrics(out / "metrics.jsonl")],
    }
