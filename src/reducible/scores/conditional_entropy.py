"""The entropy that stays once the parameters are known."""

from torch import Tensor

from reducible.scores.entropy import entropy_of


def conditional_entropy(*, mc_logits: Tensor) -> Tensor:
    """mean_s H[p_is] over dropout passes (RHO-LOSS, App. G).

    Args:
        mc_logits: [S, B, C].

    Returns:
        [B], of the logits' dtype.
    """
    return entropy_of(mc_logits.log_softmax(dim=-1)).mean(dim=0)
