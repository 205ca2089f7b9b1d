"""Rules by gradient norm: the largest, or importance sampling in proportion to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor

from reducible import scores
from reducible.picks import importance_sample, sampling_probabilities
from reducible.picks._checks import check_scores
from reducible.selectors.base import Selector, check_state_keys
from reducible.selectors.scored import Score, Scored
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
            (n_B + 3k)/(3k), where importance sampling begins to pay for its forward pass.
    """

    def __init__(self, *, bound: Bound = "logits", tau_gate: bool = False) -> None:
        require_one_of("bound", bound, list(BOUNDS))
        require_one_of("tau_gate", tau_gate, (True, False))
        self._norms = Scored(BOUNDS[bound])
        self._gated = tau_gate
        self._tau = 0.0  # average of τ so far
        self.needs = self._norms.needs

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k rows, perhaps repeated."""
        norms = self._norms.score(evidence)
        check_scores(norms, k, evidence.ids)
        size = norms.numel()
        if self._gated and self._tau <= (size + 3 * k) / (3 * k):
            index = torch.randperm(size, generator=generator, device=norms.device)[:k]
            return Selection(index, norms.new_ones(k), {"score": norms[index]})
        return importance_sample(norms, k, generator=generator, ids=evidence.ids)

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Move the average of τ."""
        if self._gated:
            tau = float(variance_gain(self._norms.score(evidence)))
            self._tau = _DECAY * self._tau + (1.0 - _DECAY) * tau

    def state_dict(self) -> dict[str, Any]:
        """The average of τ."""
        return {"tau": self._tau}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the average of τ."""
        check_state_keys(self, state, {"tau"})
        self._tau = state["tau"]
