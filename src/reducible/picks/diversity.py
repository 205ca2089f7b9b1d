"""Greedy choices that trade a score against likeness to what is already chosen."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from reducible.picks._checks import check_scores
from reducible.picks._draws import shuffled
from reducible.types import Selection, require_finite

_CURE = "The model's features have diverged; no candidate is chosen by them."


def diverse_top_k(
    scores: Tensor,
    features: Tensor,
    k: int,
    *,
    lam: float,
    likeness: Literal["sum", "max"],
    generator: torch.Generator,
    ids: Tensor | None = None,
) -> Selection:
    """Greedily: argmax_i score_i − λ·Σ_{j∈S} cos(f_i, f_j), or max_{j∈S} in the sum's place.

    The first pick is the largest score; ties fall by the generator; the cosine with a zero vector
    is 0.

    Args:
        scores: [B], finite.
        features: [B, D], finite.
        k: how many, 1 ≤ k ≤ B.
        lam: λ ≥ 0.
        likeness: to all that is chosen, or to the most alike of it.
        generator: on any device.
        ids: [B] int64, named in errors.

    Returns:
        Selection of k rows in the order chosen, ``info["score"]`` [K] without the penalty.
    """
    check_scores(scores, k, ids)
    size = scores.numel()
    names = torch.arange(size, device=scores.device) if ids is None else ids
    require_finite(features, names, "a feature", _CURE)
    order = shuffled(size, generator=generator, like=scores)  # ties at random
    left = scores[order]  # [B] −inf once chosen
    unit = F.normalize(_rescaled(features[order]).to(scores.dtype), dim=1)  # [B, D] zero stays 0
    penalty = torch.zeros_like(left)  # [B]
    chosen = torch.empty(k, dtype=torch.int64, device=scores.device)
    for step in range(k):
        best = (left - lam * penalty).argmax()
        chosen[step] = best
        left.index_fill_(0, best, float("-inf"))
        cosine = unit @ unit.index_select(0, best.unsqueeze(0)).squeeze(0)  # [B]
        if likeness == "sum" or step == 0:
            penalty += cosine
        else:
            torch.maximum(penalty, cosine, out=penalty)
    index = order[chosen]
    return Selection(index=index, weight=scores.new_ones(k), info={"score": scores[index]})


def _rescaled(features: Tensor) -> Tensor:
    """Rows scaled to a largest entry of one, so that squares neither overflow nor vanish."""
    largest = features.abs().amax(dim=1, keepdim=True)  # [B, 1]
    return features / largest.clamp(min=torch.finfo(features.dtype).tiny)
