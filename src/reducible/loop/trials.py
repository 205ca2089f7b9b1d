"""Runs the gate's trials on the model, times updates, and passes on what to train on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from reducible.batches import device_of, gather, take, to_device
from reducible.ledger import Ledger
from reducible.loop.evidence import EVAL, EvidenceSource, Moment
from reducible.loop.gate import (
    Gate,
    Trial,
    cosine,
    error_of,
    label_probability,
    last_layer_gradient,
    progress_direction,
    random_progress,
)
from reducible.loop.seeds import stream_seed
from reducible.scoring import measure
from reducible.selectors import Selector
from reducible.tasks import Task
from reducible.types import Candidates, ConfigurationError, DataError

_SEEN = frozenset({"logits", "features", "targets"})
_HELD_OUT_ROWS = 512
_STREAM = 0x6A7E  # of the gate's own draws, apart from those of choices


@final
class GateTrials:
    """Runs a gate inside a loop: draws plain rows ahead of loading, tries, times.

    Args:
        gate: what decides.
        model: the model being trained.
        selector: whose choices are tried.
        source: measures what the selector needs.
        task: what batches mean.
        held_out: loader of examples that are never trained on; the first rows serve.
        ledger: its clock and seconds are what costs are taken from.
        seed: of plain draws and trials.

    Raises:
        ConfigurationError: no held-out examples.
    """

    def __init__(
        self,
        gate: Gate,
        model: nn.Module,
        selector: Selector,
        source: EvidenceSource,
        task: Task,
        held_out: Any,
        ledger: Ledger,
        *,
        seed: int,
    ) -> None:
        if held_out is None or not hasattr(held_out, "__iter__"):
            raise ConfigurationError(
                "the gate measures progress on held-out examples: pass held_out=<loader of "
                f"examples that are never trained on>; got {type(held_out).__name__}."
            )
        self.gate = gate
        self._model, self._selector, self._source = model, selector, source
        self._task, self._held_out, self._ledger, self._seed = task, held_out, ledger, seed
        self._batch: Candidates | None = None
        self._mark: float | None = None  # seconds charged when the last batch was handed out
        self._trial_seconds = 0.0  # since then
        self._chose = False  # whether the batch to be handed out is chosen by the selector
        self._selected: list[float] = []  # seconds of the last updates with selection
        self._began: Tensor | None = None  # [rows] p of held-out labels when selection began

    def draw(self, step: int, size: int, k: int) -> tuple[list[int], bool]:
        """Positions to load of a candidate batch of ``size`` rows, and whether they are the choice.

        Loaders with workers ask for batches ahead of the step that is trained on.
        """
        # A trial needs all candidates.
        if self._due(size, k) is not None:
            return list(range(size)), False
        if self.gate.state == "selecting":
            # The order is shuffled already: the first rows are as random as any.
            return list(range(min(self.gate.candidates, size))), False
        return self._at_random(size, k, step).tolist(), True

    def decide(
        self, candidates: Candidates, k: int, moment: Moment
    ) -> tuple[Candidates, Tensor | None]:
        """Decides what is trained on of a candidate batch, after a trial if one is due.

        Returns:
            The rows that the selector chooses from, and None; or all of them, and the [k] int64
            positions of rows at random, for a plain update.
        """
        size = candidates.ids.numel()
        due = self._due(size, k)
        if due is not None:
            began = self._ledger.now()
            if due == "probe":
                rows = 2 * self.gate.probe_rows or max(1, k // 4)
                per_row = self._probe(candidates, rows, moment)
                self._trial_seconds = self._ledger.now() - began
                self.gate.probed(rows, per_row, self._trial_seconds)
            else:
                trials, held_out = self._try(candidates, k, moment)
                self._trial_seconds = self._ledger.now() - began
                was, change = self.gate.state, _change(self._began, held_out)
                self.gate.tried(trials, self._trial_seconds, change=change)
                # What later trials are compared with, to see whether selection harms.
                if was != self.gate.state == "selecting":
                    self._began = held_out
        # A trial may have opened the gate: then this batch is chosen from already.
        self._chose = self.gate.state == "selecting"
        if not self._chose:
            return candidates, self._at_random(size, k, moment.step)
        m = min(self.gate.candidates, size)
        return (candidates if m == size else take(candidates, torch.arange(m))), None

    def _at_random(self, size: int, k: int, step: int) -> Tensor:
        """[k] int64 positions."""
        # The same rows whether they are drawn before loading or after.
        generator = torch.Generator().manual_seed(stream_seed(self._seed, step))
        return torch.randperm(size, generator=generator)[:k]

    def handed_out(self) -> None:
        """A batch is about to be trained on: time the cycle since the last one."""
        now = self._ledger.charged
        if self._mark is not None:
            # The trial is charged to the gate's budget, not to the update that it preceded.
            took = now - self._mark - self._trial_seconds
            tried = self._trial_seconds > 0
            if self._chose and not tried:
                self._selected = [*self._selected[-31:], took]
            self.gate.update_took(took, plain=not self._chose and not tried)
        self._mark, self._trial_seconds, self._chose = now, 0.0, False

    def _due(self, size: int, k: int) -> Literal["trial", "probe"] | None:
        settings = self._settings(size, k)
        return self.gate.due(size + _HELD_OUT_ROWS + sum(settings), size)

    def _settings(self, size: int, k: int) -> list[int]:
        if self.gate.state == "selecting":
            return [min(self.gate.candidates, size)]
        return self.gate.settings(size, k)

    def _probe(self, candidates: Candidates, rows: int, moment: Moment) -> float:
        """Seconds that scoring a row takes: the dearer of the selector's way and the model's.

        Twice, for the first time is spent on caches.
        """
        few = take(candidates, torch.arange(rows))
        look = self._source.view(self._selector, few, moment)
        seconds = 0.0
        for _ in range(2):
            began = self._ledger.now()
            self._selector.choose(look, rows, generator=self._draws(moment.step))
            middle = self._ledger.now()
            with self._ledger.phase("score"):
                measure(self._model, few, _SEEN, EVAL, task=self._task)
            seconds = max(middle - began, self._ledger.now() - middle)
        return seconds / rows

    def _draws(self, step: int) -> torch.Generator:
        """The stream of trials, apart from that of choices."""
        return torch.Generator().manual_seed(stream_seed(self._seed ^ _STREAM, step))

    def _try(self, candidates: Candidates, k: int, moment: Moment) -> tuple[list[Trial], Tensor]:
        """Compare the selector's choices with random rows, setting by setting.

        Returns:
            A trial of each setting, and [rows] the probabilities of the held-out labels.
        """
        size = candidates.ids.numel()
        plain = self.gate.plain_seconds
        assert plain is not None
        with self._ledger.phase("score"):
            here = measure(self._model, candidates, _SEEN, EVAL, task=self._task)
            held = measure(self._model, self._held(), _SEEN, EVAL, task=self._task)
            error, features = error_of(here), here.require("features")
            target, probability = progress_direction(held), label_probability(held)
            generator = self._draws(moment.step)
            # The mean over draws: one draw of few rows says little.
            by_chance = random_progress(error, features, target, k, generator=generator)
        trials: list[Trial] = []
        for m in self._settings(size, k):
            part = candidates if m == size else take(candidates, torch.arange(m))
            began = self._ledger.now()
            look = self._source.view(self._selector, part, moment)
            choice = self._selector.choose(look, k, generator=generator)
            chose = self._ledger.now() - began
            rows, weight = choice.positions, choice.selection.weight
            gradient = last_layer_gradient(error[rows], features[rows], weight)
            # Before there was such an update: a plain one, and what choosing took just now.
            selected = statistics.median(self._selected) if self._selected else plain + chose
            cost = selected / plain
            trials.append(Trial(moment.step, m, cosine(gradient, target), by_chance, cost))
        return trials, probability.cpu()

    def _held(self) -> Candidates:
        """The held-out rows, on the model's device; loaded once."""
        # The same rows each time, so that changes are paired row by row.
        if self._batch is None:
            batch = next(iter(self._held_out), None)
            if batch is None:
                raise DataError("the loader of held-out examples is empty.")
            batch = batch.batch if isinstance(batch, Candidates) else batch
            targets = self._task.targets(batch)
            if targets is None:
                raise DataError("the task has no targets, so there is no progress to measure.")
            device = device_of(self._model)
            size = targets.numel()
            rows = torch.arange(min(size, _HELD_OUT_ROWS))
            kept = to_device(gather(batch, rows, size), device)
            self._batch = Candidates(rows, kept)
        return self._batch

    def state_dict(self) -> dict[str, Any]:
        """The gate's state and the seconds that are not yet charged to an update."""
        return {
            "gate": self.gate.state_dict(),
            "mark": self._mark,
            "trial_seconds": self._trial_seconds,
            "selected": list(self._selected),
            "began": self._began,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state."""
        self.gate.load_state_dict(state["gate"])
        self._mark, self._trial_seconds = state["mark"], state["trial_seconds"]
        self._selected = list(state["selected"])
        self._began = state["began"]


def _change(before: Tensor | None, now: Tensor) -> tuple[float, float]:
    """Mean and standard error of ``now`` less ``before``, row by row; zeros before there is one."""
    if before is None:
        return 0.0, 0.0
    change = now - before  # [rows]
    error = float(change.std()) / math.sqrt(change.numel()) if change.numel() > 1 else 0.0
    return float(change.mean()), error
