"""The table of selection rules, and ``selector(name, …)``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from reducible.scores import SCORES, Row
from reducible.selectors.adaptive_size import RHO_EMA_ROW
from reducible.selectors.base import Selector
from reducible.selectors.by_dropout import (
    BALD_ROW,
    CONDITIONAL_ENTROPY_ROW,
    ENTROPY_ROW,
    LOSS_MINUS_CONDITIONAL_ENTROPY_ROW,
)
from reducible.selectors.by_score import RHO_SOFT_ROW, TRAIN_LOSS_RANK_ROW, scored
from reducible.selectors.class_balanced import RHO_CLASS_BALANCED_ROW
from reducible.selectors.curriculum import CURRICULUM_RHO_ROW
from reducible.selectors.divbs import DIVBS_ROW
from reducible.selectors.diverse import RHO_GREEDY_DIVERSITY_ROW, RHO_HYBRID_DIVERSITY_ROW
from reducible.selectors.grad_norm import GRAD_NORM_IS_ROW, GRAD_NORM_ROW
from reducible.selectors.infobatch import INFOBATCH_ROW
from reducible.selectors.reducr import REDUCR_ROW
from reducible.selectors.rho_updating import RHO_UPDATING_ROW
from reducible.selectors.rs2 import RS2_ROW
from reducible.selectors.selective_backprop import SELECTIVE_BACKPROP_ROW
from reducible.selectors.svp import SVP_ROW
from reducible.selectors.two_stages import RHO_BALD_ROW, RHO_DIVBS_ROW, RHO_MARGIN_ROW
from reducible.selectors.uniform import UNIFORM_ROW
from reducible.types import ConfigurationError

_ROWS = (
    UNIFORM_ROW,
    *(replace(row, make=scored(row.make, row.limits)) for row in SCORES),
    GRAD_NORM_ROW,
    GRAD_NORM_IS_ROW,
    TRAIN_LOSS_RANK_ROW,
    RHO_UPDATING_ROW,
    SVP_ROW,
    BALD_ROW,
    ENTROPY_ROW,
    CONDITIONAL_ENTROPY_ROW,
    LOSS_MINUS_CONDITIONAL_ENTROPY_ROW,
    REDUCR_ROW,
    DIVBS_ROW,
    RHO_DIVBS_ROW,
    RHO_EMA_ROW,
    RHO_BALD_ROW,
    RHO_MARGIN_ROW,
    RHO_GREEDY_DIVERSITY_ROW,
    RHO_HYBRID_DIVERSITY_ROW,
    RHO_CLASS_BALANCED_ROW,
    CURRICULUM_RHO_ROW,
    RHO_SOFT_ROW,
    SELECTIVE_BACKPROP_ROW,
    INFOBATCH_ROW,
    RS2_ROW,
)

SELECTORS: Mapping[str, Row] = MappingProxyType({row.name: row for row in _ROWS})
"""Every selection rule by name."""


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the closest known name, or the list of them."""
    close = get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}."


def selector(name: str, **hyperparameters: Any) -> Selector:
    """The selection rule ``name`` with its hyperparameters.

    Raises:
        ConfigurationError: no such rule or hyperparameter (with the closest name), or a value
            that cannot work.

    >>> selector("rho").needs == {"loss", "irreducible_loss"}
    True
    """
    if name not in SELECTORS:
        raise ConfigurationError(f"no selector {name!r}. {did_you_mean(name, SELECTORS)}")
    row = SELECTORS[name]
    for given in hyperparameters:
        if given not in row.hyperparameters:
            known = row.hyperparameters
            hint = did_you_mean(given, known) if known else "It has none."
            raise ConfigurationError(f"selector {name!r} has no hyperparameter {given!r}. {hint}")
    return row.make(**hyperparameters)
