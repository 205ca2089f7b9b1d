"""The k largest scores, ties at random."""

import torch
from torch import Tensor

from reducible.picks._checks import check_shape, has_ties
from reducible.picks._draws import shuffled
from reducible.types import Selection


def top_k(
    scores: Tensor, k: int, *, generator: torch.Generator, ids: Tensor | None = None
) -> Selection:
    """The k candidates with the largest scores, best first; ties fall by the generator.

    Shuffling first makes every order of equal scores equally likely, so that clipped scores do
    not favour low positions. It is left out if the k largest differ from each other and from the
    rest, because then every order of the candidates gives the same choice. Ties fall alike on every
    device, because they are broken on the CPU.

    Args:
        scores: [B], finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on any device; draws if scores are tied.
        ids: [B] int64, named in errors.

    Returns:
        Selection of k rows, weights one, ``info["score"]`` [K].

    Raises:
        SelectionError: a score is not finite, or k is out of range.
    """
    check_shape(scores, k)
    best = scores.topk(k)
    if not has_ties(scores, best.values, ids):
        return Selection(best.indices, scores.new_ones(k), {"score": best.values})
    here = scores.cpu()
    order = shuffled(here.numel(), generator=generator, like=here)  # [B]
    index = order.index_select(0, here.index_select(0, order).topk(k).indices)
    index = index.to(scores.device, non_blocking=True)
    return Selection(index, scores.new_ones(k), {"score": scores.index_select(0, index)})
