"""Measures what the study needs to know beforehand; writes ``measured.json`` beside it.

Step by step, each on what the one before found:

    prepare="python -m reducible.lab.studies.equal_time.prepare"
    $prepare plateau mlp    # uniform steps to its plateau
    $prepare costs mlp      # on a quiet machine: nothing else running
    $prepare costs mlp --rules plan plan-filter      # these anew
    $prepare rates mlp      # learning rates, on validation data
    $prepare rates mlp --rules uniform --try 4e-3    # and one more

Seeds are others than the study's, and runs are evaluated on validation data.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, write_json
from reducible.lab.setup import candidate_loader, irreducible_store, loader_options, make_plan
from reducible.lab.splits import make_splits
from reducible.lab.studies.equal_time.recipes import (
    NETWORKS,
    data_of,
    holdouts,
    rules_of,
    setting,
    steps_within,
)
from reducible.lab.sweep import run_sweep
from reducible.lab.training import per_example_loss
from reducible.ledger import Ledger
from reducible.loop.gate import Gate
from reducible.loop.loader import SelectingLoader
from reducible.loop.losses import weighted_mean

KNOWN = Path(__file__).with_name("measured.json")
VALIDATION = {"minilm": 1_000}  # of the 1,072 sentences left
GRID = {
    "mlp": (750, 1500, 3000, 6000),
    "cnn": (750, 1500, 3000),  # and no further: 6,000 would not fit into the study's hours
    "resnet": (250, 500, 1000),
    "minilm": (50, 100, 200, 400),
}
RATES = {
    "mlp": (1e-3, 2e-3),
    "cnn": (2e-3, 4e-3),
    "resnet": (2e-3, 4e-3),
    "minilm": (1e-4, 2e-4),
}
TURNS = {"mlp": (24, 10), "cnn": (24, 10), "resnet": (8, 4), "minilm": (8, 4)}  # steps in a turn
SEEDS = (101, 102)
TUNED = {"mlp": SEEDS}  # seeds that rates are tuned on; one where runs are long
# What costs are measured on, and rates tuned; all of what a network is run on where none of these.
COSTS_ON, RATES_ON = ("flip-10",), ("clean", "flip-10", "flip-40")
GAIN = 0.01  # a budget is the plateau where twice as much adds less accuracy
WORK = Path("runs") / "prepare-equal-time"


def kinds(network: str, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the wanted kinds of data that the network is run on; all of them where none is."""
    return tuple(data for data in wanted if data in data_of(network)) or data_of(network)


def validated(network: str, recipe: Recipe, name: str, **changes: Any) -> Recipe:
    """The recipe under another name, evaluated once, at its end, on validation data."""
    rows = VALIDATION.get(network, 2_500)
    made = recipe.changed(name=name, validation_examples=rows, **changes)
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
    """The least number of uniform steps whose double adds less than a point, over its data."""
    recipes = [
        validated(
            network,
            setting(network, data, "any", "uniform"),
            f"plateau/{network}/{data}/{n}",
            steps=n,
        )
        for data in data_of(network)
        for n in GRID[network]
    ]
    found = accuracies(recipes, SEEDS)
    mean = {
        n: statistics.mean(found[f"plateau/{network}/{data}/{n}"] for data in data_of(network))
        for n in GRID[network]
    }
    pairs = itertools.pairwise(GRID[network])
    enough = [n for n, double in pairs if mean[double] - mean[n] < GAIN]
    return {
        "plateau": min(enough, default=GRID[network][-1]),
        "uniform_accuracy_by_steps": {str(n): round(a, 4) for n, a in mean.items()},
    }


def costs(network: str, known: dict[str, Any], anew: list[str]) -> dict[str, dict[str, float]]:
    """Cost of a step and of what comes before, in uniform steps: of ``anew``, else of new rules.

    All train side by side with uniform and take turns of a few steps, in an order that alternates,
    so that a drift of the machine falls on all alike. The ratio of the medians over the turns.
    """
    torch.set_num_threads(1)
    turns, steps = TURNS[network]
    data = kinds(network, COSTS_ON)[0]
    new = anew or [r for r in rules_of(network) if "cost" not in known["rules"].get(r, {})]
    rules = list(dict.fromkeys(["uniform", *new]))
    recipes = {rule: setting(network, data, holdouts(rule)[0], rule) for rule in rules}
    with tempfile.TemporaryDirectory() as folder:
        made = {rule: _updates(r, Path(folder) / rule) for rule, r in recipes.items()}
        fit = {rule: next(updates) for rule, updates in made.items()}
        for updates in made.values():
            _seconds(updates, steps)  # caches, the pass that counts FLOPs
        taken: dict[str, list[float]] = {rule: [] for rule in rules}
        for turn in range(turns):
            for rule in rules if turn % 2 == 0 else rules[::-1]:
                taken[rule].append(_seconds(made[rule], steps))
    middle = {rule: statistics.median(values) for rule, values in taken.items()}
    for rule, recipe in recipes.items():
        if recipe.gate == "auto":  # its trials come later than these turns
            middle[rule] += Gate().budget * middle["uniform"]
    return {
        rule: {
            "cost": round(middle[rule] / middle["uniform"], 3),
            "fit": round(fit[rule] / middle["uniform"]),
        }
        for rule in new
    }


def _seconds(updates: Iterator[float], steps: int) -> float:
    """Seconds of a step."""
    began = time.perf_counter()
    for _ in range(steps):
        next(updates)
    return (time.perf_counter() - began) / steps


def _updates(recipe: Recipe, folder: Path) -> Iterator[float]:
    """First the seconds that fitting takes, the median of three; then an update at every turn."""
    folder.mkdir()
    splits = make_splits(recipe, 0)
    quiet: dict[str, Any] = {"progress": False}
    fits: list[float] = []
    store = None
    for repeat in range(3):
        ledger = Ledger()
        (folder / str(repeat)).mkdir()
        store = irreducible_store(recipe, splits, 0, folder / str(repeat), ledger=ledger, **quiet)
        fits.append(ledger.seconds["irreducible_loss"])
    model, task = recipe.models[recipe.model](), recipe.task
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    order = torch.Generator().manual_seed(0)
    plan = make_plan(recipe, splits, store, folder)
    floor = plan.noise_floor if plan and recipe.loss == "noise-floor" else None
    batches = SelectingLoader(
        candidate_loader(recipe, splits, plan, generator=order),
        model,
        recipe.make_rule(),
        keep=recipe.n_b,
        store=store if recipe.reads_by_row else None,
        task=task,
        scoring=recipe.scoring,
        total_steps=recipe.steps,
        **loader_options(recipe, splits, 0, folder, optimizer, ledger=Ledger(), **quiet),
    )
    yield statistics.median(fits)
    while True:
        for chosen in batches:
            batch = task.unpadded(chosen.batch)
            logits = task.forward(model, batch).logits
            loss = per_example_loss(recipe.loss, logits, task.targets(batch), floor)
            batches.remember(chosen.ids, loss)
            optimizer.zero_grad()
            weighted_mean(loss, chosen.weights).backward()
            optimizer.step()
            yield 0.0


def rates(
    network: str, known: dict[str, Any], rules: list[str], also: list[float]
) -> dict[str, dict[str, Any]]:
    """The rate of each rule with the best accuracy on RATES_ON, at half the plateau's time.

    RATES are tried for rules that have no rate yet. ``also``, where given, beside what was tried
    before, as a check: a rate that was chosen stays, for the study was run with it.
    """
    wanted = rules or rules_of(network)
    tried = {rule: dict(known["rules"][rule].get("accuracy_by_rate", {})) for rule in wanted}
    new = [
        (rule, rate)
        for rule in wanted
        for rate in also or RATES[network]
        if f"{rate:g}" not in tried[rule]
    ]
    recipes = {
        (rule, rate, data): _rated(network, known, rule, rate, data)
        for rule, rate in new
        for data in kinds(network, RATES_ON)
    }
    seeds = TUNED.get(network, SEEDS[:1])
    found = accuracies(list(recipes.values()), seeds) if recipes else {}
    for rule, rate in new:
        each = [found[recipes[rule, rate, d].name] for d in kinds(network, RATES_ON)]
        tried[rule][f"{rate:g}"] = round(statistics.mean(each), 4)
    return {
        rule: {
            "learning_rate": known["rules"][rule].get(
                "learning_rate", float(max(by_rate, key=lambda rate: by_rate[rate]))
            ),
            "accuracy_by_rate": by_rate,
        }
        for rule, by_rate in tried.items()
    }


def _rated(network: str, known: dict[str, Any], rule: str, rate: float, data: str) -> Recipe:
    """A cell at half the plateau's time with this rate, on validation data."""
    cost = known["rules"][rule]
    n = steps_within(0.5, plateau=known["plateau"], cost=cost["cost"], fit=cost["fit"])
    cell = setting(network, data, holdouts(rule)[0], rule)
    name = f"rates/{network}/{rule}/{rate:g}/{data}"
    return validated(network, cell, name, steps=n, learning_rate=rate)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["plateau", "costs", "rates"])
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument(
        "--rules", nargs="*", default=[], help="of costs (new ones by default), of rates (all)"
    )
    parser.add_argument(
        "--try", nargs="*", type=float, default=[], dest="also", help="a check on more rates"
    )
    asked = parser.parse_args()
    everything = json.loads(KNOWN.read_text())
    about: dict[str, Any] = everything.setdefault(asked.network, {"rules": {}})
    if asked.what == "plateau":
        about |= plateau(asked.network)
    else:
        found = (
            costs(asked.network, about, asked.rules)
            if asked.what == "costs"
            else rates(asked.network, about, asked.rules, asked.also)
        )
        for rule, values in found.items():
            about["rules"].setdefault(rule, {}).update(values)
    write_json(KNOWN, everything)
