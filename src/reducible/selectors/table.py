"""The table of selection rules, and ``selector(name, …)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from reducible import scores
from reducible.selectors.base import Selector
from reducible.selectors.grad_norm import grad_norm
from reducible.selectors.scored import Score, Scored
from reducible.selectors.uniform import Uniform
from reducible.types import ConfigurationError


@dataclass(frozen=True, slots=True)
class Row:
    """One selection rule: how to build it, and where it comes from."""

    name: str
    build: Callable[..., Selector]
    equation: str
    paper: str
    summary: str

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """Name → default of each hyperparameter."""
        parameters = inspect.signature(self.build).parameters
        return {name: p.default for name, p in parameters.items()}

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that the rule reads at its defaults."""
        return self.build().needs


def scored(score: Score) -> Callable[..., Selector]:
    """A constructor for the top-k rule of ``score``; its defaults become hyperparameters."""

    def build(**hyperparameters: Any) -> Selector:
        return Scored(score, hyperparameters=hyperparameters)

    parameters = inspect.signature(score).parameters.values()
    keep = [p for p in parameters if p.default is not p.empty]
    build.__signature__ = inspect.Signature(keep)  # pyright: ignore[reportFunctionMemberAccess]
    return build


RHO_LOSS = "Mindermann et al. 2022, RHO-LOSS"

_ROWS = (
    Row("uniform", Uniform, "k of B at random", RHO_LOSS, "The baseline; costs nothing."),
    Row(
        "train_loss",
        scored(scores.train_loss),
        "top-k L_i",
        "Kawaguchi & Lu 2020, Ordered SGD",
        "The hardest examples; falls for wrong labels.",
    ),
    Row(
        "grad_norm",
        grad_norm,
        "top-k ‖p_i − onehot(y_i)‖₂",
        "Katharopoulos & Fleuret 2018",
        "The largest gradients; falls for wrong labels.",
    ),
    Row(
        "irreducible_loss",
        scored(scores.irreducible_loss),
        "top-k −IL_i",
        f"{RHO_LOSS}, baseline",
        "What a holdout model finds easy; never looks at what is learnt.",
    ),
    Row(
        "rho",
        scored(scores.rho),
        "top-k L_i − IL_i",
        f"{RHO_LOSS}, Eq. 3, Algorithm 1",
        "Learnable, worth learning, not yet learnt.",
    ),
)

SELECTORS: Mapping[str, Row] = MappingProxyType({row.name: row for row in _ROWS})
"""Every selection rule by name."""


def did_you_mean(name: str, known: Mapping[str, Any] | list[str]) -> str:
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
    return row.build(**hyperparameters)
