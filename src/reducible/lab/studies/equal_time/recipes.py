"""The equal-time study: every rule gets the same time, everything charged, and a decayed rate.

What was measured and tuned beforehand (step costs, the plateau, learning rates) stands in
``measured.json`` beside this file, written by ``prepare.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources
from types import MappingProxyType
from typing import Any

from reducible.lab.recipe import Recipe

_IMAGES = Recipe(
    name="equal-time",
    selector="uniform",
    train_examples=20_000,
    holdout_examples=7_500,
    schedule="cosine",
    irreducible_model="mlp-64",
    irreducible_epochs=2,
    irreducible_batch=128,
    irreducible_rate=2e-3,
    irreducible_smoothing=0.02,
    plan_multiple=2.0,
    plan_exponent=0.5,
)

_SENTENCES = replace(
    _IMAGES,
    dataset="film-sentences",
    model="minilm",
    train_examples=5_000,
    holdout_examples=2_000,
    learning_rate=1e-4,
    irreducible_model="bag-of-embeddings",
    irreducible_epochs=4,
    irreducible_batch=64,
    irreducible_rate=2e-3,
    plan_multiple=0.8,  # tuned for medians over all rows, about ½ each; the runs on record have it
)

_BASES: Mapping[str, Recipe] = {
    "mlp": _IMAGES,
    "cnn": replace(_IMAGES, model="lenet-8"),
    "resnet": replace(_IMAGES, model="resnet-18-16"),
    "minilm": _SENTENCES,
}

NETWORKS: Mapping[str, str] = MappingProxyType({name: b.model for name, b in _BASES.items()})
"""Name in the study → row of MODELS, or of TEXT_MODELS."""

DATA: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "clean": {"label_noise": 0.0},
        "flip-10": {"label_noise": 0.1},
        "flip-20": {"label_noise": 0.2},
        "flip-40": {"label_noise": 0.4},
        "asymmetric-30": {"noise": "asymmetric", "label_noise": 0.3},
        "web-like": {"noise": "web-like", "label_noise": 0.3},
    }
)
"""Name → what D suffers; a noisy holdout suffers the same."""

_RHO: Mapping[str, Any] = {"selector": "rho"}
# Losses seen in the last eight passes and a half stand in for scoring: one row in nine is scored.
_REMEMBERED: Mapping[str, Any] = {"precision": "bfloat16", "max_age": 527}
# A plan needs no candidates beside the batch: it is a sampler of the rows to train on.
_FILTER: Mapping[str, Any] = {"plan": "filter", "n_candidates": 32}
_WEIGHTED: Mapping[str, Any] = {"plan": "filter+weights", "plan_exponent": 0.25, "n_candidates": 32}
# Drop what is almost certainly wrong, and let the loss allow for the wrong labels that are left.
_FLOOR: Mapping[str, Any] = {**_FILTER, "plan_multiple": 1.0, "loss": "noise-floor"}
_BATCH_128: Mapping[str, Any] = {"n_b": 128, "n_candidates": 128}
# Once wrong labels are gone, a mild choice by loss: two in three, in low precision, four batches
# from one pass over the candidates.
_ONLINE: Mapping[str, Any] = {
    "plan": "filter",
    "selector": "train_loss",
    "n_candidates": 192,
    "updates_per_scoring": 4,
    "precision": "bfloat16",
}
_SHUFFLED_128: Mapping[str, Any] = {"selector": "rs2", "n_b": 128, "n_candidates": 1280}
_ALL: Mapping[str, Any] = {"train_on": "train+holdout"}
_FULL: Mapping[str, Any] = {**_FLOOR, **_WEIGHTED, "plan_multiple": 1.0, **_ALL}

RULES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "uniform": {},
        "uniform-128": {"n_b": 128, "n_candidates": 1280},
        "uniform-all": _ALL,
        "holdout-only": {"train_on": "holdout"},
        "label-smoothing": {"loss": "label-smoothing"},
        "generalised": {"loss": "generalised"},
        "rs2": {"selector": "rs2"},
        "rs2-all": {"selector": "rs2", **_ALL},
        "rs2-128": _SHUFFLED_128,
        "rs2-all-128": {**_SHUFFLED_128, **_ALL},
        "train-loss": {"selector": "train_loss"},
        "infobatch": {"selector": "infobatch", "n_candidates": 32},
        "rho": _RHO,
        "rho-cheap": {**_RHO, **_REMEMBERED},
        "plan-filter": _FILTER,
        "plan-weights": {**_WEIGHTED, "plan": "weights"},
        "plan": _WEIGHTED,
        "plan-cross-fit": {**_FILTER, **_ALL, "irreducible_from": "cross-fit"},
        "plan-floor": _FLOOR,
        "plan-floor-all": {**_FLOOR, **_ALL},
        "plan-full": _FULL,
        "plan-floor-128": {**_FLOOR, **_BATCH_128},
        "plan-floor-all-128": {**_FLOOR, **_BATCH_128, **_ALL},
        "plan-full-128": {**_FULL, **_BATCH_128},
        "plan-online": _ONLINE,
        "rho-gate": {**_RHO, "gate": "auto"},
    }
)
"""Name in the study → settings of the recipe."""

BUDGETS: Mapping[str, float] = MappingProxyType({"0.5x": 0.5, "0.75x": 0.75, "1x": 1.0, "2x": 2.0})
"""Shares of the time that uniform takes to its plateau; 0.75x for FINER alone."""

FINER = "plan-full"
"""The rule whose time to uniform's end is looked at more closely, with a run in between."""

_NO_HOLDOUT = frozenset(
    {
        "uniform",
        "uniform-128",
        "label-smoothing",
        "generalised",
        "rs2",
        "rs2-128",
        "train-loss",
        "infobatch",
    }
)
_FIVE_WITH_CLEAN_HOLDOUT = frozenset(
    {"holdout-only", "uniform-all", "rho", "plan-filter", "plan-floor"}
)
_HALF_WITH_CNN = frozenset({"uniform", "rs2-all", "plan-floor", "plan-floor-all", "plan-full"})
_FOUR = frozenset({"uniform", "rho", "plan-filter", "plan-online"})
EVALUATIONS = 2
"""In a run: with a decayed rate its end alone counts."""

_SLICES: Mapping[str, str] = {"resnet": "flip-40", "minilm": "flip-20"}  # one kind of data, _FOUR


def data_of(network: str) -> tuple[str, ...]:
    """The kinds of data that ``network`` is run on."""
    every = ("clean", "flip-10", "flip-40", "asymmetric-30", "web-like")
    return (_SLICES[network],) if network in _SLICES else every


def rules_of(network: str) -> tuple[str, ...]:
    """The rules that ``network`` is run with."""
    return tuple(rule for rule in RULES if network not in _SLICES or rule in _FOUR)


def holdouts(rule: str) -> tuple[str, ...]:
    """The kinds of holdout that make a difference to ``rule``."""
    return ("any",) if rule in _NO_HOLDOUT else ("noisy", "clean")


def setting(network: str, data: str, holdout: str, rule: str) -> Recipe:
    """A cell of the study with the steps and the rate still open.

    Args:
        network: key of NETWORKS.
        data: key of DATA.
        holdout: "clean"; or "noisy" or "any", which have the noise of D.
        rule: key of RULES.
    """
    noise = DATA[data]
    return _BASES[network].changed(
        name=f"equal-time/{network}/{data}/{holdout}/{rule}",
        holdout_noise=0.0 if holdout == "clean" else noise["label_noise"],
        **noise,
        **RULES[rule],
    )


def measured() -> dict[str, Any]:
    """Reads what was measured and tuned beforehand; see the module's first lines."""
    path = resources.files("reducible.lab.studies.equal_time") / "measured.json"
    return json.loads(path.read_text(encoding="utf-8"))


def steps_within(budget: float, *, plateau: int, cost: float, fit: float) -> int:
    """Updates that fit into ``budget`` · ``plateau`` uniform steps.

    Args:
        budget: multiple of the plateau.
        plateau: uniform steps.
        cost: of one of the rule's steps, in uniform steps.
        fit: what comes before training, in uniform steps.

    >>> steps_within(1.0, plateau=1000, cost=2.0, fit=100.0)
    450
    """
    return max(1, int((budget * plateau - fit) / cost))


def cell(
    network: str, data: str, holdout: str, budget: str, rule: str, known: Mapping[str, Any]
) -> Recipe:
    """One cell of the study: the setting, with steps for its budget and its tuned rate.

    Args:
        network, data, holdout, rule: see ``setting``.
        budget: key of BUDGETS.
        known: from ``measured``.
    """
    about = known[network]
    steps = steps_within(
        BUDGETS[budget],
        plateau=about["plateau"],
        cost=about["rules"][rule]["cost"],
        fit=about["rules"][rule]["fit"],
    )
    return replace(
        setting(network, data, holdout, rule),
        name=f"equal-time/{network}/{data}/{holdout}/{budget}/{rule}",
        steps=steps,
        evaluate_every=max(1, steps // EVALUATIONS),
        learning_rate=about["rules"][rule]["learning_rate"],
    )


def _cells(known: Mapping[str, Any]) -> list[Recipe]:
    """All cells of the networks that were measured, the most telling first."""
    wanted: list[tuple[str, str, str, str, str]] = []
    for budget in ("1x", "0.5x", "2x"):
        for data in data_of("mlp"):
            for rule in RULES:
                wanted += [("mlp", data, h, budget, rule) for h in holdouts(rule)]
    for data in data_of("cnn"):
        for rule in RULES:
            for holdout in holdouts(rule):
                if holdout != "clean" or rule in _FIVE_WITH_CLEAN_HOLDOUT:
                    wanted.append(("cnn", data, holdout, "1x", rule))
        wanted += [("cnn", data, holdouts(r)[0], "0.5x", r) for r in sorted(_HALF_WITH_CNN)]
    for network in ("cnn", "mlp"):
        wanted += [(network, data, "noisy", "0.75x", FINER) for data in data_of(network)]
    wanted += [
        (network, data, holdouts(rule)[0], "1x", rule)
        for network, data in _SLICES.items()
        for rule in rules_of(network)
    ]
    return [
        cell(*where, known)
        for where in wanted
        if "learning_rate" in known.get(where[0], {}).get("rules", {}).get(where[4], {})
    ]


EQUAL_TIME: tuple[Recipe, ...] = tuple(_cells(measured()))

ON_THE_CLOCK: tuple[Recipe, ...] = tuple(
    replace(recipe, name=recipe.name.replace("equal-time", "on-the-clock", 1))
    for recipe in EQUAL_TIME
    if "/1x/" in recipe.name
)
"""The cells of budget 1 again, for runs one by one whose seconds confirm what was reckoned."""
