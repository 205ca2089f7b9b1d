"""The loop: a loader that hands out chosen rows, and the loss that goes with them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor, nn

from reducible.epochs import EpochPlanner
from reducible.group_holdout import GroupHoldoutLoss
from reducible.ledger import Ledger
from reducible.loaders import batch_size_of, index_batches
from reducible.measure import Scoring
from reducible.measuring import Measuring
from reducible.passes import CandidatePasses, check_keep, rows_to_keep
from reducible.scorers import CoTrained
from reducible.seeds import stream_seed
from reducible.selectors import Choice, Selector
from reducible.stores import IrreducibleLossStore, LossMemory, ids_of, labels_of, require_ids
from reducible.structure import gather, to_device
from reducible.tasks import Classification, Task, per_example
from reducible.types import Candidates, ConfigurationError, DataError


@final
@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The rows to train on."""

    batch: Any  # the loader's own structure, K rows, on the model's device
    ids: Tensor  # [K] int64
    weights: Tensor  # [K] for weighted_mean
    info: Mapping[str, Tensor]  # what the rule says of its choice, for the log
    shadows: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """Ids that each shadow selector would have chosen, [K'] int64."""


@dataclass(frozen=True, slots=True, eq=False)
class _Part:
    """Rows chosen from a candidate batch, before they are gathered."""

    positions: Tensor  # [K] int64
    ids: Tensor  # [K] int64
    weights: Tensor  # [K]
    info: Mapping[str, Tensor]
    shadows: Mapping[str, Tensor]

    def split(self, k: int) -> list[_Part]:
        """Parts of k rows, in order; scores go with their rows, the rest with every part."""
        size = self.ids.numel()
        parts: list[_Part] = []
        for first in range(0, size, k):
            rows = slice(first, min(first + k, size))
            info = {n: v[rows] if n == "score" else v for n, v in self.info.items()}
            parts.append(
                _Part(
                    self.positions[rows],
                    self.ids[rows],
                    self.weights[rows],
                    info,
                    self.shadows,
                )
            )
        return parts

    def state_dict(self) -> dict[str, Any]:
        """All fields."""
        return {
            "positions": self.positions,
            "ids": self.ids,
            "weights": self.weights,
            "info": dict(self.info),
            "shadows": dict(self.shadows),
        }


class PickLog(Protocol):
    """Where chosen ids are written; ``reducible.records.PickWriter`` is one."""

    def write(self, step: int, ids: Tensor, scores: Tensor | None, weights: Tensor | None) -> None:
        """One step's choice: [K] each."""
        ...


def weighted_mean(per_example_loss: Tensor, weight: Tensor) -> Tensor:
    """Σ w_i·L_i / K over the K rows given; never divided by Σ w, which would bias it.

    Args:
        per_example_loss: [K].
        weight: [K].

    Returns:
        [] of the loss's dtype.

    Raises:
        DataError: the loss is already reduced, or the shapes differ.

    >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5]))
    tensor(1.2500)
    """
    loss = per_example(per_example_loss, weight.shape[0])
    return (loss * weight.to(loss.dtype)).sum() / weight.shape[0]


@final
class SelectingLoader:
    """Wraps a loader of candidate batches; iterating yields the rows chosen from each.

    At every step the selector's evidence is measured on the n_B candidates, n_b of them are
    gathered on the model's device and handed out as ``Chosen``. The model's parameters, buffers,
    mode and the global random streams are as they were. A last, shorter candidate batch is
    dropped: it would shrink n_b.

    A rule that needs no evidence (``uniform``) over a plain DataLoader of a map-style data set
    draws its rows before they are loaded: the same candidates as every other rule sees, at the
    cost of the chosen ones alone.

    Args:
        loader: yields Candidates (``WithIds``), or mappings with ids under the key ``ids``.
        model: the model being trained.
        selector: ``reducible.selector(name)``.
        keep: n_b: rows per candidate batch (int), or a share of them (float).
        store: of irreducible losses, where the selector needs them.
        task: what batches mean; ``Classification()`` by default.
        ids: key of the ids, where batches are mappings.
        scoring: how candidates are scored; the paper's way by default.
        groups: [max id + 1] int64, the group of each id; the class is the group where None.
        group_holdout: loader of holdout examples, for rules that read the group holdout loss.
        refresh: of the group holdout loss: ``"epoch"``, or every so many steps by one batch.
        scorer: a smaller model that scores in the model's stead: frozen, or ``CoTrained`` with an
            optimizer of its own, stepped on every chosen batch.
        irreducible_model: for ``rho_updating``: fitted on the holdout, on the model's device.
        optimizer: the model's, whose class and rate the irreducible-loss model's follows.
        proxy: for ``svp``: a model fitted on the train set.
        shadows: selectors that see the same candidates and whose choices are recorded only.
        seed: of every choice; the same seed gives the same choices.
        ledger: charged for loading, scoring, picking and training (the time between handing out
            a batch and being asked for the next); one of its own by default.
        record: gets step, ids, scores and weights of every choice.
        total_steps: planned updates, for rules that need to know.

    Raises:
        ConfigurationError: a setting that cannot work.
        StoreError: the store is of other data.
    """

    def __init__(
        self,
        loader: Any,
        model: nn.Module,
        selector: Selector,
        *,
        keep: float,
        store: IrreducibleLossStore | None = None,
        task: Task | None = None,
        ids: str | None = None,
        scoring: Scoring | None = None,
        groups: Tensor | None = None,
        group_holdout: Any = None,
        refresh: Literal["epoch"] | int = "epoch",
        scorer: CoTrained | nn.Module | None = None,
        irreducible_model: nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        proxy: nn.Module | None = None,
        shadows: Mapping[str, Selector] | None = None,
        seed: int = 0,
        ledger: Ledger | None = None,
        record: PickLog | None = None,
        total_steps: int | None = None,
    ) -> None:
        self._loader = loader
        self._model = model
        self._selector = selector
        self._keep = keep
        self._task = task or Classification()
        self._shadows = dict(shadows or {})
        self._seed = seed
        self._scoring = scoring or Scoring()
        self._record = record
        self._total_steps = total_steps
        self.ledger = ledger or Ledger()
        self._check_settings()
        self._check_data(store)
        self._measuring = Measuring(
            model,
            self._task,
            self._scoring,
            self.ledger,
            store=store,
            irreducible=_live(selector, irreducible_model, optimizer),
            scorer=scorer,
            memory=self._memory(),
            holdout=_holdout(group_holdout, store, groups, refresh),
            groups=groups,
            total_steps=total_steps,
        )
        self._planner = self._make_planner(proxy)
        if self._planner is None:
            for rule in (selector, *self._shadows.values()):
                self._measuring.check(rule)
        blind = self._planner is None and not selector.needs and not self._shadows
        self._passes = CandidatePasses(
            loader,
            ids_key=ids,
            keep=keep,
            seed=seed,
            ledger=self.ledger,
            blind=selector if blind else None,
            planner=self._planner,
            total_steps=total_steps,
        )
        self._step = 0  # batches handed out, over all passes
        self._waiting: list[_Part] = []  # chosen from the last candidate batch, not handed out
        self.train_flops_per_example: float | None = None
        """Set it where measured; otherwise three times the scoring forward is counted."""

    # -- settings ------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        for rule in (self._selector, *self._shadows.values()):
            if not isinstance(rule, Selector):
                raise ConfigurationError(
                    f"selector is a {type(rule).__name__}; pass reducible.selector('rho')."
                )
        if any(rule.horizon != "batch" for rule in self._shadows.values()):
            raise ConfigurationError("a shadow selector must decide by candidate batch.")
        if self._shadows and self._selector.horizon != "batch":
            raise ConfigurationError(
                "shadows watch candidate batches; a selector that decides by epoch has none."
            )
        if not isinstance(self._model, nn.Module):
            raise ConfigurationError(f"model is a {type(self._model).__name__}, not a Module.")
        if not hasattr(self._loader, "__iter__"):
            raise ConfigurationError(f"loader is a {type(self._loader).__name__}, not iterable.")
        check_keep(self._keep)

    def _check_data(self, store: IrreducibleLossStore | None) -> None:
        dataset = getattr(self._loader, "dataset", None)
        if dataset is None or not hasattr(dataset, "__len__"):
            return
        if len(dataset) == 0:
            raise DataError("the loader's data set is empty.")
        if store is not None and store.fingerprint:
            try:
                here = ids_of(dataset)
            except DataError:
                return  # ids come from inside the batches: known only as they are loaded
            store.check_data(here, labels_of(dataset))

    def _memory(self) -> LossMemory | None:
        """Losses that may stand in for scoring, where that is asked for."""
        if self._scoring.max_age == 0:
            return None
        try:
            return LossMemory(ids_of(getattr(self._loader, "dataset", None)))
        except DataError as error:
            raise ConfigurationError(f"max_age needs ids known beforehand: {error}") from error

    def _make_planner(self, proxy: nn.Module | None) -> EpochPlanner | None:
        """For rules that decide by epoch; None for the others."""
        if self._selector.horizon == "batch":
            return None
        size = batch_size_of(self._loader)
        if index_batches(self._loader) is None or size is None:
            raise ConfigurationError(
                "the selector decides by epoch, so it re-plans the order of a plain DataLoader "
                f"over a map-style data set; got {type(self._loader).__name__}."
            )
        if "total_steps" in self._selector.needs and self._total_steps is None:
            raise ConfigurationError("the selector needs total_steps=<planned updates>.")
        n_b = rows_to_keep(self._keep, size)
        return EpochPlanner(
            self._selector,
            self._loader.dataset,
            n_b=n_b,
            share=n_b / size,
            proxy=proxy,
            task=self._task,
        )

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
        return len(self._loader)

    def __iter__(self) -> Iterator[Chosen]:
        device = next(self._model.parameters(), torch.empty(0)).device
        generator = torch.Generator(device=device)
        for candidates, weights in self._passes.walk(self._step):
            with self.ledger.phase("load"):
                require_ids(candidates.ids)
                here = Candidates(candidates.ids, to_device(candidates.batch, device))
            if weights is not None:
                chosen = Chosen(here.batch, here.ids.to(device), weights.to(device), {})
                yield from self._hand_out(chosen)
                continue
            if not self._waiting:
                with self.ledger.phase("pick"):
                    self._waiting = self._choose(here, generator)
            while self._waiting:
                part = self._waiting.pop(0)
                with self.ledger.phase("pick"):
                    batch = gather(here.batch, part.positions, here.ids.numel())
                    chosen = Chosen(batch, part.ids, part.weights, part.info, part.shadows)
                yield from self._hand_out(chosen)

    def _choose(self, candidates: Candidates, generator: torch.Generator) -> list[_Part]:
        """The choice from one candidate batch, in as many parts as it is handed out in."""
        size = candidates.ids.numel()
        updates = self._scoring.updates_per_scoring
        k = self._passes.rows(size)
        if updates * k > size:
            raise ConfigurationError(
                f"updates_per_scoring={updates} of {k} rows each from {size} candidates: give the "
                "loader a larger batch size."
            )
        seed = stream_seed(self._seed, self._step)
        generator.manual_seed(seed)
        now = {"epoch": self.epoch, "step": self._step, "seed": seed}
        look = self._measuring.look(self._selector, candidates, **now)
        choice = self._selector.choose(look, k * updates, generator=generator)
        self._selector.observe(choice.evidence, choice.selection)
        selection = choice.selection
        whole = _Part(
            positions=choice.positions,
            ids=choice.evidence.ids[selection.index],
            weights=selection.weight,
            info=selection.info,
            shadows=self._watch(candidates, choice, k * updates, generator, seed),
        )
        return [whole] if updates == 1 else whole.split(k)

    def _watch(
        self,
        candidates: Candidates,
        choice: Choice,
        k: int,
        generator: torch.Generator,
        seed: int,
    ) -> dict[str, Tensor]:
        """Ids that each shadow would have chosen."""
        now = {"epoch": self.epoch, "step": self._step, "seed": seed}
        shadows: dict[str, Tensor] = {}
        for name, shadow in self._shadows.items():
            generator.manual_seed(seed)
            # A live irreducible-loss model and a store say different things.
            alike = (shadow.lr_ratio is None) == (self._selector.lr_ratio is None)
            seen = choice.evidence if choice.rows is None and alike else None
            watch = self._measuring.shadow_look(shadow, candidates, seen, **now)
            would = shadow.choose(watch, k, generator=generator)
            shadow.observe(would.evidence, would.selection)
            shadows[name] = would.evidence.ids[would.selection.index]
        return shadows

    def _hand_out(self, chosen: Chosen) -> Iterator[Chosen]:
        """Record, count and yield one batch; the time until the next is asked for is training."""
        with self.ledger.phase("pick"):
            if self._record is not None:
                score = chosen.info.get("score")
                self._record.write(self._step, chosen.ids, score, chosen.weights)
            rows = chosen.ids.numel()
            counts = self.ledger.counts
            counts.updates += 1
            counts.examples_trained += rows
            forward = self._measuring.forward_flops
            if self.train_flops_per_example is not None:
                counts.flops_train += int(rows * self.train_flops_per_example)
            elif forward is not None:
                counts.flops_train += int(rows * 3 * forward)
            self._measuring.learn(chosen.batch, chosen.weights)
            self._step += 1
        self.ledger.enter("train")
        try:
            yield chosen
        finally:
            self.ledger.leave()

    def remember(self, ids: Tensor, per_example_loss: Tensor) -> None:
        """Report the losses ([K]) of rows that are trained on, for rules that remember them."""
        loss = per_example(per_example_loss, ids.numel())
        self._measuring.remember(ids, loss, self._step)
        if self._planner is not None:
            self._planner.remember(ids, loss, self._step)

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped.

        Take it after the update on the batch handed out last. The model, the optimizer and the
        global random streams are the caller's to save.
        """
        return {
            "step": self._step,
            "passes": self._passes.state_dict(again=bool(self._waiting)),
            "waiting": [part.state_dict() for part in self._waiting],
            "selector": self._selector.state_dict(),
            "shadows": {name: rule.state_dict() for name, rule in self._shadows.items()},
            "measuring": self._measuring.state_dict(),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: the next iteration continues the pass it was taken in."""
        self._step = state["step"]
        self._passes.load_state_dict(state["passes"])
        self._waiting = [_Part(**part) for part in state["waiting"]]
        self._selector.load_state_dict(state["selector"])
        for name, rule in self._shadows.items():
            rule.load_state_dict(state["shadows"][name])
        self._measuring.load_state_dict(state["measuring"])
        self.ledger.load_state_dict(state["ledger"])


def _live(
    selector: Selector, model: nn.Module | None, lead: torch.optim.Optimizer | None
) -> CoTrained | None:
    """The irreducible-loss model that learns along, where the rule has one."""
    if selector.lr_ratio is None or model is None:
        return None
    if lead is None:
        raise ConfigurationError(
            "the irreducible-loss model learns at a ratio of the model's rate: pass the model's "
            "optimizer=."
        )
    return CoTrained.following(model, lead, lr_ratio=selector.lr_ratio)


def _holdout(
    loader: Any,
    store: IrreducibleLossStore | None,
    groups: Tensor | None,
    refresh: Literal["epoch"] | int,
) -> GroupHoldoutLoss | None:
    if loader is None:
        return None
    if store is None or store.groups == 0:
        raise ConfigurationError(
            "group_holdout= goes with a store that has a column per group: "
            "reducible.fit_group_irreducible_loss(…)."
        )

    def groups_of(ids: Tensor | None, targets: Tensor) -> Tensor:
        if groups is None:
            return targets
        if ids is None:
            raise DataError("groups go by id, so the group holdout must yield Candidates.")
        return groups[ids.cpu()]

    return GroupHoldoutLoss(loader, store.groups, groups_of=groups_of, refresh=refresh)
