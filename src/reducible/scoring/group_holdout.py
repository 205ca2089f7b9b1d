"""The group holdout loss H_c: the current model's mean loss on the holdout examples of a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from reducible.batches import device_of, to_device
from reducible.scoring.evidence import group_losses
from reducible.tasks import Task
from reducible.types import Candidates, ConfigurationError, SelectionError, require_between


@final
class GroupHoldoutLoss:
    """H, kept fresh: the whole holdout once an epoch, or a holdout batch every m steps.

    In batches, H is a de-biased exponential average (REDUCR, A.9.4); a group that is absent from a
    batch keeps its value. Eval mode, inputs as the loader gives them: do not augment. It must never
    hold test data.

    Args:
        loader: of the holdout. Refreshing by batch goes round it without end; what a stopped run
            had drawn is passed over when it is resumed, so let its order come from a generator of
            its own, or be fixed.
        num_groups: G.
        groups_of: (ids, targets) → groups [B]; the targets if None.
        refresh: ``"epoch"``, or every so many steps.
        decay: a of the average, in [0, 1).
    """

    def __init__(
        self,
        loader: Any,
        num_groups: int,
        *,
        groups_of: Callable[[Tensor | None, Tensor], Tensor] | None = None,
        refresh: Literal["epoch"] | int = "epoch",
        decay: float = 0.9,
    ) -> None:
        if refresh != "epoch":
            if not isinstance(refresh, int):
                raise ConfigurationError(
                    f"refresh is 'epoch' or a number of steps, got {refresh!r}."
                )
            require_between("refresh", refresh, 1, whole=True)
        require_between("decay", decay, 0.0, 1.0, open_high=True)
        self._loader = loader
        self._groups_of = groups_of
        self._refresh = refresh
        self._decay = decay
        self._sum = torch.zeros(num_groups, dtype=torch.float64)  # [G] weighted losses
        self._mass = torch.zeros(num_groups, dtype=torch.float64)  # [G] their weights
        self._done: tuple[int, int] | None = None  # (epoch, step) of the last refresh
        self._supply: Iterator[Any] | None = None
        self._drawn = 0  # batches taken from the supply

    def value(self, model: nn.Module, task: Task, *, epoch: int, step: int) -> Tensor:
        """H, [G] float64 on the model's device; refreshed if that is due."""
        device = device_of(model)
        if self._is_due(epoch, step):
            with torch.random.fork_rng([]):  # a DataLoader draws a seed of its workers
                self._measure(model, task, device)
            self._done = (epoch, step)
        unseen = self._mass == 0
        if bool(unseen.all()):
            raise SelectionError("the group holdout is empty: no batch came from its loader.")
        overall = self._sum.sum() / self._mass.sum()
        return torch.where(unseen, overall, self._sum / self._mass.clamp(min=1e-300)).to(device)

    def _is_due(self, epoch: int, step: int) -> bool:
        if self._done is None:
            return True
        last_epoch, last_step = self._done
        if isinstance(self._refresh, int):
            return step - last_step >= self._refresh
        return epoch != last_epoch

    def _measure(self, model: nn.Module, task: Task, device: torch.device) -> None:
        if self._refresh == "epoch":
            total, count = torch.zeros_like(self._sum), torch.zeros_like(self._mass)
            for batch in self._loader:
                a, b = self._of_batch(model, task, batch, device)
                total, count = total + a, count + b
            self._sum = torch.where(count > 0, total, self._sum)
            self._mass = torch.where(count > 0, count, self._mass)
            return
        if self._supply is None:
            self._supply = islice(_endless(self._loader), self._drawn, None)
        batch = next(self._supply, None)
        self._drawn += 1
        if batch is None:
            return
        a, b = self._of_batch(model, task, batch, device)
        here = b > 0
        mean = a / b.clamp(min=1.0)  # [G]
        decayed = self._decay * self._sum + (1.0 - self._decay) * mean
        self._sum = torch.where(here, decayed, self._sum)
        mass = self._decay * self._mass + (1.0 - self._decay)
        self._mass = torch.where(here, mass, self._mass)

    def _of_batch(
        self, model: nn.Module, task: Task, batch: Any, device: torch.device
    ) -> tuple[Tensor, Tensor]:
        """Sum of losses and number of examples per group: [G], [G] float64 on the CPU."""
        ids, content = batch if isinstance(batch, Candidates) else (None, batch)
        here = to_device(content, device)
        total, count = group_losses(model, here, ids, task, self._sum.numel(), self._groups_of)
        if not bool(total.isfinite().all()):
            bad = (~total.isfinite()).nonzero().flatten().tolist()
            raise SelectionError(
                f"the holdout's loss is not finite in groups {bad}: the model has diverged, or "
                "the holdout's inputs hold NaN. A group weight made of it would stay so for good."
            )
        return total, count

    def state_dict(self) -> dict[str, Any]:
        """Sums, their weights, and when they were last refreshed."""
        return {
            "sum": self._sum,
            "mass": self._mass,
            "done": self._done,
            "drawn": self._drawn,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over sums and weights."""
        self._sum, self._mass = state["sum"], state["mass"]
        self._drawn, self._supply = state["drawn"], None
        self._done = None if state["done"] is None else (state["done"][0], state["done"][1])


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        empty = True
        for batch in loader:
            empty = False
            yield batch
        if empty:
            return
