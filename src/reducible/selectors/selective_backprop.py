"""Selective backpropagation: the higher a loss stands among recent ones, the likelier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from reducible.picks import gumbel_top_k
from reducible.picks._checks import check_scores
from reducible.scores import Row
from reducible.scores.rows import COUNT, NOT_NEGATIVE
from reducible.selectors.base import Selector, check_state_keys
from reducible.types import Evidence, Selection, require_between


def percentile(loss: Tensor, recent: Tensor) -> Tensor:
    """CDF_R(L_i): the share of ``recent`` ([R]) at or below each loss ([B]); [B] float64."""
    at_or_below = torch.searchsorted(recent.sort().values, loss, right=True)
    return at_or_below.double() / recent.numel()


@final
class SelectiveBackprop(Selector):
    """k draws without replacement with p_i ∝ CDF_R(L_i)^β (Jiang et al. 2019).

    R are the last ``history`` losses seen, the candidates' own included, so that every candidate
    can be drawn.

    Args:
        beta: selectivity β ≥ 0; 0 is uniform.
        history: how many losses R holds.
    """

    needs = frozenset({"loss"})

    def __init__(self, *, beta: float = 1.0, history: int = 1024) -> None:
        require_between("beta", beta, 0.0, open_high=True)
        require_between("history", history, 1, whole=True)
        self._beta = beta
        self._history = history
        self._recent: Tensor | None = None  # [R], oldest first

    def _with(self, loss: Tensor) -> Tensor:
        """The history with these losses at its end, at least all of them."""
        seen = loss if self._recent is None else torch.cat([self._recent.to(loss), loss])
        return seen[-max(self._history, loss.numel()) :]

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows in the order drawn."""
        loss = evidence.require("loss")
        check_scores(loss, k, evidence.ids)
        log_weight = self._beta * percentile(loss, self._with(loss)).log()
        drawn = gumbel_top_k(log_weight, k, generator=generator, ids=evidence.ids)
        return Selection(drawn.index, loss.new_ones(k), {"score": loss[drawn.index]})

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Remember the losses of all candidates."""
        self._recent = self._with(evidence.require("loss"))[-self._history :].clone()

    def state_dict(self) -> dict[str, Any]:
        """The recent losses."""
        return {"recent": self._recent}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the recent losses."""
        check_state_keys(self, state, {"recent"})
        self._recent = state["recent"]


SELECTIVE_BACKPROP_ROW = Row(
    name="selective_backprop",
    make=SelectiveBackprop,
    equation="p_i ∝ CDF_R(L_i)^β, without replacement",
    paper="Jiang et al. 2019",
    summary="The higher a loss stands among recent ones, the likelier.",
    against="Falls for wrong labels.",
    ranges={"beta": NOT_NEGATIVE, "history": COUNT},
)
