"""What every pick asks of its scores before it chooses."""

import torch
from torch import Tensor

from reducible.types import SelectionError, require_finite

CURE = (
    "A diverged model (learning rate too high?) or an incomplete store gives such scores; "
    "no candidate is chosen from them."
)


def check_k(k: int, candidates: int) -> None:
    """Raise SelectionError unless 1 ≤ k ≤ candidates."""
    if not 1 <= k <= candidates:
        raise SelectionError(
            f"cannot choose {k} of {candidates} candidates: keep must be at least 1 and at most "
            "the size of the candidate batch."
        )


def check_scores(scores: Tensor, k: int, ids: Tensor | None) -> None:
    """Raise SelectionError unless ``scores`` is [B], finite, and 1 ≤ k ≤ B."""
    if scores.dim() != 1:
        raise SelectionError(
            f"scores must be one number per candidate, [B]; got shape {tuple(scores.shape)}. "
            "A loss that is already reduced? Compute it with reduction='none'."
        )
    check_k(k, scores.numel())
    if ids is None:
        ids = torch.arange(scores.numel(), device=scores.device)
    require_finite(scores, ids, "the score", CURE)
