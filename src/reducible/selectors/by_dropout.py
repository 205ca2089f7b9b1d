"""Rules that score by passes with dropout on."""

from __future__ import annotations

from collections.abc import Callable

from reducible import scores
from reducible.scores import Row
from reducible.scores.rows import COUNT
from reducible.selectors.base import Selector
from reducible.selectors.scored import Score, Scored
from reducible.types import require_between

_ACTIVE = (
    "Helps on clean, simple data only; RHO-LOSS, Fig. 9, saw no gain on CIFAR-10. Costs S passes."
)


def with_dropout(score: Score) -> Callable[..., Selector]:
    """A constructor for the top-k rule of a score over dropout passes."""

    def build(*, samples: int = 10) -> Selector:
        require_between("samples", samples, 1, whole=True)
        return Scored(score, samples=samples)

    return build


def entropy(*, samples: int = 10) -> Selector:
    """Entropy over dropout passes, or of one plain pass if ``samples`` is 0."""
    require_between("samples", samples, 0, whole=True)
    return with_dropout(scores.entropy)(samples=samples) if samples else Scored(
        scores.entropy_of_logits
    )  # fmt: skip


BALD_ROW = Row(
    name="bald",
    make=with_dropout(scores.bald),
    equation="top-k H[p̄_i] − mean_s H[p_is]",
    paper="Houlsby et al. 2011; RHO-LOSS, App. G",
    summary="What dropout passes disagree on; ignores labels.",
    against=_ACTIVE,
    ranges={"samples": COUNT},
)

ENTROPY_ROW = Row(
    name="entropy",
    make=entropy,
    equation="top-k H[p̄_i]",
    paper="RHO-LOSS, App. G",
    summary="Uncertain predictions; ignores labels.",
    against=_ACTIVE,
    ranges={"samples": "whole number ≥ 0; 0: one plain pass"},
)

CONDITIONAL_ENTROPY_ROW = Row(
    name="conditional_entropy",
    make=with_dropout(scores.conditional_entropy),
    equation="top-k mean_s H[p_is]",
    paper="RHO-LOSS, App. G",
    summary="What stays uncertain whatever the parameters; ignores labels.",
    against="Prefers ambiguous examples, from which there is least to learn. Costs S passes.",
    ranges={"samples": COUNT},
)

LOSS_MINUS_CONDITIONAL_ENTROPY_ROW = Row(
    name="loss_minus_conditional_entropy",
    make=with_dropout(scores.loss_minus_conditional_entropy),
    equation="top-k −log p̄_i[y_i] − mean_s H[p_is]",
    paper="RHO-LOSS, App. G",
    summary="RHO-LOSS with the model's own idea of noise; needs no holdout.",
    against="The model knows little of wrong labels: a confident model gives them no discount.",
    ranges={"samples": COUNT},
)
