"""The negative irreducible holdout loss."""

from torch import Tensor


def irreducible_loss(*, irreducible_loss: Tensor) -> Tensor:
    """−IL_i: the candidates that a holdout model finds easiest (the "negative IL" baseline).

    Args:
        irreducible_loss: [B] loss of each candidate under the holdout model.

    Returns:
        [B], of the irreducible loss's dtype.
    """
    return -irreducible_loss
