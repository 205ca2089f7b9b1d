"""The reducible holdout loss."""

from torch import Tensor

from reducible.scores.rows import RHO_LOSS, Row


def rho(*, loss: Tensor, irreducible_loss: Tensor) -> Tensor:
    """L_i − IL_i: learnable, worth learning, not yet learnt.

    Mindermann et al. 2022 (RHO-LOSS), Eq. 3 and Algorithm 1, line 7.

    Args:
        loss: [B] loss of each candidate under the model being trained.
        irreducible_loss: [B] loss of each candidate under the holdout model.

    Returns:
        [B], of the loss's dtype.

    >>> import torch
    >>> rho(loss=torch.tensor([2.0, 0.5]), irreducible_loss=torch.tensor([0.5, 0.25]))
    tensor([1.5000, 0.2500])
    """
    return loss - irreducible_loss.to(loss.dtype)


RHO_ROW = Row(
    make=rho,
    equation="top-k L_i − IL_i",
    paper=f"{RHO_LOSS}, Eq. 3, Algorithm 1",
    summary="Learnable, worth learning, not yet learnt.",
    against="Scores n_B candidates per update, which costs seconds where it saves steps; wrong "
    "labels regain a high score once the model is more confident than the holdout model.",
)
