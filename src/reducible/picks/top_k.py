"""The k largest scores, ties at random."""

import torch
from torch import Tensor

from reducible.picks._checks import check_scores
from reducible.types import Selection


def top_k(
    scores: Tensor, k: int, *, generator: torch.Generator, ids: Tensor | None = None
) -> Selection:
    """The k candidates with the largest scores, best first; ties fall by the generator.

    Shuffling first makes every order of equal scores equally likely, so that clipped scores do
    not favour low positions.

    Args:
        scores: [B], finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on the scores' device.
        ids: [B] int64, named in errors.

    Returns:
        Selection of k rows, weights one, ``info["score"]`` [K].

    Raises:
        SelectionError: a score is not finite, or k is out of range.
    """
    check_scores(scores, k, ids)
    order = torch.randperm(scores.numel(), generator=generator, device=scores.device)  # [B]
    best = scores.index_select(0, order).topk(k)
    return Selection(
        index=order.index_select(0, best.indices),
        weight=scores.new_ones(k),
        info={"score": best.values},
    )
