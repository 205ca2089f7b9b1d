"""A scorer that learns along with the model being trained."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from reducible.scoring.evidence import measure
from reducible.scoring.settings import Scoring
from reducible.tasks import Task, per_example
from reducible.types import Candidates, ConfigurationError, DataError


@final
class CoTrained:
    """A model with an optimizer of its own, stepped by the loop on every chosen batch.

    Args:
        model: on the device of the model being trained.
        optimizer: over the model's parameters.
        lead: take the learning rate of this optimizer at every step, times ``lr_ratio``.
        lr_ratio: see ``lead``.
        distil: learn the predictions of the model being trained in place of the labels: its
            softmax on the chosen rows, as the loop captures it in training, see
            ``CapturedPredictions``. If nothing is captured, the model is run once more on them.
        trunk: gives ``model`` its inputs [B, D]; is run as scoring runs a model, without a trace,
            and does not learn. See ``early_exit``.

    Attributes:
        model: what scores: the model, behind its trunk if it has one.
        distil: whether it learns predictions.

    >>> small = nn.Linear(4, 2)
    >>> scorer = CoTrained(small, torch.optim.SGD(small.parameters(), lr=0.1))
    >>> scorer.model is small
    True
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        lead: torch.optim.Optimizer | None = None,
        lr_ratio: float = 1.0,
        distil: bool = False,
        trunk: nn.Module | None = None,
    ) -> None:
        self.model = model if trunk is None else _Behind(trunk, model)
        self._learns = model
        self._optimizer = optimizer
        self._lead = lead
        self._lr_ratio = lr_ratio
        self.distil = distil
        self._trunk = trunk

    @classmethod
    def following(
        cls,
        model: nn.Module,
        lead: torch.optim.Optimizer,
        *,
        lr_ratio: float,
        distil: bool = False,
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
        return cls(model, optimizer, lead=lead, lr_ratio=lr_ratio, distil=distil)

    def step(
        self,
        task: Task,
        batch: Any,
        weights: Tensor,
        *,
        trained: nn.Module | None = None,
        scoring: Scoring | None = None,
        predictions: Tensor | None = None,
    ) -> None:
        """One update on the chosen batch: Σ w_i·L_i / K. Leaves the model in eval mode.

        Args:
            task: what the batch means.
            batch: the K chosen rows.
            weights: [K].
            trained: the model being trained, which ``distil`` needs; stays as it is.
            scoring: how it, and a trunk, are run.
            predictions: [K, C], the model's softmax on these rows, if it is known already.
        """
        if self._lead is not None:
            rate = self._lead.param_groups[0]["lr"] * self._lr_ratio
            for group in self._optimizer.param_groups:
                group["lr"] = rate
        scoring = scoring or Scoring()
        targets = predictions if self.distil else task.targets(batch)
        if targets is None:
            targets = self._predictions(task, batch, trained, scoring, len(weights))
        self._learns.train()
        device = weights.device
        devices = [] if device.type == "cpu" else [device]
        with torch.enable_grad(), torch.random.fork_rng(devices, device_type=device.type):
            if self._trunk is None:
                logits = task.forward(self._learns, batch).logits  # [K, C]
            else:
                inputs = _outputs(self._trunk, task, batch, scoring, len(weights))  # [K, D]
                logits = self._learns(inputs)
            loss = _cross_entropy(logits, targets) if self.distil else task.loss(logits, targets)
            loss = per_example(loss, len(weights))  # [K]
            self._optimizer.zero_grad()
            (loss * weights).mean().backward()
        self._optimizer.step()
        self._learns.eval()

    def _predictions(
        self, task: Task, batch: Any, trained: nn.Module | None, scoring: Scoring, rows: int
    ) -> Tensor:
        """[K, C]: the probabilities that the trained model gives."""
        if not self.distil:
            raise DataError("the task has no targets, so the scorer cannot be trained.")
        if trained is None:
            raise ConfigurationError("a distilled scorer learns from a model: pass trained=<it>.")
        whole = replace(scoring, resolution=None, max_length=None)
        return _outputs(trained, task, batch, whole, rows).softmax(1)

    def state_dict(self) -> dict[str, Any]:
        """Weights, buffers and the optimizer's state; a trunk's are not its own to save."""
        parts = {"model": self._learns.state_dict(), "optimizer": self._optimizer.state_dict()}
        return copy.deepcopy(parts)  # the originals move with the next step

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights, buffers and the optimizer's state."""
        self._learns.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def _cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """−Σ_c p_i(c) log q_i(c): [K] of q's logits and p, both [K, C]."""
    if logits.shape != probabilities.shape:
        raise ConfigurationError(
            f"the scorer gives {tuple(logits.shape)}, the model it is to learn from "
            f"{tuple(probabilities.shape)}: make it with as many classes."
        )
    return -(probabilities * logits.log_softmax(1)).sum(1)


def _outputs(model: nn.Module, task: Task, batch: Any, scoring: Scoring, rows: int) -> Tensor:
    """[K, ·] what ``model`` gives in its scoring mode; an ordinary tensor, without a graph."""
    norm = "candidates" if scoring.batchnorm == "reference" else scoring.batchnorm  # moves nothing
    scoring = replace(scoring, batchnorm=norm, compile=False)
    candidates = Candidates(torch.arange(rows), batch)
    found = measure(model, candidates, frozenset({"logits"}), scoring, task=task)
    return found.require("logits").clone()


class ModeOf(nn.Module):
    """A module that is in the mode of another one, and never sets it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def training(self) -> bool:
        """Mode of the other one; what scoring takes for frozen depends on it."""
        return self.inner.training

    @training.setter
    def training(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        pass

    def train(self, mode: bool = True) -> Self:
        """Does nothing."""
        return self


@final
class _Behind(ModeOf):
    """A head behind a trunk."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__(trunk)
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        features = self.inner(*args, **kwargs)  # [B, D]
        return self.head(features)
