"""Cheap scoring: whether it keeps the accuracy per step that exact scoring gives.

All ways of a study make the same number of updates; what they cost is in docs/scoring.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from reducible.lab.recipe import Recipe
from reducible.lab.studies.equal_time.recipes import setting

STUDIES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "cnn": {"model": "lenet", "train_examples": 20_000, "steps": 600},
        "resnet": {"model": "resnet-18-16", "train_examples": 20_000, "steps": 150},
        "resnet-longer": {"model": "resnet-18-16", "train_examples": 5_000, "steps": 300},
    }
)
"""Name → settings of its recipes: ten passes over D, two and a half, and twenty."""

_LOW: Mapping[str, Any] = {"precision": "bfloat16", "channels_last": True}

WAYS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "uniform": {"selector": "uniform"},
        "exact": {},
        "co-trained": {"scorer": "mlp-64"},
        "co-trained-lenet": {"scorer": "lenet"},
        "distilled": {"scorer": "mlp-64", "distil": True},
        "bfloat16": _LOW,
        "small": {**_LOW, "resolution": 14},
        "remembered": {},
        "remembered-bfloat16": _LOW,
        "wider": {"n_candidates": 1280, "updates_per_scoring": 4},
    }
)
"""Way → settings of the recipe, beside those of exact RHO-LOSS."""

PASSES: Mapping[str, float] = MappingProxyType({"remembered": 1.5, "remembered-bfloat16": 8.5})
"""Way → passes over D that a loss is remembered for. An example comes up once in a pass, so the
first scores every second time, the second every ninth."""

_NOT_WITH_CNN = frozenset({"small", "co-trained-lenet"})
_LONGER = frozenset({"uniform", "exact", "remembered-bfloat16"})


def ways_of(study: str) -> tuple[str, ...]:
    """The ways that are compared in ``study``."""
    if study == "resnet-longer":
        return tuple(way for way in WAYS if way in _LONGER)
    return tuple(way for way in WAYS if study != "cnn" or way not in _NOT_WITH_CNN)


def _scored(study: str, way: str) -> Recipe:
    """One wrong label in ten, a clean holdout."""
    known = {**STUDIES[study], **WAYS[way]}
    base = setting("cnn" if study == "cnn" else "resnet", "flip-10", "clean", "rho")
    if way in PASSES:
        updates_of_pass = known["train_examples"] // base.n_candidates
        known["max_age"] = int(PASSES[way] * updates_of_pass)
    return base.changed(
        name=f"scoring/{study}/{way}",
        evaluate_every=known["steps"],  # the end alone counts
        learning_rate=2e-3,
        **known,
    )


SCORING: tuple[Recipe, ...] = tuple(
    _scored(study, way) for study in STUDIES for way in ways_of(study)
)
