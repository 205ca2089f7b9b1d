"""A schedule around any rule: when it chooses, and what share of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from reducible import schedules
from reducible.picks._checks import check_k
from reducible.selectors.base import Choice, Look, Selector
from reducible.types import ConfigurationError, Evidence, Selection, require_between


@final
class Scheduled(Selector):
    """The inner rule chooses a share of the rows, chance the others.

    The share is 0 before ``start`` and from ``end`` on, rises to 1 − ``mix`` over ``warmup`` steps
    after ``start``, and falls to 0 over the last ``anneal`` steps before ``end``. The rule is asked
    at every ``every``-th step only. Where it is not asked, nothing is measured, and only the rows
    drawn are loaded. Where a choice is handed out in several updates, the rule's rows come first.

    Args:
        selector: any rule that decides by candidate batch.
        start: first step at which it chooses.
        end: first step at which it no longer does; never where None.
        every: ask it every so many steps from ``start`` on; uniform between.
        warmup: steps over which its share grows.
        anneal: steps over which its share shrinks; needs ``end``.
        mix: share of the rows that is left to chance at every step; the schedule above is of the
            others.
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

    def is_blind(self, step: int, k: int) -> bool:
        """Whether the inner rule chooses none of the k rows."""
        return self._by_rule(step, k) == 0

    def _by_rule(self, step: int, k: int) -> int:
        """Rows out of k that the inner rule chooses at ``step``."""
        return math.floor(self.share(step) * k + 0.5)

    def _rows(self, evidence: Evidence, k: int) -> int:
        check_k(k, evidence.ids.numel())
        return self._by_rule(int(evidence.require("step")), k)

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows: the rule's, then random others."""
        by_rule = self._rows(evidence, k)
        if by_rule == 0:
            return _random(evidence.ids, k, None, generator)
        chosen = self._inner.select(evidence, by_rule, generator=generator)
        if by_rule == k:
            return chosen
        missing = k - chosen.index.numel()
        rest = _random(evidence.ids, missing, chosen.index, generator)
        weight = torch.cat([chosen.weight, rest.weight.to(chosen.weight)])
        return Selection(torch.cat([chosen.index, rest.index]), weight)

    def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
        """Ask the rule where its share is not zero; otherwise nothing is measured."""
        bare = look(frozenset({"step"}))
        by_rule = self._rows(bare, k)
        if by_rule == 0:
            return Choice(bare, _random(bare.ids, k, None, generator))
        if by_rule == k:
            return self._inner.choose(self._with_step(look), k, generator=generator)
        evidence = look(self.needs, samples=self.samples)
        return Choice(evidence, self.select(evidence, k, generator=generator))

    @staticmethod
    def _with_step(look: Look) -> Look:
        """``look`` whose evidence says the step too, which ``observe`` reads."""

        def both(
            needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
        ) -> Evidence:
            return look(needs | {"step"}, rows, samples=samples)

        return both

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Let the rule learn from what it chose itself."""
        by_rule = self._rows(evidence, selection.index.numel())
        if by_rule:
            own = replace(
                selection, index=selection.index[:by_rule], weight=selection.weight[:by_rule]
            )
            self._inner.observe(evidence, own)

    def state_dict(self) -> dict[str, Any]:
        """The inner rule's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into the inner rule."""
        self._inner.load_state_dict(state)


def _random(ids: Tensor, k: int, taken: Tensor | None, generator: torch.Generator) -> Selection:
    """k rows at random that are not among ``taken``."""
    order = torch.randperm(ids.numel(), generator=generator, device=ids.device)
    if taken is not None:
        order = order[~torch.isin(order, taken)]
    return Selection(order[:k], torch.ones(k, device=ids.device))
