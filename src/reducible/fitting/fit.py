"""Fitting a model on one set and keeping the checkpoint that does best on another."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset
from torch.utils.flop_counter import FlopCounterMode

from reducible.batches import to_device
from reducible.files.checkpoints import save_weights
from reducible.fitting.copies import input_hashes
from reducible.fitting.objectives import MeanLoss, Objective, Scores
from reducible.fitting.progress import FitProgress
from reducible.ledger import Ledger
from reducible.loading.order import batches_of
from reducible.plans import learned_noise
from reducible.scoring import without_graph
from reducible.stores import (
    LABEL_SAMPLE,
    IrreducibleLossStore,
    fingerprint,
    label_sample,
    noting_ids,
    refuse_keys,
    require_ids,
)
from reducible.tasks import Classification, Task
from reducible.types import Candidates, ConfigurationError, DataError, StoreError, require_between

if TYPE_CHECKING:
    from rich.progress import Progress

MakeModel = Callable[[], nn.Module]
MakeOptimizer = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]

_CHECK_ROWS = 4096  # that tell checkpoints apart
_FLOOR_ROWS = 100_000  # rows that the noise floor is estimated from, at most


class FitOptions(TypedDict, total=False):
    """Options that every way of fitting takes.

    Attributes:
        task: what batches mean; ``Classification()``.
        epochs: passes over what is fitted; 10.
        checks_per_epoch: how often an epoch the loss on the scored set is taken, and the
            checkpoint kept if it is the lowest so far; 1.
        check_rows: of the scored set that checkpoints are told apart by, drawn once by the seed;
            4,096. The kept checkpoint scores all of it, once. None: every check scores all.
        batch_size: of an update; 32.
        make_optimizer: parameters → optimizer; AdamW with torch's defaults, fused.
        label_smoothing: of updates only, in [0, 1); 0. A clean holdout teaches a confidence that
            noisy labels in the train set punish, so that the checkpoint of lowest loss is an early,
            poor one; smoothing by about the share of wrong labels mends that.
        augment: batch → batch, applied to updates only, never to scoring.
        start_from: state dict, or path of one saved by ``save_model``, to go on from.
        save_model: path to write the kept checkpoint to (safetensors, with a checksum).
        seed: of initialisation, order, dropout and folds; 0. Global streams are left alone.
        device: "cpu", "cuda", …; "cpu".
        num_workers: of the loaders, for data sets that are not in memory; 0.
        collate_fn: of the loaders; torch's default.
        ledger: charged with the cost.
        progress: show a bar if rich is installed (bool), or the rich Progress to show it in; True.
    """

    task: Task
    epochs: int
    checks_per_epoch: int
    check_rows: int | None
    batch_size: int
    make_optimizer: MakeOptimizer
    label_smoothing: float
    augment: Callable[[Any], Any]
    start_from: str | os.PathLike[str] | Mapping[str, Tensor]
    save_model: str | os.PathLike[str]
    seed: int
    device: str
    num_workers: int
    collate_fn: Callable[[list[Any]], Any]
    ledger: Ledger
    progress: bool | Progress


def _fused_adamw(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, fused=True)


class Fit:
    """One call's options with their defaults, and the work they control."""

    def __init__(self, options: FitOptions, *, jobs: int) -> None:
        unknown = set(options) - set(FitOptions.__annotations__)
        if unknown:
            raise ConfigurationError(f"no such options of fitting: {sorted(unknown)}.")
        self.task = options.get("task", Classification())
        self.epochs = options.get("epochs", 10)
        self.checks = options.get("checks_per_epoch", 1)
        self.check_rows = options.get("check_rows", _CHECK_ROWS)
        self.batch_size = options.get("batch_size", 32)
        self.make_optimizer = options.get("make_optimizer", _fused_adamw)
        self.smoothing = options.get("label_smoothing", 0.0)
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
        self.hashes_inputs = False
        """Whether scores come with hashes of the inputs, by which copies are known."""
        require_between("epochs", self.epochs, 0, whole=True)
        require_between("checks_per_epoch", self.checks, 1, whole=True)
        if self.check_rows is not None:
            require_between("check_rows", self.check_rows, 1, whole=True)
        require_between("batch_size", self.batch_size, 1, whole=True)
        require_between("label_smoothing", self.smoothing, 0.0, 1.0, open_high=True)
        if self.smoothing and "logits" not in self.task.gives:
            raise ConfigurationError(
                f"label_smoothing={self.smoothing} is of class probabilities, which "
                f"{type(self.task).__name__} does not give. Leave it out."
            )
        self._progress = FitProgress(options.get("progress", True), fits=jobs)
        self._began = 0.0
        self.flops = 0
        """Spent so far."""
        self._flops_per_update = 0
        self._flops_per_scored: float | None = None
        self._updates = 0
        self.weights: dict[str, Tensor] = {}
        """Epoch of the checkpoint that the last run kept."""

    @contextmanager
    def charged(self) -> Iterator[None]:
        """Charge the body to the irreducible loss, and show its progress."""
        self._began = self.ledger.seconds["irreducible_loss"]
        with self._progress, self.ledger.phase("irreducible_loss"):
            yield

    def run(
        self,
        make_model: MakeModel,
        fitted: Any,
        scored: Any,
        *,
        seed: int | None = None,
        objective: Objective | None = None,
    ) -> Scores:
        """Fit on ``fitted``, score ``scored``; the checkpoint of lowest criterion.

        Args:
            make_model: makes the model.
            fitted: what is trained on.
            scored: what the model never sees in an update.
            seed: of initialisation and order.
            objective: what is minimised; the mean loss.
        """
        if isinstance(make_model, nn.Module):
            raise ConfigurationError(
                f"make_model is a {type(make_model).__name__}; pass a function that makes a new "
                "one at every call, such as lambda: Net(). A model as it stands scores with "
                "reducible.score_irreducible_loss(model, train)."
            )
        objective = objective or MeanLoss(self.task, self.smoothing)
        devices = [self.device] if self.device.type not in ("cpu", "mps") else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.seed if seed is None else seed)
            model = make_model().to(self.device)
            if self.start_from is not None:
                model.load_state_dict(_weights(self.start_from))
            return self._fit(model, fitted, scored, objective)

    def _fit(self, model: nn.Module, fitted: Any, scored: Any, objective: Objective) -> Scores:
        optimizer = self.make_optimizer(model.parameters())
        loader = candidate_batches(fitted, self.batch_size, shuffle=True, **self.loader_options)
        per_epoch = len(loader)
        check_at = {round(per_epoch * (i + 1) / self.checks) for i in range(self.checks)}
        self._progress.begin(self.epochs * per_epoch)
        checked = self._checked(scored)
        best: Scores | None = None
        lowest, curve = float("inf"), list[float]()
        weights: dict[str, Tensor] = {}

        def check(epoch: float) -> None:
            nonlocal best, lowest, weights
            scores = self.score(model, checked, objective)
            mean = objective.criterion(scores)
            curve.append(mean)
            if mean < lowest:
                lowest, best = mean, scores
                best.kept_epoch = epoch
                weights = {k: v.detach().clone() for k, v in model.state_dict().items()}

        if self.start_from is not None or self.epochs == 0:
            check(0.0)
        for epoch in range(self.epochs):
            model.train()
            for position, candidates in enumerate(batches_of(loader), start=1):
                self.update(model, optimizer, candidates, objective)
                self._progress.advance()
                if position in check_at:
                    check(epoch + position / per_epoch)
                    model.train()
        if best is None:
            raise StoreError(
                f"no checkpoint of the irreducible-loss model has a finite loss (saw {curve}): "
                "the fit diverged. Lower its learning rate, or check the inputs for NaN."
            )
        self.weights = weights
        final = objective.whole()
        if final is not objective or checked is not scored:
            model.load_state_dict(weights)
            kept_epoch, best = best.kept_epoch, self.score(model, scored, final)
            best.kept_epoch = kept_epoch
        best.mean_losses, best.model_name = curve, type(model).__name__
        if self.save_model is not None:
            save_weights(self.save_model, weights)
        return best

    def update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        candidates: Candidates,
        objective: Objective,
    ) -> None:
        """One update on a batch, counted."""
        refuse_keys(candidates.ids)
        batch = to_device(candidates.batch, self.device)
        if self.augment is not None:
            batch = self.augment(batch)
        here = Candidates(candidates.ids.to(self.device), batch)
        first = self._updates == 0
        with FlopCounterMode(display=False) if first else nullcontext() as counter:
            loss = objective.update_loss(model, here, self._targets(batch))  # [B]
            optimizer.zero_grad()
            loss.mean().backward()
        optimizer.step()
        if counter is not None:
            self._flops_per_update = counter.get_total_flops()
        self.flops += self._flops_per_update
        self._updates += 1

    def _targets(self, batch: Any) -> Any:
        targets = self.task.targets(batch)
        if targets is None and self.task.needs_targets:
            raise DataError("the task has no targets, so there is no loss to fit.")
        return targets

    def score(self, model: nn.Module, scored: Any, objective: Objective) -> Scores:
        """What a model says of all of ``scored``, in eval mode."""
        ids, labels, losses, floors, floor_labels, hashes = [], [], [], [], [], []
        every = -(-len(scored) // _FLOOR_ROWS)
        model.eval()
        with without_graph():
            loader = candidate_batches(scored, 1024, shuffle=False, **self.loader_options)
            for candidates in batches_of(loader):
                refuse_keys(candidates.ids)
                batch = to_device(candidates.batch, self.device)
                here = Candidates(candidates.ids.to(self.device), batch)
                targets = self._targets(batch)
                first = self._flops_per_scored is None
                with FlopCounterMode(display=False) if first else nullcontext() as counter:
                    loss, logits = objective.score(model, here, targets)
                rows = candidates.ids.numel()
                if counter is not None:
                    self._flops_per_scored = counter.get_total_flops() / rows
                self.flops += int(rows * (self._flops_per_scored or 0.0))
                losses.append(loss.cpu())
                if "logits" in self.task.gives:
                    floors.append(logits.softmax(1)[::every].cpu())
                    floor_labels.append(targets[::every].cpu())
                ids.append(candidates.ids.cpu())
                if targets is not None:
                    labels.append(self.task.labels(targets).cpu())
                if self.hashes_inputs:
                    hashes.append(input_hashes(batch, here.ids if targets is None else targets))
        found = [h.cpu() for h in hashes if h is not None]
        return Scores(
            torch.cat(ids),
            torch.cat(labels) if labels else None,
            torch.cat(losses),
            torch.cat(floors) if floors else None,
            torch.cat(floor_labels) if floors else None,
            torch.cat(found) if found and len(found) == len(hashes) else None,
        )

    def _checked(self, scored: Any) -> Any:
        """The rows of ``scored`` that checkpoints are told apart by; all if they are few."""
        if self.check_rows is None or len(scored) <= self.check_rows:
            return scored
        drawn = random.Random(self.seed).sample(range(len(scored)), self.check_rows)
        return subset_of(scored, torch.tensor(sorted(drawn)))

    def store(
        self, parts: list[Scores], header: dict[str, Any], *, columns: bool = False
    ) -> IrreducibleLossStore:
        """The store of what all parts say: merged by id, or side by side as ``columns``."""
        if columns:
            ids, labels = parts[0].ids, parts[0].labels
            values = torch.stack([p.loss for p in parts], dim=1)  # [N, G]
        else:
            ids = torch.cat([p.ids for p in parts])
            labels = _joined([p.labels for p in parts])
            values = torch.cat([p.loss for p in parts])  # [N] or [N, G]
        require_ids(ids)
        seconds = self.ledger.seconds["irreducible_loss"] - self._began
        self.ledger.counts.flops_irreducible_loss += self.flops
        return IrreducibleLossStore.from_tensor(
            values,
            ids=ids,
            fingerprint=fingerprint(ids, labels),
            header={
                "checkpoint": "lowest mean loss on the scored set",
                "kept_epoch": [p.kept_epoch for p in parts],
                "mean_losses": [p.mean_losses for p in parts],
                "augmentation": "none in scoring",
                "mode": "eval",
                "epochs": self.epochs,
                "check_rows": self.check_rows,
                "batch_size": self.batch_size,
                "label_smoothing": self.smoothing,
                "seed": self.seed,
                "updates": self._updates,
                "flops": self.flops,
                "seconds": seconds,
            }
            | ({} if labels is None else {LABEL_SAMPLE: label_sample(ids, labels)})
            | _noise(parts, columns=columns)
            | header,
        )


def _noise(parts: list[Scores], *, columns: bool) -> dict[str, Any]:
    """Entries of a header: medians per class, and what plans need if labels are classes."""
    rows = _joined([p.floor_rows for p in parts])  # [M, C]
    labels = _joined([p.floor_labels for p in parts])
    if rows is None or labels is None:
        return {}  # the task has no class probabilities
    medians = rows.median(dim=0).values.tolist()
    classes = parts[0].loss.dim() == 1 == labels.dim() and not labels.is_floating_point()
    if columns or not classes or int(labels.min()) < 0 or int(labels.max()) >= rows.shape[1]:
        return {"noise_floor": medians}
    learned = learned_noise(rows, labels.long())._asdict()
    return {"noise_floor": medians, "learned_noise": {k: v.tolist() for k, v in learned.items()}}


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    there = [part for part in parts if part is not None]
    return torch.cat(there) if there else None


def candidate_batches(dataset: Any, batch_size: int, *, shuffle: bool, **options: Any) -> Any:
    """Candidate batches; whole batches at once if the data set is in memory."""
    if hasattr(dataset, "loader"):
        return dataset.loader(batch_size, shuffle=shuffle, drop_last=False)
    if options.get("collate_fn") is not None:
        options["collate_fn"] = noting_ids(options["collate_fn"])
    return DataLoader(dataset, batch_size=batch_size, shuffle=shuffle, **options)


def subset_of(dataset: Any, positions: Tensor) -> Any:
    """The examples at ``positions`` ([M] int64), with the ids that they have."""
    if hasattr(dataset, "subset"):
        return dataset.subset(positions)
    return Subset(dataset, positions.tolist())


def _weights(source: str | os.PathLike[str] | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return source if isinstance(source, Mapping) else load_file(source)
