"""Draws without replacement by the Gumbel trick."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reducible.picks._checks import check_scores
from reducible.picks.top_k import top_k
from reducible.types import Selection


def gumbel_top_k(
    log_weights: Tensor, k: int, *, generator: torch.Generator, ids: Tensor | None = None
) -> Selection:
    """k draws without replacement, each with probability ∝ exp(log-weight) of what is left.

    The k largest of log-weight + Gumbel noise are such draws, in order (Plackett–Luce; Kool et
    al. 2019).

    Args:
        log_weights: [B], finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on the weights' device.
        ids: [B] int64, named in errors.

    Returns:
        Selection of k rows in the order drawn, weights one, ``info["score"]`` [K] the log-weights.
    """
    check_scores(log_weights, k, ids)
    noise = torch.empty(log_weights.shape, dtype=torch.float64, device=log_weights.device)
    noise.exponential_(generator=generator).log_().neg_()
    # Beside a huge log-weight the noise is rounded away: ties must still fall by the generator.
    index = top_k(log_weights + noise, k, generator=generator).index
    return Selection(
        index=index, weight=log_weights.new_ones(k), info={"score": log_weights[index]}
    )


def soft_top_k(
    scores: Tensor,
    k: int,
    *,
    generator: torch.Generator,
    ids: Tensor | None = None,
    temperature: float = 1.0,
) -> Selection:
    """k draws without replacement with probability ∝ exp(score / temperature).

    Args:
        scores: [B], finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on the scores' device.
        ids: [B] int64, named in errors.
        temperature: > 0; towards 0 the k largest scores, towards ∞ uniform.
    """
    drawn = gumbel_top_k(scores.double() / temperature, k, generator=generator, ids=ids)
    return Selection(drawn.index, scores.new_ones(k), {"score": scores[drawn.index]})


def rank_sample(
    scores: Tensor,
    k: int,
    *,
    generator: torch.Generator,
    ids: Tensor | None = None,
    pressure: float = 100.0,
) -> Selection:
    """k draws without replacement with p_i ∝ exp(−log(pressure)/n_B)^rank_i, rank 1 the largest.

    Loshchilov & Hutter 2015; REDUCR, Eq. 10. Equal scores are ranked at random.

    Args:
        scores: [B], finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on the scores' device.
        ids: [B] int64, named in errors.
        pressure: > 1; the first rank is about so many times as likely as the last.
    """
    check_scores(scores, k, ids)
    size = scores.numel()
    order = torch.randperm(size, generator=generator, device=scores.device)
    best_first = order[scores[order].argsort(descending=True)]  # [B]
    rank = torch.empty(size, dtype=torch.float64, device=scores.device)
    rank[best_first] = torch.arange(1, size + 1, dtype=torch.float64, device=scores.device)
    drawn = gumbel_top_k(-rank * (math.log(pressure) / size), k, generator=generator, ids=ids)
    return Selection(drawn.index, scores.new_ones(k), {"score": scores[drawn.index]})
