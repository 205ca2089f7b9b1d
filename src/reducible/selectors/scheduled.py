"""A schedule around any rule: when it chooses, and what share of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch

from reducible import schedules
from reducible.picks._checks import check_k
from reducible.picks._draws import shuffled
from reducible.selectors.base import Choice, Composed, Look, Selector, given
from reducible.selectors.parts import Among, joined
from reducible.types import ConfigurationError, Evidence, Selection, SelectionError, require_between


@final
class Scheduled(Selector):
    """The inner rule chooses a share of the rows, chance the others.

    The share is 0 before ``start`` and from ``end`` on, rises to 1 − ``mix`` over ``warmup`` steps
    after ``start``, and falls to 0 over the last ``anneal`` steps before ``end``. The rule is asked
    at every ``every``-th step only. If it is not asked, nothing is measured, and only the rows
    drawn are loaded. The rule's rows come first, which counts if a choice is handed out in several
    updates.

    No row comes twice, unless the rule draws with replacement. An unbiased rule stays unbiased:
    chance draws its rows first, from all candidates, and the rule chooses among the others, with
    the weights that it gives. Both parts, and what each leaves, are as the candidates on average.
    Any other rule chooses among all candidates, and chance among those that it leaves; chance also
    gives the rows that such a rule was asked for and did not give. The rule learns from its own
    rows alone.

    Args:
        selector: any rule that decides by candidate batch.
        start: first step at which it chooses.
        end: first step at which it no longer does; never if None.
        every: ask it every so many steps from ``start`` on; uniform between.
        warmup: steps over which its share grows.
        anneal: steps over which its share shrinks; needs ``end``.
        mix: share of the rows that is left to chance at every step; the schedule above is of the
            others.

    >>> from reducible import scores
    >>> from reducible.selectors.scored import Scored
    >>> rule = Scheduled(Scored(scores.rho), warmup=3)
    >>> [rule.share(step) for step in range(4)]
    [0.25, 0.5, 0.75, 1.0]
    """

    def __init__(
        self,
        selector: Selector,
        *,
        start: int = 0,
        end: int | None = None,
        every: int = 1,
        warmup: int = 0,
        anneal: int = 0,
        mix: float = 0.0,
    ) -> None:
        if selector.horizon != "batch":
            raise ConfigurationError("a schedule goes around rules that decide by candidate batch.")
        require_between("start", start, 0, whole=True)
        require_between("every", every, 1, whole=True)
        require_between("warmup", warmup, 0, whole=True)
        require_between("anneal", anneal, 0, whole=True)
        require_between("mix", mix, 0.0, 1.0, open_high=True)
        if end is not None:
            require_between("end", end, start, whole=True)
        elif anneal:
            raise ConfigurationError("anneal needs end=<step> to shrink towards.")
        self._inner = selector
        self._start, self._end, self._every = start, end, every
        self._warmup, self._anneal, self._mix = warmup, anneal, mix
        self.needs = selector.needs | {"step"}
        self.samples = selector.samples
        self.lr_ratio = selector.lr_ratio
        self.unbiased = selector.unbiased
        self.repeats = selector.repeats
        self.hindsight = selector.hindsight

    def share(self, step: int) -> float:
        """Share of the rows that the inner rule chooses at ``step``."""
        ended = self._end is not None and step >= self._end
        if ended or not schedules.every(step, n=self._every, start=self._start):
            return 0.0
        up = schedules.linear(step + 1, start=self._start, end=self._start + self._warmup + 1)
        if self._end is None or not self._anneal:
            return (1.0 - self._mix) * up
        down = 1.0 - schedules.linear(step, start=self._end - self._anneal, end=self._end)
        return (1.0 - self._mix) * min(up, down)

    @property
    def sometimes_blind(self) -> bool:
        """Always true: most schedules have steps without the rule."""
        return True

    def is_blind(self, step: int, k: int, size: int) -> bool:
        """Whether the inner rule chooses none of the k rows, or draws its share blindly itself."""
        by_rule = self._by_rule(step, k)
        return by_rule == 0 or self._inner.is_blind(step, by_rule, self._before(size, k, by_rule))

    def _by_rule(self, step: int, k: int) -> int:
        """Rows out of k that the inner rule chooses at ``step``."""
        return math.floor(self.share(step) * k + 0.5)

    def _before(self, size: int, k: int, by_rule: int) -> int:
        """Returns how many rows the inner rule chooses."""
        return size - (k - by_rule) if self.unbiased else size

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows: the rule's, then random others."""
        choice = self.choose(given(evidence), k, generator=generator)
        if not isinstance(choice.selection, Composed) or choice.rows is None:
            return choice.selection
        return replace(choice.selection, index=choice.positions)

    def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
        """Ask the rule if its share is not zero; otherwise nothing is measured."""
        bare = look(frozenset({"step"}))
        size = bare.ids.numel()
        check_k(k, size)
        by_rule = self._by_rule(int(bare.require("step")), k)
        if by_rule == 0:
            index = shuffled(size, generator=generator, like=bare.ids)[:k]
            return Choice(bare, Selection(index, torch.ones(k, device=index.device)))
        if by_rule == k:
            inner = self._inner.choose(look, k, generator=generator)
            own = inner.selection
            whole = Composed(own.index, own.weight, own.info, inner=inner)
            return Choice(inner.evidence, whole, inner.rows)
        if self.unbiased:
            return self._chance_first(look, bare, k, by_rule, generator)
        inner = self._inner.choose(look, by_rule, generator=generator)
        own = inner.positions
        order = shuffled(size, generator=generator, like=own)
        rest = order[~torch.isin(order, own)][: k - own.numel()]
        evidence = bare if inner.rows is not None else inner.evidence
        return Choice(evidence, joined(inner, own, rest))

    def _chance_first(
        self, look: Look, bare: Evidence, k: int, by_rule: int, generator: torch.Generator
    ) -> Choice:
        """Random rows of all candidates, and the inner rule's choice among the others."""
        order = shuffled(bare.ids.numel(), generator=generator, like=bare.ids)
        chance, others = order[: k - by_rule], order[k - by_rule :]
        among = Among(look, others, bare)
        inner = self._inner.choose(among, by_rule, generator=generator)
        if inner.selection.index.numel() != by_rule:
            raise SelectionError(
                f"{type(self._inner).__name__} says that it is unbiased, but chose "
                f"{inner.selection.index.numel()} rows when asked for {by_rule}: mixed with random "
                "rows, it would be biased. An unbiased rule gives as many as it is asked for."
            )
        own = others.to(inner.positions.device)[inner.positions]
        return Choice(among.whole, joined(inner, own, chance.to(own.device)))

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Let the rule learn from what it chose itself, or from its share of blindly drawn rows."""
        if isinstance(selection, Composed):
            self._inner.observe(selection.inner.evidence, selection.inner.selection)
            return
        rows = selection.index.numel()
        by_rule = self._by_rule(int(evidence.require("step")), rows)
        if by_rule == rows:
            self._inner.observe(evidence, selection)
        elif by_rule:
            own = torch.arange(by_rule, device=selection.index.device)
            plain = Selection(own, selection.weight[:by_rule])
            self._inner.observe(evidence.rows(selection.index[:by_rule]), plain)

    def state_dict(self) -> dict[str, Any]:
        """The inner rule's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into the inner rule."""
        self._inner.load_state_dict(state)
