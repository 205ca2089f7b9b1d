"""Rules of two stages: the best by reducible loss, then a choice among them."""

from __future__ import annotations

from reducible import scores
from reducible.scores import Row
from reducible.scores.rows import COUNT, EXTENSIONS
from reducible.selectors.base import Selector
from reducible.selectors.by_dropout import with_dropout
from reducible.selectors.chain import Chain
from reducible.selectors.divbs import DivBS
from reducible.selectors.scored import Scored


def rho_divbs(*, prefilter: int = 50) -> Selector:
    """The best by ρ, then DivBS among them."""
    return Chain(Scored(scores.rho), prefilter=prefilter, then=DivBS())


RHO_DIVBS_ROW = Row(
    name="rho_divbs",
    make=rho_divbs,
    equation="top-m ρ, then divbs to k",
    paper=EXTENSIONS,
    summary="Reducible examples with different gradients.",
    against="One seed gave −5 epochs to 80 %, about what runs of RHO-LOSS differ by.",
    ranges={"prefilter": "whole number ≥ 1; at least k is used"},
)


def rho_margin(*, prefilter: int = 100) -> Selector:
    """The best by ρ, then the smallest margins among them."""
    return Chain(Scored(scores.rho), prefilter=prefilter, then=Scored(scores.margin))


RHO_MARGIN_ROW = Row(
    name="rho_margin",
    make=rho_margin,
    equation="top-m ρ, then the k smallest p(1) − p(2)",
    paper=EXTENSIONS,
    summary="Reducible examples near the decision boundary.",
    against="The report found it slower than RHO-LOSS (80 % at epoch 44 against 41).",
    ranges={"prefilter": "whole number ≥ 1; at least k is used"},
)


def rho_bald(*, prefilter: int = 100, samples: int = 10) -> Selector:
    """The best by ρ, then those that dropout passes disagree on."""
    then = with_dropout(scores.bald)(samples=samples)
    return Chain(Scored(scores.rho), prefilter=prefilter, then=then)


RHO_BALD_ROW = Row(
    name="rho_bald",
    make=rho_bald,
    equation="top-m ρ, then top-k BALD",
    paper=EXTENSIONS,
    summary="Reducible examples that dropout passes disagree on.",
    against="Needs a network with dropout, and S passes over the survivors.",
    ranges={"prefilter": "whole number ≥ 1; at least k is used", "samples": COUNT},
)
