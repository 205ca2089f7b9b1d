"""DivBS: a batch whose last-layer gradients together explain the mean gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor

from reducible import scores
from reducible.picks import residual_pursuit
from reducible.picks._checks import CURE
from reducible.picks._draws import shuffled
from reducible.scores import Row
from reducible.selectors.base import Selector, check_state_keys
from reducible.types import Evidence, Selection, require_between, require_finite, require_one_of


@final
class DivBS(Selector):
    """Orthogonal pursuit of the mean last-layer gradient, see ``picks.residual_pursuit``.

    Args:
        rule: ``"greedy"`` as the paper's objective, ``"sample"`` as the released code.
        project: use a fixed random subset of so many coordinates of h ⊗ f; drawn at the first
            call, kept in the state.
    """

    needs = frozenset({"logits", "targets", "features"})

    def __init__(
        self, *, rule: Literal["greedy", "sample"] = "greedy", project: int | None = None
    ) -> None:
        require_one_of("rule", rule, ("greedy", "sample"))
        if project is not None:
            require_between("project", project, 1, whole=True)
        self._rule: Literal["greedy", "sample"] = rule
        self._project = project
        self._coordinates: Tensor | None = None  # [m] int64 into C·D
        self._drawn: Tensor | None = None  # by the last select, until observe makes them fixed

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """k different rows; ``info["score"]`` [K] is |⟨G_i, r⟩| for h and f of largest entry 1."""
        logits, f = evidence.require("logits"), evidence.require("features").double()
        require_finite(logits, evidence.ids, "a logit", CURE)
        require_finite(f, evidence.ids, "a feature", CURE)
        f = _to_unit_scale(f)
        h = scores.residual(logits=logits.double(), targets=evidence.require("targets"))
        if self._project is not None:
            h, f = self._projected(h, f, generator)
        h = _to_unit_scale(h)
        chosen = residual_pursuit(h, f, k, rule=self._rule, generator=generator)
        info = {name: value.to(logits.dtype) for name, value in chosen.info.items()}
        return Selection(chosen.index, chosen.weight.to(logits.dtype), info)

    def _projected(self, h: Tensor, f: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """G at the fixed coordinates, as h ⊗ f with f = 1: [B, m] and [B, 1]."""
        coordinates = self._coordinates
        if coordinates is None:
            total = h.shape[1] * f.shape[1]
            order = shuffled(total, generator=generator, like=h)
            self._drawn = coordinates = order[: self._project]
        coordinates, width = coordinates.to(h.device), f.shape[1]
        products = h[:, coordinates // width] * f[:, coordinates % width]  # [B, m]
        return products, torch.ones_like(f[:, :1])

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """Fix the coordinates that the first selection drew."""
        if self._coordinates is None:
            self._coordinates, self._drawn = self._drawn, None

    def state_dict(self) -> dict[str, Any]:
        """The fixed coordinates."""
        return {"coordinates": self._coordinates}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the fixed coordinates."""
        check_state_keys(self, state, {"coordinates"})
        self._coordinates, self._drawn = state["coordinates"], None


def _to_unit_scale(x: Tensor) -> Tensor:
    """``x`` over its largest magnitude: changes no pick, and keeps squares finite and not zero."""
    return x / x.abs().amax().clamp(min=torch.finfo(x.dtype).tiny)


DIVBS_ROW = Row(
    name="divbs",
    make=DivBS,
    equation="greedy argmax |⟨G_i, r⟩|, r ← r − ⟨e, r⟩·e, G_i = h_i ⊗ f_i",
    paper="Hong et al. 2024, DivBS",
    summary="Rows whose gradients together explain the mean gradient.",
    against="The mean gradient holds that of wrong labels too; picking costs milliseconds.",
    ranges={"rule": '"greedy" or "sample"', "project": "None or a whole number ≥ 1"},
)
