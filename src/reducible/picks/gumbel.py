"""Draws without replacement by the Gumbel trick."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reducible.picks._checks import check_scores
from reducible.picks._draws import exponential, shuffled
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
        generator: on any device.
        ids: [B] int64, named in errors.

    Returns:
        Selection of k rows in the order drawn, weights one, ``info["score"]`` [K] the log-weights.
    """
    check_scores(log_weights, k, ids)
    # Beside a huge log-weight the noise is rounded away: ties must still fall by the generator.
    index = top_k(_perturbed(log_weights, generator), k, generator=generator).index
    return Selection(
        index=index, weight=log_weights.new_ones(k), info={"score": log_weights[index]}
    )


def _perturbed(log_weights: Tensor, generator: torch.Generator) -> Tensor:
    """[B] float64: log-weight + Gumbel noise."""
    noise = exponential(log_weights.numel(), generator=generator, like=log_weights)
    return log_weights - noise.log_()


def soft_top_k(
    scores: Tensor,
    k: int,
    *,
    generator: torch.Generator,
    ids: Tensor | None = None,
    temperature: float = 1.0,
    correct: bool = False,
) -> Selection:
    """k draws without replacement with probability ∝ exp(score / temperature).

    With ``correct``, Σ w_i·L_i / k over the rows drawn is an unbiased estimate of the mean loss
    over the candidates (Kool et al. 2019, Sec. 4.2): w_i = k / (n_B·q_i) with
    q_i = 1 − exp(−exp(φ_i − κ)), φ_i the log-weight, κ the (k+1)-th largest of log-weight + Gumbel
    noise; q_i = 1 if k = n_B. The rows then come in random order, so that the same holds for any
    part of them that is trained on by itself.

    Args:
        scores: [B], finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on any device.
        ids: [B] int64, named in errors.
        temperature: > 0; towards 0 the k largest scores, towards ∞ uniform.
        correct: whether weights undo the bias; otherwise they are one.
    """
    log_weights = scores.double() / temperature  # [B]
    if not correct:
        drawn = gumbel_top_k(log_weights, k, generator=generator, ids=ids)
        return Selection(drawn.index, scores.new_ones(k), {"score": scores[drawn.index]})
    check_scores(log_weights, k, ids)
    size = scores.numel()
    log_weights = log_weights - log_weights.amax()  # a constant changes nothing but rounding
    perturbed = _perturbed(log_weights, generator)  # [B]
    index = top_k(perturbed, k, generator=generator).index
    index = index[shuffled(k, generator=generator, like=index)]
    q = torch.ones_like(log_weights)  # [B] probability of coming out above κ
    if k < size:
        kappa = perturbed.topk(k + 1).values[-1]
        q = -torch.expm1(-torch.exp(log_weights - kappa))
    weight = k / (size * q[index])
    return Selection(index, weight.to(scores.dtype), {"score": scores[index]})


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
        generator: on any device.
        ids: [B] int64, named in errors.
        pressure: > 1; the first rank is about so many times as likely as the last.
    """
    check_scores(scores, k, ids)
    size = scores.numel()
    order = shuffled(size, generator=generator, like=scores)
    best_first = order[scores[order].argsort(descending=True, stable=True)]  # [B]
    rank = torch.empty(size, dtype=torch.float64, device=scores.device)
    rank[best_first] = torch.arange(1, size + 1, dtype=torch.float64, device=scores.device)
    drawn = gumbel_top_k(-rank * (math.log(pressure) / size), k, generator=generator, ids=ids)
    return Selection(drawn.index, scores.new_ones(k), {"score": scores[drawn.index]})
