"""The original selection function, whose irreducible-loss model keeps learning."""

from __future__ import annotations

from typing import final

import torch

from reducible import scores
from reducible.scores import Row
from reducible.scores.rows import NOT_NEGATIVE, RHO_LOSS
from reducible.selectors.base import Selector
from reducible.selectors.scored import Scored
from reducible.types import Evidence, Selection, require_between


@final
class RhoUpdating(Selector):
    """Top-k L_i − L[y_i | x_i; D_ho, D_t] (RHO-LOSS, Eq. 2 and App. D).

    The loop measures the irreducible loss with a live model and trains that on every chosen batch
    too; give it as ``irreducible_model=``, with the model's ``optimizer=``.

    Args:
        lr_ratio: learning rate of the irreducible-loss model over the target's, ≥ 0.
    """

    def __init__(self, *, lr_ratio: float = 0.01) -> None:
        require_between("lr_ratio", lr_ratio, 0.0, open_high=True)
        self.lr_ratio = lr_ratio
        self._rho = Scored(scores.rho)
        self.needs = self._rho.needs

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The k largest."""
        return self._rho.select(evidence, k, generator=generator)


RHO_UPDATING_ROW = Row(
    name="rho_updating",
    make=RhoUpdating,
    equation="top-k L_i − L[y_i | x_i; D_ho, D_t]",
    paper=f"{RHO_LOSS}, Eq. 2 and App. D",
    summary="RHO-LOSS whose irreducible-loss model keeps learning.",
    against="Chooses more wrong labels late in training; lower final accuracy (Table 4).",
    ranges={"lr_ratio": NOT_NEGATIVE},
)
