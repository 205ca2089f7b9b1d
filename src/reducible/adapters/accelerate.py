"""Selection in a loop of Accelerate's."""

from __future__ import annotations

from typing import Any, final

from torch import nn
from torch.utils.data import DataLoader

from reducible.adapters.planned import PlannedLoader
from reducible.selectors import Selector

try:
    from accelerate import Accelerator
except ImportError as error:
    raise ImportError(
        "reducible.adapters.accelerate needs accelerate: pip install 'reducible[accelerate]'"
    ) from error


@final
class SelectionLoader(PlannedLoader):
    """A train loader whose batches are ``Chosen``, in a script of Accelerate's.

    In the stead of ``accelerator.prepare(loader)``: it shares the candidates among the processes
    itself, without repeats, puts batches on the model's device, and its state goes into
    ``accelerator.save_state``. Where ``accelerator.accumulate`` gathers gradients, the rows of an
    update are chosen together.

    Args:
        accelerator: which knows of accumulation; it is told of this state.
        model: as ``accelerator.prepare`` returned it, so that scoring is in training's precision
            and goes through the wrapped model on every process.
        loader: a DataLoader as it is without selection, not prepared.
        rule: a rule, or its name.
        keep: share of the candidates to train on, in (0, 1].
        options: see ``PlannedLoader``: ``store``, ``task``, ``seed``, and those of SelectingLoader.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: nn.Module,
        loader: DataLoader[Any],
        rule: Selector | str,
        *,
        keep: float,
        **options: Any,
    ) -> None:
        self._accelerator = accelerator
        super().__init__(model, loader, rule, keep=keep, **options)
        accelerator.register_for_checkpointing(self)

    @property
    def accumulated(self) -> int:
        """Batches that an update is made of: what the accelerator accumulates."""
        return self._accelerator.gradient_accumulation_steps
