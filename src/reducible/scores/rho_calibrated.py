"""The reducible holdout loss with both losses bounded."""

import math

import torch
from torch import Tensor

from reducible.scores.rows import Row


def rho_calibrated(
    *,
    logits: Tensor,
    targets: Tensor,
    irreducible_loss: Tensor,
    temperature: float = 1.0,
    floor: float = 0.1,
) -> Tensor:
    """log((1 − ν)·exp(−IL_i) + ν/C) − log((1 − ν)·softmax(z_i/T)[y_i] + ν/C).

    RHO-LOSS, Eq. 3, with labels that are random with probability ν under both models, as in
    forward correction (Patrini et al. 2017), and with temperature scaling of the model being
    trained (Guo et al. 2017). No loss exceeds log(C/ν): a label that both models are sure is wrong
    scores 0, however much surer one of them is. ν = 0, T = 1 is ``rho``.

    Args:
        logits: [B, C] of the model being trained.
        targets: [B] int64.
        irreducible_loss: [B] loss of each candidate under the holdout model.
        temperature: T > 0; above 1 the model counts as less sure than it says.
        floor: ν in [0, 1).

    Returns:
        [B] of the logits' dtype, at most log(1 + (1 − ν)·C/ν) away from 0; not finite if a
        loss is not.

    >>> import torch
    >>> logits, targets = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    >>> own = torch.zeros(2)
    >>> rho_calibrated(logits=logits, targets=targets, irreducible_loss=own, floor=0.1)
    tensor([0.6419, 0.1198])
    """
    log_p = (logits / temperature).log_softmax(dim=1)  # [B, C]
    log_p = log_p.gather(1, targets.unsqueeze(1)).squeeze(1)  # [B]
    held = -irreducible_loss.to(log_p.dtype)  # [B]
    classes = logits.shape[1]
    return _with_floor(held, floor, classes) - _with_floor(log_p, floor, classes)


def _with_floor(log_p: Tensor, floor: float, classes: int) -> Tensor:
    """[B]: log((1 − ν)·p_i + ν/C)."""
    if floor == 0.0:
        return log_p
    level = torch.full_like(log_p, math.log(floor / classes))
    mixed = torch.logaddexp(log_p + math.log1p(-floor), level)
    return mixed + 0.0 * log_p  # an infinite loss is broken, and the floor must not hide it


RHO_CALIBRATED_ROW = Row(
    make=rho_calibrated,
    equation="top-k log((1−ν)·e^(−IL_i) + ν/C) − log((1−ν)·softmax(z_i/T)[y_i] + ν/C)",
    paper="This library; noise floor after Patrini et al. 2017, temperature after Guo et al. 2017",
    summary="RHO-LOSS with bounded losses: a label that both models are sure is wrong scores 0.",
    against="Two more hyperparameters; hard but correct examples that the holdout model has "
    "wrong score 0, too.",
    ranges={"temperature": "> 0", "floor": "[0, 1)"},
    limits={
        "temperature": {"low": 0.0},
        "floor": {"low": 0.0, "high": 1.0, "open_low": False},
    },
)
