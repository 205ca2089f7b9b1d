"""Fitting irreducible losses: from a holdout, by cross-fitting without one, or per group."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.fitting.copies import warn_of_copies
from reducible.fitting.fit import (
    Fit,
    FitOptions,
    MakeModel,
    MeanLoss,
    Scores,
    candidate_batches,
    subset_of,
)
from reducible.scoring import without_graph
from reducible.stores import IrreducibleLossStore, ids_of, labels_of, require_disjoint
from reducible.tasks import Task
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
    """
    _require_rows(holdout, "holdout")
    _require_rows(train, "train")
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
    """
    _require_rows(train, "train")
    require_between("folds", folds, 2, len(train), whole=True)
    _refuse_one_model_options(options, f"cross-fitting makes {folds}")
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
    weighted loss on the train set; the weights are not normalised.

    Args:
        make_model: makes one model.
        holdout: map-style data set of Candidates.
        train: the same, disjoint from the holdout.
        groups: [max id + 1] int64, the group of each id; the class if None.
        num_groups: G; found from the groups, or from the labels of the holdout, if None.
        gamma: extra weight of a group's own examples, ≥ 0.
        shared: fit one network with a low-rank adapter per group in one run, in the place of G
            networks in G runs.
        rank: of the adapters, if shared.
        options: see FitOptions; ``start_from`` and ``save_model`` do not apply.

    Returns:
        A store with G columns.
    """
    _require_rows(holdout, "holdout")
    _require_rows(train, "train")
    require_disjoint(holdout, train)
    require_between("gamma", gamma, 0.0, open_high=True)
    require_between("rank", rank, 1, whole=True)
    _refuse_one_model_options(options, "groups have one each, or adapters")
    count = _count_groups(holdout, train, groups, num_groups)
    fit = Fit(options, jobs=1 if shared else count)

    def groups_of(ids: Tensor, targets: Tensor) -> Tensor:
        return targets if groups is None else groups.to(ids.device)[ids]

    header = {
        "method": "shared network with adapters" if shared else "a model per group",
        "groups": count,
        "gamma": gamma,
        "holdout_examples": len(holdout),
        "checkpoint": "lowest weighted mean loss on the scored set",
    }
    if shared:
        with fit.charged():
            objective = _AdaptedLoss(fit.task, fit.smoothing, groups_of, count, gamma)
            adapted = fit.run(
                lambda: _with_adapters(make_model(), fit.task, holdout, count, rank),
                holdout,
                train,
                objective=objective,
            )
        return fit.store([adapted], header | {"model": adapted.model_name, "rank": rank})
    parts: list[Scores] = []
    with fit.charged():
        for group in range(count):

            def weight(ids: Tensor, targets: Tensor, group: int = group) -> Tensor:
                return 1.0 + gamma * (groups_of(ids, targets) == group)

            objective = MeanLoss(fit.task, fit.smoothing, weight)
            parts.append(fit.run(make_model, holdout, train, objective=objective))
    return fit.store(parts, header | {"model": parts[0].model_name}, columns=True)


def _refuse_one_model_options(options: FitOptions, instead: str) -> None:
    for name in ("start_from", "save_model"):
        if name in options:
            raise ConfigurationError(f"{name} is of one model; {instead}.")


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


class GroupAdapters(nn.Module):
    """A network whose logits a low-rank adapter shifts per group: z_g = z + b_g + V_g·(P·f).

    Args:
        network: gives logits z [B, C] from features f [B, D], the input of its last linear layer.
        task: how the network is run.
        features: D.
        classes: C.
        groups: G.
        rank: rows of P.
    """

    def __init__(
        self, network: nn.Module, task: Task, features: int, classes: int, groups: int, rank: int
    ) -> None:
        super().__init__()
        self.network = network
        self.down = nn.Linear(features, rank, bias=False)  # P
        self.up = nn.Linear(rank, classes * groups)  # V and b, all groups in one product
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self._task, self._shape = task, (classes, groups)

    def forward(self, batch: Any, groups: Tensor | None = None) -> Tensor:
        """[B, C, G] logits, or [B, C, M] of the ``groups`` ([M] int64) alone.

        Groups stand last, where a softmax over classes runs along them at vector speed.
        """
        logits, features = self._task.forward(self.network, batch, features=True)
        assert features is not None
        low = self.down(features)  # [B, rank]
        if groups is None:
            shift: Tensor = self.up(low)  # [B, C·G]
        else:
            weight = self.up.weight.view(*self._shape, -1).index_select(1, groups)  # [C, M, rank]
            bias = self.up.bias.view(*self._shape).index_select(1, groups)  # [C, M]
            shift = F.linear(low, weight.flatten(0, 1), bias.flatten())  # [B, C·M]
        return logits.unsqueeze(2) + shift.view(*logits.shape, -1)


def _with_adapters(
    network: nn.Module, task: Task, dataset: Any, groups: int, rank: int
) -> GroupAdapters:
    """The network with adapters of the sizes that a trial pass shows."""
    first = next(iter(candidate_batches(dataset, 2, shuffle=False)))
    with without_graph():
        logits, features = task.forward(network.eval(), first.batch, features=True)
    assert features is not None
    return GroupAdapters(network, task, features.shape[1], logits.shape[1], groups, rank)


_GROUPS_AT_ONCE = 10  # that an update and a check of a checkpoint look at, if there are more


@dataclass(frozen=True, slots=True)
class _AdaptedLoss:
    """Mean over groups of the weighted losses of a network with adapters.

    Where there are many groups, every other update, by chance, is of the network alone, and the
    rest take a random few groups, which leaves their mean unbiased; checkpoints are told apart by a
    fixed few, and the kept one is scored for all.
    """

    task: Task
    smoothing: float
    groups_of: Callable[[Tensor, Tensor], Tensor]
    groups: int
    gamma: float
    all_groups: bool = False

    def _losses(
        self, model: nn.Module, batch: Any, targets: Tensor, groups: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """[B, M] losses and [B, C, M] logits of the groups looked at."""
        logits = model(batch, groups)  # [B, C, M]
        return self.task.side_by_side(logits, targets), logits

    def _weight(self, ids: Tensor, targets: Tensor, groups: Tensor | None) -> Tensor:
        """[B, M]: 1 + γ at the example's own group."""
        looked_at = torch.arange(self.groups, device=targets.device) if groups is None else groups
        own = self.groups_of(ids, targets).unsqueeze(1) == looked_at  # [B, M]
        return 1.0 + self.gamma * own

    @property
    def _few(self) -> Tensor | None:
        """The groups that tell checkpoints apart, evenly spaced; None: all."""
        if self.all_groups or self.groups <= _GROUPS_AT_ONCE:
            return None
        return torch.arange(_GROUPS_AT_ONCE) * self.groups // _GROUPS_AT_ONCE

    def update_loss(self, model: nn.Module, candidates: Candidates, targets: Tensor) -> Tensor:
        """[B]: the mean over groups, of all, of a random few, or of none."""
        groups = None
        if self.groups > _GROUPS_AT_ONCE:
            if bool(torch.rand(()) < 0.5):
                return self._without_adapters(model, candidates.batch, targets)
            groups = torch.randperm(self.groups, device=targets.device)[: 2 * _GROUPS_AT_ONCE]
        loss, logits = self._losses(model, candidates.batch, targets, groups)
        loss = self._smoothed(loss, logits)
        return (loss * self._weight(candidates.ids, targets, groups)).mean(dim=1)

    def _without_adapters(self, model: nn.Module, batch: Any, targets: Tensor) -> Tensor:
        """[B]: while all groups are the network itself, with the mean of an example's weights."""
        logits = self.task.forward(model.get_submodule("network"), batch).logits  # [B, C]
        loss = self._smoothed(self.task.loss(logits, targets), logits)
        return (1.0 + self.gamma / self.groups) * loss

    def _smoothed(self, loss: Tensor, logits: Tensor) -> Tensor:
        """(1 − s)·L + s·mean_c(−log p_c): [B, …] of [B, C, …]."""
        if not self.smoothing:
            return loss
        return (1.0 - self.smoothing) * loss - self.smoothing * logits.log_softmax(1).mean(1)

    def score(
        self, model: nn.Module, candidates: Candidates, targets: Tensor
    ) -> tuple[Tensor, Tensor]:
        loss, logits = self._losses(model, candidates.batch, targets, self._few)
        return loss, logits.mean(dim=2)

    def criterion(self, scores: Scores) -> float:
        w = self._weight(scores.ids, scores.labels, self._few).double()  # [N, M]
        return float(((scores.loss * w).sum(0) / w.sum(0)).mean())

    def whole(self) -> _AdaptedLoss:
        return self if self._few is None else replace(self, all_groups=True)


def fit_proxy(make_model: MakeModel, train: Any, **options: Unpack[FitOptions]) -> nn.Module:
    """A model fitted on the train set itself, for rules that choose from it once (``svp``).

    Args:
        make_model: makes the model.
        train: map-style data set of Candidates.
        options: see FitOptions.

    Returns:
        The model in eval mode, at its checkpoint of lowest loss on the train set.
    """
    _require_rows(train, "train")
    fit = Fit(options, jobs=1)
    with fit.charged():
        fit.run(make_model, train, train)
        with torch.random.fork_rng([]):
            model = make_model().to(fit.device)
        model.load_state_dict(fit.weights)
    return model.eval()


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


def _require_rows(dataset: Any, what: str) -> None:
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise DataError(f"the {what} set is empty or not map-style: {type(dataset).__name__}.")
    try:
        ids_of(dataset)
    except DataError:
        if not isinstance(dataset[0], Candidates):
            raise
