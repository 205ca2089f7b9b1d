"""Cheap scoring: whether it keeps the accuracy per step that exact scoring gives.

All ways of a network make the same number of updates; what they cost is in docs/scoring.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from reducible.recipe import Recipe
from reducible.recipes.equal_time import setting

STEPS: Mapping[str, int] = MappingProxyType({"cnn": 600, "resnet": 150})
"""Network, as in the equal-time study → updates."""

_LOW: Mapping[str, Any] = {"precision": "bfloat16", "channels_last": True}

WAYS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "uniform": {"selector": "uniform"},
        "exact": {},
        "co-trained": {"scorer": "mlp-64"},
        "distilled": {"scorer": "mlp-64", "distil": True},
        "bfloat16": _LOW,
        "small": {**_LOW, "resolution": 14},
        # An example comes up once per pass of 62 updates. Losses that last for one pass and a half
        # are taken from memory about every second time.
        "remembered": {"max_age": 93},
        "wider": {"n_candidates": 1280, "updates_per_scoring": 4},
    }
)
"""Way → settings of the recipe, beside those of exact RHO-LOSS."""

ONLY_RESNET = frozenset({"small"})


def _scored(network: str, way: str) -> Recipe:
    """One way on one network: one wrong label in ten, a clean holdout."""
    settings = dict(WAYS[way])
    if way == "remembered" and network == "resnet":
        settings["batchnorm"] = "running"  # few rows are scored at a time
    return replace(
        setting(network, "flip-10", "clean", "rho"),
        name=f"scoring/{network}/{way}",
        steps=STEPS[network],
        evaluate_every=STEPS[network],  # the end alone counts
        learning_rate=2e-3,
        **settings,
    )


SCORING: tuple[Recipe, ...] = tuple(
    _scored(network, way)
    for network in STEPS
    for way in WAYS
    if network == "resnet" or way not in ONLY_RESNET
)
