"""Fits irreducible losses per group: a model for each, or one network with adapters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Unpack

from torch import Tensor

from reducible.fitting.adapters import AdaptedLoss, GroupAdapters, with_adapters
from reducible.fitting.fit import Fit, FitOptions, MakeModel
from reducible.fitting.irreducible import refuse_one_model_options, require_rows
from reducible.fitting.objectives import MeanLoss, Scores
from reducible.stores import IrreducibleLossStore, ids_of, labels_of, require_disjoint
from reducible.types import ConfigurationError, require_between


def fit_group_irreducible_loss(
    make_model: MakeModel,
    holdout: Any,
    train: Any,
    *,
    groups: Tensor | None = None,
    num_groups: int | None = None,
    gamma: float = 9.0,
    shared: bool = False,
    rank: int = 8,
    **options: Unpack[FitOptions],
) -> IrreducibleLossStore:
    """Irreducible losses per group: model c counts the holdout examples of group c 1 + γ times.

    REDUCR, Section 3 (γ = 9 for images, 4 for text). Each keeps the checkpoint of its lowest
    weighted loss on the train set; the weights are not normalised. The store has G columns.

    Args:
        make_model: makes one model.
        holdout: map-style data set of Candidates.
        train: the same, disjoint from the holdout.
        groups: [max id + 1] int64, the group of each id; the class if None.
        num_groups: G; found from the groups, or from the labels of the holdout, if None.
        gamma: extra weight of a group's own examples, ≥ 0.
        shared: fit one network with a low-rank adapter per group, in place of G networks.
        rank: of the adapters, if shared.
        options: see FitOptions; ``start_from`` and ``save_model`` do not apply.

    >>> from torch import arange, nn, randn
    >>> from torch.utils.data import Subset, TensorDataset
    >>> from reducible import WithIds
    >>> data = WithIds(TensorDataset(randn(60, 4), arange(60) % 2))
    >>> holdout, train = Subset(data, range(20)), Subset(data, range(20, 60))
    >>> make_model = lambda: nn.Linear(4, 2)
    >>> fit_group_irreducible_loss(make_model, holdout, train, epochs=1, progress=False).groups
    2
    """
    require_rows(holdout, "holdout")
    require_rows(train, "train")
    require_disjoint(holdout, train)
    require_between("gamma", gamma, 0.0, open_high=True)
    require_between("rank", rank, 1, whole=True)
    refuse_one_model_options(options, "groups have one each, or adapters")
    count = _count_groups(holdout, train, groups, num_groups)
    fit = Fit(options, jobs=1 if shared else count)
    header = _header(holdout, count, gamma, shared=shared)

    def groups_of(ids: Tensor, targets: Tensor) -> Tensor:
        return targets if groups is None else groups.to(ids.device)[ids]

    if shared:
        with fit.charged():
            adapted = _together(fit, make_model, holdout, train, groups_of, count, gamma, rank)
        return fit.store([adapted], header | {"model": adapted.model_name, "rank": rank})
    with fit.charged():
        parts = _one_by_one(fit, make_model, holdout, train, groups_of, count, gamma)
    return fit.store(parts, header | {"model": parts[0].model_name}, columns=True)


def _header(holdout: Any, count: int, gamma: float, *, shared: bool) -> dict[str, Any]:
    """Says in a store how it was fitted."""
    return {
        "method": "shared network with adapters" if shared else "a model per group",
        "groups": count,
        "gamma": gamma,
        "holdout_examples": len(holdout),
        "checkpoint": "lowest weighted mean loss on the scored set",
    }


def _one_by_one(
    fit: Fit,
    make_model: MakeModel,
    holdout: Any,
    train: Any,
    groups_of: Callable[[Tensor, Tensor], Tensor],
    count: int,
    gamma: float,
) -> list[Scores]:
    """A model for each group, in its own run."""
    parts: list[Scores] = []
    for group in range(count):

        def weight(ids: Tensor, targets: Tensor, group: int = group) -> Tensor:
            return 1.0 + gamma * (groups_of(ids, targets) == group)

        objective = MeanLoss(fit.task, fit.smoothing, weight)
        parts.append(fit.run(make_model, holdout, train, objective=objective))
    return parts


def _together(
    fit: Fit,
    make_model: MakeModel,
    holdout: Any,
    train: Any,
    groups_of: Callable[[Tensor, Tensor], Tensor],
    count: int,
    gamma: float,
    rank: int,
) -> Scores:
    """One network with an adapter for each group."""

    def make() -> GroupAdapters:
        return with_adapters(make_model(), fit.task, holdout, count, rank)

    objective = AdaptedLoss(fit.task, fit.smoothing, groups_of, count, gamma)
    return fit.run(make, holdout, train, objective=objective)


def _count_groups(holdout: Any, train: Any, groups: Tensor | None, given: int | None) -> int:
    """G: as given, or one more than the largest group of either set."""
    if given is not None:
        require_between("num_groups", given, 1, whole=True)
    if groups is not None:
        found = [groups[ids_of(part)] for part in (holdout, train)]
    else:
        found = [part for part in map(labels_of, (holdout, train)) if part is not None]
    if len(found) < 2 and given is None:
        raise ConfigurationError(
            "the data sets have no .targets to count the classes of: pass num_groups=."
        )
    count = 1 + max((int(part.max()) for part in found), default=-1)
    if given is not None and count > given:
        raise ConfigurationError(
            f"num_groups={given}, but there is a group {count - 1}: groups count from 0."
        )
    return count if given is None else given
