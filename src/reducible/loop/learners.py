"""Owns the models that learn along with the one being trained, and steps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, final

from torch import Tensor, nn

from reducible.ledger import Ledger
from reducible.scoring import CapturedPredictions, CoTrained, Scoring
from reducible.tasks import Task


class _PendingStep(NamedTuple):
    """Chosen rows that a scorer is yet to learn, once the model has been run on them."""

    batch: Any
    weights: Tensor  # [K]
    captured: CapturedPredictions


@final
class Learners:
    """Steps a scorer and an irreducible-loss model on every batch that is handed out.

    Args:
        model: the model being trained.
        task: what batches mean.
        scoring: how the model is run if a scorer learns its predictions.
        ledger: charged for scoring.
        scorer: scores in the model's stead.
        irreducible: gives irreducible losses in the store's stead.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        scoring: Scoring,
        ledger: Ledger,
        *,
        scorer: CoTrained | None = None,
        irreducible: CoTrained | None = None,
    ) -> None:
        self.scorer, self.irreducible = scorer, irreducible
        self.any = scorer is not None or irreducible is not None
        """Whether there is one: then ``learn`` and ``finish`` are due."""
        self._model, self._task, self._scoring = model, task, scoring
        self._scoring_phase = ledger.phase("score")
        self._all = [learner for learner in (irreducible, scorer) if learner is not None]
        self._pending: _PendingStep | None = None

    def learn(self, batch: Any, weights: Tensor) -> None:
        """Step each on the batch that is handed out, with its weights ([K]).

        A scorer that learns predictions is stepped by ``finish``, because the model makes them in
        the training pass in between.
        """
        # Its predictions are of the batch before; the next pass would overwrite them.
        self.finish()
        # Both learn what the model learns, from the same rows and weights.
        for learner in self._all:
            if learner.distil:
                captured = CapturedPredictions(self._model, self._task, len(weights))
                self._pending = _PendingStep(batch, weights, captured)
            else:
                self._step(learner, batch, weights)

    def finish(self) -> None:
        """Step a scorer that learns predictions on the batch handed out last; once."""
        if self._pending is None or self.scorer is None:
            return
        (batch, weights, captured), self._pending = self._pending, None
        self._step(self.scorer, batch, weights, captured.predictions)

    def _step(
        self, learner: CoTrained, batch: Any, weights: Tensor, predictions: Tensor | None = None
    ) -> None:
        with self._scoring_phase:
            learner.step(
                self._task,
                batch,
                weights,
                trained=self._model,
                scoring=self._scoring,
                predictions=predictions,
            )

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimizers, after any step that is pending."""
        self.finish()
        return {
            "irreducible": None if self.irreducible is None else self.irreducible.state_dict(),
            "scorer": None if self.scorer is None else self.scorer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights and optimizers."""
        self._pending = None
        if self.irreducible is not None:
            self.irreducible.load_state_dict(state["irreducible"])
        if self.scorer is not None:
            self.scorer.load_state_dict(state["scorer"])
