"""Scores: pure functions from evidence to one number per candidate, larger = choose first.

A keyword without a default is evidence; a keyword with a default is a hyperparameter. One file
per score; here its import and, if it is a rule by itself, its row.
"""

from reducible.scores._row import ScoreRow
from reducible.scores.bald import bald
from reducible.scores.conditional_entropy import conditional_entropy
from reducible.scores.entropy import entropy, entropy_of_logits
from reducible.scores.grad_norm import grad_norm, grad_norm_last_layer, residual
from reducible.scores.irreducible_loss import irreducible_loss
from reducible.scores.loss_minus_conditional_entropy import loss_minus_conditional_entropy
from reducible.scores.margin import least_confidence, margin
from reducible.scores.rho import rho
from reducible.scores.rho_calibrated import rho_calibrated
from reducible.scores.rho_entropy import rho_entropy
from reducible.scores.train_loss import train_loss

SCORES = (
    ScoreRow(
        score=train_loss,
        equation="top-k L_i",
        paper="Kawaguchi & Lu 2020, Ordered SGD",
        summary="The hardest examples.",
        against="Falls for wrong labels: they keep the highest loss.",
    ),
    ScoreRow(
        score=irreducible_loss,
        equation="top-k −IL_i",
        paper="Mindermann et al. 2022, RHO-LOSS, baseline",
        summary="What a holdout model finds easy.",
        against="Never looks at what is learnt already: it keeps choosing redundant examples.",
    ),
    ScoreRow(
        score=rho,
        equation="top-k L_i − IL_i",
        paper="Mindermann et al. 2022, RHO-LOSS, Eq. 3, Algorithm 1",
        summary="Learnable, worth learning, not yet learnt.",
        against="Scores n_B candidates per update, which costs seconds where it saves steps; wrong "
        "labels regain a high score once the model is more confident than the holdout model.",
    ),
    ScoreRow(
        score=rho_entropy,
        equation="top-k ρ_i + β·H(p_i)",
        paper="Extensions of RHO-LOSS",
        summary="RHO-LOSS with a bonus for uncertain predictions.",
        against="One seed gave −4 to −6 epochs to 80 %, no more than runs of RHO-LOSS differ by.",
        ranges={"beta": "any finite number"},
    ),
    ScoreRow(
        score=rho_calibrated,
        equation="top-k log((1−ν)·e^(−IL_i) + ν/C) − log((1−ν)·softmax(z_i/T)[y_i] + ν/C)",
        paper="This library; noise floor after Patrini et al. 2017, temperature after Guo et al. "
        "2017",
        summary="RHO-LOSS with bounded losses: a label that both models are sure is wrong scores "
        "0.",
        against="Two more hyperparameters; hard but correct examples that the holdout model has "
        "wrong score 0, too.",
        ranges={"temperature": "> 0", "floor": "[0, 1)"},
        limits={
            "temperature": {"low": 0.0},
            "floor": {"low": 0.0, "high": 1.0, "open_low": False},
        },
    ),
)
"""Scores that are rules by themselves."""

__all__ = [
    "SCORES",
    "ScoreRow",
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
