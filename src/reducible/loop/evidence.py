"""What the loop owns to measure with: stores, live models, averages; charged to the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reducible.batches import device_of, take
from reducible.ledger import Ledger
from reducible.scoring import (
    ONE_PASS,
    RUNS_THE_MODEL,
    Asked,
    CoTrained,
    GroupHoldoutLoss,
    Meter,
    Overheard,
    Scoring,
    least_rows,
)
from reducible.selectors import Look, Selector
from reducible.stores import IrreducibleLossStore, LossMemory
from reducible.tasks import Task
from reducible.types import CONTEXT_KEYS, EVIDENCE_FIELDS, Candidates, ConfigurationError, Evidence

_CONTEXT = frozenset(CONTEXT_KEYS)
_EVAL = Scoring(batchnorm="running")


class _Lesson(NamedTuple):
    """Chosen rows that a scorer is yet to learn, once the model has said what it thinks of them."""

    batch: Any
    weights: Tensor  # [K]
    overheard: Overheard


@final
class Measuring:
    """Gives evidence of candidate batches, and keeps what that needs over time.

    Args:
        model: the model being trained.
        task: what batches mean.
        scoring: how candidates are scored.
        ledger: charged for it.
        store: of irreducible losses.
        irreducible: a live irreducible-loss model in the store's stead.
        scorer: scores in the model's stead; learns along where it is CoTrained.
        memory: of losses, where ``scoring.max_age`` lets them stand in for scoring.
        holdout: the group holdout loss.
        groups: [max id + 1] int64, the group of each id; the class where None.
        total_steps: planned updates.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        scoring: Scoring,
        ledger: Ledger,
        *,
        store: IrreducibleLossStore | None = None,
        irreducible: CoTrained | None = None,
        scorer: CoTrained | nn.Module | None = None,
        memory: LossMemory | None = None,
        holdout: GroupHoldoutLoss | None = None,
        groups: Tensor | None = None,
        total_steps: int | None = None,
    ) -> None:
        self._model, self._task, self._scoring, self._ledger = model, task, scoring, ledger
        self._score_phase, self._evaluate_phase = ledger.phase("score"), ledger.phase("evaluate")
        self._store, self._irreducible, self._holdout = store, irreducible, holdout
        self._learner = scorer if isinstance(scorer, CoTrained) else None
        frozen = scorer if isinstance(scorer, nn.Module) else model
        self._scores_with = frozen if self._learner is None else self._learner.model
        self._meter = self._meter_of(scoring)
        self._live = None if irreducible is None else Meter(irreducible.model, _EVAL, task=task)
        self._memory = memory
        self._least = least_rows(self._scores_with, scoring)
        self._groups = groups
        self._total_steps = total_steps
        self._learners = [m for m in (self._irreducible, self._learner) if m is not None]
        self.learns = bool(self._learners)
        """Whether something learns along with the model: then ``learn`` and ``settle`` are due."""
        self._lesson: _Lesson | None = None
        self._flops: dict[tuple[frozenset[str], int], float] = {}  # per candidate
        self.forward_flops: float | None = None
        """FLOPs of one candidate's cheapest scoring pass so far; None before the first."""

    def check(self, selector: Selector) -> None:
        """Raise ConfigurationError where ``selector`` needs what cannot be measured here."""
        needs, store = selector.needs, self._store
        unknown = needs - set(EVIDENCE_FIELDS) - set(CONTEXT_KEYS)
        if unknown:
            raise ConfigurationError(f"the selector needs {sorted(unknown)}, which is no evidence.")
        if selector.lr_ratio is not None and self._irreducible is None:
            raise ConfigurationError(
                "the selector's irreducible-loss model learns along: pass it as "
                "irreducible_model=, and the model's optimizer as optimizer=."
            )
        live = {"irreducible_loss"} if selector.lr_ratio is not None else set[str]()
        for name, grouped in (("irreducible_loss", False), ("group_irreducible_loss", True)):
            if name not in needs - live:
                continue
            if store is None or (store.groups > 0) != grouped:
                got = "no store" if store is None else f"a store with {store.groups} groups"
                fit = "fit_group_irreducible_loss" if grouped else "fit_irreducible_loss"
                raise ConfigurationError(
                    f"the selector needs {name!r}, got {got}. Fit one with reducible.{fit}(…), or "
                    "load it, and pass store=…."
                )
        if self._scoring.max_age and needs & (RUNS_THE_MODEL - {"loss"}):
            raise ConfigurationError(
                f"max_age={self._scoring.max_age} remembers losses, but the selector needs "
                f"{sorted(needs & RUNS_THE_MODEL)}, for which every candidate must be scored."
            )
        if "total_steps" in needs and self._total_steps is None:
            raise ConfigurationError("the selector needs total_steps=<planned updates>.")
        if "group_holdout_loss" in needs and self._holdout is None:
            raise ConfigurationError("the selector needs group_holdout=<holdout loader>.")

    def look(
        self,
        selector: Selector,
        candidates: Candidates,
        *,
        epoch: int,
        step: int,
        seed: int,
        watches: bool = False,
    ) -> Look:
        """What ``selector`` measures this candidate batch with.

        Charged to evaluation where it only watches, and then not counted as scored.
        """
        live = self._live if selector.lr_ratio is not None else None
        charged = self._evaluate_phase if watches else self._score_phase

        def look(
            needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
        ) -> Evidence:
            if self._lesson is not None:
                self.settle()
            with charged:
                here = candidates if rows is None else take(candidates, rows)
                context = self._context(needs, epoch, step) if needs & _CONTEXT else {}
                groups = self._groups_of(here) if "groups" in needs else None
                asked = Asked(needs, context, groups, samples, seed, live)
                if watches or needs.isdisjoint(RUNS_THE_MODEL):
                    return self._meter.measure(here, asked)
                if self._memory is not None:
                    return self._remembered(here, asked, self._memory, step)
                return self._counted(here, asked)

        return look

    def shadow_look(
        self,
        selector: Selector,
        candidates: Candidates,
        seen: Evidence | None,
        *,
        epoch: int,
        step: int,
        seed: int,
    ) -> Look:
        """The same for a selector that only watches: what was seen is given, the rest measured."""
        look = self.look(selector, candidates, epoch=epoch, step=step, seed=seed, watches=True)

        def watch(
            needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
        ) -> Evidence:
            if rows is not None or seen is None:
                return look(needs, rows, samples=samples)
            there = {n for n in EVIDENCE_FIELDS if getattr(seen, n) is not None} | set(seen.context)
            if seen.mc_logits is not None and len(seen.mc_logits) != samples:
                there.discard("mc_logits")
            missing = frozenset(needs - there)
            if not missing:
                return seen
            more = look(missing, samples=samples)
            new = {n: getattr(more, n) for n in missing if n in EVIDENCE_FIELDS}
            return replace(seen, **new, context={**seen.context, **more.context})

        return watch

    def _context(self, needs: frozenset[str], epoch: int, step: int) -> dict[str, Tensor]:
        known = {"step": step, "epoch": epoch, "total_steps": self._total_steps}
        context = {
            name: torch.tensor(value, dtype=torch.int64)
            for name, value in known.items()
            if name in needs and value is not None
        }
        if "group_holdout_loss" in needs and self._holdout is not None:
            value = self._holdout.value(self._model, self._task, epoch=epoch, step=step)
            context["group_holdout_loss"] = value
        return context

    def _counted(self, candidates: Candidates, asked: Asked) -> Evidence:
        """Evidence of one pass over all the candidates given; forwards and FLOPs on the ledger."""
        size, needs, samples = candidates.ids.numel(), asked.needs, asked.samples
        kind = (needs, samples)
        flops = self._flops.get(kind)
        if flops is not None:
            evidence = self._meter.measure(candidates, asked)
        else:
            eager = self._meter_of(replace(self._scoring, compile=False))  # or none are counted
            with FlopCounterMode(display=False) as counter:
                evidence = eager.measure(candidates, asked)
            flops = self._flops[kind] = counter.get_total_flops() / size
            self.forward_flops = min(self._flops.values())
        passes = samples if "mc_logits" in needs else 0
        passes += not needs.isdisjoint(ONE_PASS)
        counts = self._ledger.counts
        counts.forwards_scored += passes
        counts.examples_scored += size * passes
        counts.flops_score += int(size * flops)
        return evidence

    def _remembered(
        self, candidates: Candidates, asked: Asked, memory: LossMemory, step: int
    ) -> Evidence:
        """Evidence whose losses come from memory where they are young enough."""
        scoring, ids = self._scoring, candidates.ids.cpu()
        old = memory.age(ids, step) > scoring.max_age  # [B]
        generator = torch.Generator().manual_seed(asked.seed)
        old |= torch.rand(ids.numel(), generator=generator) < scoring.rescore
        few = self._least - int(old.sum())
        if few > 0:
            young = (~old).nonzero().squeeze(1)
            old[young[torch.randperm(young.numel(), generator=generator)[:few]]] = True
        rows = old.nonzero().squeeze(1)  # [R]
        rest = self._meter.measure(candidates, asked._replace(needs=asked.needs - {"loss"}))
        if rows.numel():
            part = take(candidates, rows)
            fresh = self._counted(part, Asked(frozenset({"loss"}), {}))
            memory.remember(part.ids, fresh.require("loss"), step)
        loss = memory.lookup(ids).to(rest.ids.device)
        return replace(rest, loss=loss, targets=self._task.targets(candidates.batch))

    def remember(self, ids: Tensor, loss: Tensor, step: int) -> None:
        """Keep losses ([K]) that training saw, where they are what scoring would give."""
        if self._memory is not None and self._scores_with is self._model:
            self._memory.remember(ids, loss, step)

    def _meter_of(self, scoring: Scoring) -> Meter:
        return Meter(self._scores_with, scoring, task=self._task, store=self._store)

    def _groups_of(self, candidates: Candidates) -> Tensor | None:
        if self._groups is None:
            return None
        device = device_of(self._model)
        return self._groups[candidates.ids.cpu()].to(device)

    def learn(self, batch: Any, weights: Tensor) -> None:
        """Step what learns along with the model, on the batch that is handed out.

        A scorer that learns predictions is stepped by ``settle``, on those that the model makes in
        between.
        """
        self.settle()
        for learner in self._learners:
            if learner.distil:
                heard = Overheard(self._model, self._task, len(weights))
                self._lesson = _Lesson(batch, weights, heard)
            else:
                self._step(learner, batch, weights)

    def in_hindsight(
        self, selector: Selector, rows: Candidates, *, epoch: int, step: int
    ) -> Callable[[], Evidence | None]:
        """What ``selector`` reads in hindsight of rows that are handed out.

        Listens to their training pass from now on, which costs no pass of its own.

        Returns:
            Gives the evidence of the rows; None as long as no training pass was seen.
        """
        needs = selector.hindsight | (selector.needs & _CONTEXT)
        asked = Asked(needs, self._context(needs, epoch, step))
        layers = "features" in needs
        heard = Overheard(self._model, self._task, rows.ids.numel(), layers=layers)

        def seen() -> Evidence | None:
            if heard.replay is None:
                return None
            return Meter(heard.replay, _EVAL, task=self._task).measure(rows, asked)

        return seen

    def settle(self) -> None:
        """Step a scorer that learns predictions on the batch handed out last; once."""
        if self._lesson is None or self._learner is None:
            return
        (batch, weights, overheard), self._lesson = self._lesson, None
        self._step(self._learner, batch, weights, overheard.predictions)

    def _step(
        self, learner: CoTrained, batch: Any, weights: Tensor, predictions: Tensor | None = None
    ) -> None:
        with self._score_phase:
            learner.step(
                self._task,
                batch,
                weights,
                trained=self._model,
                scoring=self._scoring,
                predictions=predictions,
            )

    def state_dict(self) -> dict[str, Any]:
        """State of live models and averages."""
        self.settle()
        return {
            "irreducible": self._irreducible.state_dict() if self._irreducible else None,
            "scorer": self._learner.state_dict() if self._learner else None,
            "memory": self._memory.state_dict() if self._memory else None,
            "holdout": self._holdout.state_dict() if self._holdout else None,
            "flops": [[sorted(needs), s, value] for (needs, s), value in self._flops.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over the state of live models and averages."""
        self._lesson = None
        if self._irreducible is not None:
            self._irreducible.load_state_dict(state["irreducible"])
        if self._learner is not None:
            self._learner.load_state_dict(state["scorer"])
        if self._memory is not None:
            self._memory.load_state_dict(state["memory"])
        if self._holdout is not None:
            self._holdout.load_state_dict(state["holdout"])
        self._flops = {(frozenset(needs), s): value for needs, s, value in state["flops"]}
        self.forward_flops = min(self._flops.values(), default=None)
