"""The gradient-norm rule, by either bound."""

from __future__ import annotations

from reducible import scores
from reducible.selectors.base import Selector
from reducible.selectors.scored import Score, Scored
from reducible.types import require_one_of

BOUNDS: dict[str, Score] = {"logits": scores.grad_norm, "last_layer": scores.grad_norm_last_layer}


def grad_norm(*, bound: str = "logits") -> Selector:
    """Top-k gradient norm: ``"logits"`` bounds it, ``"last_layer"`` is that layer's exactly."""
    require_one_of("bound", bound, list(BOUNDS))
    return Scored(BOUNDS[bound])
