"""Picks: scores → Selection: how many, with or without chance, and with what weight."""

from reducible.picks.diversity import diverse_top_k
from reducible.picks.gumbel import gumbel_top_k, rank_sample, soft_top_k
from reducible.picks.importance import importance_sample, sampling_probabilities
from reducible.picks.residual_pursuit import residual_pursuit
from reducible.picks.top_k import top_k

__all__ = [
    "diverse_top_k",
    "gumbel_top_k",
    "importance_sample",
    "rank_sample",
    "residual_pursuit",
    "sampling_probabilities",
    "soft_top_k",
    "top_k",
]
