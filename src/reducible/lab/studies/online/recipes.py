"""The online study: ways of choosing by loss, each in uniform's time, everything charged.

Costs and the plateau are the equal-time study's. All variants have the learning rate that its
rules of the same kind were tuned to, with a cosine decay, and a holdout with the noise of D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, final

from reducible.lab.recipe import Recipe
from reducible.lab.studies.equal_time.recipes import (
    EVALUATIONS,
    RULES,
    data_of,
    measured,
    setting,
    steps_within,
)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A way of choosing rows.

    Attributes:
        title: what it is, in one line.
        like: rule of the equal-time study that costs as much where this one chooses: they differ
            in arithmetic alone.
        settings: of the recipe.
    """

    title: str
    like: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])


_PLAN: Mapping[str, Any] = {"plan": "filter"}
_ALIKE = ("n_candidates", "updates_per_scoring", "precision")
_MILD = {name: RULES["plan-online"][name] for name in _ALIKE}
_ANNEAL: Mapping[str, Any] = {"select_anneal": 1.0}
_EARLY: Mapping[str, Any] = {"select_until": 0.5}
_MIXED: Mapping[str, Any] = {"random_share": 0.5}


def _mild(title: str, selector: str, *others: Mapping[str, Any], **hyperparameters: Any) -> Variant:
    """128 of 192, in four updates that share a scoring pass in low precision."""
    settings: dict[str, Any] = {**_MILD, "selector": selector, "hyperparameters": hyperparameters}
    for other in others:
        settings |= other
    return Variant(title=title, like="plan-online", settings=settings)


def _strong(title: str, selector: str, *others: Mapping[str, Any]) -> Variant:
    """32 of 320, scored exactly before every update."""
    settings: dict[str, Any] = {"selector": selector}
    for other in others:
        settings |= other
    return Variant(title=title, like="rho", settings=settings)


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "uniform": Variant(title="rows at random: the baseline", like="uniform"),
        "rho": _mild("the highest reducible losses (RHO-LOSS)", "rho"),
        "train-loss": _mild("the highest losses", "train_loss"),
        "rho-floor": _mild(
            "reducible losses that treat a label as random with probability 0.1, so that no loss "
            "counts for more than log(10/0.1) = 4.6",
            "rho_calibrated",
            floor=0.1,
        ),
        "rho-floor-30": _mild(
            "the same with probability 0.3: no loss counts for more than 3.5",
            "rho_calibrated",
            floor=0.3,
        ),
        "rho-temperature": _mild(
            "reducible losses with the model's logits halved, so that it counts as less sure",
            "rho_calibrated",
            temperature=2.0,
            floor=0.0,
        ),
        "rho-anneal": _mild(
            "RHO-LOSS for a share of the rows that shrinks from all to none over the run; the "
            "others at random",
            "rho",
            _ANNEAL,
        ),
        "rho-early": _mild(
            "RHO-LOSS in the first half of the steps, then at random", "rho", _EARLY
        ),
        "rho-soft": _mild(
            "drawn with probabilities that grow with the reducible loss",
            "rho_soft",
            temperature=1.0,
        ),
        "rho-soft-corrected": _mild(
            "the same, each row weighted so that on average the loss is that of all candidates",
            "rho_soft",
            temperature=1.0,
            correct=True,
        ),
        "rho-mixed": _mild("half of the rows by RHO-LOSS, half at random", "rho", _MIXED),
        "plan": Variant(
            title="at random from what the plan's filter keeps",
            like="plan-filter",
            settings=RULES["plan-filter"],
        ),
        "plan-rho": _mild("RHO-LOSS on what the filter keeps", "rho", _PLAN),
        "plan-rho-floor": _mild(
            "reducible losses with a floor of 0.1 on what the filter keeps",
            "rho_calibrated",
            _PLAN,
            floor=0.1,
        ),
        "plan-train-loss": _mild(
            "the highest losses of what the filter keeps", "train_loss", _PLAN
        ),
        "plan-train-loss-early": _mild(
            "the same in the first half of the steps, then at random from what the filter keeps",
            "train_loss",
            _PLAN,
            _EARLY,
        ),
        "plan-train-loss-mixed": _mild(
            "half of the rows by their loss, half at random, from what the filter keeps",
            "train_loss",
            _PLAN,
            _MIXED,
        ),
        "strong-rho": _strong("RHO-LOSS as published", "rho"),
        "strong-rho-floor": _strong(
            "reducible losses with a floor of 0.1",
            "rho_calibrated",
            {"hyperparameters": {"floor": 0.1}},
        ),
        "strong-rho-early": _strong(
            "RHO-LOSS in the first tenth of the steps, then at random", "rho", {"select_until": 0.1}
        ),
        "strong-rho-anneal": _strong(
            "RHO-LOSS for a share of the rows that shrinks from all to none over the run",
            "rho",
            _ANNEAL,
        ),
    }
)
"""Name in the study → what it is."""


def variant(data: str, name: str, known: Mapping[str, Any]) -> Recipe:
    """One cell of the study, with as many steps as fit into uniform's time to its plateau.

    Args:
        data: key of the equal-time study's DATA.
        name: key of VARIANTS.
        known: its ``measured()["mlp"]``.
    """
    about = VARIANTS[name]
    made = setting("mlp", data, "noisy", "uniform").changed(
        name=f"online/{data}/{name}",
        learning_rate=2e-3,
        **about.settings,
    )
    cost = step_cost(made, about.like, known)
    fit = known["rules"][about.like]["fit"] if made.reads_irreducible_loss else 0
    steps = steps_within(1.0, plateau=known["plateau"], cost=cost, fit=fit)
    return replace(made, steps=steps, evaluate_every=max(1, steps // EVALUATIONS))


def step_cost(recipe: Recipe, like: str, known: Mapping[str, Any]) -> float:
    """Mean cost of the recipe's steps, in uniform steps: what ``like`` costs while it chooses."""
    rules = known["rules"]
    at_random = rules["uniform" if recipe.plan == "none" else "plan-filter"]["cost"]
    share = recipe.select_until
    return share * rules[like]["cost"] + (1.0 - share) * at_random


_KNOWN = measured()["mlp"]
_COSTED = {"uniform", "plan-filter", *(v.like for v in VARIANTS.values())} <= set(_KNOWN["rules"])

ONLINE: tuple[Recipe, ...] = tuple(
    variant(data, name, _KNOWN) for data in data_of("mlp") for name in VARIANTS if _COSTED
)
"""All variants on all kinds of data, once the rules that they cost like have been measured."""
