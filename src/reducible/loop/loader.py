"""Hands out the rows to train on, chosen from every candidate batch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from reducible.batches import device_of, gather
from reducible.ledger import Ledger
from reducible.loop.build import Given
from reducible.loop.chosen import Chosen, InfoLog, Part, Parts, PickLog
from reducible.loop.evidence import Moment
from reducible.loop.gate import Gate
from reducible.loop.hindsight import Hindsight, would_be_told
from reducible.loop.losses import require_finite_rows
from reducible.loop.seeds import stream_seed
from reducible.loop.states import VERSION, require_belongs, require_counts, require_keys
from reducible.scoring import CoTrained, Scoring
from reducible.selectors import Choice, Selector
from reducible.stores import IrreducibleLossStore
from reducible.tasks import Classification, Task, per_example
from reducible.types import Candidates, ConfigurationError, ReducibleError


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
    If sizes vary (a batch sampler of one's own, a list of batches) none is a short rest.

    A rule that needs no evidence (``uniform``, ``Scheduled`` when its rule rests, ``grad_norm_is``
    while its gate is shut) over a plain DataLoader of a map-style data set draws its rows before
    they are loaded: the same candidates as every other rule sees, at the cost of the chosen ones
    alone. With a gate, which opens by what the training pass shows, that is so without workers and
    with one update per scoring; else all are loaded, and none scored.

    A rule that decides by epoch (``infobatch``, ``rs2``, ``svp``) plans the order itself, over the
    rows that the loader's sampler yields; a sampler whose rows are not known is refused by name.

    Args: Data
        loader: yields Candidates (``WithIds``), or mappings with ids under the key ``ids``.
        keep: n_b: rows per candidate batch (int), or a share of them (float). All of them, and
            all alone, for a rule that leaves rows out itself (``infobatch``).
        ids: key of the ids, if batches are mappings.
        task: what batches mean; ``Classification()`` by default.
        groups: [max id + 1] int64, the group of each id; the class is the group if None.

    Args: Rules
        model: the model being trained.
        selector: ``reducible.selector(name)``.
        shadows: selectors that see the same candidates and whose choices are recorded only.
        seed: of every choice; the same seed gives the same choices.
        total_steps: planned updates, for rules that need to know.

    Args: Scoring
        scoring: how candidates are scored; the paper's way by default.
        scorer: a smaller model that scores in the model's stead: frozen, or ``CoTrained`` with an
            optimizer of its own, stepped on every chosen batch.
        store: of irreducible losses, if the selector needs them.
        irreducible_model: for ``rho_updating``: fitted on the holdout, on the model's device.
        optimizer: the model's, whose class and rate the irreducible-loss model's follows.
        proxy: for ``svp``: a model fitted on the train set.
        group_holdout: loader of holdout examples, for rules that read the group holdout loss.
        refresh: of the group holdout loss: ``"epoch"``, or every so many steps by one batch.
        refresh_decay: of the average over such batches, in [0, 1); REDUCR, A.9.4: 0.9, 0.99.

    Args: Gate
        gate: ``"auto"``, or a Gate: decides during training whether selection pays; plain training
            if it does not. Its reasons are in ``gate.report()``.
        held_out: loader of examples that are never trained on, for the gate.

    Args: Log
        ledger: charged for loading, scoring, picking and training (the time between handing out
            a batch and being asked for the next); one of its own by default.
        record: gets step, ids, scores and weights of every choice; an ``InfoLog`` also what the
            rule says of its choice beside the scores, and what shadows would have chosen.

    Raises:
        ConfigurationError: a setting that cannot work.
        DataError: the loader's data set is empty, or its sampler draws rows more than once. In
            iterating: a batch that is not the last has too few rows, or a pass hands out nothing.
        StoreError: the store is of other data. If the data set tells no labels beforehand, those of
            the first batches are compared, and it is raised in iterating.

    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> import reducible as rd
    >>> data = rd.WithIds(TensorDataset(torch.randn(40, 4), torch.arange(40) % 2))
    >>> loader, model = DataLoader(data, batch_size=20), nn.Linear(4, 2)
    >>> batches = SelectingLoader(loader, model, rd.selector("train_loss"), keep=5)
    >>> [chosen.ids.numel() for chosen in batches]
    [5, 5]
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
        self._given = given = Given(
            loader=loader, model=model, selector=selector, keep=keep, store=store,
            task=task or Classification(), ids=ids, scoring=scoring or Scoring(), groups=groups,
            group_holdout=group_holdout, refresh=refresh, refresh_decay=refresh_decay,
            scorer=scorer, irreducible_model=irreducible_model, optimizer=optimizer, proxy=proxy,
            gate=gate, held_out=held_out, shadows=dict(shadows or {}), seed=seed,
            ledger=ledger or Ledger(), total_steps=total_steps,
        )  # fmt: skip
        self._model, self._selector, self._shadows = model, selector, given.shadows
        self._seed, self._scoring, self.ledger = seed, given.scoring, given.ledger
        self._record = record
        self._write_info = record.write_info if isinstance(record, InfoLog) else None
        self._learners = given.learners()
        self._evidence = given.evidence(self._learners)
        self._planner = given.planner()
        if self._planner is None:
            for rule in (selector, *self._shadows.values()):
                self._evidence.check(rule)
        self._trials = given.trials(self._evidence)
        self.gate = self._trials.gate if self._trials else None
        self._passes = given.passes(self._planner, self._trials)
        self._hindsight = Hindsight(selector, self._evidence, self.ledger)
        self._parts = Parts()  # of the choice from the last candidate batch
        self._step = 0  # batches handed out, over all passes
        self._own: dict[str, Any] | None = None  # what states belong to, once one was asked for
        self.train_flops_per_example: float | None = None
        """Set it if measured: part of the state. Otherwise three scoring forwards are counted."""

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
        # Asked anew in every pass, for a model may be moved in between.
        device = device_of(self._model)
        generator = torch.Generator()  # on the CPU: the same draws on every device
        self._hindsight.tell()
        self._hindsight.forget()
        if not self._passes.resuming:
            self._parts = Parts()  # of a pass that was broken off
        # The walk counts from the first choice of its first batch, which may be begun.
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
                # Now the caller has trained, so what was captured of that pass is there.
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
                return [Part.plain(candidates, plain, device_of(self._model), self._drawn_at())]
        # A stream per step: no rule's draws depend on how many were drawn before it.
        generator.manual_seed(moment.seed)
        view = self._evidence.view(self._selector, candidates, moment)
        drawn_at = self._drawn_at()
        if drawn_at is not None:
            here = candidates.ids.numel()
            if not self._selector.is_blind(self._step, k * updates, here):
                drawn_at = None
        choice = self._selector.choose(view, k * updates, generator=generator)
        # A rule with hindsight observes rows that it drew blindly once they were trained on.
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
        # Then nothing is copied.
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
            require_finite_rows("the training loss", loss.detach(), ids.cpu(), "ids")
        # Seen in training, a loss is as good as scored, and costs nothing.
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
        # Kept to put back: a state that is refused half-way must leave the loop as it was.
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
            self._own = self._given.belongings()
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
