"""Measures how faithful cheap scoring is to exact scoring, and what it costs beside training."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from reducible.batches import device_of, take, to_device
from reducible.costs.agreement import overlap, rank_correlation
from reducible.costs.payoff import times_in_turn
from reducible.costs.updates import plain_update
from reducible.ledger import Ledger
from reducible.loop import EvidenceSource, Learners, Moment
from reducible.scoring import CoTrained, Scoring, measure
from reducible.selectors import selector
from reducible.stores import IrreducibleLossStore, LossMemory
from reducible.tasks import Classification, Task
from reducible.types import (
    Candidates,
    ConfigurationError,
    DataError,
    require_between,
    require_finite,
)

_LOSS = frozenset({"loss"})
_EXACT = Scoring()


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringMethod:
    """A cheap way of scoring.

    Attributes:
        scoring: how the pass is run, and how often.
        scorer: scores in the model's stead; frozen, or learning along.
        share: of the candidates that are scored, in (0, 1]: a smaller n_B.
    """

    scoring: Scoring = field(default_factory=Scoring)
    scorer: CoTrained | nn.Module | None = None
    share: float = 1.0

    def __post_init__(self) -> None:
        require_between("share", self.share, 0.0, 1.0, open_low=True)


@final
@dataclass(frozen=True, slots=True)
class Fidelity:
    """One way of scoring beside exact scoring: a value per candidate batch, or per timing.

    Attributes:
        way: its name.
        rank_correlations: Spearman's, of its scores with the exact ones.
        overlaps: share of the exact picks that are among its picks.
        costs: of scoring a candidate, over training on an example.
    """

    way: str
    rank_correlations: tuple[float, ...]
    overlaps: tuple[float, ...]
    costs: tuple[float, ...]

    @property
    def rank_correlation(self) -> float:
        """The median."""
        return statistics.median(self.rank_correlations)

    @property
    def overlap(self) -> float:
        """The median."""
        return statistics.median(self.overlaps)

    @property
    def cost(self) -> float:
        """The median."""
        return statistics.median(self.costs)


def fidelity(
    model: nn.Module,
    candidates: Iterable[Candidates],
    store: IrreducibleLossStore,
    ways: Mapping[str, ScoringMethod | Scoring | CoTrained | nn.Module],
    *,
    k: int,
    optimizer: torch.optim.Optimizer | None = None,
    skip: int = 0,
    every: int = 1,
    task: Task | None = None,
    repeats: int = 9,
) -> list[Fidelity]:
    """Compare ways of scoring with exact scoring, batch by batch, by their reducible losses.

    With an optimizer the model is trained along the way, on the exact picks: only so do scorers
    learn, remembered losses age and scores grow stale. Every way sees the same run. A way that
    hands out several batches per scoring is asked for the picks of all of them, by scores that are
    as old as they are at the last one; remembered losses are charged by the share of rows scored.

    Args:
        model: the model being trained; scored as it is if there is no optimizer.
        candidates: candidate batches, all of one size n_B.
        store: of irreducible losses.
        ways: name → how; a Scoring, or a scorer, alone stands for a ScoringMethod with it.
        k: n_b, the rows to pick.
        optimizer: over the model's parameters.
        skip: batches to pass before comparing.
        every: compare on every so many batches then.
        task: what batches mean; ``Classification()`` by default.
        repeats: timings of each way; they follow the last batch.

    Returns:
        Exact scoring, then the ways in their order.

    Raises:
        ConfigurationError: a way that cannot work, or no batch left to compare on.
        DataError: batches that differ in size.
    """
    task = task or Classification()
    for name, value, least in (("k", k, 1), ("skip", skip, 0), ("every", every, 1)):
        require_between(name, value, least, whole=True)
    require_between("repeats", repeats, 1, whole=True)
    if "exact" in ways:
        raise ConfigurationError("'exact' is what ways are compared with: name yours otherwise.")
    entrants = [
        _Entrant(name, _as_way(name, way), model, task, store, k)
        for name, way in {"exact": _EXACT, **ways}.items()
    ]
    last = _compare(entrants, candidates, model, optimizer, task, k, skip, every)
    if last is None or not all(entrant.overlaps for entrant in entrants):
        raise ConfigurationError(
            f"no batch was left to compare every way on, after skip={skip}: give more candidate "
            "batches. A way with several updates per scoring needs as many after the last."
        )
    return _with_costs(entrants, last, model, optimizer, task, k, repeats)


def _compare(
    entrants: list[_Entrant],
    candidates: Iterable[Candidates],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    task: Task,
    k: int,
    skip: int,
    every: int,
) -> Candidates | None:
    """Shows every batch to the entrants, and trains the model between; returns the last batch."""
    last: Candidates | None = None
    device = device_of(model)
    for step, loaded in enumerate(candidates):
        here = Candidates(loaded.ids, to_device(loaded.batch, device))
        _check_size(here, last, entrants, k)
        compared = step >= skip and (step - skip) % every == 0
        exact = _Scored(here, entrants[0].exact_scores(here), step)
        for entrant in entrants:
            entrant.see(exact, compared=compared)
        if optimizer is not None:
            rows = exact.scores.topk(k).indices  # [K]
            chosen = take(here, rows)
            for entrant in entrants:
                entrant.learn(chosen)
            loss = plain_update(model, optimizer, task, chosen.batch)  # [K]
            for entrant in entrants:
                entrant.remember(chosen.ids, loss, step)
        last = here
    return last


def _as_way(name: str, way: Any) -> ScoringMethod:
    if isinstance(way, ScoringMethod):
        return way
    if isinstance(way, Scoring):
        return ScoringMethod(scoring=way)
    if isinstance(way, CoTrained | nn.Module):
        return ScoringMethod(scorer=way)
    raise ConfigurationError(
        f"{name!r} is a {type(way).__name__}: pass a ScoringMethod, a Scoring, a "
        "module or a CoTrained."
    )


def _check_size(
    here: Candidates, last: Candidates | None, entrants: list[_Entrant], k: int
) -> None:
    size = here.ids.numel()
    if last is not None and last.ids.numel() != size:
        raise DataError(
            f"candidate batches of {last.ids.numel()} and of {size} rows: leave out a shorter last "
            "one (drop_last=True)."
        )
    for entrant in entrants:
        if entrant.picks > entrant.rows(size):
            raise ConfigurationError(
                f"{entrant.name!r} picks {entrant.picks} of {entrant.rows(size)} rows that it "
                f"scores: give larger candidate batches than {size}, or a smaller k than {k}."
            )


class _Scored(NamedTuple):
    """A candidate batch with its scores at a step."""

    candidates: Candidates
    scores: Tensor  # [B] reducible losses; −inf if a row was not scored
    step: int


class _Entrant:
    """One way of scoring, run as the loop runs it."""

    def __init__(
        self,
        name: str,
        way: ScoringMethod,
        model: nn.Module,
        task: Task,
        store: IrreducibleLossStore,
        k: int,
    ) -> None:
        self.name, self.way = name, way
        self.picks = k * way.scoring.updates_per_scoring
        self.overlaps: list[float] = []
        self.rank_correlations: list[float] = []
        self._model, self._task, self._store = model, task, store
        self._ledger = Ledger()
        memory = LossMemory(store.ids) if way.scoring.max_age else None
        scorer = way.scorer
        learns = scorer if isinstance(scorer, CoTrained) else None
        self._learners = Learners(model, task, way.scoring, self._ledger, scorer=learns)
        self._evidence = EvidenceSource(
            model,
            task,
            way.scoring,
            self._ledger,
            self._learners,
            scorer=scorer if isinstance(scorer, nn.Module) else None,
            memory=memory,
        )
        self._rule = selector("train_loss")
        self._evidence.check(self._rule)
        self._waiting: list[_Scored] = []  # scored, and not yet as old as they are to be compared
        self._asked = self._scored = 0  # rows, in the batches compared

    def rows(self, size: int) -> int:
        """Returns how many of ``size`` candidates it scores."""
        return max(1, round(self.way.share * size))

    def part(self, candidates: Candidates) -> Candidates:
        """The candidates that it scores: the first ones, for batches come in random order."""
        size = candidates.ids.numel()
        if self.rows(size) == size:
            return candidates
        rows = torch.arange(self.rows(size))
        return take(candidates, rows)

    def exact_scores(self, candidates: Candidates) -> Tensor:
        """[B]: reducible losses of the model as it is."""
        found = measure(self._model, candidates, _LOSS, _EXACT, task=self._task)
        return self._reducible(found.require("loss"), candidates)

    def _reducible(self, loss: Tensor, candidates: Candidates) -> Tensor:
        cure = "Score in a higher precision, or lower the learning rate."
        require_finite(loss, candidates.ids, f"the loss by {self.name!r}", cure)
        return loss - self._store.lookup(candidates.ids).to(loss.device)

    def _scores(self, candidates: Candidates, step: int) -> Tensor:
        """[B], of the part that it scores; −inf for the rest."""
        part = self.part(candidates)
        view = self._evidence.view(self._rule, part, Moment(epoch=0, step=step, seed=step))
        loss = view(_LOSS).require("loss")
        scores = loss.new_full((candidates.ids.numel(),), -torch.inf)
        scores[: part.ids.numel()] = self._reducible(loss, part)
        return scores

    def see(self, exact: _Scored, *, compared: bool) -> None:
        """Score a batch if it is compared, or must be remembered; compare what is due."""
        here, _, step = exact
        if compared or self.way.scoring.max_age:
            counts, before = self._ledger.counts, self._ledger.counts.examples_scored
            mine = _Scored(here, self._scores(here, step), step)
            if compared:
                self._waiting.append(mine)
                self._asked += self.rows(here.ids.numel())
                self._scored += counts.examples_scored - before
        age = self.way.scoring.updates_per_scoring - 1
        while self._waiting and self._waiting[0].step + age == step:
            mine = self._waiting.pop(0)
            now = exact.scores if age == 0 else self.exact_scores(mine.candidates)
            rows = slice(self.rows(now.numel()))
            self.rank_correlations.append(rank_correlation(now[rows], mine.scores[rows]))
            self.overlaps.append(overlap(now, mine.scores, self.picks))

    def learn(self, chosen: Candidates) -> None:
        """Step a scorer that learns along, as the loop does when it hands out a batch."""
        weights = torch.ones(chosen.ids.numel(), device=device_of(self._model))
        self._learners.learn(chosen.batch, weights)

    def remember(self, ids: Tensor, loss: Tensor, step: int) -> None:
        """Take over what training saw."""
        self._evidence.remember(ids, loss, step)
        self._learners.finish()

    @property
    def share_scored(self) -> float:
        """Share of the rows it was asked for that it scored, and did not remember."""
        return self._scored / self._asked

    def passes(self, candidates: Candidates) -> Callable[[], Any]:
        """One scoring pass, for the clock."""
        scorer, scoring = self.way.scorer, self.way.scoring
        scores_with = scorer.model if isinstance(scorer, CoTrained) else scorer or self._model
        part = self.part(candidates)
        return lambda: measure(scores_with, part, _LOSS, scoring, task=self._task)

    def steps(self, batch: Any, k: int) -> Callable[[], Any] | None:
        """One step of a scorer that learns along, for the clock."""
        scorer, weights = self.way.scorer, torch.ones(k, device=device_of(self._model))
        if not isinstance(scorer, CoTrained):
            return None
        seen = measure(
            self._model, Candidates(torch.arange(k), batch), frozenset({"logits"}), task=self._task
        )
        options: Any = {
            "scoring": self.way.scoring,
            "predictions": seen.require("logits").softmax(1).clone(),  # training tells, for nothing
        }
        return lambda: scorer.step(self._task, batch, weights, **options)


def _with_costs(
    entrants: list[_Entrant],
    last: Candidates,
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    task: Task,
    k: int,
    repeats: int,
) -> list[Fidelity]:
    """Rows, with the cost of each way timed on the last batch; all is left as it was."""
    size, device = last.ids.numel(), device_of(model)
    batch = take(last, torch.arange(k)).batch
    trained, its_optimizer = copy.deepcopy((model, optimizer))  # together, so that they belong
    if its_optimizer is None:
        its_optimizer = torch.optim.AdamW(trained.parameters())
    trained.train()
    work: dict[str, Callable[[], Any]] = {
        "train": lambda: plain_update(trained, its_optimizer, task, batch)
    }
    for entrant in entrants:
        work[f"pass by {entrant.name}"] = entrant.passes(last)
        step = entrant.steps(batch, k)
        if step is not None:
            work[f"step of {entrant.name}"] = step
    learners = [e.way.scorer for e in entrants if isinstance(e.way.scorer, CoTrained)]
    states = [learner.state_dict() for learner in learners]
    devices = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(devices, device_type=device.type):  # dropout draws
        taken = times_in_turn(work, repeats=repeats, device=device)
    for learner, state in zip(learners, states, strict=True):
        learner.load_state_dict(state)
    rows: list[Fidelity] = []
    for entrant in entrants:
        share = entrant.share_scored / entrant.way.scoring.updates_per_scoring
        steps = taken.get(f"step of {entrant.name}", [0.0] * repeats)
        costs = [
            (share * one_pass + one_step) / size / (train / k)
            for one_pass, one_step, train in zip(
                taken[f"pass by {entrant.name}"], steps, taken["train"], strict=True
            )
        ]
        found = tuple(entrant.rank_correlations), tuple(entrant.overlaps)
        rows.append(Fidelity(entrant.name, *found, tuple(costs)))
    return rows
