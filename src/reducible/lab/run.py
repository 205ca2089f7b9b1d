"""The one training loop of recipes, demo and studies, and the folder it leaves behind."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reducible import schedules
from reducible.files import checkpoints
from reducible.lab.counts import Tally
from reducible.lab.data import TensorSet, TokenSet
from reducible.lab.evaluation import evaluate
from reducible.lab.info_records import INFO, PICKS, StepWriter
from reducible.lab.locks import locked
from reducible.lab.logs import Mark, is_whole, mark_of
from reducible.lab.provenance import current_commit, versions
from reducible.lab.recipe import Recipe
from reducible.lab.records import MetricsWriter, read_json, read_metrics, summarise, write_json
from reducible.lab.setup import (
    CONFIG,
    MODEL,
    PLAN,
    STORE,
    candidate_loader,
    irreducible_store,
    loader_options,
    make_plan,
)
from reducible.lab.splits import Splits, make_splits
from reducible.lab.stopping import Stopping, stopping
from reducible.ledger import Ledger
from reducible.loop import Chosen, SelectingLoader, stream_seed, weighted_mean
from reducible.plans import noise_floor_loss
from reducible.stores import IrreducibleLossStore
from reducible.types import ConfigurationError, ReducibleError, require_between

METRICS, WEIGHTS = "metrics.jsonl", "model.safetensors"
LOGS = (METRICS, PICKS, INFO)
_FINAL_EVALUATIONS = 5  # final accuracy is the mean of the last so many at a constant rate


def per_example_loss(
    name: str, logits: Tensor, targets: Tensor, floor: Tensor | None = None
) -> Tensor:
    """[K] losses of a recipe: cross-entropy, smoothed by 0.1, or (1 − p_y^q)/q with q = 0.7.

    The last is generalised cross-entropy (Zhang & Sabuncu 2018). With a ``floor`` ([C]), the first
    allows for wrong labels, see ``noise_floor_loss``.
    """
    if name == "generalised":
        log_p = -F.cross_entropy(logits, targets, reduction="none")
        return (1.0 - (0.7 * log_p).exp()) / 0.7
    smoothing = 0.1 if name == "label-smoothing" else 0.0
    loss = F.cross_entropy(logits, targets, reduction="none", label_smoothing=smoothing)
    return loss if floor is None else noise_floor_loss(loss, targets, floor)


@final
class Run:
    """One run in its folder: config.json first, then metrics, picks, checkpoints, the summary.

    Args:
        recipe: what to do.
        out: an empty or new folder.
        seed: of the split, the noise, the initialisation, the order and every choice.
        max_steps: stop earlier than the recipe does.
        progress: show bars (bool), or the rich Progress to show them in.
        checkpoint_every: updates between checkpoints; 0: none but when a signal ends the run.
        target: accuracy whose steps and seconds the summary counts, see ``records.summarise``.
        baseline: folder of a finished run, whose final accuracy is the target.

    Raises:
        ConfigurationError: the folder holds a run already, or another process writes to it; the
            target is no share; or there is no target to take from the baseline.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        seed: int = 0,
        max_steps: int | None = None,
        progress: bool | Progress = True,
        checkpoint_every: int = 500,
        target: float | None = None,
        baseline: Path | None = None,
    ) -> None:
        self.recipe, self.out, self.seed = recipe, out, seed
        if target is not None and baseline is not None:
            raise ConfigurationError(
                f"a target ({target}) and a baseline ({baseline}) are two targets: give one."
            )
        self.target = target if baseline is None else target_of(baseline)
        if self.target is not None:
            require_between("target", self.target, 0.0, 1.0)
        self.steps = recipe.steps if max_steps is None else min(max_steps, recipe.steps)
        require_between("max_steps", self.steps, 1, whole=True)
        require_between("checkpoint_every", checkpoint_every, 0, whole=True)
        self._progress = progress if isinstance(progress, Progress) else None
        self._show = progress is True
        self._checkpoint_every = checkpoint_every
        self.ledger = Ledger()
        self.curve: list[list[float]] = []

    def start(self, store: IrreducibleLossStore | None = None) -> dict[str, Any]:
        """Train from the beginning; returns the summary.

        SIGTERM and SIGINT have it write a checkpoint and raise ``stopping.Stopped``, a SystemExit.
        """
        with locked(self.out):
            return self._start(store)

    def resume(self) -> dict[str, Any]:
        """Go on from the last sound checkpoint, or from the start without one.

        A checkpoint is sound if it is as it was written, and so are the logs up to it; of others is
        warned. A finished run is left as it is; its summary is returned.
        """
        with locked(self.out):
            return self._resume()

    def _start(self, store: IrreducibleLossStore | None) -> dict[str, Any]:
        refuse_used_folder(self.out)
        write_json(
            self.out / CONFIG,
            {
                "recipe": self.recipe.name,
                "settings": asdict(self.recipe),
                "seed": self.seed,
                "steps": self.steps,
                "target_accuracy": self.target,
                "checkpoint_every": self._checkpoint_every,
                "versions": versions(),
                "commit": current_commit(),
            },
            sealed=True,
        )
        return self._go(store, checkpoint=None)

    def _resume(self) -> dict[str, Any]:
        require_settings(self.out, self.recipe, self.seed)
        if (self.out / "summary.json").exists():
            return read_json(self.out / "summary.json", sealed=True)
        checkpoint = newest_sound(self.out)
        if checkpoint is None:
            for name in LOGS:
                (self.out / name).unlink(missing_ok=True)
        return self._go(None, checkpoint)

    def _go(
        self, store: IrreducibleLossStore | None, checkpoint: dict[str, Any] | None
    ) -> dict[str, Any]:
        with self._progress or Progress(disable=not self._show) as bar, stopping() as stop:
            return self._train(bar, stop, store, checkpoint)

    def _train(
        self,
        bar: Progress,
        stop: Stopping,
        store: IrreducibleLossStore | None,
        checkpoint: dict[str, Any] | None,
    ) -> dict[str, Any]:
        recipe = self.recipe
        splits = make_splits(recipe, self.seed)
        cost = {"ledger": self.ledger, "progress": bar}
        if store is None:
            store = irreducible_store(recipe, splits, self.seed, self.out, **cost)
        plan = make_plan(recipe, splits, store, self.out)
        with torch.random.fork_rng([]):
            torch.manual_seed(stream_seed(self.seed, 1))
            model = recipe.models[recipe.model]()
            optimizer = torch.optim.AdamW(
                model.parameters(),
                lr=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                fused=True,
            )
            order = torch.Generator().manual_seed(stream_seed(self.seed, 2))
            step = 0 if checkpoint is None else int(checkpoint["loader"]["step"])
            resuming = checkpoint is not None
            metrics_path = self.out / METRICS
            with (
                StepWriter.resume(self.out, step) if resuming else StepWriter(self.out) as steps,
                MetricsWriter.resume(metrics_path, step)
                if resuming
                else MetricsWriter(metrics_path) as metrics,
            ):
                batches = SelectingLoader(
                    candidate_loader(recipe, splits, plan, generator=order),
                    model,
                    recipe.make_rule(),
                    keep=recipe.n_b,
                    store=store if recipe.reads_by_row else None,
                    task=recipe.task,
                    scoring=recipe.scoring,
                    seed=self.seed,
                    ledger=self.ledger,
                    record=steps,
                    total_steps=recipe.steps,
                    **loader_options(recipe, splits, self.seed, self.out, optimizer, **cost),
                )
                tally = Tally(splits.train.num_classes)
                floor = plan.noise_floor if plan and recipe.loss == "noise-floor" else None
                parts = _Parts(model, optimizer, batches, tally, floor)
                if checkpoint is not None:
                    self.curve = parts.load(checkpoint)
                with stop.later():
                    self._loop(bar, stop, parts, splits, metrics, steps)
                marks = _marks(steps, metrics)
        return self._finish(parts, marks)

    def _loop(
        self,
        bar: Progress,
        stop: Stopping,
        parts: _Parts,
        splits: Splits,
        metrics: MetricsWriter,
        steps: StepWriter,
    ) -> None:
        recipe, ledger = self.recipe, self.ledger
        model, optimizer, batches = parts.model, parts.optimizer, parts.batches
        task = recipe.task
        shown = bar.add_task(recipe.name, total=self.steps, completed=batches.step)
        model.train()
        while batches.step < self.steps:
            for chosen in batches:
                batch = task.unpadded(chosen.batch)
                y = task.targets(batch)  # [K]
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * self._decay(batches.step - 1)

                def update(chosen: Chosen = chosen, batch: Any = batch, y: Tensor = y) -> Tensor:
                    logits = task.forward(model, batch).logits  # [K, C]
                    loss = per_example_loss(recipe.loss, logits, y, parts.floor)  # [K]
                    batches.remember(chosen.ids, loss)
                    optimizer.zero_grad()
                    weighted_mean(loss, chosen.weights).backward()
                    return logits.detach()

                logits = self._counted(update, batches, y.numel())
                optimizer.step()
                with ledger.phase("evaluate"):
                    bar.advance(shown)
                    correct = logits.argmax(1) == y  # judged before the update
                    parts.tally.add(chosen.ids, y, correct, splits.corrupted[chosen.ids])
                    if batches.step % recipe.evaluate_every == 0 or batches.step == self.steps:
                        self._evaluate(parts, splits.test, metrics)
                    every = self._checkpoint_every
                    due = stop.asked or (every and batches.step % every == 0)
                    if due and batches.step < self.steps:
                        state = parts.state(self.curve) | {"logs": _marks(steps, metrics)}
                        checkpoints.save(self.out, state, step=batches.step)
                        stop.raise_if_asked(self.out)
                if batches.step == self.steps:
                    break

    def _decay(self, step: int) -> float:
        if self.recipe.schedule == "constant":
            return 1.0
        return schedules.cosine(step, start=0, end=self.recipe.steps)

    def _counted(self, update: Callable[[], Tensor], batches: SelectingLoader, rows: int) -> Tensor:
        """Run an update; the first one is measured, so that training FLOPs are torch's own."""
        if batches.train_flops_per_example is not None:
            return update()
        with FlopCounterMode(display=False) as counter:
            logits = update()
        batches.train_flops_per_example = counter.get_total_flops() / rows
        self.ledger.counts.flops_train = counter.get_total_flops()
        return logits

    def _evaluate(self, parts: _Parts, test: TensorSet | TokenSet, metrics: MetricsWriter) -> None:
        now = evaluate(parts.model, test, self.recipe.task)
        step, charged = parts.batches.step, self.ledger.charged
        self.curve.append([step, charged, now.accuracy])
        cost = self.ledger.summary()
        metrics.write(
            {
                "step": step,
                "seconds": charged,
                "accuracy": now.accuracy,
                "loss": now.loss,
                "accuracy_by_class": now.by_class,
                "worst_class_accuracy": min(now.by_class),
                "examples_scored": cost["examples_scored"],
                "examples_trained": cost["examples_trained"],
                "forwards_scored": cost["forwards_scored"],
                "flops": {k: v for k, v in cost.items() if k.startswith("flops")},
                "seconds_by_phase": cost["seconds"],
                "peak_memory_bytes": cost["peak_memory_bytes"],
                "selected": parts.tally.take(),
            }
        )

    @property
    def _last(self) -> int:
        """Evaluations that final figures are means of: one where the rate has decayed to zero."""
        return 1 if self.recipe.schedule == "cosine" else _FINAL_EVALUATIONS

    def _worst_class(self) -> float:
        """Mean over the last evaluations of the accuracy of the class that is worst in each."""
        lines = read_metrics(self.out / METRICS)[-self._last :]
        return sum(line["worst_class_accuracy"] for line in lines) / len(lines)

    def _finish(self, parts: _Parts, marks: dict[str, Mark]) -> dict[str, Any]:
        checkpoints.save_weights(self.out / WEIGHTS, parts.model.state_dict())
        kept = (name for name in (WEIGHTS, STORE, PLAN, MODEL) if (self.out / name).exists())
        overall = parts.tally.overall()
        cost = self.ledger.summary()
        summary = {
            "target_accuracy": self.target,
            "steps_to_target": None,
            "seconds_to_target": None,
            "final_accuracy": final_accuracy(self.curve, evaluations=self._last),
            "worst_class_accuracy": self._worst_class(),
            "seconds": cost["seconds"],
            "examples_scored": cost["examples_scored"],
            "examples_trained": cost["examples_trained"],
            "corrupted_share": overall["corrupted_share"],
            "already_correct_share": overall["already_correct_share"],
            "curve": self.curve,
            "selected": overall,
            "ledger": {k: v for k, v in cost.items() if k != "seconds"},
            "files": marks | {name: mark_of(self.out / name) for name in kept},
        }
        if self.target is not None:
            summary = with_target(summary, self.target)
        if parts.batches.gate is not None:
            summary["gate"] = parts.batches.gate.report()
        write_json(self.out / "summary.json", summary, sealed=True)
        checkpoints.remove(self.out)
        return summary


@dataclass(slots=True)
class _Parts:
    """What a run is made of; a checkpoint holds all but the noise floor, which the plan tells."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: SelectingLoader
    tally: Tally
    floor: Tensor | None

    def state(self, curve: list[list[float]]) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.batches.state_dict(),
            "tally": self.tally.state_dict(),
            "torch_stream": torch.get_rng_state(),
            "curve": curve,
        }

    def load(self, checkpoint: dict[str, Any]) -> list[list[float]]:
        """Take over a checkpoint; returns the curve so far."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.batches.load_state_dict(checkpoint["loader"])
        self.tally.load_state_dict(checkpoint["tally"])
        torch.set_rng_state(checkpoint["torch_stream"])
        return checkpoint["curve"]


def _marks(steps: StepWriter, metrics: MetricsWriter) -> dict[str, Mark]:
    """All that was logged so far, by file name; it is in the files then."""
    steps.flush()
    return steps.marks() | {METRICS: metrics.mark()}


def newest_sound(out: Path) -> dict[str, Any] | None:
    """The newest checkpoint in ``out`` that is whole, as are the logs up to it; None without.

    Of every one that is passed over is warned.
    """
    found = checkpoints.saved(out)
    for path in found:
        try:
            checkpoint = checkpoints.load(path)
        except ReducibleError as error:
            why = str(error)
        else:
            logs = checkpoint["logs"].items()
            changed = [name for name, mark in logs if not is_whole(out / name, mark, up_to=True)]
            if not changed:
                return checkpoint
            why = f"{', '.join(changed)} in {out} changed since {path.name} was written."
        warnings.warn(f"{why} The run goes on from before it.", stacklevel=3)
    return None


def require_settings(out: Path, recipe: Recipe, seed: int) -> dict[str, Any]:
    """The config of the run in ``out``; raises ConfigurationError if it is of other settings."""
    if not (out / CONFIG).exists():
        raise ConfigurationError(
            f"{out} holds no run: there is no {CONFIG}. Name the folder that was given as --out."
        )
    config = read_json(out / CONFIG, sealed=True)
    then = config["settings"] | {"seed": config["seed"]}
    now = json.loads(json.dumps(asdict(recipe))) | {"seed": seed}
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if changed:
        raise ConfigurationError(
            f"the run in {out} was begun with other settings than {recipe.name} has now "
            f"({', '.join(changed)}). Name another folder, or remove this one yourself."
        )
    return config


def final_accuracy(curve: list[list[float]], *, evaluations: int = _FINAL_EVALUATIONS) -> float:
    """Mean of the last ``evaluations`` (of fewer, where there are fewer)."""
    last = [accuracy for _, _, accuracy in curve[-evaluations:]]
    return sum(last) / len(last)


def with_target(summary: dict[str, Any], target: float) -> dict[str, Any]:
    """``summary`` with the steps and the charged seconds at which its curve reached ``target``."""
    steps, seconds = summarise(summary["curve"], target)
    reached = {"steps_to_target": steps, "seconds_to_target": seconds}
    return summary | {"target_accuracy": target} | reached


def target_of(baseline: Path) -> float:
    """The final accuracy of the finished run in ``baseline``; raises ConfigurationError without."""
    path = baseline / "summary.json"
    found = read_json(path, sealed=True) if path.is_file() else None
    final = found.get("final_accuracy") if found else None
    if not isinstance(final, float):
        why = "has no summary.json" if found is None else "has no final_accuracy in summary.json"
        raise ConfigurationError(
            f"{baseline} {why}, so it sets no target. Name the folder of a finished run, or finish "
            "this one: reducible resume."
        )
    return final


def refuse_used_folder(out: Path) -> None:
    """Raise ConfigurationError where ``out`` is a file or holds a run."""
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out} is a file; name a folder for the run.")
    held = [n for n in ("config.json", "metrics.jsonl", "summary.json") if (out / n).exists()]
    if held:
        raise ConfigurationError(
            f"{out} holds a run already ({', '.join(held)}); nothing was touched. Name another "
            "folder, go on with it (reducible resume), or remove it yourself."
        )
