"""The loss, less what the model itself thinks is noise."""

from torch import Tensor

from reducible.scores.conditional_entropy import conditional_entropy
from reducible.scores.entropy import mean_log_probability


def loss_minus_conditional_entropy(*, mc_logits: Tensor, targets: Tensor) -> Tensor:
    """−log p̄_i[y_i] − mean_s H[p_is] (RHO-LOSS, App. G): entropy in the place of IL_i.

    Args:
        mc_logits: [S, B, C].
        targets: [B] int64.

    Returns:
        [B], of the logits' dtype.

    >>> import torch
    >>> passes = torch.tensor([[[9.0, 0.0]], [[0.0, 9.0]]])  # two, which disagree
    >>> loss_minus_conditional_entropy(mc_logits=passes, targets=torch.tensor([1]))
    tensor([0.6919])
    """
    log_p = mean_log_probability(mc_logits)  # [B, C]
    loss = -log_p.gather(1, targets.unsqueeze(1)).squeeze(1)  # [B]
    return loss - conditional_entropy(mc_logits=mc_logits)
