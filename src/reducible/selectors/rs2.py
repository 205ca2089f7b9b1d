"""RS2: a fresh random subset each epoch, without replacement across epochs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from reducible.picks._checks import check_k
from reducible.scores import Row
from reducible.selectors.base import Selector, check_state_keys
from reducible.types import Evidence, Selection


@final
class RS2(Selector):
    """k ids at random each epoch, none twice until all have been used (Okanovic et al. 2024).

    If fewer than k are unused, all of them come first and the rest is drawn anew from the others,
    which begins the next round. An id is used once it was handed out: those of a last, short batch
    that is dropped, or of an epoch that is broken off, come in a later epoch of the same round.
    """

    horizon = "epoch"
    keeps_order = True  # the last of a round before the first of the next one

    def __init__(self) -> None:
        self._used: Tensor | None = None  # [N] bool

    def _unused(self, evidence: Evidence) -> Tensor:
        """[N] bool."""
        ids = evidence.ids
        if self._used is None or self._used.numel() != ids.numel():
            return torch.ones(ids.numel(), dtype=torch.bool, device=ids.device)
        return ~self._used

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The k ids of an epoch."""
        ids = evidence.ids
        check_k(k, ids.numel())
        order = torch.randperm(ids.numel(), generator=generator, device=ids.device)
        unused = self._unused(evidence)[order]
        index = torch.cat([order[unused], order[~unused]])[:k]
        return Selection(index=index, weight=torch.ones(k, device=ids.device))

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Mark the ids handed out as used; once all are, a new round has begun."""
        unused = self._unused(evidence)
        fresh = unused[selection.index]
        unused[selection.index] = False
        if not bool(unused.any()):
            unused = torch.ones_like(unused)
            unused[selection.index[~fresh]] = False
        self._used = ~unused

    def state_dict(self) -> dict[str, Any]:
        """Marks the positions that are used in this round."""
        return {"used": self._used}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over which positions are used."""
        check_state_keys(self, state, {"used"})
        self._used = state["used"]


RS2_ROW = Row(
    name="rs2",
    make=RS2,
    equation="each epoch: k ids at random, none twice until all are used",
    paper="Okanovic et al. 2024, RS2",
    summary="A fresh random subset per epoch; costs nothing.",
    against="Looks at nothing; still beats most pruning methods.",
)
