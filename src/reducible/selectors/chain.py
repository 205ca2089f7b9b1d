"""Two rules in a row: a prefilter narrows the candidates, a second rule chooses among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch

from reducible.selectors.base import PER_ROW, Choice, Composed, Look, Selector, given
from reducible.types import ConfigurationError, Evidence, Selection, SelectionError, require_between

_LATE = frozenset({"mc_logits"})  # measured on the survivors only


@final
class Chain(Selector):
    """The ``prefilter`` best candidates by one rule, of these k by another.

    One forward pass gives all that it can for both; what is dear (dropout passes) is measured on
    the survivors alone. A row's weight is the product of the two rules' weights, so that two
    unbiased rules make an unbiased chain: the second estimates the first's weighted mean.

    Args:
        first: narrows the candidates; keeps no state, and chooses no row twice.
        prefilter: how many it leaves, at least k.
        then: chooses k of them.

    Raises:
        ConfigurationError: rules that cannot be put in this order.

    >>> from reducible import scores
    >>> from reducible.selectors.scored import Scored
    >>> rule = Chain(Scored(scores.rho), prefilter=50, then=Scored(scores.margin))
    >>> sorted(rule.needs)
    ['irreducible_loss', 'logits', 'loss']
    """

    def __init__(self, first: Selector, *, prefilter: int, then: Selector) -> None:
        require_between("prefilter", prefilter, 1, whole=True)
        if first.horizon != "batch" or then.horizon != "batch":
            raise ConfigurationError("a chain is made of rules that decide by candidate batch.")
        if first.repeats:
            raise ConfigurationError(
                f"the first rule of a chain leaves different rows, {type(first).__name__} draws "
                "with replacement: a row drawn twice would be two candidates for the second. Let "
                "it choose second: Chain(<the other rule>, prefilter=…, then=<this one>)."
            )
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
        self.unbiased = first.unbiased and then.unbiased
        self.repeats = then.repeats
        self.hindsight = then.hindsight if first.sometimes_blind else frozenset()
        ratios = (r for r in (then.lr_ratio, first.lr_ratio) if r is not None)
        self.lr_ratio = next(ratios, None)

    @property
    def sometimes_blind(self) -> bool:
        """Whether there may be a step at which both rules draw at random."""
        return self._first.sometimes_blind and self._then.sometimes_blind

    def is_blind(self, step: int, k: int, size: int) -> bool:
        """Whether both rules draw at random."""
        left = self._left(k, size)
        return self._first.is_blind(step, left, size) and self._then.is_blind(step, k, left)

    def _left(self, k: int, size: int) -> int:
        """Returns how many of ``size`` candidates survive."""
        return min(max(self._prefilter, k), size)

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The second rule's choice among the first's."""
        choice = self._choose(given(evidence), evidence, k, generator)
        return replace(choice.selection, index=choice.positions)

    def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
        """Look at all candidates, then again at the survivors if that is needed.

        Where both rules draw at random, nothing is measured.
        """
        if self.sometimes_blind:
            bare = look(self.needs & {"step"})
            step = int(bare.context.get("step", torch.tensor(0)))
            if self.is_blind(step, k, bare.ids.numel()):
                return self._choose(given(bare), bare, k, generator)
        early = look(self.needs - self._late(), samples=self._first.samples)
        return self._choose(look, early, k, generator)

    def _late(self) -> frozenset[str]:
        """Names what is measured on the survivors alone."""
        return (self._then.needs & _LATE) - self._first.needs

    def _choose(self, look: Look, early: Evidence, k: int, generator: torch.Generator) -> Choice:
        """The second rule's choice among the first's, whose evidence is there already."""
        size = early.ids.numel()
        if not 1 <= k <= size:
            raise SelectionError(f"cannot choose {k} of {size} candidates.")
        first = self._first.select(early, self._left(k, size), generator=generator)
        evidence, late = early.rows(first.index), self._late()
        if late:
            seen = look(late, first.index, samples=self._then.samples)
            evidence = replace(evidence, mc_logits=seen.mc_logits)
        then = self._then.select(evidence, k, generator=generator)
        weight = first.weight.index_select(0, then.index) * then.weight
        info = {name: value for name, value in first.info.items() if name not in PER_ROW}
        selection = Composed(
            then.index, weight, {**info, **then.info}, inner=Choice(evidence, then)
        )
        return Choice(evidence, selection, first.index)

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Passed on to the second rule: the survivors' evidence, and what it chose of them."""
        if isinstance(selection, Composed):
            evidence, selection, _ = selection.inner
        self._then.observe(evidence, selection)

    def state_dict(self) -> dict[str, Any]:
        """The second rule's state."""
        return self._then.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into the second rule."""
        self._then.load_state_dict(state)
