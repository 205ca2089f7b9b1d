"""InfoBatch: unbiased dynamic pruning of what is learnt, epoch by epoch."""

from __future__ import annotations

from typing import final

import torch

from reducible.picks._checks import check_k
from reducible.selectors.base import Selector
from reducible.types import Evidence, Selection, SelectionError, name_ids, require_between


@final
class InfoBatch(Selector):
    """Of the ids whose remembered loss is below the mean, drop a share at random each epoch.

    The kept ones of them count 1/(1 − share), so that Σ w_i·L_i stays unbiased; everything is
    kept in the last part of the run (Qin et al. 2024). Ids never seen are kept. Where more than k
    ids stay, k of them are drawn uniformly.

    Args:
        prune_below_mean: share of the below-mean ids (not of all) that is dropped, in [0, 1).
        anneal: share of the run, at its end, that trains on everything, in [0, 1].
    """

    needs = frozenset({"loss", "step", "total_steps"})
    horizon = "epoch"

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
        step, total = int(evidence.require("step")), int(evidence.require("total_steps"))
        weight = torch.ones_like(loss)
        keep = torch.ones(size, dtype=torch.bool, device=loss.device)
        seen = ~loss.isnan()
        if step < (1.0 - self._anneal) * total and bool(seen.any()):
            below = seen & (loss.double() < loss[seen].double().mean())
            rows = below.nonzero().squeeze(1)
            mixed = rows[torch.randperm(rows.numel(), generator=generator, device=rows.device)]
            # A fractional number is rounded up or down by chance, so that it is right on average.
            extra = torch.rand((), dtype=torch.float64, generator=generator, device=rows.device)
            dropped = mixed[: int(self._share * rows.numel() + float(extra))]
            weight[below] = 1.0 / (1.0 - self._share)
            keep[dropped] = False
        order = torch.randperm(size, generator=generator, device=loss.device)
        index = order[keep[order]][:k]
        return Selection(index=index, weight=weight[index])
