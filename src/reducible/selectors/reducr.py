"""REDUCR: reducible loss per class, weighted towards the classes that do worst."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor

from reducible.picks import top_k
from reducible.picks._checks import CURE
from reducible.scores import Row
from reducible.scores.rows import NOT_NEGATIVE
from reducible.selectors.base import Selector, check_state_keys
from reducible.types import Evidence, Selection, require_between, require_finite, require_one_of


def excess_loss(loss: Tensor | float, irreducible: Tensor | float, *, clip: bool = True) -> Tensor:
    """e_ic = max(0, L_i − IL_ic), or without the max (REDUCR, Eq. 6).

    Args:
        loss: [B, 1], or 0.
        irreducible: [B, G], or 0.
        clip: take the max.

    Returns:
        [B, G] (or [B, 1], if there are no groups).
    """
    excess = torch.as_tensor(loss - irreducible)
    return excess.clamp(min=0.0) if clip else excess


def group_weights(total: Tensor, *, eta: float) -> Tensor:
    """w = softmax(−η·S), of S = Σ_t Σ_{i∈b_t} (e_ic − H_c) ([G]); computed in log space."""
    return torch.log_softmax(-eta * total, dim=0).exp()


@final
class Reducr(Selector):
    """Top-k Σ_c w_c·e_ic (REDUCR, Algorithm 1), w a multiplicative-weights average over groups.

    Args:
        eta: learning rate of the group weights, ≥ 0.
        gamma: extra weight of a group in fitting its irreducible losses; recorded with the rule,
            used by ``fit_group_irreducible_loss``.
        clip: keep excess losses at or above zero.
        class_holdout: subtract the group holdout loss H_c in the update of the weights.
        class_irreducible: subtract the group irreducible loss IL_ic.
        model_loss: include the loss L_i; without it nothing is clipped, for all would be zero.
        reduce: sum of e_ic − H_c over the batch, as the paper has it, or its mean, which makes
            eta portable between batch sizes.
    """

    def __init__(
        self,
        *,
        eta: float = 1e-4,
        gamma: float = 9.0,
        clip: bool = True,
        class_holdout: bool = True,
        class_irreducible: bool = True,
        model_loss: bool = True,
        reduce: Literal["sum", "mean"] = "sum",
    ) -> None:
        require_between("eta", eta, 0.0, open_high=True)
        require_between("gamma", gamma, 0.0, open_high=True)
        require_one_of("reduce", reduce, ("sum", "mean"))
        for name, switch in (
            ("clip", clip),
            ("class_holdout", class_holdout),
            ("class_irreducible", class_irreducible),
            ("model_loss", model_loss),
        ):
            require_one_of(name, switch, (True, False))
        require_one_of("model_loss or class_irreducible", model_loss or class_irreducible, (True,))
        self.gamma = gamma
        self._eta = eta
        self._clip = clip and model_loss
        self._class_holdout = class_holdout
        self._class_irreducible = class_irreducible
        self._model_loss = model_loss
        self._reduce = reduce
        self._total: Tensor | None = None  # S, [G] float64
        needs = {
            "loss": model_loss,
            "group_irreducible_loss": class_irreducible,
            "group_holdout_loss": class_holdout,
        }
        self.needs = frozenset(name for name, wanted in needs.items() if wanted)

    def _excess(self, evidence: Evidence) -> Tensor:
        """[B, G], or [B, 1] if nothing tells groups apart."""
        loss = evidence.require("loss").unsqueeze(1) if self._model_loss else 0.0
        irreducible = evidence.require("group_irreducible_loss") if self._class_irreducible else 0.0
        excess = excess_loss(loss, irreducible, clip=self._clip)
        return excess.to(loss.dtype) if isinstance(loss, Tensor) else excess

    def select(self, evidence: Evidence, k: int, *, generator: torch.Generator) -> Selection:
        """The k largest weighted excess losses; ``info["group_weights"]`` [G]."""
        for name in sorted(self.needs - {"group_holdout_loss"}):  # clipping would hide −∞
            require_finite(evidence.require(name), evidence.ids, f"{name!r}", CURE)
        excess = self._excess(evidence)
        groups = excess.shape[1]
        if self._total is None:
            weights = torch.full((groups,), 1.0 / groups, dtype=excess.dtype, device=excess.device)
        else:
            weights = group_weights(self._total, eta=self._eta).to(excess)
        per_group = weights if groups == weights.numel() else weights.sum().unsqueeze(0)
        chosen = top_k(excess @ per_group, k, generator=generator, ids=evidence.ids)
        return Selection(chosen.index, chosen.weight, {**chosen.info, "group_weights": weights})

    def observe(self, evidence: Evidence, selection: Selection) -> None:
        """S_c += Σ_{i∈b} (e_ic − H_c), or the mean."""
        excess = self._excess(evidence)[selection.index].double()  # [K, G] or [K, 1]
        gap = excess
        if self._class_holdout:
            gap = excess - evidence.require("group_holdout_loss").to(excess)  # [K, G]
        change = gap.sum(dim=0) if self._reduce == "sum" else gap.mean(dim=0)  # [G]
        self._total = change if self._total is None else self._total.to(change.device) + change

    def state_dict(self) -> dict[str, Any]:
        """S, or None before the first update."""
        return {"total": None if self._total is None else self._total.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over S."""
        check_state_keys(self, state, {"total"})
        self._total = state["total"]


REDUCR_ROW = Row(
    name="reducr",
    make=Reducr,
    equation="top-k Σ_c w_c·max(0, L_i − IL_ic), w = softmax(−η·S)",
    paper="REDUCR, Algorithm 1",
    summary="Reducible loss per class, weighted towards the classes that do worst.",
    against="One irreducible loss per class to fit; η depends on batch size and data set "
    'unless reduce="mean"; its gain is on the worst class, not on the average.',
    ranges={
        "eta": NOT_NEGATIVE,
        "gamma": NOT_NEGATIVE,
        "clip": "True or False",
        "class_holdout": "True or False",
        "class_irreducible": "True or False",
        "model_loss": "True or False",
        "reduce": '"sum" or "mean"',
    },
)
