"""A row of the tables of scores and of selection rules."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Sources and values that several rows name.
RHO_LOSS = "Mindermann et al. 2022, RHO-LOSS"
EXTENSIONS = "Extensions of RHO-LOSS"
COUNT, POSITIVE, NOT_NEGATIVE = "whole number ≥ 1", "> 0", "≥ 0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Says of a rule how to make it, where it comes from, and what speaks against it.

    Attributes:
        make: a constructor: keyword hyperparameters → Selector; or a score, whose k largest are
            chosen (see ``scored``).
        equation: as the paper has it, in the notation of the documentation.
        paper: source and place in it.
        summary: one line on what it prefers.
        against: what the papers or our results say against it.
        ranges: hyperparameter → the values it may take, as text.
        limits: of a score: hyperparameter → the same as keywords of ``require_between``, if not
            every finite number will do.
        name: as ``selector`` and the command line know it; that of ``make`` if empty.
    """

    make: Callable[..., Any]
    equation: str
    paper: str
    summary: str
    against: str
    ranges: Mapping[str, str] = field(default_factory=dict[str, str])
    limits: Mapping[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])
    name: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", self.name or self.make.__name__)

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """Name → default of each hyperparameter; of a constructor."""
        parameters = inspect.signature(self.make).parameters
        return {name: p.default for name, p in parameters.items()}

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that the rule reads at its defaults; of a constructor."""
        return self.make().needs
