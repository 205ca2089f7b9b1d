"""The reducible holdout loss with a bonus for uncertainty."""

from torch import Tensor

from reducible.scores.entropy import entropy_of_logits
from reducible.scores.rho import rho


def rho_entropy(
    *, loss: Tensor, irreducible_loss: Tensor, logits: Tensor, beta: float = 0.7
) -> Tensor:
    """ρ_i + β·H(p_i).

    Args:
        loss: [B] loss of each candidate under the model being trained.
        irreducible_loss: [B] loss of each candidate under the holdout model.
        logits: [B, C] of the model being trained.
        beta: weight of the entropy, finite.

    Returns:
        [B], of the loss's dtype.
    """
    uncertainty = entropy_of_logits(logits=logits).to(loss.dtype)
    return rho(loss=loss, irreducible_loss=irreducible_loss) + beta * uncertainty
