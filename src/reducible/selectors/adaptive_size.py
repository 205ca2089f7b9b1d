"""RHO-LOSS with a batch size that follows how reducible the candidates are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from reducible import scores
from reducible.picks import top_k
from reducible.picks._checks import check_scores
from reducible.scores import Row
from reducible.scores.rows import COUNT, EXTENSIONS, POSITIVE
from reducible.selectors.base import Selector, check_state_keys
from reducible.types import Evidence, Selection, require_between


def moving_average(average: Tensor | None, value: Tensor, *, beta: float) -> Tensor:
    """β·average + (1 − β)·value; the value itself at the start."""
    return value if average is None else beta * average.to(value.device) + (1.0 - beta) * value


@final
class RhoEma(Selector):
    """Top-k_t ρ_i with k_t = clip(α·exp(ρ̄ − EMA_t)·k_base, k_min, k_max).

    EMA_t = β·EMA_{t−1} + (1 − β)·ρ̄ over the whole run, ρ̄ the mean over the candidates. The k asked
    for is the cap, so fewer rows may come back.

    Args:
        beta: of the average, in [0, 1).
        alpha: share of k_base at which ρ̄ equals its average, > 0.
        k_base: n_B if None.
        k_min: least rows; at most the k asked for.
        k_max: most rows; the k asked for if None.
    """

    needs = frozenset({"loss", "irreducible_loss"})

    def __init__(
        self,
        *,
        beta: float = 0.9,
        alpha: float = 0.1,
        k_base: int | None = None,
        k_min: int = 16,
        k_max: int | None = None,
    ) -> None:
        require_between("beta", beta, 0.0, 1.0, open_high=True)
        require_between("alpha", alpha, 0.0, open_low=True, open_high=True)
        require_between("k_min", k_min, 1, whole=True)
        for name, value in (("k_base", k_base), ("k_max", k_max)):
            if value is not None:
                require_between(name, value, 1, whole=True)
        if k_max is not None:
            require_between("k_min", k_min, 1, k_max)
        self._beta, self._alpha = beta, alpha
        self._k_base, self._k_min, self._k_max = k_base, k_min, k_max
        self._average: Tensor | None = None  # [] float64

    def _rho(self, evidence: Evidence) -> tuple[Tensor, Tensor]:
        """ρ [B], and its mean in float64 []."""
        rho = scores.rho(
            loss=evidence.require("loss"), irreducible_loss=evidence.require("irreducible_loss")
        )
        return rho, rho.double().mean()

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """At most k rows."""
        rho, mean = self._rho(evidence)
        check_scores(rho, k, evidence.ids)
        average = moving_average(self._average, mean, beta=self._beta)
        base = rho.numel() if self._k_base is None else self._k_base
        most = k if self._k_max is None else min(self._k_max, k)
        wanted = self._alpha * math.exp(min(float(mean - average), 700.0)) * base
        size = math.floor(min(max(wanted, min(self._k_min, most)), most) + 0.5)
        return top_k(rho, size, generator=generator, ids=evidence.ids)

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Move the average of ρ̄."""
        self._average = moving_average(self._average, self._rho(evidence)[1], beta=self._beta)

    def state_dict(self) -> dict[str, Any]:
        """The average of ρ̄."""
        return {"average": self._average}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the average."""
        check_state_keys(self, state, {"average"})
        self._average = state["average"]


RHO_EMA_ROW = Row(
    name="rho_ema",
    make=RhoEma,
    equation="top-k_t ρ_i, k_t = clip(α·exp(ρ̄ − EMA_t)·k_base, k_min, k_max)",
    paper=EXTENSIONS,
    summary="More rows while there is more to learn.",
    against="The batch size varies, and the gradient's noise with it; saved 2.8 % of rows.",
    ranges={
        "beta": "[0, 1)",
        "alpha": POSITIVE,
        "k_base": "None (n_B) or a whole number ≥ 1",
        "k_min": COUNT,
        "k_max": "None (k) or a whole number ≥ k_min",
    },
)
