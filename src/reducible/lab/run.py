"""Runs a recipe in a folder: settings first, then records and checkpoints, at last a summary."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, final

import torch
from rich.progress import Progress

from reducible.files import checkpoints
from reducible.lab.info_records import INFO, PICKS, StepWriter
from reducible.lab.locks import locked
from reducible.lab.logs import Mark, is_whole
from reducible.lab.provenance import current_commit, versions
from reducible.lab.recipe import Recipe
from reducible.lab.records import MetricsWriter, read_json, write_json
from reducible.lab.setup import CONFIG, irreducible_store, make_plan
from reducible.lab.splits import make_splits
from reducible.lab.stopping import Stopping, stopping
from reducible.lab.training import METRICS, Trainer, marks_of
from reducible.ledger import Ledger
from reducible.stores import IrreducibleLossStore
from reducible.types import ConfigurationError, ReducibleError, require_between

LOGS = (METRICS, PICKS, INFO)


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
        write_config(
            self.out,
            self.recipe,
            seed=self.seed,
            steps=self.steps,
            target=self.target,
            checkpoint_every=self._checkpoint_every,
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
        recipe, out = self.recipe, self.out
        splits = make_splits(recipe, self.seed)
        if store is None:
            cost = {"ledger": self.ledger, "progress": bar}
            store = irreducible_store(recipe, splits, self.seed, out, **cost)
        plan = make_plan(recipe, splits, store, out)
        step = None if checkpoint is None else int(checkpoint["loader"]["step"])
        with (
            torch.random.fork_rng([]),
            StepWriter(out) if step is None else StepWriter.resume(out, step) as steps,
            MetricsWriter(out / METRICS)
            if step is None
            else MetricsWriter.resume(out / METRICS, step) as metrics,
        ):
            trainer = Trainer(
                recipe,
                splits,
                store,
                plan,
                out,
                seed=self.seed,
                ledger=self.ledger,
                steps=steps,
                metrics=metrics,
                progress=bar,
            )
            if checkpoint is not None:
                trainer.load(checkpoint)
            with stop.later():
                self._update(trainer, bar, stop, lambda: marks_of(steps, metrics))
            marks = marks_of(steps, metrics)
        summary = trainer.finish(marks, target=self.target)
        write_json(out / "summary.json", summary, sealed=True)
        checkpoints.remove(out)
        return summary

    def _update(
        self, trainer: Trainer, bar: Progress, stop: Stopping, marks: Callable[[], dict[str, Mark]]
    ) -> None:
        """Makes all updates; evaluates and writes checkpoints between them."""
        shown = bar.add_task(self.recipe.name, total=self.steps, completed=trainer.step)
        for _ in trainer.updates(self.steps):
            with self.ledger.phase("evaluate"):
                bar.advance(shown)
                step, every = trainer.step, self._checkpoint_every
                if step % self.recipe.evaluate_every == 0 or step == self.steps:
                    trainer.evaluate()
                due = stop.asked or (every and step % every == 0)
                if due and step < self.steps:
                    state = trainer.state() | {"logs": marks()}
                    checkpoints.save(self.out, state, step=step)
                    stop.raise_if_asked(self.out)


def write_config(
    out: Path,
    recipe: Recipe,
    *,
    seed: int,
    steps: int,
    target: float | None,
    checkpoint_every: int,
) -> None:
    """Write what a run was begun with, and by which versions and commit."""
    config = {
        "recipe": recipe.name,
        "settings": recipe.settings(),
        "seed": seed,
        "steps": steps,
        "target_accuracy": target,
        "checkpoint_every": checkpoint_every,
        "versions": versions(),
        "commit": current_commit(),
    }
    write_json(out / CONFIG, config, sealed=True)


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
    then = Recipe.from_settings(config["settings"]).settings() | {"seed": config["seed"]}
    now = recipe.settings() | {"seed": seed}
    changed = sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))
    if changed:
        raise ConfigurationError(
            f"the run in {out} was begun with other settings than {recipe.name} has now "
            f"({', '.join(changed)}). Name another folder, or remove this one yourself."
        )
    return config


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
    """Raise ConfigurationError if ``out`` is a file or holds a run."""
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out} is a file; name a folder for the run.")
    held = [n for n in ("config.json", "metrics.jsonl", "summary.json") if (out / n).exists()]
    if held:
        raise ConfigurationError(
            f"{out} holds a run already ({', '.join(held)}); nothing was touched. Name another "
            "folder, go on with it (reducible resume), or remove it yourself."
        )
