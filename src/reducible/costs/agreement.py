"""Measures how far two rankings of the same rows agree."""

from __future__ import annotations

import torch
from torch import Tensor


def rank_correlation(a: Tensor, b: Tensor) -> float:
    """Spearman's ρ of a and b, both [B]: the correlation of their ranks, those of ties averaged.

    NaN if one of them is constant. Spearman, "The proof and measurement of association between
    two things", 1904.

    >>> round(rank_correlation(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([9.0, 10.0, 99.0])), 6)
    1.0
    """
    both = torch.stack([_ranks(a), _ranks(b)])  # [2, B]
    both = both - both.mean(1, keepdim=True)
    length = both.square().sum(1).sqrt()  # [2]
    return float((both[0] * both[1]).sum() / (length[0] * length[1]))


def _ranks(values: Tensor) -> Tensor:
    """[B] float64: 1 for the least of ``values`` ([B]); ties share the mean of their ranks."""
    _, inverse, counts = values.unique(return_inverse=True, return_counts=True)
    last = counts.double().cumsum(0)  # [D] the highest rank of each distinct value
    return (last - (counts - 1) / 2)[inverse]


def overlap(a: Tensor, b: Tensor, k: int) -> float:
    """Share of the k largest of a that are among the k largest of b; both [B].

    >>> overlap(torch.tensor([3.0, 2.0, 1.0]), torch.tensor([3.0, 1.0, 2.0]), 2)
    0.5
    """
    return len(set(a.topk(k).indices.tolist()) & set(b.topk(k).indices.tolist())) / k
