"""Fits irreducible losses from a holdout, or by cross-fitting without one; and proxies."""

from __future__ import annotations

import heapq
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from reducible.fitting.copies import warn_of_copies
from reducible.fitting.fit import Fit, FitOptions, MakeModel, subset_of
from reducible.fitting.objectives import Scores
from reducible.stores import IrreducibleLossStore, ids_of, require_disjoint
from reducible.types import Candidates, ConfigurationError, DataError, require_between


def fit_irreducible_loss(
    make_model: MakeModel, holdout: Any, train: Any, **options: Unpack[FitOptions]
) -> IrreducibleLossStore:
    """Fit a model on the holdout set and score all of the train set with it.

    RHO-LOSS, Algorithm 1, lines 1–3, and App. B: eval mode, inputs as they are (pass data sets
    that do not augment), the checkpoint of lowest mean loss on the train set (on at most
    ``check_rows`` of it), whose points the model never saw.

    Args:
        make_model: makes the holdout model; a small one serves (Approximation 3).
        holdout: map-style data set of Candidates (``WithIds``).
        train: the same, disjoint from the holdout.
        options: see FitOptions.

    Returns:
        A store with one loss per example of ``train``, its header saying how it was made, what
        it cost, ``noise_floor``: the median of p(k | x) over the train set, per class k, and
        ``learned_noise``, which plans read, see ``reducible.plans.floors.learned_noise``.

    Raises:
        DataError: an empty set, bad ids, or holdout and train set that share examples.
        StoreError: the fit diverged.

    >>> from torch.utils.data import Subset, TensorDataset
    >>> from reducible import WithIds
    >>> data = WithIds(TensorDataset(torch.randn(60, 4), torch.arange(60) % 2))
    >>> holdout, train = Subset(data, range(20)), Subset(data, range(20, 60))
    >>> store = fit_irreducible_loss(
    ...     lambda: nn.Linear(4, 2), holdout, train, epochs=1, progress=False
    ... )
    >>> store.lookup(torch.tensor([20, 59])).shape
    torch.Size([2])
    """
    require_rows(holdout, "holdout")
    require_rows(train, "train")
    require_disjoint(holdout, train)
    fit = Fit(options, jobs=1)
    with fit.charged():
        scores = fit.run(make_model, holdout, train)
    header = {"method": "holdout", "holdout_examples": len(holdout), "model": scores.model_name}
    return fit.store([scores], header)


def cross_fit_irreducible_loss(
    make_model: MakeModel,
    train: Any,
    *,
    folds: int = 2,
    groups: Tensor | None = None,
    **options: Unpack[FitOptions],
) -> IrreducibleLossStore:
    """Irreducible losses without a holdout: each fold is scored by a model of the others.

    RHO-LOSS, App. A, Table 3 (two folds). No example is scored by a model that trained on it, nor
    by one that trained on another of its group. Warns of exact copies in different folds.

    Args:
        make_model: makes one model; called once per fold.
        train: map-style data set of Candidates.
        folds: K ≥ 2.
        groups: [max id + 1] int64, by id: examples of one group stay in one fold, such as copies
            of an image, views of an object, texts of an author. Each its own if None.
        options: see FitOptions; ``start_from`` and ``save_model`` do not apply.

    Returns:
        A store with one loss per example of ``train``, its header saying in how many groups they
        were kept together.

    Raises:
        ConfigurationError: fewer groups than folds, or groups that are not by id.
        DataError, StoreError: as ``fit_irreducible_loss``.

    >>> from torch.utils.data import TensorDataset
    >>> from reducible import WithIds
    >>> train = WithIds(TensorDataset(torch.randn(40, 4), torch.arange(40) % 2))
    >>> store = cross_fit_irreducible_loss(
    ...     lambda: nn.Linear(4, 2), train, epochs=1, progress=False
    ... )
    >>> len(store)
    40
    """
    require_rows(train, "train")
    require_between("folds", folds, 2, len(train), whole=True)
    refuse_one_model_options(options, f"cross-fitting makes {folds}")
    fit = Fit(options, jobs=folds)
    fit.hashes_inputs = True
    group_of = None if groups is None else _groups_by_position(train, groups, folds)  # [N]
    fold_of = assign_folds(len(train), folds, seed=fit.seed, groups=group_of)  # [N]
    parts: list[Scores] = []
    with fit.charged():
        for fold in range(folds):
            inside = fold_of == fold
            fitted, scored = (
                subset_of(train, rows.nonzero().squeeze(1)) for rows in (~inside, inside)
            )
            parts.append(fit.run(make_model, fitted, scored, seed=fit.seed + fold))
    _look_for_copies(parts)
    header: dict[str, Any] = {"method": "cross-fit", "folds": folds, "model": parts[0].model_name}
    if group_of is not None:
        header["kept_together"] = group_of.unique().numel()
    return fit.store(parts, header)


def fit_proxy(make_model: MakeModel, train: Any, **options: Unpack[FitOptions]) -> nn.Module:
    """A model fitted on the train set itself, for rules that choose from it once (``svp``).

    Args:
        make_model: makes the model.
        train: map-style data set of Candidates.
        options: see FitOptions.

    Returns:
        The model in eval mode, at its checkpoint of lowest loss on the train set.

    >>> from torch.utils.data import TensorDataset
    >>> from reducible import WithIds
    >>> train = WithIds(TensorDataset(torch.randn(40, 4), torch.arange(40) % 2))
    >>> fit_proxy(lambda: nn.Linear(4, 2), train, epochs=1, progress=False)
    Linear(in_features=4, out_features=2, bias=True)
    """
    require_rows(train, "train")
    fit = Fit(options, jobs=1)
    with fit.charged():
        fit.run(make_model, train, train)
        with torch.random.fork_rng([]):
            model = make_model().to(fit.device)
        model.load_state_dict(fit.weights)
    return model.eval()


def _groups_by_position(train: Any, groups: Tensor, folds: int) -> Tensor:
    """[N] int64: the group of each position of ``train``."""
    ids = ids_of(train)
    if groups.dim() != 1 or groups.is_floating_point() or int(ids.max()) >= groups.numel():
        raise ConfigurationError(
            f"groups of shape {tuple(groups.shape)} and {groups.dtype}, but there is an id "
            f"{int(ids.max())}: it must hold the group of every id, by id, as whole numbers. Have "
            "you them by position? by_id = torch.zeros(int(ids.max()) + 1, dtype=torch.int64); "
            "by_id[ids] = groups."
        )
    found = groups.cpu()[ids.cpu()].long()
    if found.unique().numel() < folds:
        raise ConfigurationError(
            f"{folds} folds of {found.unique().numel()} groups, which stay together: some fold "
            "would be empty. Take fewer folds, or finer groups."
        )
    return found


def _look_for_copies(parts: list[Scores]) -> None:
    hashes = [part.hashes for part in parts if part.hashes is not None]
    if len(hashes) == len(parts):
        fold_of = [torch.full((h.numel(),), fold) for fold, h in enumerate(hashes)]
        warn_of_copies(torch.cat(hashes), torch.cat([p.ids for p in parts]), torch.cat(fold_of))


def assign_folds(examples: int, folds: int, *, seed: int, groups: Tensor | None = None) -> Tensor:
    """[N] int64: the fold of each position.

    Sizes differ by at most one; with groups by at most the size of the largest, as each group, the
    large ones first, goes to the fold that has the fewest examples.

    Args:
        examples: N.
        folds: K.
        seed: of the order, or of the order of groups of one size.
        groups: [N] int64; those of one group share a fold.
    """
    generator = torch.Generator().manual_seed(seed)
    if groups is None:
        fold_of = torch.empty(examples, dtype=torch.int64)
        fold_of[torch.randperm(examples, generator=generator)] = torch.arange(examples) % folds
        return fold_of
    _, member_of, sizes = groups.unique(return_inverse=True, return_counts=True)
    order = torch.randperm(sizes.numel(), generator=generator)
    order = order[sizes[order].argsort(descending=True, stable=True)]
    fold_of_group = torch.empty_like(sizes)
    fullness = [(0, fold) for fold in range(folds)]
    for group, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        full, fold = fullness[0]  # the emptiest
        fold_of_group[group] = fold
        heapq.heapreplace(fullness, (full + size, fold))
    return fold_of_group[member_of]


def refuse_one_model_options(options: FitOptions, instead: str) -> None:
    """Raise ConfigurationError for options of one model, if ``instead`` says what there is."""
    for name in ("start_from", "save_model"):
        if name in options:
            raise ConfigurationError(f"{name} is of one model; {instead}.")


def require_rows(dataset: Any, what: str) -> None:
    """Raise DataError unless a data set is map-style and has rows."""
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise DataError(f"the {what} set is empty or not map-style: {type(dataset).__name__}.")
    try:
        ids_of(dataset)
    except DataError:
        if not isinstance(dataset[0], Candidates):
            raise
