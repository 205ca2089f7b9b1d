"""The loop: a loader that hands out chosen rows, and the loss that goes with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from reducible.batches import device_of, gather
from reducible.ledger import Ledger
from reducible.loop.build import (
    check_data,
    check_settings,
    epoch_planner,
    gate_trials,
    group_holdout_loss,
    live_model,
    loss_memory,
)
from reducible.loop.chosen import Chosen, InfoLog, Part, Parts, PickLog
from reducible.loop.evidence import EvidenceSource, Moment
from reducible.loop.gate import Gate
from reducible.loop.hindsight import Hindsight, would_be_told
from reducible.loop.inspection import inspection_of
from reducible.loop.learners import Learners
from reducible.loop.passes import CandidatePasses, blindly
from reducible.loop.seeds import stream_seed
from reducible.loop.states import VERSION, belongings, require_belongs, require_counts, require_keys
from reducible.scoring import CoTrained, Scoring
from reducible.selectors import Choice, Selector
from reducible.stores import IrreducibleLossStore
from reducible.tasks import Classification, Task, per_example
from reducible.types import Candidates, ConfigurationError, ReducibleError, SelectionError, name_ids


def weighted_mean(per_example_loss: Tensor, weight: Tensor, *, ids: Tensor | None = None) -> Tensor:
    """Σ w_i·L_i / K over the K rows given; never divided by Σ w, which would bias it.

    Args:
        per_example_loss: [K].
        weight: [K].
        ids: [K] int64, named in errors; rows are named by their number if None.

    Returns:
        [] of the loss's dtype.

    Raises:
        DataError: the loss is already reduced, or the shapes differ.
        SelectionError: a loss is not finite. On an accelerator this is not looked at, because the
            mean would have to be waited for.

    >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5]))
    tensor(1.2500)
    """
    loss = per_example(per_example_loss, weight.shape[0])
    mean = (loss * weight.to(loss.dtype)).sum() / weight.shape[0]
    if mean.is_cpu and not torch.compiler.is_compiling() and not math.isfinite(mean.detach()):
        rows = torch.arange(loss.numel()) if ids is None else ids.cpu()
        for what, values in (("the training loss", loss.detach()), ("the weight", weight)):
            _require_finite(what, values, rows, "rows" if ids is None else "ids")
    return mean


def _require_finite(what: str, values: Tensor, names: Tensor, called: str) -> None:
    """Raise SelectionError naming the rows at which ``values`` ([K]) are not finite."""
    if math.isfinite(values.sum()):
        return
    bad = ~values.isfinite()
    if bool(bad.any()):
        raise SelectionError(
            f"{what} is not finite for {int(bad.sum())} of {values.numel()} rows, {called} "
            f"{name_ids(names[bad])}: the model has diverged (learning rate too high?), or its "
            "inputs hold NaN. Nothing is trained on it."
        )


@final
class SelectingLoader:
    """Wraps a loader of candidate batches; iterating yields the rows chosen from each.

    At every step the selector's evidence is measured on the n_B candidates, n_b of them are
    gathered on the model's device and handed out as ``Chosen``. The model's parameters, buffers,
    mode and the global random streams are as they were.

    Candidate batches may vary in size. A share ``keep`` is one of each batch, and at least a row; a
    number of rows must be had from every batch. Only the last batch of a pass may be left out: if
    it has fewer rows than ``keep`` and ``updates_per_scoring`` ask for, or if it is the short rest
    of a loader that cuts its batches evenly, by torch's own BatchSampler (a DataLoader with
    ``batch_size=…``) or from a stream that one process reads and the default function collates.
    Where sizes vary (a batch sampler of one's own, a list of batches) none is a short rest.

    A rule that needs no evidence (``uniform``, ``Scheduled`` when its rule rests, ``grad_norm_is``
    while its gate is shut) over a plain DataLoader of a map-style data set draws its rows before
    they are loaded: the same candidates as every other rule sees, at the cost of the chosen ones
    alone. With a gate, which opens by what the training pass shows, that is so without workers and
    with one update per scoring; else all are loaded, and none scored.

    A rule that decides by epoch (``infobatch``, ``rs2``, ``svp``) plans the order itself, over the
    rows that the loader's sampler yields; a sampler whose rows are not known is refused by name.

    Args:
        loader: yields Candidates (``WithIds``), or mappings with ids under the key ``ids``.
        model: the model being trained.
        selector: ``reducible.selector(name)``.
        keep: n_b: rows per candidate batch (int), or a share of them (float). All of them, and
            all alone, for a rule that leaves rows out itself (``infobatch``).
        store: of irreducible losses, if the selector needs them.
        task: what batches mean; ``Classification()`` by default.
        ids: key of the ids, if batches are mappings.
        scoring: how candidates are scored; the paper's way by default.
        groups: [max id + 1] int64, the group of each id; the class is the group if None.
        group_holdout: loader of holdout examples, for rules that read the group holdout loss.
        refresh: of the group holdout loss: ``"epoch"``, or every so many steps by one batch.
        refresh_decay: a of the average over such batches, in [0, 1); REDUCR's A.9.4 takes 0.9
            and 0.99.
        scorer: a smaller model that scores in the model's stead: frozen, or ``CoTrained`` with an
            optimizer of its own, stepped on every chosen batch.
        irreducible_model: for ``rho_updating``: fitted on the holdout, on the model's device.
        optimizer: the model's, whose class and rate the irreducible-loss model's follows.
        proxy: for ``svp``: a model fitted on the train set.
        gate: ``"auto"``, or a Gate: decides during training whether selection pays; plain training
            if it does not. Its reasons are in ``gate.report()``.
        held_out: loader of examples that are never trained on, for the gate.
        shadows: selectors that see the same candidates and whose choices are recorded only.
        seed: of every choice; the same seed gives the same choices.
        ledger: charged for loading, scoring, picking and training (the time between handing out
            a batch and being asked for the next); one of its own by default.
        record: gets step, ids, scores and weights of every choice; an ``InfoLog`` also what the
            rule says of its choice beside the scores, and what shadows would have chosen.
        total_steps: planned updates, for rules that need to know.

    Raises:
        ConfigurationError: a setting that cannot work.
        DataError: the loader's data set is empty, or its sampler draws rows more than once. In
            iterating: a batch that is not the last has too few rows, or a pass hands out nothing.
        StoreError: the store is of other data. If the data set tells no labels beforehand, those of
            the first batches are compared, and it is raised in iterating.
    """

    def __init__(
        self,
        loader: Any,
        model: nn.Module,
        selector: Selector,
        *,
        keep: float | None = None,
        store: IrreducibleLossStore | None = None,
        task: Task | None = None,
        ids: str | None = None,
        scoring: Scoring | None = None,
        groups: Tensor | None = None,
        group_holdout: Any = None,
        refresh: Literal["epoch"] | int = "epoch",
        refresh_decay: float = 0.9,
        scorer: CoTrained | nn.Module | None = None,
        irreducible_model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        proxy: nn.Module | None = None,
        gate: Gate | Literal["auto"] | None = None,
        held_out: Any = None,
        shadows: Mapping[str, Selector] | None = None,
        seed: int = 0,
        ledger: Ledger | None = None,
        record: PickLog | None = None,
        total_steps: int | None = None,
    ) -> None:
        self._model = model
        self._selector = selector
        self._task = task or Classification()
        self._shadows = dict(shadows or {})
        self._seed = seed
        self._scoring = scoring or Scoring()
        self._record = record
        self._write_info = record.write_info if isinstance(record, InfoLog) else None
        self.ledger = ledger or Ledger()
        keep = check_settings(loader, model, selector, self._shadows, scorer, keep)
        compared = check_data(loader, store, groups)
        self._learners = Learners(
            model,
            self._task,
            self._scoring,
            self.ledger,
            scorer=scorer if isinstance(scorer, CoTrained) else None,
            irreducible=live_model(selector, irreducible_model, optimizer),
        )
        self._evidence = EvidenceSource(
            model,
            self._task,
            self._scoring,
            self.ledger,
            self._learners,
            scorer=scorer if isinstance(scorer, nn.Module) else None,
            store=store,
            memory=loss_memory(loader, self._scoring),
            holdout=group_holdout_loss(group_holdout, store, groups, refresh, refresh_decay),
            groups=groups,
            total_steps=total_steps,
        )
        self._planner = epoch_planner(
            loader, selector, keep, proxy=proxy, task=self._task, total_steps=total_steps
        )
        if self._planner is None:
            for rule in (selector, *self._shadows.values()):
                self._evidence.check(rule)
        self._trials = gate_trials(
            gate,
            held_out,
            model=model,
            selector=selector,
            shadows=self._shadows,
            scoring=self._scoring,
            source=self._evidence,
            task=self._task,
            ledger=self.ledger,
            seed=seed,
        )
        self.gate = self._trials.gate if self._trials else None
        draw = self._trials.draw if self._trials else None
        if draw is None and self._planner is None and self._draws_ahead(loader):
            draw = blindly(selector, seed)
        self._passes = CandidatePasses(
            loader,
            ids_key=ids,
            keep=keep,
            seed=seed,
            ledger=self.ledger,
            draw=draw,
            updates=1 if self._planner is not None else self._scoring.updates_per_scoring,
            planner=self._planner,
            total_steps=total_steps,
            inspection=inspection_of(loader, store, self._task, labels_compared=compared),
        )
        self._step = 0  # batches handed out, over all passes
        self._parts = Parts()  # of the choice from the last candidate batch
        self._hindsight = Hindsight(selector, self._evidence, self.ledger)
        self._own: dict[str, Any] | None = None  # what states belong to, once one was asked for
        self._describe = partial(
            belongings,
            loader=loader,
            keep=keep,
            seed=seed,
            selector=selector,
            shadows=self._shadows,
            scoring=self._scoring,
            task=self._task,
            store=store,
            scorer=scorer,
            irreducible_model=irreducible_model,
            group_holdout=group_holdout,
            gate=self.gate,
        )
        self.train_flops_per_example: float | None = None
        """Set it if measured: part of the state. Otherwise three scoring forwards are counted."""

    def _draws_ahead(self, loader: Any) -> bool:
        """Whether rows may be drawn before they are loaded.

        Not if the decision to draw waits for a training pass: workers load ahead of that, and
        of a candidate batch that is handed out in parts a resumed loop would decide again.
        """
        if self._shadows or not self._selector.sometimes_blind:
            return False
        in_turn = not getattr(loader, "num_workers", 0) and self._scoring.updates_per_scoring == 1
        return in_turn or not self._selector.hindsight

    # -- iteration -----------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The pass over the candidates that runs, from 0; −1 before the first."""
        return self._passes.epoch

    @property
    def step(self) -> int:
        """Batches handed out so far, over all passes."""
        return self._step

    def __len__(self) -> int:
        """Batches handed out in a pass, for schedules and progress bars.

        A candidate batch gives ``updates_per_scoring`` of them, a last one that is left out none,
        if it can be told beforehand. Of a rule that decides by epoch: those
        of the epoch planned last, before the first one as many as fit the rows asked for. Epochs
        may differ (``infobatch``), so plan schedules by a number of updates.
        """
        return len(self._passes)

    def __iter__(self) -> Iterator[Chosen]:
        device = device_of(self._model)
        generator = torch.Generator()  # on the CPU: the same draws on every device
        self._hindsight.tell()
        self._hindsight.forget()
        if not self._passes.resuming:
            self._parts = Parts()  # of a pass that was broken off
        begun = self._parts.handed_out if self._parts else 0  # of the batch walked first
        picking, training = self.ledger.phase("pick"), self.ledger.phase("train")
        for candidates, weights, k in self._passes.walk(self._step - begun, device):
            while True:
                with picking:
                    if not self._parts:
                        self._parts = Parts(
                            self._choose(candidates, k, generator)
                            if weights is None
                            else self._as_drawn(candidates, weights)
                        )
                    part = self._parts.take()
                    chosen = self._handed_out(candidates, part, drawn=weights is not None)
                if self._trials is not None:
                    self._trials.handed_out()
                with training:  # until the next batch is asked for
                    yield chosen
                if self._learners.any:
                    self._learners.finish()
                if self._hindsight.wanted:
                    self._hindsight.finish()
                if not self._parts:
                    break

    def _choose(self, candidates: Candidates, k: int, generator: torch.Generator) -> list[Part]:
        """The choice from one candidate batch, in as many parts as it is handed out in."""
        updates = self._scoring.updates_per_scoring
        moment = Moment(self.epoch, self._step, stream_seed(self._seed, self._step))
        if self._trials is not None:
            candidates, plain = self._trials.decide(candidates, k, moment)
            if plain is not None:
                return [_plain(candidates, plain, device_of(self._model), self._drawn_at())]
        generator.manual_seed(moment.seed)
        view = self._evidence.view(self._selector, candidates, moment)
        drawn_at = self._drawn_at()
        if drawn_at is not None:
            here = candidates.ids.numel()
            if not self._selector.is_blind(self._step, k * updates, here):
                drawn_at = None
        choice = self._selector.choose(view, k * updates, generator=generator)
        if drawn_at is None:
            self._selector.observe(choice.evidence, choice.selection)
        selection = choice.selection
        shadows: dict[str, Tensor] = {}
        if self._shadows:
            shadows = self._watch(candidates, choice, k * updates, generator, moment)
        whole = Part(
            positions=choice.positions,
            ids=choice.evidence.ids.index_select(0, selection.index),
            weights=selection.weight,
            info=selection.info,
            shadows=shadows,
            drawn_at=drawn_at,
        )
        return [whole] if updates == 1 else whole.split(k)

    def _as_drawn(self, rows: Candidates, weights: Tensor) -> list[Part]:
        """Rows that were chosen before they were loaded, in parts as above."""
        size = rows.ids.numel()
        ids = rows.ids.to(weights.device)
        whole = Part(torch.arange(size), ids, weights, {}, {}, self._drawn_at())
        if self._planner is not None:
            return [whole]
        return whole.split_into(self._scoring.updates_per_scoring)

    def _watch(
        self,
        candidates: Candidates,
        choice: Choice,
        k: int,
        generator: torch.Generator,
        moment: Moment,
    ) -> dict[str, Tensor]:
        """Ids that each shadow would have chosen."""
        shadows: dict[str, Tensor] = {}
        for name, shadow in self._shadows.items():
            generator.manual_seed(moment.seed)
            # A live irreducible-loss model and a store say different things.
            alike = (shadow.lr_ratio is None) == (self._selector.lr_ratio is None)
            seen = choice.evidence if choice.rows is None and alike else None
            watch = self._evidence.shadow_view(shadow, candidates, moment, seen)
            would = shadow.choose(watch, k, generator=generator)
            evidence, selection = would.evidence, would.selection
            if shadow.hindsight and shadow.is_blind(self._step, k, candidates.ids.numel()):
                needs, selection = would_be_told(shadow, selection.index)
                evidence = watch(needs, would.positions)  # for they have no training pass
            shadow.observe(evidence, selection)
            shadows[name] = would.evidence.ids[would.selection.index]
        return shadows

    def _handed_out(self, candidates: Candidates, part: Part, *, drawn: bool) -> Chosen:
        """A part of the candidates with its rows: recorded, counted, and learned by what learns.

        The rows are all of the candidates, if they were drawn as one.
        """
        size, rows = candidates.ids.numel(), part.ids.numel()
        everything = drawn and rows == size
        batch = candidates.batch if everything else gather(candidates.batch, part.positions, size)
        if self._record is not None:
            self._record.write(self._step, part.ids, part.info.get("score"), part.weights)
            if self._write_info is not None and part.says_more:
                self._write_info(self._step, part.info, part.shadows)
        counts = self.ledger.counts
        counts.updates += 1
        counts.examples_trained += rows
        forward = self._evidence.forward_flops
        if self.train_flops_per_example is not None:
            counts.flops_train += int(rows * self.train_flops_per_example)
        elif forward is not None:
            counts.flops_train += int(rows * 3 * forward)
        if self._learners.any:
            self._learners.learn(batch, part.weights)
        if part.drawn_at is not None:
            here = Candidates(part.ids, batch)
            self._hindsight.listen(here, Moment(self.epoch, part.drawn_at), self._step)
        self._step += 1
        return Chosen(batch, part.ids, part.weights, part.info, part.shadows)

    def _drawn_at(self) -> int | None:
        """This step, if the rule is to be told of rows that are drawn blindly now."""
        closed = self.gate is not None and self.gate.state == "closed"
        return self._step if self._hindsight.wanted and not closed else None

    def remember(self, ids: Tensor, per_example_loss: Tensor) -> None:
        """Report the losses ([K]) of rows that are trained on, for rules that remember them.

        Raises:
            DataError: the loss is already reduced.
            SelectionError: a loss is not finite; on an accelerator only if the rule remembers it.
        """
        loss = per_example(per_example_loss, ids.numel())
        if loss.is_cpu:
            _require_finite("the training loss", loss.detach(), ids.cpu(), "ids")
        self._evidence.remember(ids, loss, max(self._step - 1, 0))  # of the batch handed out
        if self._planner is not None:
            self._planner.remember(ids, loss, self._step)

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped.

        Take it after the update on the batch handed out last. The model, the optimizer and the
        global random streams are the caller's to save.
        """
        self._hindsight.tell()
        return {
            "version": VERSION,
            "of": dict(self._belongs_to()),
            "step": self._step,
            "passes": self._passes.state_dict(again=bool(self._parts)),
            "waiting": self._parts.state_dict(),
            "selector": self._selector.state_dict(),
            "shadows": {name: rule.state_dict() for name, rule in self._shadows.items()},
            "measuring": self._learners.state_dict() | self._evidence.state_dict(),
            "gating": self._trials.state_dict() if self._trials else None,
            "ledger": self.ledger.state_dict(),
            "train_flops_per_example": self.train_flops_per_example,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: the next iteration continues the pass it was taken in.

        Raises:
            ConfigurationError: the state is of another loop (the difference is named), of another
                version, or damaged. The loop then is as it was.
        """
        require_belongs(state, self._belongs_to())
        require_counts(state, "step")
        before = self.state_dict()
        require_keys(state, before, "passes", "measuring", "ledger")
        try:
            self._take_over(state)
        except ReducibleError:
            self._take_over(before)
            raise
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            self._take_over(before)
            raise ConfigurationError(
                f"the state is damaged or was made by hand ({type(error).__name__}: {error}). "
                "Nothing was taken over. Resume from another one, or start anew."
            ) from error

    def _belongs_to(self) -> dict[str, Any]:
        if self._own is None:
            self._own = self._describe()
        return self._own

    def _take_over(self, state: Mapping[str, Any]) -> None:
        self._hindsight.forget()
        self._step = state["step"]
        self._passes.load_state_dict(state["passes"])
        self._parts = Parts.from_state(state["waiting"], self._scoring.updates_per_scoring)
        self._selector.load_state_dict(state["selector"])
        for name, rule in self._shadows.items():
            rule.load_state_dict(state["shadows"][name])
        self._learners.load_state_dict(state["measuring"])
        self._evidence.load_state_dict(state["measuring"])
        if self._trials is not None:
            self._trials.load_state_dict(state["gating"])
        self.ledger.load_state_dict(state["ledger"])
        self.train_flops_per_example = state["train_flops_per_example"]


def _plain(
    candidates: Candidates, positions: Tensor, device: torch.device, drawn_at: int | None
) -> Part:
    """Rows at random, without weights."""
    ids = candidates.ids[positions.to(candidates.ids.device)]
    weights = torch.ones(positions.numel(), device=device)
    return Part(positions, ids, weights, {}, {}, drawn_at)
