"""Rules that choose by a score with chance, and the constructor of those that choose the k best."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from reducible import scores
from reducible.picks import rank_sample, soft_top_k
from reducible.scores import Row
from reducible.scores.rows import POSITIVE
from reducible.selectors.base import Selector
from reducible.selectors.scored import Score, Scored
from reducible.types import require_between, require_one_of


def scored(
    score: Score, limits: Mapping[str, dict[str, Any]] | None = None
) -> Callable[..., Selector]:
    """A constructor for the top-k rule of ``score``; its defaults become hyperparameters.

    Args:
        score: keyword tensors → [B].
        limits: hyperparameter → keywords of ``require_between``, finite numbers if not said.
    """
    finite = {"open_low": True, "open_high": True}
    bounds = {name: finite | known for name, known in (limits or {}).items()}

    def build(**hyperparameters: Any) -> Selector:
        for name, value in hyperparameters.items():
            require_between(name, value, **bounds.get(name, finite))
        return Scored(score, hyperparameters=hyperparameters)

    parameters = inspect.signature(score).parameters.values()
    keep = [p for p in parameters if p.default is not p.empty]
    build.__signature__ = inspect.Signature(keep)  # pyright: ignore[reportFunctionMemberAccess]
    return build


def train_loss_rank(*, pressure: float = 100.0) -> Selector:
    """Draws by rank of the loss."""
    require_between("pressure", pressure, 1.0, open_low=True, open_high=True)
    return Scored(scores.train_loss, pick=rank_sample, pick_options={"pressure": pressure})


def rho_soft(*, temperature: float = 1.0, correct: bool = False) -> Selector:
    """Gumbel-top-k of ρ / temperature; weights that undo the bias if ``correct``."""
    require_between("temperature", temperature, 0.0, open_low=True, open_high=True)
    require_one_of("correct", correct, (True, False))
    options = {"temperature": temperature, "correct": correct}
    return Scored(scores.rho, pick=soft_top_k, pick_options=options, unbiased=correct)


TRAIN_LOSS_RANK_ROW = Row(
    name="train_loss_rank",
    make=train_loss_rank,
    equation="p_i ∝ exp(−log(s)/n_B)^rank_i, without replacement",
    paper="Loshchilov & Hutter 2015; REDUCR, Eq. 10",
    summary="Hard examples more often than easy ones.",
    against="Falls for wrong labels, more slowly than top-k does.",
    ranges={"pressure": "> 1"},
)

RHO_SOFT_ROW = Row(
    name="rho_soft",
    make=rho_soft,
    equation="Gumbel-top-k of ρ_i/T, without replacement; correct: w_i = k/(n_B·q_i)",
    paper="REDUCR, A.9.3; weights: Kool et al. 2019",
    summary="RHO-LOSS with chance: T → 0 is top-k, T → ∞ uniform.",
    against="One more hyperparameter, on the scale of the loss. Corrected, it is the mean loss "
    "that is minimised, wrong labels and all.",
    ranges={"temperature": POSITIVE, "correct": "True or False"},
)
