"""A row of the table of scores."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoreRow:
    """A score that is a selection rule by itself: the k largest are chosen.

    Attributes:
        score: the function; its name is the rule's.
        equation: as the paper has it, in the notation of the documentation.
        paper: source and place in it.
        summary: one line on what it prefers.
        against: what the papers or our results say against it.
        ranges: hyperparameter → the values it may take, as text.
        limits: hyperparameter → the same as keywords of ``require_between``, if not every
            finite number will do.
    """

    score: Callable[..., Tensor]
    equation: str
    paper: str
    summary: str
    against: str
    ranges: Mapping[str, str] = field(default_factory=dict[str, str])
    limits: Mapping[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.score.__name__
