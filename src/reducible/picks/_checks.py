"""Checks scores, for every pick."""

import math

import torch
from torch import Tensor

from reducible.types import SelectionError, require_finite

CURE = (
    "A diverged model (learning rate too high?) or an incomplete store gives such scores; "
    "no candidate is chosen from them."
)

_FEW = 1024  # scores up to which top_k finds ties among numbers rather than shuffles


def check_k(k: int, candidates: int) -> None:
    """Raise SelectionError unless 1 ≤ k ≤ candidates."""
    if not 1 <= k <= candidates:
        raise SelectionError(
            f"cannot choose {k} of {candidates} candidates: keep must be at least 1 and at most "
            "the size of the candidate batch."
        )


def check_shape(scores: Tensor, k: int) -> None:
    """Raise SelectionError unless ``scores`` is [B] and 1 ≤ k ≤ B."""
    if scores.dim() != 1:
        raise SelectionError(
            f"scores must be one number per candidate, [B]; got shape {tuple(scores.shape)}. "
            "A loss that is already reduced? Compute it with reduction='none'."
        )
    check_k(k, scores.numel())


def check_scores(scores: Tensor, k: int, ids: Tensor | None) -> None:
    """Raise SelectionError unless ``scores`` is [B], finite, and 1 ≤ k ≤ B."""
    check_shape(scores, k)
    require_finite(scores, _named(scores, ids), "the score", CURE)


def has_ties(scores: Tensor, largest: Tensor, ids: Tensor | None) -> bool:
    """Whether one of the ``largest`` ([K], best first) of ``scores`` ([B]) equals another score.

    Waits for an accelerator once, for this and for whether the scores are finite together.

    Raises:
        SelectionError: a score is not finite.
    """
    if scores.is_cpu and scores.numel() <= _FEW:
        numbers: list[float] = scores.tolist()
        finite = math.isfinite(sum(numbers))
        best: list[float] = largest.tolist()
        tied = len(set(best)) < len(best) or numbers.count(best[-1]) > 1
    else:
        repeated = (largest[1:] == largest[:-1]).any() | ((scores == largest[-1]).sum() > 1)
        finite, tied = torch.stack([scores.isfinite().all(), repeated]).tolist()
    if not finite:
        require_finite(scores, _named(scores, ids), "the score", CURE)
    return tied


def _named(scores: Tensor, ids: Tensor | None) -> Tensor:
    return torch.arange(scores.numel(), device=scores.device) if ids is None else ids
