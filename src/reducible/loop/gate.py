"""The gate: decides during training whether selection pays on the clock, and with which setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from reducible.types import ConfigurationError, Evidence, require_between

State = Literal["watching", "selecting", "closed"]
_RECENT = 32  # steps that the cost of a plain one is the median of
_DRAWS = 8  # random batches that a chosen one is compared with
_LEAST_COSINE = 1e-12


@final
@dataclass(frozen=True, slots=True)
class Trial:
    """One comparison of chosen with random rows.

    Attributes:
        step: when.
        candidates: rows that were scored to choose from.
        chosen: cosine of the chosen rows' gradient with the direction of held-out progress.
        random: the same of random rows, the mean of several draws.
        cost: of an update with selection, in plain updates.
    """

    step: int
    candidates: int
    chosen: float
    random: float
    cost: float

    @property
    def gain(self) -> float:
        """Progress of an update with selection less that of plain ones in the same time."""
        return self.chosen - self.cost * self.random


def last_layer_gradient(error: Tensor, features: Tensor, weight: Tensor | None = None) -> Tensor:
    """Gradient of the (weighted) mean loss in the last layer, bias included: [C, D + 1].

    Args:
        error: [K, C] softmax(z) − onehot(y).
        features: [K, D] input of the last layer.
        weight: [K]; ones if None.
    """
    if weight is not None:
        error = error * weight.unsqueeze(1)
    bias = error.sum(0, keepdim=True).T  # [C, 1]
    # Without a row by row gradient: the mean over rows is one product.
    return torch.cat([error.T @ features, bias], dim=1) / error.shape[0]


def error_of(evidence: Evidence) -> Tensor:
    """[B, C] softmax(z) − onehot(y)."""
    error = evidence.require("logits").softmax(1)
    rows = torch.arange(error.shape[0], device=error.device)
    error[rows, evidence.require("targets")] -= 1.0
    return error


def label_probability(evidence: Evidence) -> Tensor:
    """[B] p_i[y_i]."""
    p = evidence.require("logits").softmax(1)  # [B, C]
    return p.gather(1, evidence.require("targets").unsqueeze(1)).squeeze(1)


def progress_direction(evidence: Evidence) -> Tensor:
    """[C, D + 1]: descending it in the last layer raises the mean probability of the labels.

    That is the gradient of mean_i(1 − p_i[y_i]), a smooth error rate: p_i[y_i] times that of the
    loss, example by example. The loss itself is a poor witness if labels are wrong: late in
    training it falls most by unlearning confidence, which chosen examples of high loss do best, and
    which makes nobody more accurate.
    """
    p = label_probability(evidence)
    return last_layer_gradient(error_of(evidence), evidence.require("features"), p)


def cosine(a: Tensor, b: Tensor) -> float:
    """Cosine of two gradients of one shape; 0 if one of them is zero."""
    norms = float(a.norm() * b.norm())
    return float((a * b).sum()) / norms if norms > _LEAST_COSINE else 0.0


def random_progress(
    error: Tensor, features: Tensor, target: Tensor, k: int, *, generator: torch.Generator
) -> float:
    """Mean cosine with ``target`` ([C, D + 1]) of the gradients of ``k`` random rows."""
    found: list[float] = []
    for _ in range(_DRAWS):
        rows = torch.randperm(error.shape[0], generator=generator)[:k].to(error.device)
        found.append(cosine(last_layer_gradient(error[rows], features[rows]), target))
    return statistics.mean(found)


@final
class Gate:
    """Watches, selects, closes: whether updates are made on chosen rows, and from how many.

    While it watches, training is plain: only the rows trained on are loaded, and now and then, as
    far as a small share of the time allows, a trial compares the rows that the selector would
    choose with random ones. Progress is the cosine of their gradient in the last layer with the
    direction in which held-out labels become more probable: what an update of given length gains
    there, to first order. Selection begins
    where, over several trials, chosen rows make more progress than plain updates would in the
    same time, by ``certainty`` standard errors; it ends if they no longer do, or if held-out
    labels have become less probable since it began, and then for good. So a run switches twice at
    most.

    Args:
        budget: share of the time of plain updates that trials may take.
        settings: shares of the candidate batch to try choosing from, each in (0, 1].
        trials: of one setting, before anything is decided; the last so many count.
        certainty: standard errors by which the gain must lie above zero to begin. There are many
            looks at few trials, so two would let chance in.

    Raises:
        ConfigurationError: a setting that cannot work.

    >>> gate = Gate(budget=0.05)
    >>> gate.state, gate.report()["state"]
    ('watching', 'watching')
    """

    def __init__(
        self,
        *,
        budget: float = 0.025,
        settings: tuple[float, ...] = (1.0, 0.5, 0.25),
        trials: int = 6,
        certainty: float = 3.0,
    ) -> None:
        require_between("budget", budget, 0.0, 1.0, open_low=True)
        require_between("trials", trials, 2, whole=True)
        require_between("certainty", certainty, 0.0)
        if not settings:
            raise ConfigurationError("settings is empty: name at least one share of the batch.")
        for share in settings:
            require_between("settings", share, 0.0, 1.0, open_low=True)
        self.budget = budget
        self._least, self._certainty = trials, certainty
        self._shares = tuple(settings)
        self.state: State = "watching"
        self.candidates = 0
        """Rows that are scored while selecting."""
        self.trials: list[Trial] = []
        self.events: list[dict[str, Any]] = []
        """Decisions: at which step, and why."""
        self._plain: list[float] = []  # seconds of the last plain updates
        self._planned = 0.0  # seconds that the updates so far take when plain
        self._spent = 0.0  # seconds of trials
        self.per_row: float | None = None
        """Seconds that scoring a row takes at most; None before a probe."""
        self.probe_rows = 0
        """Rows of the last probe."""
        self._last_probe = 0.0  # seconds
        self._probing = True  # whether another one may tell more
        self._last_trial: float | None = None

    def settings(self, candidates: int, k: int) -> list[int]:
        """Rows to try choosing ``k`` from, of a batch of ``candidates``; the largest first."""
        # A share that leaves k rows has nothing to choose from, unless that is all there is.
        sizes = {max(k, round(share * candidates)) for share in self._shares}
        return sorted((m for m in sizes if m > k or m == candidates), reverse=True)

    @property
    def plain_seconds(self) -> float | None:
        """Seconds of a plain update, the median of the last; None before there was one."""
        return statistics.median(self._plain) if self._plain else None

    def update_took(self, seconds: float, *, plain: bool) -> None:
        """An update was made; with its loading and picking, without any trial."""
        if plain:
            # The median of the recent ones follows a machine whose speed drifts.
            self._plain = [*self._plain[1 - _RECENT :], seconds]
        self._planned += self.plain_seconds or 0.0

    def due(self, rows: int, most: int) -> Literal["trial", "probe"] | None:
        """Says what the budget has room for, if something is still to be found out.

        A probe scores few rows to tell what a trial will cost. The first one waits until one
        update fits into the budget. Fixed costs weigh most on few rows, so if a trial seems too
        dear, probes of twice the rows follow as soon as they fit, while each says a quarter less.

        Args:
            rows: that a trial scores.
            most: rows that a probe may score.
        """
        plain = self.plain_seconds
        if self.state == "closed" or plain is None:
            return None
        # What the last trial took is the best guess at the next, better than any probe.
        if self._last_trial is not None:
            return "trial" if self._fits(self._last_trial) else None
        if self.per_row is None:
            return "probe" if self._fits(plain) else None
        if self._fits(self.per_row * rows):
            return "trial"
        again = self._probing and 2 * self.probe_rows <= most
        return "probe" if again and self._fits(2 * self._last_probe) else None

    def _fits(self, seconds: float) -> bool:
        return self._spent + seconds <= self.budget * self._planned

    def probed(self, rows: int, per_row: float, seconds: float) -> None:
        """Scoring each of ``rows`` rows took ``per_row`` seconds; finding out took ``seconds``."""
        self.probe_rows, self._last_probe = rows, seconds
        self._probing = self.per_row is None or per_row < 0.75 * self.per_row
        # The least seen: a pause of the machine makes a probe look dear, never cheap.
        self.per_row = per_row if self.per_row is None else min(per_row, self.per_row)
        self._spent += seconds

    def tried(
        self,
        trials: list[Trial],
        seconds: float,
        *,
        change: tuple[float, float] = (0.0, 0.0),
    ) -> None:
        """Take in what one trial saw, a row per setting, and decide.

        Args:
            trials: of every setting.
            seconds: that it took.
            change: of the probability of held-out labels since selection began: the mean and its
                standard error.
        """
        self._spent += seconds
        self._last_trial = seconds
        self.trials += trials
        if self.state == "watching":
            self._consider_opening(trials)
        elif self.state == "selecting":
            self._consider_closing(trials[-1].step, *change)

    def _consider_opening(self, now: list[Trial]) -> None:
        best: tuple[float, int, float, float] | None = None
        for trial in now:
            mean, error, count = self._gain(trial.candidates)
            # Few trials look certain by chance, so their number counts beside their spread.
            enough = count >= self._least and mean > self._certainty * error
            if enough and (best is None or mean > best[0]):
                best = mean, trial.candidates, error, trial.cost
        if best is None:
            return
        mean, self.candidates, error, cost = best
        why = (
            f"choosing from {self.candidates} costs {cost:.2f} plain updates and gains "
            f"{mean:.3g} ± {error:.2g} over them"
        )
        self._switch("selecting", now[-1].step, why)

    def _consider_closing(self, step: int, change: float, its_error: float) -> None:
        # Harm on held-out rows ends it at once, whatever the gradients promise.
        if change + self._certainty * its_error < 0:
            why = (
                "held-out labels are less probable than when selection began, by "
                f"{-change:.3g} ± {its_error:.2g}"
            )
            self._switch("closed", step, why)
            return
        mean, error, count = self._gain(self.candidates)
        begun = self.events[-1]["step"]
        since = sum(t.step > begun and t.candidates == self.candidates for t in self.trials)
        if min(count, since) >= self._least and mean < 0:
            why = f"choosing from {self.candidates} gains {mean:.3g} ± {error:.2g}: nothing"
            self._switch("closed", step, why)

    def _gain(self, candidates: int) -> tuple[float, float, int]:
        """Mean and standard error of the last trials' gains with one setting, and their number."""
        # The last ones, for what chosen rows gain wears off as training goes on.
        gains = [t.gain for t in self.trials if t.candidates == candidates][-2 * self._least :]
        if len(gains) < 2:
            return 0.0, math.inf, len(gains)
        return statistics.mean(gains), statistics.stdev(gains) / math.sqrt(len(gains)), len(gains)

    def _switch(self, state: State, step: int, why: str) -> None:
        self.events.append({"step": step, "from": self.state, "to": state, "why": why})
        self.state = state

    def report(self) -> dict[str, Any]:
        """State, decisions with their reasons, trials, and what they cost; JSON types only."""
        share = self._spent / self._planned if self._planned else 0.0
        return {
            "state": self.state,
            "candidates": self.candidates,
            "events": list(self.events),
            "trials": [asdict(trial) for trial in self.trials],
            "seconds_of_trials": self._spent,
            "share_of_planned_time": share,
        }

    def state_dict(self) -> dict[str, Any]:
        """All that has been seen and decided."""
        return {
            "state": self.state,
            "candidates": self.candidates,
            "trials": [asdict(trial) for trial in self.trials],
            "events": [dict(event) for event in self.events],
            "plain": list(self._plain),
            "planned": self._planned,
            "spent": self._spent,
            "per_row": self.per_row,
            "probe_rows": self.probe_rows,
            "last_probe": self._last_probe,
            "probing": self._probing,
            "last_trial": self._last_trial,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved gate."""
        self.state, self.candidates = state["state"], state["candidates"]
        self.trials = [Trial(**trial) for trial in state["trials"]]
        self.events = [dict(event) for event in state["events"]]
        self._plain = list(state["plain"])
        self._planned, self._spent = state["planned"], state["spent"]
        self.per_row, self._last_trial = state["per_row"], state["last_trial"]
        self.probe_rows, self._last_probe = state["probe_rows"], state["last_probe"]
        self._probing = state["probing"]
