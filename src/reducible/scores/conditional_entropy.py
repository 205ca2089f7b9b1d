"""The entropy that stays once the parameters are known."""

from torch import Tensor

from reducible.scores.entropy import entropy_of


def conditional_entropy(*, mc_logits: Tensor) -> Tensor:
    """mean_s H[p_is] over dropout passes (RHO-LOSS, App. G).

    Args:
        mc_logits: [S, B, C].

    Returns:
        [B], of the logits' dtype.

    >>> import torch
    >>> passes = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]])  # two, which disagree
    >>> conditional_entropy(mc_logits=passes)
    tensor([0.0012])
    """
    return entropy_of(mc_logits.log_softmax(dim=-1)).mean(dim=0)
