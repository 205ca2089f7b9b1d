"""One network with a low-rank adapter per group, and the loss it is fitted by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.fitting.fit import candidate_batches
from reducible.fitting.objectives import Scores
from reducible.scoring import without_graph
from reducible.tasks import Task
from reducible.types import Candidates


class GroupAdapters(nn.Module):
    """A network whose logits a low-rank adapter shifts per group: z_g = z + b_g + V_g·(P·f).

    Args:
        network: gives logits z [B, C] from features f [B, D], the input of its last linear layer.
        task: how the network is run.
        features: D.
        classes: C.
        groups: G.
        rank: rows of P.
    """

    def __init__(
        self, network: nn.Module, task: Task, features: int, classes: int, groups: int, rank: int
    ) -> None:
        super().__init__()
        self.network = network
        self.down = nn.Linear(features, rank, bias=False)  # P
        self.up = nn.Linear(rank, classes * groups)  # V and b, all groups in one product
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self._task, self._shape = task, (classes, groups)

    def forward(self, batch: Any, groups: Tensor | None = None) -> Tensor:
        """[B, C, G] logits, or [B, C, M] of the ``groups`` ([M] int64) alone.

        Groups stand last, where a softmax over classes runs along them at vector speed.
        """
        logits, features = self._task.forward(self.network, batch, features=True)
        assert features is not None
        low = self.down(features)  # [B, rank]
        if groups is None:
            shift: Tensor = self.up(low)  # [B, C·G]
        else:
            weight = self.up.weight.view(*self._shape, -1).index_select(1, groups)  # [C, M, rank]
            bias = self.up.bias.view(*self._shape).index_select(1, groups)  # [C, M]
            shift = F.linear(low, weight.flatten(0, 1), bias.flatten())  # [B, C·M]
        return logits.unsqueeze(2) + shift.view(*logits.shape, -1)


def with_adapters(
    network: nn.Module, task: Task, dataset: Any, groups: int, rank: int
) -> GroupAdapters:
    """The network with adapters of the sizes that a trial pass shows."""
    first = next(iter(candidate_batches(dataset, 2, shuffle=False)))
    with without_graph():
        logits, features = task.forward(network.eval(), first.batch, features=True)
    assert features is not None
    return GroupAdapters(network, task, features.shape[1], logits.shape[1], groups, rank)


_GROUPS_AT_ONCE = 10  # that an update and a check of a checkpoint look at, if there are more


@dataclass(frozen=True, slots=True)
class AdaptedLoss:
    """Mean over groups of the weighted losses of a network with adapters.

    Where there are many groups, every other update, by chance, is of the network alone, and the
    rest take a random few groups, which leaves their mean unbiased; checkpoints are told apart by a
    fixed few, and the kept one is scored for all.
    """

    task: Task
    smoothing: float
    groups_of: Callable[[Tensor, Tensor], Tensor]
    groups: int
    gamma: float
    all_groups: bool = False

    def _losses(
        self, model: nn.Module, batch: Any, targets: Tensor, groups: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, M] losses and [B, C, M] logits of the groups looked at."""
        logits = model(batch, groups)  # [B, C, M]
        return self.task.side_by_side(logits, targets), logits

    def _weight(self, ids: Tensor, targets: Tensor, groups: Tensor | None) -> Tensor:
        """[B, M]: 1 + γ at the example's own group."""
        looked_at = torch.arange(self.groups, device=targets.device) if groups is None else groups
        own = self.groups_of(ids, targets).unsqueeze(1) == looked_at  # [B, M]
        return 1.0 + self.gamma * own

    @property
    def _few(self) -> Tensor | None:
        """The groups that tell checkpoints apart, evenly spaced; None: all."""
        if self.all_groups or self.groups <= _GROUPS_AT_ONCE:
            return None
        return torch.arange(_GROUPS_AT_ONCE) * self.groups // _GROUPS_AT_ONCE

    def update_loss(self, model: nn.Module, candidates: Candidates, targets: Tensor) -> Tensor:
        """[B]: the mean over groups, of all, of a random few, or of none."""
        groups = None
        if self.groups > _GROUPS_AT_ONCE:
            if bool(torch.rand(()) < 0.5):
                return self._without_adapters(model, candidates.batch, targets)
            groups = torch.randperm(self.groups, device=targets.device)[: 2 * _GROUPS_AT_ONCE]
        loss, logits = self._losses(model, candidates.batch, targets, groups)
        loss = self._smoothed(loss, logits)
        return (loss * self._weight(candidates.ids, targets, groups)).mean(dim=1)

    def _without_adapters(self, model: nn.Module, batch: Any, targets: Tensor) -> Tensor:
        """[B]: while all groups are the network itself, with the mean of an example's weights."""
        logits = self.task.forward(model.get_submodule("network"), batch).logits  # [B, C]
        loss = self._smoothed(self.task.loss(logits, targets), logits)
        return (1.0 + self.gamma / self.groups) * loss

    def _smoothed(self, loss: Tensor, logits: Tensor) -> Tensor:
        """(1 − s)·L + s·mean_c(−log p_c): [B, …] of [B, C, …]."""
        if not self.smoothing:
            return loss
        return (1.0 - self.smoothing) * loss - self.smoothing * logits.log_softmax(1).mean(1)

    def score(
        self, model: nn.Module, candidates: Candidates, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Losses under every group [B, G], and logits averaged over the groups [B, C]."""
        loss, logits = self._losses(model, candidates.batch, targets, self._few)
        return loss, logits.mean(dim=2)

    def criterion(self, scores: Scores) -> float:
        """The weighted mean loss of each group, averaged."""
        assert scores.labels is not None
        w = self._weight(scores.ids, scores.labels, self._few).double()  # [N, M]
        return float(((scores.loss * w).sum(0) / w.sum(0)).mean())

    def whole(self) -> AdaptedLoss:
        """Scores all groups."""
        return self if self._few is None else replace(self, all_groups=True)
