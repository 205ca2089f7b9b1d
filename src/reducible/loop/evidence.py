"""Builds the evidence for each candidate batch and owns the state that this needs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reducible.batches import device_of, take
from reducible.ledger import Ledger
from reducible.loop.learners import Learners
from reducible.scoring import (
    ONE_PASS,
    RUNS_THE_MODEL,
    GroupHoldoutLoss,
    Measurement,
    Request,
    Scoring,
    least_rows,
)
from reducible.selectors import Look, Selector
from reducible.stores import IrreducibleLossStore, LossMemory
from reducible.tasks import Task
from reducible.types import CONTEXT_KEYS, EVIDENCE_FIELDS, Candidates, ConfigurationError, Evidence

CONTEXT = frozenset(CONTEXT_KEYS)
EVAL = Scoring(batchnorm="running")


class Moment(NamedTuple):
    """Says when a candidate batch is chosen from, and the seed of what scoring draws for it."""

    epoch: int
    step: int
    seed: int = 0


@final
class EvidenceSource:
    """Measures candidates for selectors, from the model, stores, memory and averages.

    Args:
        model: the model being trained.
        task: what batches mean.
        scoring: how candidates are scored.
        ledger: charged for it.
        learners: models that learn along, which may score or give irreducible losses.
        scorer: scores in the model's stead, and stays as it is.
        store: of irreducible losses.
        memory: of losses, if ``scoring.max_age`` lets them stand in for scoring.
        holdout: the group holdout loss.
        groups: [max id + 1] int64, the group of each id; the class is the group if None.
        total_steps: planned updates.

    Attributes:
        forward_flops: FLOPs of one candidate's cheapest scoring pass; None before the first.
        scoring_phase, watching_phase: what looks are charged to.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        scoring: Scoring,
        ledger: Ledger,
        learners: Learners,
        *,
        scorer: nn.Module | None = None,
        store: IrreducibleLossStore | None = None,
        memory: LossMemory | None = None,
        holdout: GroupHoldoutLoss | None = None,
        groups: Tensor | None = None,
        total_steps: int | None = None,
    ) -> None:
        self.model, self.task, self.learners = model, task, learners
        self._scoring, self._ledger, self._store = scoring, ledger, store
        self._holdout, self._groups, self._total_steps = holdout, groups, total_steps
        learns = learners.scorer
        self._scores_with = (scorer or model) if learns is None else learns.model
        self._measurement = self._measured_with(scoring)
        live = learners.irreducible
        # Eval mode: the irreducible-loss model is judged as it would be on a holdout.
        self._live = None if live is None else Measurement(live.model, EVAL, task=task)
        self._memory = memory
        self._least = least_rows(self._scores_with, scoring)
        self._flops: dict[tuple[frozenset[str], int], float] = {}  # per candidate
        self.forward_flops: float | None = None
        self.scoring_phase, self.watching_phase = ledger.phase("score"), ledger.phase("evaluate")

    def check(self, selector: Selector) -> None:
        """Raise ConfigurationError if ``selector`` needs what cannot be measured here."""
        needs, store = selector.needs, self._store
        unknown = needs - set(EVIDENCE_FIELDS) - CONTEXT
        if unknown:
            raise ConfigurationError(f"the selector needs {sorted(unknown)}, which is no evidence.")
        lacking = needs & (RUNS_THE_MODEL | {"groups"}) - self.task.gives
        if self._groups is not None:
            lacking -= {"groups"}
        if lacking:
            raise ConfigurationError(
                f"the selector needs {sorted(lacking)}, which {type(self.task).__name__} does not "
                "give. Take a rule that chooses by loss, such as rho, train_loss or rho_soft."
            )
        if selector.lr_ratio is not None and self._live is None:
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

    def view(self, selector: Selector, candidates: Candidates, moment: Moment) -> View:
        """Returns what ``selector`` measures this candidate batch with."""
        return View(self, candidates, moment, live=selector.lr_ratio is not None)

    def shadow_view(
        self, selector: Selector, candidates: Candidates, moment: Moment, seen: Evidence | None
    ) -> Look:
        """Returns the same for a selector that only watches: what was ``seen`` is not measured.

        The rest is charged to evaluation, and not counted as scored.
        """
        view = View(self, candidates, moment, live=selector.lr_ratio is not None, watches=True)
        return view if seen is None else Supplemented(seen, view)

    def measure(
        self, candidates: Candidates, request: Request, moment: Moment, *, watches: bool
    ) -> Evidence:
        """Evidence of all the candidates given; on the ledger unless it is for who watches."""
        # Only what the rule that trains makes the model do is its cost.
        if watches or request.needs.isdisjoint(RUNS_THE_MODEL):
            return self._measurement.measure(candidates, request)
        if self._memory is not None:
            return self._remembered(candidates, request, self._memory, moment.step)
        return self._counted(candidates, request)

    def request(
        self,
        needs: frozenset[str],
        candidates: Candidates,
        moment: Moment,
        *,
        samples: int,
        live: bool,
    ) -> Request:
        """Builds the request for ``needs``, with the context and the groups that they name."""
        context = self.context(needs, moment) if needs & CONTEXT else {}
        groups = self._groups_of(candidates) if "groups" in needs else None
        gives = self._live if live else None
        return Request(needs, context, groups, samples, moment.seed, gives)

    def context(self, needs: frozenset[str], moment: Moment) -> dict[str, Tensor]:
        """Reads what ``needs`` names of the run: step, epoch, planned updates, holdout losses."""
        known = {"step": moment.step, "epoch": moment.epoch, "total_steps": self._total_steps}
        context = {
            name: torch.tensor(value, dtype=torch.int64)
            for name, value in known.items()
            if name in needs and value is not None
        }
        if "group_holdout_loss" in needs and self._holdout is not None:
            value = self._holdout.value(self.model, self.task, epoch=moment.epoch, step=moment.step)
            context["group_holdout_loss"] = value
        return context

    def _counted(self, candidates: Candidates, request: Request) -> Evidence:
        """Evidence of one pass over all the candidates given; forwards and FLOPs on the ledger."""
        size, needs, samples = candidates.ids.numel(), request.needs, request.samples
        # Counting slows a pass several times, so each kind is counted once.
        kind = (needs, samples)
        flops = self._flops.get(kind)
        if flops is not None:
            evidence = self._measurement.measure(candidates, request)
        else:
            # A compiled model hides its operators from the counter.
            eager = self._measured_with(replace(self._scoring, compile=False))
            with FlopCounterMode(display=False) as counter:
                evidence = eager.measure(candidates, request)
            flops = self._flops[kind] = counter.get_total_flops() / size
            # The cheapest is a forward without extras, as training makes one.
            self.forward_flops = min(self._flops.values())
        passes = samples if "mc_logits" in needs else 0
        passes += not needs.isdisjoint(ONE_PASS)
        counts = self._ledger.counts
        counts.forwards_scored += passes
        counts.examples_scored += size * passes
        counts.flops_score += int(size * flops)
        return evidence

    def _remembered(
        self, candidates: Candidates, request: Request, memory: LossMemory, step: int
    ) -> Evidence:
        """Evidence whose losses come from memory if they are young enough."""
        scoring, ids = self._scoring, candidates.ids.cpu()
        old = memory.age(ids, step) > scoring.max_age  # [B]
        generator = torch.Generator().manual_seed(request.seed)
        # At random besides, or a loss remembered wrongly would never be looked at again.
        old |= torch.rand(ids.numel(), generator=generator) < scoring.rescore
        few = self._least - int(old.sum())
        # Batch statistics of a few rows would give other losses than those of a batch.
        if few > 0:
            young = (~old).nonzero().squeeze(1)
            old[young[torch.randperm(young.numel(), generator=generator)[:few]]] = True
        rows = old.nonzero().squeeze(1)  # [R]
        needs = request.needs - {"loss"}
        rest = self._measurement.measure(candidates, request._replace(needs=needs))
        if rows.numel():
            part = take(candidates, rows)
            fresh = self._counted(part, Request(frozenset({"loss"}), {}))
            memory.remember(part.ids, fresh.require("loss"), step)
        loss = memory.lookup(ids).to(rest.ids.device)
        return replace(rest, loss=loss, targets=self.task.targets(candidates.batch))

    def remember(self, ids: Tensor, loss: Tensor, step: int) -> None:
        """Keep losses ([K]) that training saw, if they are what scoring would give."""
        # A smaller scorer's losses lie on another scale than the trained model's.
        if self._memory is not None and self._scores_with is self.model:
            self._memory.remember(ids, loss, step)

    def _measured_with(self, scoring: Scoring) -> Measurement:
        return Measurement(self._scores_with, scoring, task=self.task, store=self._store)

    def _groups_of(self, candidates: Candidates) -> Tensor | None:
        if self._groups is None:
            return None
        return self._groups[candidates.ids.cpu()].to(device_of(self.model))

    def state_dict(self) -> dict[str, Any]:
        """Remembered losses, averages, and what a pass costs."""
        return {
            "memory": self._memory.state_dict() if self._memory else None,
            "holdout": self._holdout.state_dict() if self._holdout else None,
            "flops": [[sorted(needs), s, value] for (needs, s), value in self._flops.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over remembered losses, averages, and what a pass costs."""
        if self._memory is not None:
            self._memory.load_state_dict(state["memory"])
        if self._holdout is not None:
            self._holdout.load_state_dict(state["holdout"])
        self._flops = {(frozenset(needs), s): value for needs, s, value in state["flops"]}
        self.forward_flops = min(self._flops.values(), default=None)


@final
class View:
    """Answers "this evidence of these rows" for one candidate batch; a ``Look``.

    Args:
        source: measures.
        candidates: the batch.
        moment: when it is chosen from.
        live: whether irreducible losses come from a model that learns along, not from the store.
        watches: whether nothing is chosen by what is seen.
    """

    __slots__ = ("_candidates", "_live", "_moment", "_source", "_watches")

    def __init__(
        self,
        source: EvidenceSource,
        candidates: Candidates,
        moment: Moment,
        *,
        live: bool,
        watches: bool = False,
    ) -> None:
        self._source, self._candidates, self._moment = source, candidates, moment
        self._live, self._watches = live, watches

    def __call__(
        self, needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
    ) -> Evidence:
        """Evidence of the candidates at ``rows`` ([M] int64), of all of them if None."""
        source, moment = self._source, self._moment
        if source.learners.any:
            source.learners.finish()  # on the batch before, first
        with source.watching_phase if self._watches else source.scoring_phase:
            here = self._candidates if rows is None else take(self._candidates, rows)
            request = source.request(needs, here, moment, samples=samples, live=self._live)
            return source.measure(here, request, moment, watches=self._watches)


@final
class Supplemented:
    """A view that gives what was seen already, and measures the rest.

    Args:
        seen: evidence of the whole candidate batch.
        view: measures.
    """

    __slots__ = ("_seen", "_view")

    def __init__(self, seen: Evidence, view: View) -> None:
        self._seen, self._view = seen, view

    def __call__(
        self, needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
    ) -> Evidence:
        """Evidence of the candidates at ``rows`` ([M] int64), of all of them if None."""
        seen = self._seen
        if rows is not None:
            return self._view(needs, rows, samples=samples)
        # The shadow pays only for what the rule that trains did not look at.
        there = {n for n in EVIDENCE_FIELDS if getattr(seen, n) is not None} | set(seen.context)
        if seen.mc_logits is not None and len(seen.mc_logits) != samples:
            there.discard("mc_logits")
        missing = frozenset(needs - there)
        if not missing:
            return seen
        more = self._view(missing, samples=samples)
        new = {n: getattr(more, n) for n in missing if n in EVIDENCE_FIELDS}
        return replace(seen, **new, context={**seen.context, **more.context})
