"""InfoBatch: unbiased dynamic pruning of what is learnt, epoch by epoch."""

from __future__ import annotations

import math
from typing import final

import torch

from reducible.picks._checks import check_k
from reducible.scores import Row
from reducible.selectors.base import Selector
from reducible.types import Evidence, Selection, SelectionError, name_ids, require_between


@final
class InfoBatch(Selector):
    """Drops a share of the ids whose remembered loss is below the mean, at random each epoch.

    The kept ones of them count 1/(1 − share), so that over the M kept of N ids Σ w_i·L_i is an
    unbiased estimate of the sum over all N (Qin et al. 2024). A pruned epoch has M/N times the
    updates, and the mean of an update is in turn N/M times the mean loss: what stays the same is
    the sum over an epoch. Ids never seen are kept.

    In the last part of the run nothing is dropped: an epoch that was pruned ends there.

    If k < N ids are asked for, at most k of the kept are drawn uniformly, and weights are scaled
    by max(k, M)/N, so that Σ w_i·L_i / k is an unbiased estimate of the mean loss for any k. The
    loop asks for all of them (keep = 1.0), as in the paper: fewer would make an epoch no shorter.

    Args:
        prune_below_mean: share of the below-mean ids (not of all) that is dropped, in [0, 1).
        anneal: share of the run's updates, at its end, that trains on everything, in [0, 1].
    """

    needs = frozenset({"loss", "step", "total_steps"})
    horizon = "epoch"
    takes_all = True

    def __init__(self, *, prune_below_mean: float = 0.5, anneal: float = 0.125) -> None:
        require_between("prune_below_mean", prune_below_mean, 0.0, 1.0, open_high=True)
        require_between("anneal", anneal, 0.0, 1.0)
        self._share = prune_below_mean
        self._anneal = anneal

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The ids of an epoch; a NaN loss marks an id never seen."""
        loss = evidence.require("loss")  # [N]
        size = loss.numel()
        check_k(k, size)
        if bool(loss.isinf().any()):
            raise SelectionError(
                f"the remembered loss is infinite for ids {name_ids(evidence.ids[loss.isinf()])}."
            )
        step, border = int(evidence.require("step")), self._border(evidence)
        weight = torch.ones_like(loss)
        keep = torch.ones(size, dtype=torch.bool, device=loss.device)
        seen = ~loss.isnan()
        if step < border and bool(seen.any()):
            below = seen & (loss.double() < loss[seen].double().mean())
            rows = below.nonzero().squeeze(1)
            mixed = rows[torch.randperm(rows.numel(), generator=generator, device=rows.device)]
            # A fractional number is rounded up or down by chance, so that it is right on average.
            extra = torch.rand((), dtype=torch.float64, generator=generator, device=rows.device)
            dropped = mixed[: int(self._share * rows.numel() + float(extra))]
            weight[below] = 1.0 / (1.0 - self._share)
            keep[dropped] = False
        order = torch.randperm(size, generator=generator, device=loss.device)
        kept = order[keep[order]]  # [M]
        index = kept[:k]
        scale = max(k, kept.numel()) / size  # 1 if all are asked for
        return Selection(index=index, weight=weight[index] * scale)

    def ends_at(self, evidence: Evidence, selection: Selection) -> int | None:
        """The first step that trains on everything, if the selection is less than that."""
        everything = selection.index.numel() == evidence.ids.numel()
        if everything and bool((selection.weight == 1.0).all()):
            return None
        border = self._border(evidence)
        return border if int(evidence.require("step")) < border else None

    def _border(self, evidence: Evidence) -> int:
        """The first step of the last part of the run."""
        total = int(evidence.require("total_steps"))
        return math.ceil(round((1.0 - self._anneal) * total, 6))  # 0.55 · 100 is above 55


INFOBATCH_ROW = Row(
    name="infobatch",
    make=InfoBatch,
    equation="each epoch: drop a share of the ids with L_i < L̄, weight the kept ones of them",
    paper="Qin et al. 2024, InfoBatch",
    summary="Fewer updates on what is learnt, without bias; no extra forward.",
    against="Keeps every wrong label: their loss stays above the mean. Takes keep = 1.0 alone.",
    ranges={"prune_below_mean": "[0, 1), of the below-mean ids", "anneal": "[0, 1]"},
)
