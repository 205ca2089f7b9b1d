"""Importance sampling: draws with replacement, weights that undo their bias."""

from __future__ import annotations

import torch
from torch import Tensor

from reducible.picks._checks import check_scores
from reducible.types import Selection, SelectionError


def importance_sample(
    scores: Tensor, k: int, *, generator: torch.Generator, ids: Tensor | None = None
) -> Selection:
    """k draws with replacement with p_i = g_i / Σg and weight w_i = 1 / (n_B·p_i).

    Σ over draws of w_i·L_i / k is an unbiased estimate of the mean loss over the candidates with
    g_i > 0 (Katharopoulos & Fleuret 2018). Where all scores are zero, draws are uniform.

    Args:
        scores: [B] g_i ≥ 0, finite.
        k: how many, 1 ≤ k ≤ B.
        generator: on any device.
        ids: [B] int64, named in errors.

    Returns:
        Selection of k rows, some perhaps repeated.

    Raises:
        SelectionError: a score is negative or not finite, or k is out of range.
    """
    check_scores(scores, k, ids)
    p = sampling_probabilities(scores)  # [B] float64
    here = p.to(generator.device)
    index = torch.multinomial(here, k, replacement=True, generator=generator).to(p.device)
    weight = 1.0 / (scores.numel() * p[index])
    return Selection(index=index, weight=weight.to(scores.dtype), info={"score": scores[index]})


def sampling_probabilities(scores: Tensor) -> Tensor:
    """g_i / Σg in float64 ([B]); uniform if all g_i are zero."""
    if bool((scores < 0).any()):
        raise SelectionError("importance sampling needs scores that are not negative.")
    largest = scores.amax()
    if float(largest) == 0.0:
        return torch.full_like(scores, 1.0 / scores.numel(), dtype=torch.float64)
    scaled = scores.double() / largest  # huge scores would overflow the sum
    return scaled / scaled.sum()
