"""Rules that decide by epoch: which examples an epoch trains on, and in which order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from reducible.measure import Scoring, measure
from reducible.selectors import Selector
from reducible.stores import LossMemory, ids_of
from reducible.structure import to_device
from reducible.tasks import Task
from reducible.types import (
    Candidates,
    ConfigurationError,
    Evidence,
    Selection,
    SelectionError,
)


@final
class EpochPlanner:
    """Asks a rule with horizon ``"epoch"`` or ``"run"`` which examples the next epoch holds.

    Args:
        selector: the rule.
        dataset: map-style, with ids.
        n_b: rows per update.
        share: of the data set that an epoch trains on, n_b / n_B.
        proxy: scores all examples once, for rules that read logits (``svp``).
        task: what batches mean.
        loader: the data set in order, for the proxy.
    """

    def __init__(
        self,
        selector: Selector,
        dataset: Any,
        *,
        n_b: int,
        share: float,
        proxy: nn.Module | None,
        task: Task,
    ) -> None:
        self._selector = selector
        self._dataset = dataset
        self._ids = ids_of(dataset)  # [N]
        self._n_b = n_b
        self._k = min(len(self._ids), max(1, int(share * len(self._ids) + 0.5)))
        self._proxy, self._task = proxy, task
        if "logits" in selector.needs and proxy is None:
            raise ConfigurationError(
                "the selector scores the whole data set with a proxy model: pass proxy=<model "
                "trained on the train set>, e.g. from reducible.fit_proxy(…)."
            )
        self._memory = LossMemory(self._ids) if "loss" in selector.needs else None
        self._positions = torch.empty(0, dtype=torch.int64)  # [M] of this epoch, in order
        self._weights = torch.empty(0)  # [M]
        self._once: Selection | None = None  # the choice of a rule that decides once a run

    def remember(self, ids: Tensor, loss: Tensor, step: int) -> None:
        """Keep the losses of rows that were trained on."""
        if self._memory is not None:
            self._memory.remember(ids, loss, step)

    def plan(
        self, *, epoch: int, step: int, total_steps: int | None, generator: torch.Generator
    ) -> None:
        """Decide the next epoch, and shuffle it."""
        chosen = self._once
        if chosen is None:
            evidence = self._evidence(epoch, step, total_steps)
            chosen = self._selector.select(evidence, self._k, generator=generator)
            self._selector.observe(evidence, chosen)
            if self._selector.horizon == "run":
                self._once = Selection(chosen.index, chosen.weight)
        order = torch.randperm(chosen.index.numel(), generator=generator)
        self._positions, self._weights = chosen.index[order], chosen.weight[order]

    def _evidence(self, epoch: int, step: int, total_steps: int | None) -> Evidence:
        known = {"step": step, "epoch": epoch, "total_steps": total_steps}
        context = {n: torch.tensor(v) for n, v in known.items() if v is not None}
        loss = None
        if self._memory is not None:
            if epoch > 0 and self._memory.empty:
                raise SelectionError(
                    "the rule reads remembered losses, and an epoch has passed without any. After "
                    "each forward call batches.remember(chosen.ids, per_example_loss)."
                )
            loss = self._memory.in_data_order
        logits = self._proxy_logits() if "logits" in self._selector.needs else None
        return Evidence(ids=self._ids, loss=loss, logits=logits, context=context)

    def _proxy_logits(self) -> Tensor:
        """[N, C] of the proxy in eval mode, in the order of the data set."""
        assert self._proxy is not None
        device = next(self._proxy.parameters(), torch.empty(0)).device
        parts: list[Tensor] = []
        for ids, batch in _in_order(self._dataset):
            here = Candidates(ids, to_device(batch, device))
            needs, scoring = frozenset({"logits"}), Scoring(batchnorm="running")
            evidence = measure(self._proxy, here, needs, scoring, task=self._task)
            parts.append(evidence.require("logits").cpu())
        return torch.cat(parts)

    def __len__(self) -> int:
        """Updates of the epoch planned last; before that, of the rows that will be asked for."""
        return (self._positions.numel() or self._k) // self._n_b

    def batches(self) -> list[list[int]]:
        """Positions of each update of this epoch; a last short batch is dropped."""
        whole = len(self) * self._n_b
        return self._positions[:whole].view(-1, self._n_b).tolist()

    def weights(self, batch: int) -> Tensor:
        """[K] of the batch-th update of this epoch."""
        return self._weights[batch * self._n_b : (batch + 1) * self._n_b]

    def state_dict(self) -> dict[str, Any]:
        """The epoch's plan, remembered losses, and a choice made once."""
        return {
            "positions": self._positions,
            "weights": self._weights,
            "memory": self._memory.state_dict() if self._memory else None,
            "once": None if self._once is None else (self._once.index, self._once.weight),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over plan, losses and choice."""
        self._positions, self._weights = state["positions"], state["weights"]
        if self._memory is not None:
            self._memory.load_state_dict(state["memory"])
        self._once = None if state["once"] is None else Selection(*state["once"])


def _in_order(dataset: Any) -> Any:
    from torch.utils.data import DataLoader

    if hasattr(dataset, "loader"):
        return dataset.loader(1024, shuffle=False, drop_last=False)
    return DataLoader(dataset, batch_size=1024, generator=torch.Generator())
