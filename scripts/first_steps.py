"""Whether two versions of the package do the same: what every recipe does in its first 20 updates.

Runs one recipe of each kind (recipes that differ only in length, rate or number of examples are
one) for 20 updates on few examples. Prints a line for each: digests of its picks, curve and
weights, the names of its files and the keys of its states. Run it on both trees, and compare:

    PYTHONPATH=<tree>/src .venv/bin/python scripts/first_steps.py > <tree>.txt
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

FEW = {"train_examples": 1920, "holdout_examples": 640, "validation_examples": 0}
LENGTH = ("name", "steps", "evaluate_every", "learning_rate", *FEW)


def module(*names: str) -> Any:
    """The first of these modules that there is; they were moved."""
    for name in names:
        try:
            return importlib.import_module(f"reducible.{name}")
        except ModuleNotFoundError:
            continue
    raise ModuleNotFoundError(names)


def kinds(recipes: Mapping[str, Any]) -> Iterator[Any]:
    """One recipe of each kind."""
    seen: set[str] = set()
    for recipe in recipes.values():
        settings = {k: v for k, v in recipe.settings().items() if k not in LENGTH}
        kind = json.dumps(settings, sort_keys=True, default=str)
        if kind not in seen:
            seen.add(kind)
            yield recipe


def keys(state: Any) -> Any:
    """A state without its values."""
    if isinstance(state, Mapping):
        return {str(key): keys(value) for key, value in state.items()}
    return type(state).__name__


def digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def main() -> None:
    torch.set_num_threads(1)
    recipes = module("lab.recipes", "recipes")
    run, checkpoints = module("lab.run", "run"), module("files.checkpoints", "checkpoints")
    checkpoints.remove = lambda out: None  # so that states are left to look at
    read_json = module("lab.records", "records").read_json
    for recipe in kinds(recipes.RECIPES):
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "run"
            try:
                shorter = {"evaluate_every": "10", "irreducible_epochs": "1"}
                few = recipe.with_settings({k: str(v) for k, v in (FEW | shorter).items()})
                run.Run(few, out, max_steps=20, checkpoint_every=10, progress=False).start()
            except Exception as error:  # a recipe that so few examples are too few for
                print(recipe.name, type(error).__name__, error, flush=True)
                continue
            said = read_json(out / "summary.json", sealed=True)
            config = read_json(out / "config.json", sealed=True)
            states = sorted(out.glob("checkpoint*"))
            what = {
                "picks": digest((out / "picks.arrow").read_bytes()),
                "info": digest((out / "info.arrow").read_bytes())
                if (out / "info.arrow").exists()
                else "",
                "weights": digest((out / "model.safetensors").read_bytes()),
                "accuracies": [point[2] for point in said["curve"]],
                "files": sorted(path.name for path in out.iterdir()),
                "config": sorted(config),
                "settings": digest(json.dumps(config["settings"], sort_keys=True).encode()),
                "summary": sorted(said),
                "state": digest(
                    json.dumps(keys(checkpoints.load(states[0])), sort_keys=True).encode()
                ),
            }
            print(recipe.name, json.dumps(what), flush=True)


if __name__ == "__main__":
    sys.exit(main())
