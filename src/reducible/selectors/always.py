"""Rows that are always trained on if they are there; a rule chooses the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor

from reducible.picks._checks import check_k
from reducible.picks._draws import shuffled
from reducible.selectors.base import Choice, Composed, Look, Selector, given
from reducible.selectors.parts import Among, joined
from reducible.types import ConfigurationError, Evidence, Selection, require_between


@final
class Always(Selector):
    """Chooses certain ids whenever they are candidates; a rule chooses the other rows.

    For a trusted set inside the candidates: a plan brings its share of every candidate batch
    (``Plan.toward(…, share=n_trusted / n_B)``), and all of these rows are trained on, beside what
    the rule finds worth it. If more are there than may be chosen, chance decides; those left over
    are candidates for the rule as any other. The rule's rows come first.

    Args:
        selector: any rule that decides by candidate batch and never learns from what it did not
            choose itself.
        ids: [T] int64, those always chosen; a list or range too.
        most: share of the rows that they may take.

    Raises:
        ConfigurationError: a rule that cannot share its rows, or ids that are none.

    >>> from reducible import scores
    >>> from reducible.selectors.scored import Scored
    >>> rule = Always(Scored(scores.train_loss), ids=[11])
    >>> seen = Evidence(ids=torch.tensor([10, 11, 12]), loss=torch.tensor([0.2, 0.1, 0.3]))
    >>> rule.select(seen, 2, generator=torch.Generator()).index
    tensor([2, 1])
    """

    def __init__(
        self, selector: Selector, ids: Tensor | Sequence[int], *, most: float = 1.0
    ) -> None:
        if selector.horizon != "batch" or selector.takes_all:
            raise ConfigurationError(
                f"{type(selector).__name__} does not decide by candidate batch: rows cannot be "
                "set aside for certain ids. Take a rule that does."
            )
        if selector.hindsight:
            raise ConfigurationError(
                f"{type(selector).__name__} learns from rows that chance draws for it, and here "
                "others come between. Take another rule."
            )
        require_between("most", most, 0.0, 1.0, open_low=True)
        own = torch.as_tensor(ids)
        if own.dtype != torch.int64 or own.dim() != 1 or not own.numel():
            raise ConfigurationError(
                f"ids are int64 of shape [T], T ≥ 1; got {own.dtype} of shape {tuple(own.shape)}."
            )
        self._inner, self._ids, self._most = selector, own.unique(), most
        self.needs = selector.needs | ({"step"} if selector.sometimes_blind else set())
        self.samples = selector.samples
        self.lr_ratio = selector.lr_ratio
        self.repeats = selector.repeats

    @property
    def sometimes_blind(self) -> bool:
        """Always false: it reads the ids."""
        return False

    def is_blind(self, step: int, k: int, size: int) -> bool:
        """Always false."""
        return False

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows: the rule's, then those always chosen."""
        choice = self.choose(given(evidence), k, generator=generator)
        return replace(choice.selection, index=choice.positions)

    def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
        """Set rows aside, then ask the rule for the others, if any are left."""
        bare = look(self.needs & {"step"})
        size = bare.ids.numel()
        check_k(k, size)
        order = shuffled(size, generator=generator, like=bare.ids)
        self._ids = self._ids.to(order.device)
        ours = order[torch.isin(bare.ids[order], self._ids)][: math.floor(self._most * k)]
        few = k - ours.numel()
        if few == 0:
            return Choice(bare, Selection(ours, torch.ones(k, device=ours.device)))
        others = torch.ones(size, dtype=torch.bool, device=order.device).index_fill(0, ours, False)
        among = Among(look, others.nonzero().squeeze(1), bare)
        inner = self._inner.choose(among, few, generator=generator)
        own = among.rows.to(inner.positions.device)[inner.positions]
        return Choice(among.whole, joined(inner, own, ours.to(own.device)))

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Let the rule learn from what it chose itself."""
        if not isinstance(selection, Composed):
            return
        inner = selection.inner
        rows, size = inner.selection.index.numel(), inner.evidence.ids.numel()
        if self._inner.sometimes_blind:
            step = int(evidence.require("step"))
            if self._inner.is_blind(step, rows, size):
                return
        self._inner.observe(inner.evidence, inner.selection)

    def state_dict(self) -> dict[str, Any]:
        """The inner rule's state."""
        return self._inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Into the inner rule."""
        self._inner.load_state_dict(state)
