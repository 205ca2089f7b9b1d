"""Rules by gradient norm: the largest, or importance sampling in proportion to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor

from reducible import scores
from reducible.picks import importance_sample, sampling_probabilities
from reducible.picks._checks import check_scores
from reducible.scores import Row
from reducible.selectors.base import Choice, Look, Selector, check_state_keys
from reducible.selectors.scored import Score, Scored
from reducible.selectors.uniform import Uniform
from reducible.types import Evidence, Selection, require_one_of

Bound = Literal["logits", "last_layer"]
BOUNDS: dict[str, Score] = {"logits": scores.grad_norm, "last_layer": scores.grad_norm_last_layer}
_DECAY = 0.9  # of the average of τ (Katharopoulos & Fleuret 2018)


def grad_norm(*, bound: Bound = "logits") -> Selector:
    """Top-k gradient norm: ``"logits"`` bounds it, ``"last_layer"`` is that layer's exactly."""
    require_one_of("bound", bound, list(BOUNDS))
    return Scored(BOUNDS[bound])


def variance_gain(norms: Tensor) -> Tensor:
    """τ, the batch growth that importance sampling is worth ([] float64, between 1 and √n_B).

    1/τ = √(1 − ‖g/Σg − 1/n_B‖² / ‖g/Σg‖²) (Katharopoulos & Fleuret 2018, Eq. 26).

    Args:
        norms: [B] g_i ≥ 0.

    >>> float(variance_gain(torch.tensor([0.0, 0.0, 3.0, 0.0])))
    2.0
    """
    p = sampling_probabilities(norms)  # [B]
    squared = p.square().sum()
    return (1.0 - (p - 1.0 / p.numel()).square().sum() / squared).rsqrt()


@final
class GradNormIS(Selector):
    """k draws with replacement, p_i = g_i/Σg, weight 1/(n_B·p_i); unbiased.

    Args:
        bound: ``"logits"`` or ``"last_layer"``, see ``grad_norm``.
        tau_gate: draw uniformly, without replacement, until the average of τ exceeds
            (n_B + 3k)/(3k), from which on importance sampling pays for its forward pass. Until
            then nothing is scored: rows are drawn blindly, and τ is that of the gradient norms of
            the k rows in their training pass. It is at most √k, so small batches never exceed it.
    """

    unbiased = True
    repeats = True

    def __init__(self, *, bound: Bound = "logits", tau_gate: bool = False) -> None:
        require_one_of("bound", bound, list(BOUNDS))
        require_one_of("tau_gate", tau_gate, (True, False))
        self._norms, self._blindly = Scored(BOUNDS[bound]), Uniform()
        self._gated = tau_gate
        self._tau = 0.0  # average of τ so far
        self.needs = self._norms.needs
        self.hindsight = self.needs if tau_gate else frozenset()

    @property
    def sometimes_blind(self) -> bool:
        """Whether there is a gate."""
        return self._gated

    def is_blind(self, step: int, k: int, size: int) -> bool:
        """Whether the gate is shut."""
        return self._gated and 3 * k * self._tau <= size + 3 * k

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows, perhaps repeated; without a look at the evidence while the gate is shut."""
        size = evidence.ids.numel()
        if self.is_blind(0, k, size):
            return self._blindly.select(evidence, k, generator=generator)
        norms = self._norms.score(evidence)
        return importance_sample(norms, k, generator=generator, ids=evidence.ids)

    def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
        """Measure the norms unless the gate is shut."""
        if self._gated:
            bare = look(frozenset())
            if self.is_blind(0, k, bare.ids.numel()):
                return Choice(bare, self.select(bare, k, generator=generator))
        return super().choose(look, k, generator=generator)

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Move the average of τ: of the candidates, or of the rows of a training pass."""
        if self._gated:
            norms = self._norms.score(evidence)
            check_scores(norms, selection.index.numel(), evidence.ids)
            tau = float(variance_gain(norms))
            self._tau = _DECAY * self._tau + (1.0 - _DECAY) * tau

    def state_dict(self) -> dict[str, Any]:
        """The average of τ."""
        return {"tau": self._tau}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the average of τ."""
        check_state_keys(self, state, {"tau"})
        self._tau = state["tau"]


GRAD_NORM_ROW = Row(
    name="grad_norm",
    make=grad_norm,
    equation="top-k ‖p_i − onehot(y_i)‖₂",
    paper="Katharopoulos & Fleuret 2018, as in RHO-LOSS",
    summary="The largest gradients.",
    against="Falls for wrong labels, as the training loss does.",
    ranges={"bound": '"logits" or "last_layer"'},
)

GRAD_NORM_IS_ROW = Row(
    name="grad_norm_is",
    make=GradNormIS,
    equation="p_i = g_i/Σg with replacement, w_i = 1/(n_B·p_i)",
    paper="Katharopoulos & Fleuret 2018",
    summary="Importance sampling by gradient norm: unbiased, lower variance.",
    against="Draws wrong labels more often, though it counts them less.",
    ranges={"bound": '"logits" or "last_layer"', "tau_gate": "True or False"},
)
