"""What the equal-time study needs to know beforehand; writes src/reducible/recipes/equal_time.json.

Step by step, each on what the one before found:

    python scripts/prepare_equal_time.py plateau mlp    # uniform steps to its plateau
    python scripts/prepare_equal_time.py costs mlp      # on a quiet machine: nothing else running
    python scripts/prepare_equal_time.py rates mlp      # learning rates, on validation data

Seeds are others than the study's, and runs are evaluated on validation data.
"""

import argparse
import itertools
import json
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from reducible.recipe import Recipe
from reducible.recipes.equal_time import DATA, NETWORKS, RULES, holdouts, setting, steps_within
from reducible.records import read_json, write_json
from reducible.run import Run
from reducible.sweep import run_sweep

ROOT = Path(__file__).parent.parent
KNOWN = ROOT / "src" / "reducible" / "recipes" / "equal_time.json"
VALIDATION = 2_500
GRID = {"mlp": (750, 1500, 3000, 6000), "cnn": (375, 750, 1500, 3000), "resnet": (250, 500, 1000)}
RATES = {"mlp": (5e-4, 1e-3, 2e-3), "cnn": (1e-3, 2e-3, 4e-3), "resnet": (1e-3, 2e-3, 4e-3)}
SEEDS = (101, 102)
GAIN = 0.01  # a budget is the plateau where twice as much adds less accuracy
WORK = ROOT / "runs" / "prepare-equal-time"


def validated(recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """The recipe under another name, evaluated once, at its end, on validation data."""
    made = replace(recipe, name=name, validation_examples=VALIDATION, **changes)
    return replace(made, evaluate_every=made.steps)


def accuracies(recipes: list[Recipe], seeds: tuple[int, ...]) -> dict[str, float]:
    """Mean final accuracy over seeds, by name."""
    with tempfile.TemporaryDirectory() as results:
        run_sweep(recipes, seeds, work=WORK, results=Path(results))
    found = {r.name: [WORK / r.name / str(s) / "summary.json" for s in seeds] for r in recipes}
    return {
        name: statistics.mean(read_json(path)["final_accuracy"] for path in paths)
        for name, paths in found.items()
    }


def plateau(network: str) -> dict[str, Any]:
    """The least number of uniform steps whose double adds less than a point, over all data."""
    recipes = [
        validated(
            setting(network, data, "any", "uniform"), f"plateau/{network}/{data}/{n}", steps=n
        )
        for data in DATA
        for n in GRID[network]
    ]
    found = accuracies(recipes, SEEDS)
    mean = {
        n: statistics.mean(found[f"plateau/{network}/{data}/{n}"] for data in DATA)
        for n in GRID[network]
    }
    pairs = itertools.pairwise(GRID[network])
    enough = [n for n, double in pairs if mean[double] - mean[n] < GAIN]
    return {
        "plateau": min(enough, default=GRID[network][-1]),
        "uniform_accuracy_by_steps": {str(n): round(a, 4) for n, a in mean.items()},
    }


def costs(network: str, *, rounds: int = 5, steps: int = 100) -> dict[str, dict[str, float]]:
    """Cost of a step and of what comes before, in uniform steps: medians of rounds in turn."""
    torch.set_num_threads(1)
    recipes = {rule: setting(network, "flip-10", holdouts(rule)[0], rule) for rule in RULES}
    step: dict[str, list[float]] = {rule: [] for rule in RULES}
    fit: dict[str, list[float]] = {rule: [] for rule in RULES}
    for round_ in range(rounds):
        now = {rule: _seconds(recipe, round_, steps) for rule, recipe in recipes.items()}
        base = now["uniform"][0]
        for rule, (per_step, before) in now.items():
            step[rule].append(per_step / base)
            fit[rule].append(before / base)
        print(f"round {round_ + 1} of {rounds}", flush=True)
    return {
        rule: {
            "cost": round(statistics.median(step[rule]), 4),
            "fit": round(statistics.median(fit[rule]), 1),
        }
        for rule in RULES
    }


def _seconds(recipe: Recipe, seed: int, steps: int) -> tuple[float, float]:
    """Seconds of a step, the median of stretches of ten but the first, and before the first."""
    short = replace(recipe, evaluate_every=10, steps=max(steps, 100))
    with tempfile.TemporaryDirectory() as folder:
        run = Run(short, Path(folder) / "run", seed=seed, progress=False, checkpoint_every=0)
        curve = run.start()["curve"]
    stretches = [(b[1] - a[1]) / 10 for a, b in itertools.pairwise(curve)]
    return statistics.median(stretches), run.ledger.seconds["irreducible_loss"]


def rates(network: str, known: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rate of each rule with the best accuracy over all data, at half the plateau's time."""
    recipes: dict[tuple[str, float, str], Recipe] = {}
    for rule in RULES:
        cost = known["rules"][rule]
        n = steps_within(0.5, plateau=known["plateau"], cost=cost["cost"], fit=cost["fit"])
        for rate in RATES[network]:
            for data in DATA:
                name = f"rates/{network}/{rule}/{rate:g}/{data}"
                cell = setting(network, data, holdouts(rule)[0], rule)
                recipes[rule, rate, data] = validated(cell, name, steps=n, learning_rate=rate)
    found = accuracies(list(recipes.values()), SEEDS[:1])
    best: dict[str, dict[str, Any]] = {}
    for rule in RULES:
        mean = {
            rate: statistics.mean(found[recipes[rule, rate, data].name] for data in DATA)
            for rate in RATES[network]
        }
        best[rule] = {
            "learning_rate": max(mean, key=lambda rate: mean[rate]),
            "accuracy_by_rate": {f"{rate:g}": round(a, 4) for rate, a in mean.items()},
        }
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["plateau", "costs", "rates"])
    parser.add_argument("network", choices=list(NETWORKS))
    asked = parser.parse_args()
    everything = json.loads(KNOWN.read_text())
    about: dict[str, Any] = everything.setdefault(asked.network, {"rules": {}})
    if asked.what == "plateau":
        about |= plateau(asked.network)
    else:
        found = costs(asked.network) if asked.what == "costs" else rates(asked.network, about)
        for rule, values in found.items():
            about["rules"].setdefault(rule, {}).update(values)
    write_json(KNOWN, everything)
