"""Defines what flows through the library: candidates, evidence, selections; and its errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor


class ReducibleError(ValueError):
    """Base of every error raised here: what was got, the likely cause, the cure."""


class ConfigurationError(ReducibleError):
    """A setting that cannot work; raised at construction."""


class DataError(ReducibleError):
    """A batch or data set that cannot be selected from: its ids, labels or shapes."""


class StoreError(ReducibleError):
    """A store of irreducible losses that is damaged, incomplete, or of other data."""


class SelectionError(ReducibleError):
    """A choice that cannot be made: non-finite scores, or more rows asked for than there are."""


class MissingEvidence(ReducibleError):
    """A selector asked for evidence that was not measured."""


class Candidates(NamedTuple):
    """A candidate batch, as a loader hands it over; torch's default collate keeps the type.

    >>> import torch
    >>> here = Candidates(torch.tensor([3, 7]), (torch.zeros(2, 4), torch.tensor([0, 1])))
    >>> here.ids.tolist()
    [3, 7]
    """

    ids: Tensor
    """[B] int64, stable for the data set."""
    batch: Any
    """Any structure of tuples, dicts and lists whose tensors lead with B."""


_HOW_TO_GET = {
    "targets": "labels: name them for the task, e.g. Classification(targets='label')",
    "loss": "a forward pass over the candidates: pass a model",
    "logits": "a forward pass over the candidates: pass a model whose task has logits",
    "features": "the input of the last linear layer: Classification(features='<module name>')",
    "mc_logits": "dropout passes: a model with dropout, and samples of at least 1",
    "irreducible_loss": "a store with one column: fit_irreducible_loss(…), then store=…",
    "group_irreducible_loss": "a store with a column per group: fit_group_irreducible_loss(…)",
    "groups": "labels (the class is the default group), or groups= given to the loader",
    "group_holdout_loss": "group_holdout=<holdout loader>, from which the loop measures it",
    "total_steps": "total_steps=<planned updates> given to the loader",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evidence:
    """Holds what was measured of a candidate batch. A field is None if nobody asked for it.

    ``context`` holds what is not per example: ``step``, ``epoch``, ``total_steps`` (0-d int64)
    and ``group_holdout_loss`` ([G]).

    >>> import torch
    >>> evidence = Evidence(ids=torch.arange(2), loss=torch.tensor([1.0, 2.0]))
    >>> evidence.require("loss")
    tensor([1., 2.])
    """

    ids: Tensor  # [B] int64
    targets: Tensor | None = None  # [B] int64
    loss: Tensor | None = None  # [B]
    logits: Tensor | None = None  # [B, C]
    features: Tensor | None = None  # [B, D] input of the last linear layer
    mc_logits: Tensor | None = None  # [S, B, C] S passes with dropout on
    irreducible_loss: Tensor | None = None  # [B]
    group_irreducible_loss: Tensor | None = None  # [B, G]
    groups: Tensor | None = None  # [B] int64; the class, if nothing else is given
    context: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])

    def require(self, name: str) -> Tensor:
        """The field or context entry ``name``; raises MissingEvidence if it was not measured."""
        value = getattr(self, name) if name in _FIELDS else self.context.get(name)
        if value is None:
            there = [n for n in EVIDENCE_FIELDS if getattr(self, n) is not None]
            raise MissingEvidence(
                f"no {name!r} in the evidence; there is: {', '.join([*there, *self.context])}. "
                f"It comes from {_HOW_TO_GET.get(name, 'the context given by the loop')}."
            )
        return value

    def rows(self, index: Tensor) -> Evidence:
        """Returns the same evidence for the candidates at ``index`` ([M] int64) only."""
        changes: dict[str, Any] = {}
        for name in EVIDENCE_FIELDS:
            value = getattr(self, name)
            if value is not None:
                changes[name] = value.index_select(1 if name == "mc_logits" else 0, index)
        return replace(self, **changes)


EVIDENCE_FIELDS = tuple(f.name for f in fields(Evidence) if f.name != "context")
_FIELDS = frozenset(EVIDENCE_FIELDS)
CONTEXT_KEYS = ("step", "epoch", "total_steps", "group_holdout_loss")


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """Says which candidates to train on, and how much each counts.

    >>> import torch
    >>> chosen = Selection(index=torch.tensor([2, 0]), weight=torch.ones(2))
    >>> chosen.index.tolist()
    [2, 0]
    """

    index: Tensor  # [K] int64 positions in the candidate batch, K <= k
    weight: Tensor  # [K] multiplies the per-example loss
    info: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])  # for the log only


def name_ids(ids: Tensor, limit: int = 5) -> str:
    """The first few of ``ids`` as text for an error message.

    >>> name_ids(torch.arange(7))
    '0, 1, 2, 3, 4 and 2 more'
    """
    shown = ", ".join(str(i) for i in ids[:limit].tolist())
    more = ids.numel() - limit
    return f"{shown} and {more} more" if more > 0 else shown


def require_finite(values: Tensor, ids: Tensor, what: str, cure: str) -> None:
    """Raise SelectionError naming the ids at which ``values`` ([B] or [B, G]) are not finite."""
    if math.isfinite(float(values.sum())):
        return  # a sum with NaN or an infinity in it is never finite
    finite = torch.isfinite(values)
    if bool(finite.all()):
        return
    bad = ~(finite if finite.dim() == 1 else finite.flatten(1).all(1))
    raise SelectionError(
        f"{what} is not finite for {int(bad.sum())} of {ids.numel()} candidates, "
        f"ids {name_ids(ids[bad])}. {cure}"
    )


def require_between(
    name: str,
    value: float,
    low: float = float("-inf"),
    high: float = float("inf"),
    *,
    open_low: bool = False,
    open_high: bool = False,
    whole: bool = False,
) -> None:
    """Raise ConfigurationError unless ``value`` is a number in the interval (NaN never is)."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (
        not number
        or not (low < value if open_low else low <= value)
        or not (value < high if open_high else value <= high)
        or (whole and not isinstance(value, int))
    ):
        interval = f"{'(' if open_low else '['}{low}, {high}{')' if open_high else ']'}"
        kind = "a whole number" if whole else "a number"
        raise ConfigurationError(f"{name} must be {kind} in {interval}, got {value!r}.")


def require_one_of(name: str, value: object, allowed: Sequence[object]) -> None:
    """Raise ConfigurationError unless ``value`` is one of ``allowed``."""
    if value not in allowed:
        choices = ", ".join(repr(a) for a in allowed)
        raise ConfigurationError(f"{name} must be one of {choices}; got {value!r}.")
