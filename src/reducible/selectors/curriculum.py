"""Easy examples first, then RHO-LOSS."""

from __future__ import annotations

from typing import final

import torch

from reducible import scores
from reducible.picks import top_k
from reducible.picks._checks import check_scores
from reducible.scores import Row
from reducible.scores.rows import EXTENSIONS
from reducible.selectors.base import Selector
from reducible.types import Evidence, Selection, require_between


@final
class CurriculumRho(Selector):
    """Lowest L_i in the first epochs, the largest ρ_i after them.

    Args:
        warmup_epochs: passes over the candidates with the lowest loss first.
    """

    needs = frozenset({"loss", "irreducible_loss", "epoch"})

    def __init__(self, *, warmup_epochs: int = 4) -> None:
        require_between("warmup_epochs", warmup_epochs, 0, whole=True)
        self._warmup = warmup_epochs

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows."""
        loss = evidence.require("loss")
        rho = scores.rho(loss=loss, irreducible_loss=evidence.require("irreducible_loss"))
        check_scores(rho, k, evidence.ids)  # a broken store shows at once, not after the warm-up
        score = -loss if int(evidence.require("epoch")) < self._warmup else rho
        return top_k(score, k, generator=generator, ids=evidence.ids)


CURRICULUM_RHO_ROW = Row(
    name="curriculum_rho",
    make=CurriculumRho,
    equation="lowest L_i for some epochs, then top-k ρ_i",
    paper=EXTENSIONS,
    summary="Easy examples first.",
    against="Harmful: the report's run never reached 80 %.",
    ranges={"warmup_epochs": "whole number ≥ 0"},
)
