"""The negative irreducible holdout loss."""

from torch import Tensor

from reducible.scores.rows import RHO_LOSS, Row


def irreducible_loss(*, irreducible_loss: Tensor) -> Tensor:
    """−IL_i: the candidates that a holdout model finds easiest (the "negative IL" baseline).

    Args:
        irreducible_loss: [B] loss of each candidate under the holdout model.

    Returns:
        [B], of the irreducible loss's dtype.

    >>> import torch
    >>> irreducible_loss(irreducible_loss=torch.tensor([0.5, 2.0]))
    tensor([-0.5000, -2.0000])
    """
    return -irreducible_loss


IRREDUCIBLE_LOSS_ROW = Row(
    make=irreducible_loss,
    equation="top-k −IL_i",
    paper=f"{RHO_LOSS}, baseline",
    summary="What a holdout model finds easy.",
    against="Never looks at what is learnt already: it keeps choosing redundant examples.",
)
