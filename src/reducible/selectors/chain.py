"""Two rules in a row: a prefilter narrows the candidates, a second rule chooses among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch

from reducible.selectors.base import Choice, Look, Selector
from reducible.types import (
    ConfigurationError,
    Evidence,
    Selection,
    SelectionError,
    require_between,
)

_LATE = frozenset({"mc_logits"})  # measured on the survivors only


@final
class Chain(Selector):
    """The ``prefilter`` best candidates by one rule, of these k by another.

    One forward pass gives all that it can for both; what is dear (dropout passes) is measured on
    the survivors alone.

    Args:
        first: narrows the candidates; keeps no state.
        prefilter: how many it leaves, at least k.
        then: chooses k of them.
    """

    def __init__(self, first: Selector, *, prefilter: int, then: Selector) -> None:
        require_between("prefilter", prefilter, 1, whole=True)
        if first.horizon != "batch" or then.horizon != "batch":
            raise ConfigurationError("a chain is made of rules that decide by candidate batch.")
        if first.state_dict():
            raise ConfigurationError(
                f"the first rule of a chain keeps no state, {type(first).__name__} does: only the "
                "second is told what was chosen."
            )
        self._first = first
        self._prefilter = prefilter
        self._then = then
        self.needs = first.needs | then.needs
        self.samples = max(first.samples, then.samples)
        ratios = (r for r in (then.lr_ratio, first.lr_ratio) if r is not None)
        self.lr_ratio = next(ratios, None)

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The second rule's choice among the first's."""
        survivors = self._narrow(evidence, k, generator)
        second = self._then.select(evidence.rows(survivors), k, generator=generator)
        return replace(second, index=survivors[second.index])

    def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
        """Look at all candidates, then again at the survivors where that is needed."""
        late = (self._then.needs & _LATE) - self._first.needs
        early = look(self.needs - late, samples=self._first.samples)
        survivors = self._narrow(early, k, generator)
        evidence = early.rows(survivors)
        if late:
            seen = look(late, survivors, samples=self._then.samples)
            evidence = replace(evidence, mc_logits=seen.mc_logits)
        selection = self._then.select(evidence, k, generator=generator)
        return Choice(evidence, selection, survivors)

    def _narrow(self, evidence: Evidence, k: int, generator: torch.Generator) -> torch.Tensor:
        """[M] int64 positions of the survivors."""
        size = evidence.ids.numel()
        if not 1 <= k <= size:
            raise SelectionError(f"cannot choose {k} of {size} candidates.")
        keep = min(max(self._prefilter, k), size)
        return self._first.select(evidence, keep, generator=generator).index

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Passed on to the second rule."""
        self._then.observe(evidence, selection)

    def state_dict(self) -> dict[str, Any]:
        """The second rule's state."""
        return self._then.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into the second rule."""
        self._then.load_state_dict(state)
