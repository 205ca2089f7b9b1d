"""Uniform selection: k candidates at random, without a forward pass."""

from __future__ import annotations

from typing import final

import torch

from reducible.picks._checks import check_k
from reducible.picks._draws import shuffled
from reducible.scores import Row
from reducible.scores.rows import RHO_LOSS
from reducible.selectors.base import Selector
from reducible.types import Evidence, Selection


@final
class Uniform(Selector):
    """k of B at random, without replacement. Needs nothing, so it costs nothing."""

    unbiased = True

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """A random k-subset of the candidates."""
        ids = evidence.ids
        check_k(k, ids.numel())
        order = shuffled(ids.numel(), generator=generator, like=ids)
        return Selection(index=order[:k], weight=torch.ones(k, device=ids.device))


UNIFORM_ROW = Row(
    name="uniform",
    make=Uniform,
    equation="k of B at random",
    paper=RHO_LOSS,
    summary="The baseline; costs nothing.",
    against="Spends updates on what is learnt already, and on wrong labels at their share.",
)
