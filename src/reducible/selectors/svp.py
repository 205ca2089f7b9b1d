"""Selection via proxy: the most uncertain share of the data set, chosen once."""

from __future__ import annotations

from typing import Literal, final

import torch

from reducible import scores
from reducible.picks import top_k
from reducible.scores import Row
from reducible.selectors.base import Selector
from reducible.selectors.scored import Score
from reducible.types import Evidence, Selection, require_one_of

UNCERTAINTIES: dict[str, Score] = {
    "entropy": scores.entropy_of_logits,
    "least_confidence": scores.least_confidence,
    "margin": scores.margin,
}


@final
class SVP(Selector):
    """Before training, keep the k ids a proxy model is least certain of (Coleman et al. 2020).

    The proxy trains on the train set itself; give it to the loop as ``proxy=``.

    Args:
        uncertainty: ``"entropy"``, ``"least_confidence"`` or ``"margin"``.
    """

    needs = frozenset({"logits"})
    horizon = "run"

    def __init__(
        self, *, uncertainty: Literal["entropy", "least_confidence", "margin"] = "entropy"
    ) -> None:
        require_one_of("uncertainty", uncertainty, list(UNCERTAINTIES))
        self._score = UNCERTAINTIES[uncertainty]

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The k most uncertain."""
        score = self._score(logits=evidence.require("logits"))
        return top_k(score, k, generator=generator, ids=evidence.ids)


SVP_ROW = Row(
    name="svp",
    make=SVP,
    equation="once: top-k uncertainty of a proxy, then uniform",
    paper="Coleman et al. 2020",
    summary="The share of the data set that a proxy model is least certain of.",
    against="Uncertain examples hold most of the wrong labels; the worst baseline of RHO-LOSS.",
    ranges={"uncertainty": '"entropy", "least_confidence" or "margin"'},
)
