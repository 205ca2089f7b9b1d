"""Chooses on folds of a trusted set how a plan is steered by it, by short pilots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Unpack

import torch
from torch import Tensor, nn
from torch.utils.data import BatchSampler, DataLoader

from reducible.batches import to_device
from reducible.fitting.fit import Fit, FitOptions, MakeModel, candidate_batches, subset_of
from reducible.fitting.irreducible import assign_folds, refuse_one_model_options, require_rows
from reducible.fitting.objectives import MeanLoss
from reducible.loading.labels import as_tensor
from reducible.loading.order import as_it_is, batches_of
from reducible.plans import Plan
from reducible.scoring import without_graph
from reducible.stores import IrreducibleLossStore, ids_of, require_ids
from reducible.tasks import Task, per_example
from reducible.types import Candidates, ConfigurationError, DataError, name_ids, require_between

SIMPLE: tuple[Mapping[str, Any], ...] = (
    {"keep": 1.0, "share": 0.0},
    {"keep": 0.0, "share": 1.0},
    {"keep": 1.0, "share": 0.125},
    {"keep": 1.0, "share": 0.25},
    {"keep": 1.0, "share": 0.5},
)
"""What needs no losses: the pool alone, the trusted set alone, a mixture."""

STEERED: tuple[Mapping[str, Any], ...] = (
    {"keep": 0.2, "share": 0.25},
    {"keep": 0.4, "share": 0.25},
    {"keep": 0.1, "share": 0.25},
    {"keep": 0.05, "share": 0.25},
    {"keep": 0.2, "share": 0.5},
)
"""What is kept of the pool by its losses, and the trusted set's share."""

_RUNGS = (0.25, 0.5, 1.0)  # of a pilot's updates, after which the worse half ends


class _Fold(NamedTuple):
    """A fold: what is judged on, the others, and a model's losses of the pool that saw neither."""

    judged: Any
    trusted: Tensor  # [T'] ids of the other folds
    store: IrreducibleLossStore


def plan_toward(
    make_model: MakeModel,
    data: Any,
    trusted: Tensor | Sequence[int],
    *,
    folds: int = 4,
    updates: int = 200,
    simple: Sequence[Mapping[str, Any]] = SIMPLE,
    steered: Sequence[Mapping[str, Any]] = STEERED,
    caution: float = 1.0,
    **options: Unpack[FitOptions],
) -> Plan:
    """Fit on a trusted set, choose how much of the pool to keep, and plan.

    Each fold of the trusted set is judged by pilots that never saw it, trained on what a model of
    the other folds keeps of the pool. After a quarter and a half of its updates a pilot ends if it
    is among the worse half so far (asynchronous successive halving, Li et al. 2020, by Optuna).
    What is steered is taken only if it beats the best of what is simple by ``caution`` standard
    errors of the paired difference; among the others the best is taken.

    The losses that the plan is made of are the mean of the folds' models'.

    Args:
        make_model: makes a small model, for fits and pilots alike.
        data: map-style data set of Candidates (``WithIds``): the pool, and the trusted set.
        trusted: [T] int64 ids of those that look like what the model will be judged on, with
            right labels; a list or range too.
        folds: of the trusted set, 2 … T.
        updates: of a pilot that is not ended early.
        simple: settings of ``Plan.toward`` that read no losses.
        steered: settings of it that do.
        caution: standard errors; 0 takes the best whatever it is.
        options: see FitOptions; of the fits and, but for ``epochs``, of the pilots, whose rate
            falls to zero in a line. ``start_from`` and ``save_model`` do not apply.

    Returns:
        The plan, whose ``report["choice"]`` says what was tried, how it did, and why this.

    Raises:
        ConfigurationError: Optuna is not installed; settings that cannot work.
        DataError: an empty set, bad ids, trusted ids that are not in the data, or all of them;
            labels of the trusted set that the pool lacks.
        StoreError: a fit diverged.

    >>> from torch.utils.data import TensorDataset
    >>> from reducible import WithIds
    >>> data = WithIds(TensorDataset(torch.randn(90, 4), torch.arange(90) % 2))
    >>> plan = plan_toward(
    ...     lambda: nn.Linear(4, 2), data, range(60, 90), updates=4, epochs=1, progress=False
    ... )
    >>> sorted(plan.report["choice"]["settings"])
    ['keep', 'share']
    """
    require_rows(data, "data")
    refuse_one_model_options(options, f"steering makes {folds}")
    own, pool = _parts(data, trusted)
    require_between("folds", folds, 2, own.numel(), whole=True)
    require_between("updates", updates, len(_RUNGS), whole=True)
    require_between("caution", caution, 0.0, open_high=True)
    if not simple or not steered:
        raise ConfigurationError("name something simple and something steered to choose among.")
    fit = Fit(options, jobs=folds)
    began = fit.ledger.seconds["irreducible_loss"]
    ids = ids_of(data)
    positions = {"pool": _where(ids, pool), "trusted": _where(ids, own)}
    fold_of = assign_folds(own.numel(), folds, seed=fit.seed)  # [T]
    with fit.charged():
        each = [
            _fold(fit, make_model, data, positions, own, fold_of == fold, fold)
            for fold in range(folds)
        ]
        pilots = _Pilots(fit, make_model, data, pool, each, updates)
        tried = _tried(pilots, [*simple, *steered], fit.seed)
    mean = torch.stack([fold.store.lookup(pool) for fold in each]).mean(0)
    seconds = fit.ledger.seconds["irreducible_loss"] - began
    fit.ledger.counts.flops_irreducible_loss += fit.flops
    header = {"method": "folds of a trusted set", "seconds": seconds, "flops": fit.flops}
    store = IrreducibleLossStore.from_tensor(mean, ids=pool, header=header)
    choice = _choice(tried, len(simple), caution) | {"seconds": seconds, "folds": folds}
    settings = choice["settings"]
    plan = Plan.toward(store, pool, trusted=own, **settings)
    return replace(plan, report={**plan.report, "choice": choice})


class _Tried(NamedTuple):
    settings: Mapping[str, Any]
    updates: int
    right: Tensor  # [T] of each trusted example, larger is better
    ended: bool  # early
    score: float


class _Pilots:
    """Trains what settings plan, on every fold, and judges it."""

    def __init__(
        self, fit: Fit, make_model: MakeModel, data: Any, pool: Tensor, folds: list[_Fold],
        updates: int,
    ) -> None:  # fmt: skip
        self._fit, self._make, self._data, self._pool = fit, make_model, data, pool
        self._folds, self._updates = folds, updates
        self.rungs = [max(1, round(share * updates)) for share in _RUNGS]

    def run(self, settings: Mapping[str, Any]) -> Iterator[tuple[int, Tensor]]:
        """Yields updates made and what is right ([T], fold by fold) at every rung."""
        trained = [self._trained(fold, number, settings) for number, fold in enumerate(self._folds)]
        for rung in self.rungs:
            yield rung, torch.cat([next(run) for run in trained])

    def _trained(self, fold: _Fold, number: int, settings: Mapping[str, Any]) -> Iterator[Tensor]:
        fit = self._fit
        plan = Plan.toward(fold.store, self._pool, trusted=fold.trusted, **settings)
        with torch.random.fork_rng(_devices(fit)):
            torch.manual_seed(fit.seed + number)
            model = self._make().to(fit.device)
            states = torch.random.get_rng_state()
        optimizer = fit.make_optimizer(model.parameters())
        rates = [group["lr"] for group in optimizer.param_groups]
        objective, batches = MeanLoss(fit.task, fit.smoothing), self._batches(plan, number)
        for step in range(self._updates):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 - step / self._updates)
            with torch.random.fork_rng(_devices(fit)):
                torch.random.set_rng_state(states)
                model.train()
                fit.update(model, optimizer, next(batches), objective)
                states = torch.random.get_rng_state()
            if step + 1 in self.rungs:
                yield judged(model, fold.judged, fit.task, fit.device, fit.loader_options)

    def _batches(self, plan: Plan, number: int) -> Iterator[Candidates]:
        generator = torch.Generator().manual_seed(self._fit.seed + number)
        sampler = plan.sampler(self._data, generator=generator)
        size = min(self._fit.batch_size, len(sampler))
        if hasattr(self._data, "loader"):  # in memory: whole batches at once
            order: Any = BatchSampler(sampler, size, drop_last=True)
            loader = DataLoader(
                self._data, None, sampler=order, collate_fn=as_it_is, generator=generator
            )
        else:
            options = self._fit.loader_options
            loader = DataLoader(
                self._data, size, sampler=sampler, drop_last=True, generator=generator, **options
            )
        while True:
            yield from batches_of(loader)


def judged(
    model: nn.Module, data: Any, task: Task, device: torch.device, loading: Mapping[str, Any]
) -> Tensor:
    """How well a model does on each example, [N] float32: 1 if right; minus the loss if no class.

    Args:
        model: put into eval mode.
        data: map-style data set of Candidates.
        task: what batches mean.
        device: of the model.
        loading: options of the loader.
    """
    model.eval()
    found: list[Tensor] = []
    with without_graph():
        order = torch.Generator()  # a DataLoader draws a seed even if nothing is random
        for here in batches_of(
            candidate_batches(data, 1024, shuffle=False, generator=order, **loading)
        ):
            batch = to_device(here.batch, device)
            logits, targets = task.forward(model, batch).logits, task.targets(batch)
            if "logits" in task.gives and logits.dim() == 2:
                how = (logits.argmax(1) == targets).float()
            else:
                how = -per_example(task.loss(logits, targets), here.ids.numel()).float()  # pyright: ignore[reportArgumentType]
            found.append(how.cpu())
    return torch.cat(found)


def _tried(pilots: _Pilots, settings: Sequence[Mapping[str, Any]], seed: int) -> list[_Tried]:
    """Runs pilots, in order, those of the worse half so far not to their end."""
    try:
        import optuna
    except ImportError as error:
        raise ConfigurationError(
            "choosing how to steer needs Optuna: pip install 'reducible[steer]'. Or choose "
            "yourself: Plan.toward(store, ids, trusted=…, keep=…)."
        ) from error
    found: list[_Tried] = []

    def objective(trial: Any) -> float:
        mine = settings[trial.suggest_int("which", 0, len(settings) - 1)]
        score, done, right = 0.0, 0, torch.empty(0)
        for rung, (updates, here) in enumerate(pilots.run(mine)):
            score, done, right = float(here.mean()), updates, here
            trial.report(score, rung + 1)
            if done < pilots.rungs[-1] and trial.should_prune():
                found.append(_Tried(mine, done, right, True, score))
                raise optuna.TrialPruned
        found.append(_Tried(mine, done, right, False, score))
        return score

    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        halving = optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=2)
        study = optuna.create_study(
            direction="maximize", pruner=halving, sampler=optuna.samplers.RandomSampler(seed)
        )
        for which in range(len(settings)):
            study.enqueue_trial({"which": which})
        study.optimize(objective, n_trials=len(settings))
    finally:
        optuna.logging.set_verbosity(level)
    return found


def _choice(tried: list[_Tried], simple: int, caution: float) -> dict[str, Any]:
    """What to take, with its reasons; JSON types only."""
    best: dict[str, _Tried | None] = {}
    for name, some in (("simple", tried[:simple]), ("steered", tried[simple:])):
        whole = [t for t in some if not t.ended]
        best[name] = max(whole, key=lambda t: t.score, default=None)
    plain, ours = best["simple"], best["steered"]
    taken, difference, error = plain or ours, None, None
    if plain is not None and ours is not None:
        gaps = (ours.right - plain.right).tolist()
        difference = statistics.fmean(gaps)
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        taken = ours if difference > caution * error and difference > 0 else plain
    assert taken is not None  # the first pilot is never ended
    return {
        "settings": dict(taken.settings), "steered": taken is ours, "caution": caution,
        "over_simple": difference, "standard_error": error,
        "tried": [
            {**t.settings, "score": t.score, "updates": t.updates, "ended": t.ended}
            for t in tried
        ],
    }  # fmt: skip


def _fold(
    fit: Fit, make_model: MakeModel, data: Any, positions: Mapping[str, Tensor], own: Tensor,
    inside: Tensor, number: int,
) -> _Fold:  # fmt: skip
    """Fits on the other folds, the checkpoint that does best on this one, and scores the pool."""
    rows = positions["trusted"]
    others, judged_on = subset_of(data, rows[~inside]), subset_of(data, rows[inside])
    told = fit.run(make_model, others, judged_on, seed=fit.seed + number)
    with torch.random.fork_rng(_devices(fit)):
        model = make_model().to(fit.device)
        model.load_state_dict(fit.weights)
        scores = fit.score(model, subset_of(data, positions["pool"]), MeanLoss(fit.task))
    if "logits" in fit.task.gives:
        _require_common(told.labels, scores.labels)
    store = IrreducibleLossStore.from_tensor(scores.loss, ids=scores.ids)
    return _Fold(judged_on, own[~inside], store)


def _require_common(trusted: Tensor | None, pool: Tensor | None) -> None:
    """Raises DataError if the trusted set has classes that the pool has not."""
    if trusted is None or pool is None:
        return
    alone = trusted.unique()[~torch.isin(trusted.unique(), pool)]
    if alone.numel():
        raise DataError(
            f"classes {name_ids(alone)} of the trusted set are not in the pool, which can teach "
            "nothing of them. Are classes numbered otherwise there? Or leave them out."
        )


def _parts(data: Any, trusted: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids of the trusted set and of the pool, ascending: [T], [N]."""
    own: Tensor = as_tensor(trusted)
    require_ids(own)
    if own.numel() < 2:
        raise DataError(
            f"{own.numel()} trusted example: it is judged on folds of them, of one at least. "
            "Trust more, or choose yourself: Plan.toward(store, ids, keep=…)."
        )
    ids = ids_of(data).cpu()
    own = own.cpu().sort().values
    missing = ~torch.isin(own, ids)
    if bool(missing.any()):
        raise DataError(
            f"trusted ids {name_ids(own[missing])} are not in the data. Join both sets first: "
            "reducible.WithIds(ConcatDataset([pool, trusted]))."
        )
    pool = ids[~torch.isin(ids, own)].sort().values
    if not pool.numel():
        raise DataError("all of the data are trusted: there is no pool to choose from.")
    return own, pool


def _where(ids: Tensor, wanted: Tensor) -> Tensor:
    """Positions of ``wanted`` ids: [M] int64."""
    ascending, order = ids.cpu().sort()
    return order[torch.searchsorted(ascending, wanted)]


def _devices(fit: Fit) -> list[torch.device]:
    return [fit.device] if fit.device.type not in ("cpu", "mps") else []
