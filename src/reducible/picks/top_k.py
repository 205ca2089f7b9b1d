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
    not favour low positions. It is left out where the k largest are seen to differ from each other
    and from the rest, for then every order of the candidates gives the same choice.

    Args:
        scores: [B], finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on the scores' device; draws where scores are tied, or more than a thousand.
        ids: [B] int64, named in errors.

    Returns:
        Selection of k rows, weights one, ``info["score"]`` [K].

    Raises:
        SelectionError: a score is not finite, or k is out of range.
    """
    numbers = check_scores(scores, k, ids)
    if numbers:
        best = scores.topk(k)
        largest = best.values.tolist()
        if len(set(largest)) == k and numbers.count(largest[-1]) == 1:
            return Selection(best.indices, scores.new_ones(k), {"score": best.values})
    order = torch.randperm(scores.numel(), generator=generator, device=scores.device)  # [B]
    best = scores.index_select(0, order).topk(k)
    index = order.index_select(0, best.indices)
    return Selection(index, scores.new_ones(k), {"score": best.values})
