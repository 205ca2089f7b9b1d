"""Bayesian active learning by disagreement."""

from torch import Tensor

from reducible.scores.conditional_entropy import conditional_entropy
from reducible.scores.entropy import entropy


def bald(*, mc_logits: Tensor) -> Tensor:
    """H[p̄_i] − mean_s H[p_is]: what the dropout passes disagree on (Houlsby et al. 2011).

    RHO-LOSS, App. G. Never negative but for rounding.

    Args:
        mc_logits: [S, B, C].

    Returns:
        [B], of the logits' dtype.

    >>> import torch
    >>> passes = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]])  # two, which disagree
    >>> bald(mc_logits=passes)
    tensor([0.6919])
    """
    return entropy(mc_logits=mc_logits) - conditional_entropy(mc_logits=mc_logits)
