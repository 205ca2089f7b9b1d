"""The selector protocol: what it needs, what it selects, what it remembers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, final

import torch
from torch import Tensor

from reducible.types import ConfigurationError, Evidence, Selection


class Look(Protocol):
    """Measures the candidates, or the ``rows`` ([M] int64) of them; what the loop hands over."""

    def __call__(
        self, needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
    ) -> Evidence:
        """Evidence of the candidates at ``rows``, all of them if None."""
        ...


class Choice(NamedTuple):
    """A selection with the evidence it was made from."""

    evidence: Evidence
    selection: Selection
    rows: Tensor | None = None
    """[M] int64: the evidence's positions in the candidate batch; None if it has all."""

    @property
    def positions(self) -> Tensor:
        """[K] int64: the chosen positions in the candidate batch."""
        index = self.selection.index
        return index if self.rows is None else self.rows[index]


@final
@dataclass(frozen=True, slots=True, eq=False)
class Composed(Selection):
    """The selection of a rule that wraps another one, with that one's own choice.

    ``observe`` hands ``inner`` on, so that the wrapped rule learns from exactly what it chose, from
    the evidence that it chose by.
    """

    inner: Choice = field(kw_only=True)


PER_ROW = frozenset({"score"})
"""Entries of ``Selection.info`` that are [K]; the others are of the whole choice."""


def given(evidence: Evidence) -> Look:
    """A look at evidence that was measured already."""

    def look(needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0) -> Evidence:
        return evidence if rows is None else evidence.rows(rows)

    return look


class Selector(ABC):
    """Chooses k of B candidates from evidence. Abstract or final: to vary a rule, wrap it.

    >>> class First(Selector):
    ...     def select(self, evidence, k, *, generator):
    ...         return Selection(torch.arange(k), torch.ones(k))
    >>> evidence = Evidence(ids=torch.arange(5))
    >>> First().select(evidence, 2, generator=torch.Generator()).index
    tensor([0, 1])
    """

    needs: frozenset[str] = frozenset()
    """Evidence fields and context keys that ``select`` and ``observe`` read."""

    samples: int = 0
    """Dropout passes asked of ``measure``; ``select`` takes any number of them."""

    lr_ratio: float | None = None
    """If set, a live irreducible-loss model is trained at so many times the model's rate."""

    horizon: Literal["batch", "epoch", "run"] = "batch"
    """How often the rule decides: every candidate batch, once an epoch, or once a run."""

    takes_all: bool = False
    """Whether it must be offered every row (``keep=1.0``), because it leaves rows out itself."""

    keeps_order: bool = False
    """Whether an epoch trains on the rows in the order selected; otherwise they are shuffled."""

    unbiased: bool = False
    """Whether Σ w_i·L_i / K over the rows it chooses from a candidate batch is, on average over its
    draws, the mean loss of that batch. Such a rule gives as many rows as it is asked for."""

    repeats: bool = False
    """Whether it may choose a row twice, as draws with replacement do."""

    hindsight: frozenset[str] = frozenset()
    """Evidence that ``observe`` reads of rows that were drawn blindly, from the training pass.

    After a blind choice ``observe`` is not called with that choice but, if this is not empty, once
    the model was trained on the rows: with the evidence of these K rows (the context keys in
    ``needs`` with it), and a plain selection of all of them.
    """

    @property
    def sometimes_blind(self) -> bool:
        """Whether there may be a step at which ``is_blind`` is true."""
        return not self.needs

    def is_blind(self, step: int, k: int, size: int) -> bool:
        """Whether k of ``size`` rows chosen at ``step`` are random ones, with weights of one.

        The loop may then draw them before they are loaded: by ``select``, from ids and step.
        """
        return not self.needs

    @abstractmethod
    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """Choose at most k of the candidates; changes nothing but the generator.

        Raises:
            SelectionError: a score is not finite, or k is not in 1 … B.
            MissingEvidence: something in ``needs`` was not measured.
        """

    def ends_at(self, evidence: Evidence, selection: Selection) -> int | None:
        """The step at which an epoch planned by ``selection`` ends even if rows are left.

        Returns:
            A step after the one in the evidence, or None: the epoch ends with its rows.
        """
        return None

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Learn from a selection that is trained on; the only mutation.

        Gets the evidence and the selection of one ``select`` or ``choose``; see also ``hindsight``.
        Of a rule that decides by epoch it gets those rows that were handed out, in that order, once
        the epoch is over.
        """

    def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
        """Measure what is needed, then select. A rule of several stages looks several times."""
        evidence = look(self.needs, samples=self.samples)
        return Choice(evidence, self.select(evidence, k, generator=generator))

    def state_dict(self) -> dict[str, Any]:
        """All that ``observe`` has changed; always complete."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state made by ``state_dict`` of the same rule."""
        check_state_keys(self, state, set())


def check_state_keys(selector: object, state: Mapping[str, Any], expected: set[str]) -> None:
    """Raise ConfigurationError unless ``state`` has exactly the ``expected`` keys."""
    if set(state) != expected:
        raise ConfigurationError(
            f"state with keys {sorted(state)} given to {type(selector).__name__}, which saves "
            f"{sorted(expected)}: it was saved by another selector."
        )
