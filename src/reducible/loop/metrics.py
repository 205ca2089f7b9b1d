"""Figures of what is chosen, for the loggers that people look at."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import final

import torch
from torch import Tensor

from reducible.ledger import Ledger
from reducible.stores import IrreducibleLossStore
from reducible.types import require_between


@final
class SelectionMetrics:
    """Sums up what is chosen, between one report and the next; pass it as ``record=``.

    - ``selection/score``: mean score of the chosen rows, as the rule gives it
    - ``selection/irreducible_loss``: their mean irreducible loss
    - ``selection/overlap_with_<shadow>``: share of them that the shadow would choose; of a shadow
      ``uniform``, that is what chance would choose
    - ``selection/corrupted``: share of them whose labels are known to be wrong
    - ``selection/scoring_share``: of the seconds so far, those that went into scoring

    Args:
        report: gets the figures and the step, every so often: ``writer.add_scalars``-like; None:
            they are asked for with ``take``.
        every: steps between reports.
        store: of irreducible losses.
        corrupted: [M] int64 ids whose labels are known to be wrong.
        ledger: whose seconds are shared out; the loop's.

    >>> metrics = SelectionMetrics(corrupted=torch.tensor([3]))
    >>> metrics.write(0, torch.tensor([3, 4]), torch.tensor([1.0, 2.0]), None)
    >>> metrics.take()
    {'selection/score': 1.5, 'selection/corrupted': 0.5}
    """

    def __init__(
        self,
        report: Callable[[dict[str, float], int], object] | None = None,
        *,
        every: int = 50,
        store: IrreducibleLossStore | None = None,
        corrupted: Tensor | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        require_between("every", every, 1, whole=True)
        self._report, self._every, self._store = report, every, store
        self._corrupted = None if corrupted is None else corrupted.cpu()
        self.ledger = ledger
        self._ids: list[Tensor] = []
        self._scores: list[Tensor] = []
        self._would: dict[str, list[Tensor]] = {}

    def write(self, step: int, ids: Tensor, scores: Tensor | None, weights: Tensor | None) -> None:
        """Takes in one step's choice: [K] each."""
        if self._report is not None and step and step % self._every == 0:
            self._report(self.take(), step)
        # Kept where they are: nothing is waited for before a report.
        self._ids.append(ids)
        if scores is not None:
            self._scores.append(scores.detach())

    def write_info(
        self, step: int, info: Mapping[str, Tensor], shadows: Mapping[str, Tensor]
    ) -> None:
        """Takes in what shadows would choose at the step written last: [K'] each."""
        for name, ids in shadows.items():
            here = self._ids[-1]
            self._would.setdefault(name, []).append(torch.isin(here, ids.to(here.device)))

    def take(self) -> dict[str, float]:
        """The figures since the last time; none if nothing was chosen."""
        if not self._ids:
            return {}
        found: dict[str, float] = {}
        ids = torch.cat([i.cpu() for i in self._ids])
        if self._scores:
            # Rows that chance chose, as in a warm-up, have none.
            found["score"] = float(torch.cat(self._scores).float().nanmean())
        if self._store is not None and not self._store.groups:
            found["irreducible_loss"] = float(self._store.lookup(ids).mean())
        for name, common in self._would.items():
            found[f"overlap_with_{name}"] = float(torch.cat(common).float().mean())
        if self._corrupted is not None:
            found["corrupted"] = float(torch.isin(ids, self._corrupted).float().mean())
        if self.ledger is not None and (total := sum(self.ledger.seconds.values())) > 0:
            found["scoring_share"] = self.ledger.seconds["score"] / total
        self._ids, self._scores, self._would = [], [], {}
        return {f"selection/{name}": value for name, value in found.items()}
