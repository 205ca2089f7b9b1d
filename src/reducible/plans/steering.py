"""Decides by a trusted set: what of a pool is to the point, and how often the set itself comes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from reducible.loading.labels import as_tensor
from reducible.plans.filtering import Decision, origin, require_single, residual_weights
from reducible.stores import IrreducibleLossStore, require_ids
from reducible.types import ConfigurationError, DataError, name_ids, require_between

_SHARE = 0.25  # of the draws, for a trusted set


def steered(
    store: IrreducibleLossStore,
    ids: Tensor | Sequence[int],
    *,
    trusted: Tensor | Sequence[int] | None,
    keep: float,
    share: float | None,
    against: IrreducibleLossStore | None,
    by: Tensor | Sequence[int] | None,
    copies: Tensor | Sequence[int] | None,
    exponent: float,
    offset: float,
    most_shown: float | None,
    draws: int | None,
) -> Decision:
    """The lowest losses of a pool, then the shares of both sets; see ``Plan.toward``."""
    require_between("keep", keep, 0.0, 1.0)
    require_between("exponent", exponent, 0.0, open_high=True)
    require_between("offset", offset, 0.0, open_low=True, open_high=True)
    pool: Tensor = as_tensor(ids)
    require_ids(pool)
    own = _trusted(trusted, pool)
    asked = (_SHARE if own.numel() else 0.0) if share is None else share
    given = _given_share(asked, keep, own.numel(), most_shown, draws)
    order = pool.argsort()
    pool = pool[order].cpu()
    score = _scores(store, against, pool)  # [N] float64
    single = first_copies(score, _column("copies", copies, order)) if copies is not None else None
    groups = _column("by", by, order) if by is not None else None
    kept = lowest(score, keep, among=single, by=groups)
    weight = _weights(store, pool[kept], exponent, offset)
    joined = torch.cat([pool[kept], own])
    weight = torch.cat([(1 - given) * weight, torch.full_like(own, given, dtype=torch.float64)])
    rows = int(kept.sum()), own.numel()
    weight[: rows[0]] *= len(joined) / max(1, rows[0])
    weight[rows[0] :] *= len(joined) / max(1, rows[1])
    shown = weight > 0
    joined, weight = joined[shown], weight[shown]
    if not joined.numel():
        raise ConfigurationError(
            f"keep={keep} of the pool and share={asked} for {own.numel()} trusted examples leave "
            "nothing to train on. Raise keep, or name the trusted examples."
        )
    weight *= len(joined) / float(weight.sum())
    ascending = joined.argsort()
    dropped = pool[~kept][score[~kept].argsort(descending=True, stable=True)]
    report: dict[str, Any] = {
        "keep": keep, "share": given, "share_asked": asked, "exponent": exponent,
        "offset": offset, "examples": pool.numel(), "kept": rows[0], "trusted": rows[1],
        "threshold": float(score[kept].max()) if rows[0] else None,
        "copies": int((~single).sum()) if single is not None else 0,
        "trusted_shown": given * draws / rows[1] if draws and rows[1] else None,
        "by": _by_group(groups, kept) if groups is not None else None,
        "against": against.fingerprint if against is not None else None,
        "highest_irreducible_loss": dropped[:20].tolist(),
    }  # fmt: skip
    return Decision(joined[ascending], weight[ascending], dropped, report | origin(store))


def lowest(score: Tensor, keep: float, *, among: Tensor | None, by: Tensor | None) -> Tensor:
    """Which of N have the lowest scores: of each group the share ``keep``, rounded; [N] bool.

    Of equal scores the first comes first. At least one of each group, unless ``keep`` is 0.

    Args:
        score: [N] float64.
        keep: in [0, 1], a share of all N, or of all of a group.
        among: [N] bool, those that may be kept; all if None.
        by: [N] int64 groups; one if None.
    """
    order = score.argsort(stable=True)
    if among is not None:
        order = torch.cat([order[among[order]], order[~among[order]]])
    sizes = torch.tensor([score.numel()])
    if by is not None:
        order = order[by[order].argsort(stable=True)]
        sizes = by[order].unique_consecutive(return_counts=True)[1]
    rank = torch.arange(score.numel()) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    count = (keep * sizes.double()).round().long()
    count = count.clamp_(min=1) if keep > 0 else count
    kept = torch.zeros(score.numel(), dtype=torch.bool)
    kept[order[rank < count.repeat_interleave(sizes)]] = True
    return kept if among is None else kept & among


def first_copies(score: Tensor, copies: Tensor) -> Tensor:
    """Which of N are the first of their copies, by score: [N] bool.

    Args:
        score: [N] float64.
        copies: [N] int64, alike for copies of one example.
    """
    order = score.argsort(stable=True)
    order = order[copies[order].argsort(stable=True)]
    of = copies[order]
    begins = torch.ones_like(of, dtype=torch.bool)
    begins[1:] = of[1:] != of[:-1]
    first = torch.zeros_like(begins)
    first[order[begins]] = True
    return first


def _trusted(trusted: Tensor | Sequence[int] | None, pool: Tensor) -> Tensor:
    """[T] int64 on the CPU, ascending, none of them in the pool."""
    if trusted is None:
        return torch.empty(0, dtype=torch.int64)
    own: Tensor = as_tensor(trusted)
    require_ids(own)
    both = torch.isin(own, pool.to(own.device))
    if bool(both.any()):
        raise DataError(
            f"{int(both.sum())} ids are trusted and in the pool too: {name_ids(own[both].cpu())}. "
            "The model of the trusted set has seen them, so their losses say nothing. Take them "
            "out of the pool, or give the trusted set ids of its own."
        )
    return own.cpu().sort().values


def _given_share(
    asked: float, keep: float, trusted: int, most_shown: float | None, draws: int | None
) -> float:
    """The share of the draws for the trusted set: as asked, or as often as it may be shown."""
    require_between("share", asked, 0.0, 1.0)
    if asked > 0 and not trusted:
        raise ConfigurationError(f"share={asked} of the draws for no trusted examples: name them.")
    if keep == 0:
        return 1.0
    if most_shown is None:
        return asked
    require_between("most_shown", most_shown, 0.0, open_low=True)
    if draws is None:
        raise ConfigurationError("most_shown counts over the whole training: pass draws= too.")
    require_between("draws", draws, 1, whole=True)
    return min(asked, most_shown * trusted / draws)


def _scores(
    store: IrreducibleLossStore, against: IrreducibleLossStore | None, pool: Tensor
) -> Tensor:
    """[N] float64, the lower the nearer to the trusted set."""
    for given in (store, against):
        if given is not None:
            require_single(given)
    store.check_data(pool)
    score = store.lookup(pool).double()
    if against is not None:
        against.check_data(pool)
        score -= against.lookup(pool)
    return score


def _column(name: str, given: Tensor | Sequence[int], order: Tensor) -> Tensor:
    """[N] int64 on the CPU, in the order of ascending ids."""
    column: Tensor = as_tensor(given)
    if column.shape != order.shape or column.is_floating_point():
        raise DataError(
            f"{name} needs a whole number for each of the {order.numel()} ids, got "
            f"{column.dtype} of shape {tuple(column.shape)}."
        )
    return column.to(order.device)[order].cpu().long()


def _weights(store: IrreducibleLossStore, kept: Tensor, exponent: float, offset: float) -> Tensor:
    """[K] float64 with mean one."""
    if exponent == 0 or not kept.numel():
        return torch.ones(kept.numel(), dtype=torch.float64)
    loss = store.lookup(kept).double()
    if bool((loss < 0).any()):
        raise DataError(
            f"losses below 0, ids {name_ids(kept[loss < 0])}: an exponent weighs by p(y | x) = "
            "exp(−loss), so they must be cross-entropies. Pass exponent=0."
        )
    return residual_weights(loss.neg().exp(), exponent=exponent, offset=offset)


def _by_group(groups: Tensor, kept: Tensor) -> list[dict[str, int]]:
    values, which = groups.unique(return_inverse=True)
    counts = torch.bincount(which), torch.bincount(which[kept], minlength=values.numel())
    return [
        {"group": group, "examples": examples, "kept": few}
        for group, examples, few in zip(values.tolist(), *(c.tolist() for c in counts), strict=True)
    ]
