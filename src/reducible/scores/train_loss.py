"""The training loss itself."""

from torch import Tensor


def train_loss(*, loss: Tensor) -> Tensor:
    """L_i: the hardest candidates first (Kawaguchi & Lu 2020, ordered SGD).

    Args:
        loss: [B] loss of each candidate under the model being trained.

    Returns:
        [B], of the loss's dtype.
    """
    return loss
