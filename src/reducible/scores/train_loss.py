"""The training loss itself."""

from torch import Tensor

from reducible.scores.rows import Row


def train_loss(*, loss: Tensor) -> Tensor:
    """L_i: the hardest candidates first (Kawaguchi & Lu 2020, ordered SGD).

    Args:
        loss: [B] loss of each candidate under the model being trained.

    Returns:
        [B], of the loss's dtype.

    >>> import torch
    >>> train_loss(loss=torch.tensor([0.5, 2.0]))
    tensor([0.5000, 2.0000])
    """
    return loss


TRAIN_LOSS_ROW = Row(
    make=train_loss,
    equation="top-k L_i",
    paper="Kawaguchi & Lu 2020, Ordered SGD",
    summary="The hardest examples.",
    against="Falls for wrong labels: they keep the highest loss.",
)
