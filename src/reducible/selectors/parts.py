"""What rules that share the rows of a choice with another part are made of."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reducible.selectors.base import PER_ROW, Choice, Composed, Look
from reducible.types import Evidence


class Among:
    """A look at some of the candidates, which are measured together with all the others."""

    def __init__(self, look: Look, some: Tensor, bare: Evidence) -> None:
        self._look, self.rows = look, some  # [M] int64
        self.whole = bare  # evidence of all candidates, as measured last

    def __call__(
        self, needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
    ) -> Evidence:
        """Evidence of these candidates, or of the ``rows`` of them."""
        if rows is not None:
            return self._look(needs, self.rows.to(rows.device)[rows], samples=samples)
        self.whole = self._look(needs, samples=samples)
        return self.whole.rows(self.rows.to(self.whole.ids.device))


def joined(inner: Choice, own: Tensor, others: Tensor) -> Composed:
    """The rule's rows, then others, which have no score: positions [K]."""
    chosen, few = inner.selection, others.numel()
    weight = torch.cat([chosen.weight, chosen.weight.new_ones(few)])
    info = {
        name: torch.cat([value, value.new_full((few,), math.nan)]) if name in PER_ROW else value
        for name, value in chosen.info.items()
    }
    return Composed(torch.cat([own, others]), weight, info, inner=inner)
