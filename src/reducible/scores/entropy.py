"""Entropies of predictions, in nats."""

import math

import torch
from torch import Tensor


def entropy_of(log_p: Tensor) -> Tensor:
    """H[p] = −Σ_c p_c log p_c over the last dimension, 0·log 0 = 0.

    Args:
        log_p: [..., C] log-probabilities.

    Returns:
        [...], of the same dtype.
    """
    return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum(dim=-1)


def mean_log_probability(mc_logits: Tensor) -> Tensor:
    """log p̄_i with p̄_i = mean_s softmax(z_is): the mean of probabilities, not of logits.

    Args:
        mc_logits: [S, B, C].

    Returns:
        [B, C], of the logits' dtype.
    """
    return mc_logits.log_softmax(dim=-1).logsumexp(dim=0) - math.log(mc_logits.shape[0])


def entropy(*, mc_logits: Tensor) -> Tensor:
    """H[p̄_i], p̄ the mean over dropout passes (RHO-LOSS, App. G, predictive entropy).

    Args:
        mc_logits: [S, B, C].

    Returns:
        [B], of the logits' dtype.

    >>> import torch
    >>> passes = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]])  # two, which disagree
    >>> entropy(mc_logits=passes)
    tensor([0.6931])
    """
    return entropy_of(mean_log_probability(mc_logits))


def entropy_of_logits(*, logits: Tensor) -> Tensor:
    """H[p_i] of one plain forward pass.

    Args:
        logits: [B, C].

    Returns:
        [B], of the logits' dtype.

    >>> entropy_of_logits(logits=torch.tensor([[2.0, 0.0, 0.0]]))
    tensor([0.6656])

    >>> import torch
    >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    >>> entropy_of_logits(logits=logits)
    tensor([0.6931, 0.0012])
    """
    return entropy_of(logits.log_softmax(dim=-1))
