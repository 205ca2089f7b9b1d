"""Fitting irreducible losses: a holdout model, or K-fold models without a holdout."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypedDict, Unpack

import torch
from rich.progress import Progress
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode

from reducible.files import replacing
from reducible.ledger import Ledger
from reducible.stores import IrreducibleLossStore, fingerprint, require_disjoint, require_ids
from reducible.structure import to_device
from reducible.tasks import Classification, Task, per_example
from reducible.types import (
    Candidates,
    ConfigurationError,
    DataError,
    StoreError,
    require_between,
)

MakeModel = Callable[[], nn.Module]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

_FLOOR_ROWS = 100_000  # rows that the noise floor is estimated from, at most


class FitOptions(TypedDict, total=False):
    """Options that every way of fitting takes.

    Attributes:
        task: what batches mean; ``Classification()``.
        epochs: passes over what is fitted; 10.
        checks_per_epoch: how often an epoch the loss on the scored set is taken, and the
            checkpoint kept if it is the lowest so far; 1.
        batch_size: of an update; 32.
        make_optimizer: parameters → optimizer; AdamW with torch's defaults.
        augment: batch → batch, applied to updates only, never to scoring.
        start_from: state dict, or path of one saved by ``save_model``, to go on from.
        save_model: path to write the kept checkpoint to (safetensors).
        seed: of initialisation, order, dropout and folds; 0. Global streams are left alone.
        device: "cpu", "cuda", …; "cpu".
        num_workers: of the loaders, for data sets that are not in memory; 0.
        collate_fn: of the loaders; torch's default.
        ledger: charged with the cost.
        progress: show a bar (bool), or the rich Progress to show it in; True.
    """

    task: Task
    epochs: int
    checks_per_epoch: int
    batch_size: int
    make_optimizer: MakeOptimizer
    augment: Callable[[Any], Any]
    start_from: str | os.PathLike[str] | Mapping[str, Tensor]
    save_model: str | os.PathLike[str]
    seed: int
    device: str
    num_workers: int
    collate_fn: Callable[[list[Any]], Any]
    ledger: Ledger
    progress: bool | Progress


def fit_irreducible_loss(
    make_model: MakeModel, holdout: Any, train: Any, **options: Unpack[FitOptions]
) -> IrreducibleLossStore:
    """Fit a model on the holdout set and score all of the train set with it.

    RHO-LOSS, Algorithm 1, lines 1–3, and App. B: eval mode, inputs as they are (pass data sets
    that do not augment), the checkpoint of lowest mean loss on the train set, whose points the
    model never saw.

    Args:
        make_model: makes the holdout model; a small one serves (Approximation 3).
        holdout: map-style data set of Candidates (``WithIds``).
        train: the same, disjoint from the holdout.
        options: see FitOptions.

    Returns:
        A store with one loss per example of ``train``, its header saying how it was made, what
        it cost, and ``noise_floor``: the median of p(k | x) over the train set, per class k.

    Raises:
        DataError: an empty set, bad ids, or holdout and train set that share examples.
        StoreError: the fit diverged.
    """
    _require_rows(holdout, "holdout")
    _require_rows(train, "train")
    require_disjoint(holdout, train)
    fit = _Fit(options, jobs=1)
    with fit.charged():
        scores = fit.run(make_model, holdout, train)
    header = {"method": "holdout", "holdout_examples": len(holdout), "model": scores.model_name}
    return fit.store([scores], header)


def cross_fit_irreducible_loss(
    make_model: MakeModel, train: Any, *, folds: int = 2, **options: Unpack[FitOptions]
) -> IrreducibleLossStore:
    """Irreducible losses without a holdout: each fold is scored by a model of the others.

    RHO-LOSS, App. A, Table 3 (two folds). No example is scored by a model that trained on it.

    Args:
        make_model: makes one model; called once per fold.
        train: map-style data set of Candidates.
        folds: K ≥ 2.
        options: see FitOptions; ``start_from`` and ``save_model`` do not apply.

    Returns:
        A store with one loss per example of ``train``.
    """
    _require_rows(train, "train")
    require_between("folds", folds, 2, len(train), whole=True)
    for name in ("start_from", "save_model"):
        if name in options:
            raise ConfigurationError(f"{name} is of one model; cross-fitting makes {folds}.")
    fit = _Fit(options, jobs=folds)
    fold_of = assign_folds(len(train), folds, seed=fit.seed)  # [N]
    parts: list[_Scores] = []
    with fit.charged():
        for fold in range(folds):
            inside = fold_of == fold
            fitted, scored = _subset(train, ~inside), _subset(train, inside)
            parts.append(fit.run(make_model, fitted, scored, seed=fit.seed + fold))
    header = {"method": "cross-fit", "folds": folds, "model": parts[0].model_name}
    return fit.store(parts, header)


def assign_folds(examples: int, folds: int, *, seed: int) -> Tensor:
    """[N] int64: the fold of each position; sizes differ by at most one."""
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.empty(examples, dtype=torch.int64)
    fold_of[torch.randperm(examples, generator=generator)] = torch.arange(examples) % folds
    return fold_of


@dataclass(slots=True)
class _Scores:
    """What one model says of the examples it never saw."""

    ids: Tensor  # [N] int64
    labels: Tensor  # [N] int64
    loss: Tensor  # [N] float32
    floor_rows: Tensor  # [M, C] p(k | x) of at most _FLOOR_ROWS rows
    model_name: str = ""
    kept_epoch: float = 0.0
    mean_losses: list[float] = field(default_factory=list[float])


class _Fit:
    """One call's options with their defaults, and the work they control."""

    def __init__(self, options: FitOptions, *, jobs: int) -> None:
        unknown = set(options) - set(FitOptions.__annotations__)
        if unknown:
            raise ConfigurationError(f"no such options of fitting: {sorted(unknown)}.")
        self.task = options.get("task", Classification())
        self.epochs = options.get("epochs", 10)
        self.checks = options.get("checks_per_epoch", 1)
        self.batch_size = options.get("batch_size", 32)
        self.make_optimizer = options.get("make_optimizer", torch.optim.AdamW)
        self.augment = options.get("augment")
        self.start_from = options.get("start_from")
        self.save_model = options.get("save_model")
        self.seed = options.get("seed", 0)
        self.device = torch.device(options.get("device", "cpu"))
        self.loader_options: dict[str, Any] = {
            "num_workers": options.get("num_workers", 0),
            "collate_fn": options.get("collate_fn"),
        }
        self.ledger = options.get("ledger", Ledger())
        require_between("epochs", self.epochs, 0, whole=True)
        require_between("checks_per_epoch", self.checks, 1, whole=True)
        require_between("batch_size", self.batch_size, 1, whole=True)
        progress = options.get("progress", True)
        self._bar = progress if isinstance(progress, Progress) else Progress(disable=not progress)
        self._own_bar = not isinstance(progress, Progress)
        self._jobs = jobs
        self._bar_task: Any = None
        self._began = 0.0
        self._flops = 0
        self._flops_per_update = 0
        self._updates = 0

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charge the body to the irreducible loss, and show its progress."""
        self._began = self.ledger.seconds["irreducible_loss"]
        with self._bar if self._own_bar else nullcontext(), self.ledger.phase("irreducible_loss"):
            yield

    def run(
        self,
        make_model: MakeModel,
        fitted: Any,
        scored: Any,
        *,
        seed: int | None = None,
        weight: Callable[[Tensor], Tensor] | None = None,
    ) -> _Scores:
        """Fit on ``fitted``, score ``scored``; the checkpoint of lowest (weighted) mean loss.

        Args:
            make_model: makes the model.
            fitted: what is trained on.
            scored: what the model never sees in an update.
            seed: of initialisation and order.
            weight: labels [B] → weight [B] of each loss, in updates and in the choice.
        """
        devices = [self.device] if self.device.type not in ("cpu", "mps") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed if seed is None else seed)
            model = make_model().to(self.device)
            if self.start_from is not None:
                model.load_state_dict(_weights(self.start_from))
            return self._fit(model, fitted, scored, weight)

    def _fit(
        self,
        model: nn.Module,
        fitted: Any,
        scored: Any,
        weight: Callable[[Tensor], Tensor] | None,
    ) -> _Scores:
        optimizer = self.make_optimizer(model.parameters())
        loader = _loader(fitted, self.batch_size, shuffle=True, **self.loader_options)
        per_epoch = len(loader)
        check_at = {round(per_epoch * (i + 1) / self.checks) for i in range(self.checks)}
        bar = self._progress(self.epochs * per_epoch)
        best: _Scores | None = None
        lowest, curve = float("inf"), list[float]()
        weights: dict[str, Tensor] = {}

        def check(epoch: float) -> None:
            nonlocal best, lowest, weights
            scores = self._score(model, scored)
            w = torch.ones_like(scores.loss) if weight is None else weight(scores.labels)
            mean = float((scores.loss * w).sum() / w.sum())
            curve.append(mean)
            if mean < lowest:
                lowest, best = mean, scores
                best.kept_epoch = epoch
                weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

        if self.start_from is not None or self.epochs == 0:
            check(0.0)
        for epoch in range(self.epochs):
            model.train()
            for position, candidates in enumerate(loader, start=1):
                self._update(model, optimizer, candidates, weight)
                self._bar.advance(bar)
                if position in check_at:
                    check(epoch + position / per_epoch)
                    model.train()
        if best is None:
            raise StoreError(
                f"no checkpoint of the irreducible-loss model has a finite loss (saw {curve}): "
                "the fit diverged. Lower its learning rate, or check the inputs for NaN."
            )
        best.mean_losses, best.model_name = curve, type(model).__name__
        if self.save_model is not None:
            with replacing(self.save_model) as temporary:
                save_file({k: v.cpu().contiguous() for k, v in weights.items()}, temporary)
        return best

    def _update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        candidates: Candidates,
        weight: Callable[[Tensor], Tensor] | None,
    ) -> None:
        batch = to_device(candidates.batch, self.device)
        if self.augment is not None:
            batch = self.augment(batch)
        first = self._updates == 0
        with FlopCounterMode(display=False) if first else nullcontext() as counter:
            targets = self.task.targets(batch)
            if targets is None:
                raise DataError("the task has no targets, so there is no loss to fit.")
            loss = self.task.loss(self.task.forward(model, batch).logits, targets)
            loss = per_example(loss, candidates.ids.numel())  # [B]
            if weight is not None:
                loss = loss * weight(targets)
            optimizer.zero_grad()
            loss.mean().backward()
        optimizer.step()
        if counter is not None:
            self._flops_per_update = counter.get_total_flops()
        self._flops += self._flops_per_update
        self._updates += 1

    def _score(self, model: nn.Module, scored: Any) -> _Scores:
        """Losses of all of ``scored`` in eval mode."""
        ids, labels, losses, floors = [], [], [], []
        every = -(-len(scored) // _FLOOR_ROWS)
        model.eval()
        with torch.inference_mode():
            for candidates in _loader(scored, 1024, shuffle=False, **self.loader_options):
                batch = to_device(candidates.batch, self.device)
                targets = self.task.targets(batch)
                assert targets is not None
                logits = self.task.forward(model, batch).logits.float()  # [B, C]
                losses.append(per_example(self.task.loss(logits, targets), len(targets)).cpu())
                floors.append(logits.softmax(1)[::every].cpu())
                ids.append(candidates.ids.cpu())
                labels.append(targets.cpu())
        self._flops += int(self._flops_per_update / 3 / self.batch_size * len(scored))
        return _Scores(torch.cat(ids), torch.cat(labels), torch.cat(losses), torch.cat(floors))

    def _progress(self, updates: int) -> Any:
        if self._bar_task is None:
            total = self._jobs * updates
            self._bar_task = self._bar.add_task("fitting irreducible losses", total=total)
        return self._bar_task

    def store(self, parts: list[_Scores], header: dict[str, Any]) -> IrreducibleLossStore:
        """The store of what all parts say, merged by id."""
        ids = torch.cat([p.ids for p in parts])
        labels = torch.cat([p.labels for p in parts])
        require_ids(ids)
        floor = torch.cat([p.floor_rows for p in parts]).median(dim=0).values  # [C]
        seconds = self.ledger.seconds["irreducible_loss"] - self._began
        self.ledger.counts.flops_irreducible_loss += self._flops
        return IrreducibleLossStore.from_tensor(
            torch.cat([p.loss for p in parts]),
            ids=ids,
            fingerprint=fingerprint(ids, labels),
            header=header
            | {
                "checkpoint": "lowest mean loss on the scored set",
                "kept_epoch": [p.kept_epoch for p in parts],
                "mean_losses": [p.mean_losses for p in parts],
                "augmentation": "none in scoring",
                "mode": "eval",
                "epochs": self.epochs,
                "batch_size": self.batch_size,
                "seed": self.seed,
                "updates": self._updates,
                "flops": self._flops,
                "seconds": seconds,
                "noise_floor": floor.tolist(),
            },
        )


def _require_rows(dataset: Any, what: str) -> None:
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise DataError(f"the {what} set is empty or not map-style: {type(dataset).__name__}.")


def _subset(dataset: Any, rows: Tensor) -> Any:
    positions = rows.nonzero().squeeze(1)
    if hasattr(dataset, "subset"):
        return dataset.subset(positions)
    return Subset(dataset, positions.tolist())


def _loader(dataset: Any, batch_size: int, *, shuffle: bool, **options: Any) -> Any:
    """Candidate batches; whole batches at once where the data set is in memory."""
    if hasattr(dataset, "loader"):
        return dataset.loader(batch_size, shuffle=shuffle, drop_last=False)
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, **options)


def _weights(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return source if isinstance(source, Mapping) else load_file(source)
