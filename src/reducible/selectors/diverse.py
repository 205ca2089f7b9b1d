"""RHO-LOSS that keeps away from what it has already chosen."""

from __future__ import annotations

from typing import Literal, final

import torch

from reducible import scores
from reducible.picks import diverse_top_k
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
