"""Wrong labels and the noise floor: which to drop, how many there are, a loss that allows for them.

The noise floor m_k is the probability that a model gives class k without a reason; see
``reducible.plans.floors``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def noise_floor_filter(
    probability: Tensor, labels: Tensor, floor: Tensor, *, multiple: float
) -> Tensor:
    """Keep i if p_IL(y_i | x_i) ≥ multiple · m_{y_i}; [N] bool.

    m_k is what the model gives class k without a reason, or somewhat more. A label that
    gets no more than a small multiple of that is most likely wrong; no noise rate is needed, and a
    rare class has a low floor of its own.

    Args:
        probability: [N] p_IL(y_i | x_i).
        labels: [N] int64.
        floor: [C] m_k, such as from ``reducible.plans.floors.drop_below``.
        multiple: ≥ 0; 0 keeps everything.
    """
    return probability >= multiple * floor[labels]


def wrong_probability(probability: Tensor, labels: Tensor, floor: Tensor) -> Tensor:
    """min(1, m_{y_i} / p_IL(y_i | x_i)): that the label is noise, by Bayes' rule; [N].

    Where the model's p_IL(k | x) is a mixture of a right label and noise of m_k, whatever the
    input. Its mean estimates the share of wrong labels of this kind.

    Args:
        probability: [N] p_IL(y_i | x_i).
        labels: [N] int64.
        floor: [C] m_k.
    """
    return (floor[labels] / probability).clamp(max=1.0)


def noise_floor_loss(loss: Tensor, targets: Tensor, floor: Tensor) -> Tensor:
    """−log((1 − Σ_c m_c)·exp(−L_i) + m_{y_i}): cross-entropy that allows for wrong labels; [K].

    Forward correction (Patrini et al. 2017, Theorem 2) for labels that are drawn from the noise
    floor, whatever the input, in Σ_c m_c of the cases. Its gradient is that of L_i times the
    probability that the label is right, so a label of which the model is sure that it is wrong
    teaches nothing, and no loss exceeds −log m_{y_i}. Where the floor is near 0, as on clean
    data, it is L_i.

    Args:
        loss: [K] cross-entropy of each example, of the model being trained.
        targets: [K] int64.
        floor: [C] m_c with a sum below 1, from ``Plan.noise_floor``; on the device of the loss.

    >>> floor = torch.tensor([0.1, 0.1])
    >>> noise_floor_loss(torch.tensor([0.0, 9.0, 99.0]), torch.tensor([0, 1, 1]), floor)
    tensor([0.1054, 2.3016, 2.3026])
    """
    right = torch.log1p(-floor.sum()) - loss  # [K] log-probability of a right label, and this one
    return -torch.logaddexp(right, floor.log()[targets].to(loss.dtype))
