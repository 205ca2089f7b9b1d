"""Closeness to the decision boundary, and confidence."""

from torch import Tensor


def margin(*, logits: Tensor) -> Tensor:
    """p_i(2) − p_i(1), the two largest probabilities: the smallest margin scores highest.

    Args:
        logits: [B, C], C ≥ 2.

    Returns:
        [B] in [−1, 0], of the logits' dtype.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    >>> margin(logits=logits)
    tensor([ 0.0000, -0.9998])
    """
    best = logits.softmax(dim=1).topk(2, dim=1).values  # [B, 2]
    return best[:, 1] - best[:, 0]


def least_confidence(*, logits: Tensor) -> Tensor:
    """1 − max_c p_i(c) (Coleman et al. 2020).

    Args:
        logits: [B, C].

    Returns:
        [B] in [0, 1), of the logits' dtype.

    >>> import torch
    >>> logits = torch.tensor([[0.0, 0.0], [9.0, 0.0]])
    >>> least_confidence(logits=logits)
    tensor([5.0000e-01, 1.2338e-04])
    """
    return 1.0 - logits.softmax(dim=1).amax(dim=1)
