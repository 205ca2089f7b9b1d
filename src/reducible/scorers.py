"""Models that score beside the one being trained, and learn along with it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from reducible.tasks import Task, per_example
from reducible.types import ConfigurationError, DataError


@final
class CoTrained:
    """A model with an optimizer of its own, stepped by the loop on every chosen batch.

    Args:
        model: on the device of the model being trained.
        optimizer: over the model's parameters.
        lead: take the learning rate of this optimizer at every step, times ``lr_ratio``.
        lr_ratio: see ``lead``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        lead: torch.optim.Optimizer | None = None,
        lr_ratio: float = 1.0,
    ) -> None:
        self.model = model
        self._optimizer = optimizer
        self._lead = lead
        self._lr_ratio = lr_ratio

    @classmethod
    def following(
        cls, model: nn.Module, lead: torch.optim.Optimizer, *, lr_ratio: float
    ) -> CoTrained:
        """With an optimizer of the lead's class and settings, at lr_ratio × its rate."""
        make: Any = type(lead)
        try:
            # Defaults may hold what the class sets by itself, such as AdamW's decoupled decay.
            known = inspect.signature(make).parameters
            settings = {name: v for name, v in lead.defaults.items() if name in known}
            optimizer = make(model.parameters(), **settings)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"cannot make another {type(lead).__name__} for the irreducible-loss model "
                f"({error}). Give the loop one of torch.optim's optimizers."
            ) from error
        return cls(model, optimizer, lead=lead, lr_ratio=lr_ratio)

    def step(self, task: Task, batch: Any, weights: Tensor) -> None:
        """One update on the chosen batch: Σ w_i·L_i / K. Leaves the model in eval mode."""
        if self._lead is not None:
            rate = self._lead.param_groups[0]["lr"] * self._lr_ratio
            for group in self._optimizer.param_groups:
                group["lr"] = rate
        self.model.train()
        device = weights.device
        devices = [] if device.type == "cpu" else [device]
        with torch.enable_grad(), torch.random.fork_rng(devices, device_type=device.type):
            targets = task.targets(batch)
            if targets is None:
                raise DataError("the task has no targets, so the scorer cannot be trained.")
            loss = per_example(
                task.loss(task.forward(self.model, batch).logits, targets), len(weights)
            )
            self._optimizer.zero_grad()
            (loss * weights).mean().backward()
        self._optimizer.step()
        self.model.eval()

    def state_dict(self) -> dict[str, Any]:
        """Weights, buffers and the optimizer's state."""
        parts = {"model": self.model.state_dict(), "optimizer": self._optimizer.state_dict()}
        return copy.deepcopy(parts)  # the originals move with the next step

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights, buffers and the optimizer's state."""
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
