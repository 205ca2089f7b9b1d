"""Decides by the noise floor: which labels to drop, and how often the others are shown."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reducible.loading.labels import as_labels, as_tensor
from reducible.plans.floors import drop_below
from reducible.plans.noise import noise_floor_filter, wrong_probability
from reducible.stores import IrreducibleLossStore, require_ids
from reducible.types import ConfigurationError, DataError, name_ids, require_between

_FEW = 0.4  # a plan that keeps a smaller share says so
_CHANCE = 0.98  # of the entropy of the labels; two classes with four labels in ten wrong have 0.97
_TELLING = 50  # examples from which a mean loss tells


class Decision(NamedTuple):
    """What a plan is made of; see ``Plan``."""

    ids: Tensor
    weight: Tensor
    dropped: Tensor
    report: dict[str, Any]


def filtered(
    store: IrreducibleLossStore,
    ids: Tensor | Sequence[int],
    labels: Tensor | Sequence[int],
    *,
    noise_floor: Tensor | None,
    multiple: float,
    exponent: float,
    offset: float,
) -> Decision:
    """A filter at the noise floor, then fixed weights; see ``Plan.from_irreducible_loss``."""
    require_single(store)
    given, classes = _examples(ids, labels)
    require_between("multiple", multiple, 0.0, open_high=True)
    require_between("exponent", exponent, 0.0, open_high=True)
    require_between("offset", offset, 0.0, open_low=True, open_high=True)
    floor = _floor(store, noise_floor, int(classes.max()) + 1)
    store.check_data(given, classes)
    probability = _probability(store, given)  # [N]
    if noise_floor is None and given.numel() >= _TELLING:
        _warn_of_chance(probability, classes)
    below = floor if noise_floor is not None else _below(store, probability, classes, floor)
    keep = _kept(noise_floor_filter(probability, classes, below, multiple=multiple), multiple)
    weight = residual_weights(probability[keep], exponent=exponent, offset=offset)
    dropped = given[~keep][probability[~keep].argsort(stable=True)]
    wrong = wrong_probability(probability, classes, floor)  # [N]
    report = {
        "multiple": multiple, "exponent": exponent, "offset": offset,
        "examples": given.numel(), "kept": int(keep.sum()), "noise_floor": floor.tolist(),
        "drop_below": (multiple * below).tolist(), "wrong_share": float(wrong.mean()),
        "wrong_share_kept": float((weight * wrong[keep]).mean()),
        "by_class": _by_class(classes, keep, probability),
        "highest_irreducible_loss": dropped[:20].tolist(),
    }  # fmt: skip
    return Decision(given[keep], weight, dropped, report | origin(store))


def residual_weights(probability: Tensor, *, exponent: float, offset: float = 0.02) -> Tensor:
    """(1 − p_IL(y_i | x_i) + offset)^exponent, scaled to a mean of one; [N].

    What the holdout model is sure of teaches least; the offset keeps it in.

    Args:
        probability: [N] in [0, 1].
        exponent: ≥ 0; 0 weighs all alike.
        offset: > 0.
    """
    weight = (1.0 - probability + offset) ** exponent
    return weight / weight.mean()


def _examples(ids: Tensor | Sequence[int], labels: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and the class of each; both [N] int64 on the CPU."""
    given: Tensor = as_tensor(ids)
    classes: Tensor = as_labels(labels, "A plan takes one class for each id.")
    require_ids(given)
    if classes.shape != given.shape:
        raise DataError(f"{given.numel()} ids but labels of shape {tuple(classes.shape)}.")
    order = given.argsort()
    return given[order].cpu(), classes[order].cpu()


def _floor(store: IrreducibleLossStore, given: Tensor | None, classes: int) -> Tensor:
    """[C] float64 m_k: as given, as learned, or the header's medians."""
    header: dict[str, Any] = {"floor": store.header.get("noise_floor")}
    floor = (header | store.header.get("learned_noise", {}))["floor"] if given is None else given
    if floor is None:
        raise ConfigurationError(
            "the store's header has no noise floor (it was not made by fitting): pass "
            "noise_floor=[C], per class the median of p(k | x) over rows of other classes."
        )
    floor = torch.as_tensor(floor, dtype=torch.float64)
    if floor.dim() != 1 or floor.numel() < classes:
        raise ConfigurationError(f"a noise floor of shape {tuple(floor.shape)}, {classes} classes.")
    return floor


def _below(
    store: IrreducibleLossStore, probability: Tensor, labels: Tensor, floor: Tensor
) -> Tensor:
    """[C] float64: what fitting learned to drop below; the floor if it learned nothing."""
    learned = store.header.get("learned_noise")
    if learned is not None:
        cut, share = (torch.tensor(learned[name], dtype=torch.float64) for name in ("cut", "share"))
        return drop_below(probability, labels, cut, share)
    count = torch.bincount(labels)
    if 2 * int(count.max()) > labels.numel():
        warnings.warn(
            f"class {int(count.argmax())} has {int(count.max())} of {labels.numel()} labels, and "
            "the store's header has medians of p(k | x) alone, which is no noise floor for a class "
            "of more than half of the rows: right labels are dropped. Fit the irreducible losses "
            "again, or pass noise_floor=.",
            stacklevel=4,
        )
    return floor


def _probability(store: IrreducibleLossStore, ids: Tensor) -> Tensor:
    """[N] float64 p_IL(y_i | x_i)."""
    loss = store.lookup(ids).double()  # [N]
    if bool((loss < 0).any()):
        raise DataError(
            f"irreducible losses below 0, ids {name_ids(ids[loss < 0])}: a plan reads "
            "p(y | x) = exp(−loss), so they must be cross-entropies."
        )
    return loss.neg().exp()


def _kept(keep: Tensor, multiple: float) -> Tensor:
    """A filter ([N] bool) as it is; raises if it keeps nothing, warns if it keeps little."""
    kept, examples = int(keep.sum()), keep.numel()
    if kept == 0:
        raise ConfigurationError(
            f"multiple={multiple} of the noise floor drops all {examples} examples: the "
            "irreducible-loss model knows nothing of these labels. Fit it longer, or lower "
            "multiple."
        )
    if kept < _FEW * examples:
        warnings.warn(
            f"the plan keeps {kept} of {examples} examples. Where fewer labels than that are "
            "wrong, the irreducible-loss model knows too little: fit it longer, or lower multiple.",
            stacklevel=4,
        )
    return keep


def require_single(store: IrreducibleLossStore) -> None:
    """Raises ConfigurationError unless a store has one loss per example."""
    if not isinstance(store, IrreducibleLossStore):
        raise ConfigurationError(
            f"a plan is made by an IrreducibleLossStore, got {type(store).__name__}. Score rows, "
            "not tokens: reducible.score_irreducible_loss(model, dataset, task=…)."
        )
    if store.groups:
        raise ConfigurationError("a plan needs a store with one loss per example, not groups.")


def _warn_of_chance(probability: Tensor, labels: Tensor) -> None:
    """Warns if the model knows no more of the labels than how frequent they are."""
    share = torch.bincount(labels).double() / labels.numel()
    entropy = float(-(share * share.clamp(min=1e-300).log()).sum())
    loss = float(-probability.clamp(min=1e-300).log().mean())
    if 0 < _CHANCE * entropy <= loss:
        warnings.warn(
            f"the mean irreducible loss is {loss:.2f}, and class frequencies alone give "
            f"{entropy:.2f}: the model that gave it knows next to nothing of these labels, and the "
            "plan drops right ones. Fit it longer, or on more; a pretrained encoder with a new "
            "head has to be trained for the task first.",
            stacklevel=4,
        )


def origin(store: IrreducibleLossStore) -> dict[str, Any]:
    """Names the store, for a report."""
    made = {name: store.header.get(name) for name in ("method", "model", "seconds")}
    return {"fingerprint": store.fingerprint, "store": made}


def _by_class(labels: Tensor, keep: Tensor, probability: Tensor) -> list[dict[str, Any]]:
    """Per class: examples, kept, and the median p_IL of its labels."""
    rows: list[dict[str, Any]] = []
    for c in range(int(labels.max()) + 1):
        own = labels == c
        rows.append(
            {
                "class": c,
                "examples": int(own.sum()),
                "kept": int((own & keep).sum()),
                "median_probability": float(probability[own].median()) if bool(own.any()) else None,
            }
        )
    return rows
