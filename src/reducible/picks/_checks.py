"""What every pick asks of its scores before it chooses."""

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


def check_scores(scores: Tensor, k: int, ids: Tensor | None) -> list[float]:
    """Raise SelectionError unless ``scores`` is [B], finite, and 1 ≤ k ≤ B.

    Returns:
        The scores as numbers where there are at most a thousand; else nothing.
    """
    if scores.dim() != 1:
        raise SelectionError(
            f"scores must be one number per candidate, [B]; got shape {tuple(scores.shape)}. "
            "A loss that is already reduced? Compute it with reduction='none'."
        )
    size = scores.numel()
    check_k(k, size)
    numbers: list[float] = scores.tolist() if size <= _FEW else []
    if not (numbers and math.isfinite(sum(numbers))):
        ids = torch.arange(size, device=scores.device) if ids is None else ids
        require_finite(scores, ids, "the score", CURE)
    return numbers
