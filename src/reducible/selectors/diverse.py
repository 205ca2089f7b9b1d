"""RHO-LOSS that keeps away from what it has already chosen."""

from __future__ import annotations

from typing import Literal, final

import torch

from reducible import scores
from reducible.picks import diverse_top_k
from reducible.scores import Row
from reducible.scores.rows import EXTENSIONS, NOT_NEGATIVE
from reducible.selectors.base import Selector
from reducible.types import Evidence, Selection, require_between, require_one_of


@final
class DiverseRho(Selector):
    """Greedily ρ_i − λ·likeness of f_i to the features already chosen.

    Args:
        lam: λ ≥ 0.
        likeness: ``"sum"`` of cosines, or the ``"max"`` of them.
    """

    needs = frozenset({"loss", "irreducible_loss", "features"})

    def __init__(self, *, lam: float, likeness: Literal["sum", "max"]) -> None:
        require_between("lam", lam, 0.0, open_high=True)
        require_one_of("likeness", likeness, ("sum", "max"))
        self._lam = lam
        self._likeness: Literal["sum", "max"] = likeness

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows, in the order chosen."""
        return diverse_top_k(
            scores.rho(
                loss=evidence.require("loss"),
                irreducible_loss=evidence.require("irreducible_loss"),
            ),
            evidence.require("features"),
            k,
            lam=self._lam,
            likeness=self._likeness,
            generator=generator,
            ids=evidence.ids,
        )


def rho_greedy_diversity(*, lam: float = 0.1) -> Selector:
    """ρ_i − λ·Σ_{j∈S} cos(f_i, f_j)."""
    return DiverseRho(lam=lam, likeness="sum")


def rho_hybrid_diversity(*, lam: float = 0.3) -> Selector:
    """ρ_i − λ·max_{j∈S} cos(f_i, f_j)."""
    return DiverseRho(lam=lam, likeness="max")


RHO_GREEDY_DIVERSITY_ROW = Row(
    name="rho_greedy_diversity",
    make=rho_greedy_diversity,
    equation="greedy argmax ρ_i − λ·Σ_{j∈S} cos(f_i, f_j)",
    paper=EXTENSIONS,
    summary="Reducible examples unlike all that is chosen.",
    against="The sum grows with S and drowns ρ; slower than RHO-LOSS (epoch 48 against 41).",
    ranges={"lam": NOT_NEGATIVE},
)

RHO_HYBRID_DIVERSITY_ROW = Row(
    name="rho_hybrid_diversity",
    make=rho_hybrid_diversity,
    equation="greedy argmax ρ_i − λ·max_{j∈S} cos(f_i, f_j)",
    paper=EXTENSIONS,
    summary="Reducible examples unlike the most alike that is chosen.",
    against="λ = 0.3 gave −3 epochs to 80 % on one seed, λ = 0.5 none.",
    ranges={"lam": NOT_NEGATIVE},
)
