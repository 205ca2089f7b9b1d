"""Scores: pure functions from evidence to one number per candidate, larger = choose first.

A keyword without a default is evidence; a keyword with a default is a hyperparameter. One file
per score, with its row if it is a rule by itself; here its import and its place in the table.
"""

from reducible.scores.bald import bald
from reducible.scores.conditional_entropy import conditional_entropy
from reducible.scores.entropy import entropy, entropy_of_logits
from reducible.scores.grad_norm import grad_norm, grad_norm_last_layer, residual
from reducible.scores.irreducible_loss import IRREDUCIBLE_LOSS_ROW, irreducible_loss
from reducible.scores.loss_minus_conditional_entropy import loss_minus_conditional_entropy
from reducible.scores.margin import least_confidence, margin
from reducible.scores.rho import RHO_ROW, rho
from reducible.scores.rho_calibrated import RHO_CALIBRATED_ROW, rho_calibrated
from reducible.scores.rho_entropy import RHO_ENTROPY_ROW, rho_entropy
from reducible.scores.rows import Row
from reducible.scores.train_loss import TRAIN_LOSS_ROW, train_loss

SCORES = (TRAIN_LOSS_ROW, IRREDUCIBLE_LOSS_ROW, RHO_ROW, RHO_ENTROPY_ROW, RHO_CALIBRATED_ROW)
"""Scores that are rules by themselves."""

__all__ = [
    "SCORES",
    "Row",
    "bald",
    "conditional_entropy",
    "entropy",
    "entropy_of_logits",
    "grad_norm",
    "grad_norm_last_layer",
    "irreducible_loss",
    "least_confidence",
    "loss_minus_conditional_entropy",
    "margin",
    "residual",
    "rho",
    "rho_calibrated",
    "rho_entropy",
    "train_loss",
]
