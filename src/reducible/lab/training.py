"""Trains what a recipe says, update by update; writes what was chosen and how good the model is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from rich.progress import Progress
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from reducible import schedules
from reducible.files import checkpoints
from reducible.lab.counts import ChosenCounts
from reducible.lab.evaluation import evaluate
from reducible.lab.info_records import StepWriter
from reducible.lab.logs import Mark, mark_of
from reducible.lab.recipe import Recipe
from reducible.lab.records import MetricsWriter, read_metrics, summarise
from reducible.lab.setup import MODEL, PLAN, STORE, candidate_loader, loader_options
from reducible.lab.splits import Splits
from reducible.ledger import Ledger
from reducible.loop import Chosen, SelectingLoader, stream_seed, weighted_mean
from reducible.plans import Plan, noise_floor_loss
from reducible.stores import IrreducibleLossStore

METRICS, WEIGHTS = "metrics.jsonl", "model.safetensors"
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
class Trainer:
    """The model, the optimizer and the loop of one recipe.

    Draws the initialisation from torch's global stream, so make it inside ``fork_rng``.

    Args:
        recipe: what to train, on what, and how.
        splits: the parts of its data set.
        store: its irreducible losses, if it reads any.
        plan: its plan, if it has one.
        out: the folder of the run, which holds an irreducible-loss model that learns along.
        seed: of the initialisation, the order and every choice.
        ledger: charged for everything.
        steps: the record of every choice.
        metrics: the record of every evaluation.
        progress: shows the fit of a proxy.

    Attributes:
        curve: [step, charged seconds, accuracy] of every evaluation.
        decay: step → factor of the learning rate; the recipe's schedule, unless it is replaced.
    """

    def __init__(
        self,
        recipe: Recipe,
        splits: Splits,
        store: IrreducibleLossStore | None,
        plan: Plan | None,
        out: Path,
        *,
        seed: int,
        ledger: Ledger,
        steps: StepWriter,
        metrics: MetricsWriter,
        progress: Progress,
    ) -> None:
        self.recipe, self.ledger = recipe, ledger
        self._splits, self._out, self._metrics = splits, out, metrics
        torch.manual_seed(stream_seed(seed, 1))
        self.model = recipe.models[recipe.model]()
        self._optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=recipe.learning_rate,
            weight_decay=recipe.weight_decay,
            fused=True,
        )
        order = torch.Generator().manual_seed(stream_seed(seed, 2))
        self.batches = SelectingLoader(
            candidate_loader(recipe, splits, plan, generator=order),
            self.model,
            recipe.make_rule(),
            keep=recipe.n_b,
            store=store if recipe.reads_by_row else None,
            task=recipe.task,
            scoring=recipe.scoring,
            seed=seed,
            ledger=ledger,
            record=steps,
            total_steps=recipe.steps,
            **loader_options(
                recipe, splits, seed, out, self._optimizer, ledger=ledger, progress=progress
            ),
        )
        self._tally = ChosenCounts(splits.train.num_classes)
        self._floor = plan.noise_floor if plan and recipe.loss == "noise-floor" else None
        self.curve: list[list[float]] = []
        self.decay: Callable[[int], float] = self._scheduled

    @property
    def step(self) -> int:
        """Updates made."""
        return self.batches.step

    def updates(self, until: int) -> Iterator[None]:
        """Makes updates up to the ``until``-th; yields after each of them."""
        self.model.train()
        while self.step < until:
            for chosen in self.batches:
                self._update(chosen)
                yield
                if self.step == until:
                    break

    def _update(self, chosen: Chosen) -> None:
        recipe, task = self.recipe, self.recipe.task
        batch = task.unpadded(chosen.batch)
        y = task.targets(batch)  # [K]
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate * self.decay(self.step - 1)

        def update() -> Tensor:
            logits = task.forward(self.model, batch).logits  # [K, C]
            loss = per_example_loss(recipe.loss, logits, y, self._floor)  # [K]
            self.batches.remember(chosen.ids, loss)
            self._optimizer.zero_grad()
            weighted_mean(loss, chosen.weights).backward()
            return logits.detach()

        logits = self._counted(update, y.numel())
        self._optimizer.step()
        with self.ledger.phase("evaluate"):
            correct = logits.argmax(1) == y  # judged before the update
            self._tally.add(chosen.ids, y, correct, self._splits.corrupted[chosen.ids])

    def _scheduled(self, step: int) -> float:
        if self.recipe.schedule == "constant":
            return 1.0
        return schedules.cosine(step, start=0, end=self.recipe.steps)

    def _counted(self, update: Callable[[], Tensor], rows: int) -> Tensor:
        """Run an update; the first one is measured, so that training FLOPs are torch's own."""
        if self.batches.train_flops_per_example is not None:
            return update()
        with FlopCounterMode(display=False) as counter:
            logits = update()
        self.batches.train_flops_per_example = counter.get_total_flops() / rows
        self.ledger.counts.flops_train = counter.get_total_flops()
        return logits

    def evaluate(self) -> None:
        """Judges the model on the test set; writes it with what was chosen since the last time."""
        now = evaluate(self.model, self._splits.test, self.recipe.task)
        charged = self.ledger.charged
        self.curve.append([self.step, charged, now.accuracy])
        cost = self.ledger.summary()
        self._metrics.write(
            {
                "step": self.step,
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
                "selected": self._tally.take(),
            }
        )

    def state(self) -> dict[str, Any]:
        """All that a checkpoint holds but the logs; the noise floor is told by the plan."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "loader": self.batches.state_dict(),
            "tally": self._tally.state_dict(),
            "torch_stream": torch.get_rng_state(),
            "curve": self.curve,
        }

    def load(self, checkpoint: dict[str, Any]) -> None:
        """Goes on from a checkpoint."""
        self.model.load_state_dict(checkpoint["model"])
        self._optimizer.load_state_dict(checkpoint["optimizer"])
        self.batches.load_state_dict(checkpoint["loader"])
        self._tally.load_state_dict(checkpoint["tally"])
        torch.set_rng_state(checkpoint["torch_stream"])
        self.curve = checkpoint["curve"]

    def finish(self, marks: dict[str, Mark], *, target: float | None = None) -> dict[str, Any]:
        """Saves the weights; returns the summary of the run.

        Args:
            marks: how long the logs are, and their checksums, by file name.
            target: accuracy whose steps and seconds are counted, see ``records.summarise``.
        """
        out, last = self._out, 1 if self.recipe.schedule == "cosine" else _FINAL_EVALUATIONS
        checkpoints.save_weights(out / WEIGHTS, self.model.state_dict())
        kept = (name for name in (WEIGHTS, STORE, PLAN, MODEL) if (out / name).exists())
        overall = self._tally.overall()
        cost = self.ledger.summary()
        lines = read_metrics(out / METRICS)[-last:]
        summary = {
            "target_accuracy": target,
            "steps_to_target": None,
            "seconds_to_target": None,
            "final_accuracy": final_accuracy(self.curve, evaluations=last),
            "worst_class_accuracy": sum(n["worst_class_accuracy"] for n in lines) / len(lines),
            "seconds": cost["seconds"],
            "examples_scored": cost["examples_scored"],
            "examples_trained": cost["examples_trained"],
            "corrupted_share": overall["corrupted_share"],
            "already_correct_share": overall["already_correct_share"],
            "curve": self.curve,
            "selected": overall,
            "ledger": {k: v for k, v in cost.items() if k != "seconds"},
            "files": marks | {name: mark_of(out / name) for name in kept},
        }
        if target is not None:
            summary = with_target(summary, target)
        if self.batches.gate is not None:
            summary["gate"] = self.batches.gate.report()
        return summary


def marks_of(steps: StepWriter, metrics: MetricsWriter) -> dict[str, Mark]:
    """Returns marks of all that was logged so far, by file name; it is in the files then."""
    steps.flush()
    return steps.marks() | {METRICS: metrics.mark()}


def final_accuracy(curve: list[list[float]], *, evaluations: int = _FINAL_EVALUATIONS) -> float:
    """Mean of the last ``evaluations`` (of fewer, if there are fewer)."""
    last = [accuracy for _, _, accuracy in curve[-evaluations:]]
    return sum(last) / len(last)


def with_target(summary: dict[str, Any], target: float) -> dict[str, Any]:
    """``summary`` with the steps and the charged seconds at which its curve reached ``target``."""
    steps, seconds = summarise(summary["curve"], target)
    reached = {"steps_to_target": steps, "seconds_to_target": seconds}
    return summary | {"target_accuracy": target} | reached
