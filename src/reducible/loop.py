"""The loop: a loader that hands out chosen rows, and the loss that goes with them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Any, Literal, Protocol, final

import torch
from torch import Tensor, nn

from reducible.epochs import EpochPlanner
from reducible.group_holdout import GroupHoldoutLoss
from reducible.ledger import Ledger
from reducible.loaders import (
    Indices,
    Reordered,
    batch_size_of,
    index_batches,
    order_state,
    rebuilt,
    replayed,
    set_order_state,
)
from reducible.measure import Scoring
from reducible.measuring import Measuring
from reducible.scorers import CoTrained
from reducible.selectors import Selector
from reducible.stores import IrreducibleLossStore, ids_of, labels_of, require_ids
from reducible.structure import gather, to_device
from reducible.tasks import Classification, Task, per_example
from reducible.types import Candidates, ConfigurationError, DataError, Evidence


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
        self._ids_key = ids
        self._shadows = dict(shadows or {})
        self._seed = seed
        self._record = record
        self._total_steps = total_steps
        self.ledger = ledger or Ledger()
        self._check_settings()
        self._check_data(store)
        self._measuring = Measuring(
            model,
            self._task,
            scoring or Scoring(),
            self.ledger,
            store=store,
            irreducible=_live(selector, irreducible_model, optimizer),
            holdout=_holdout(group_holdout, store, groups, refresh),
            groups=groups,
            total_steps=total_steps,
        )
        self._planner = self._make_planner(proxy)
        if self._planner is None:
            for rule in (selector, *self._shadows.values()):
                self._measuring.check(rule)

        self._n_candidates: int | None = None  # n_B: the first batch's size
        self._epoch = -1  # passes begun, from 0
        self._position = 0  # candidate batches of this pass that are done with
        self._step = 0  # batches handed out, over all passes
        self._order: dict[str, Any] | None = None  # where this pass's order began
        self._resuming = False
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
        _check_keep(self._keep)
        size = batch_size_of(self._loader)
        if size is not None:
            rows_to_keep(self._keep, size)

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
        return self._epoch

    @property
    def step(self) -> int:
        """Batches handed out so far, over all passes."""
        return self._step

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Chosen]:
        device = next(self._model.parameters(), torch.empty(0)).device
        generator = torch.Generator(device=device)
        for candidates, weights in self._candidate_batches():
            with self.ledger.phase("load"):
                require_ids(candidates.ids)
                here = Candidates(candidates.ids, to_device(candidates.batch, device))
            with self.ledger.phase("pick"):
                if weights is None:
                    chosen = self._choose(here, generator)
                else:
                    chosen = Chosen(here.batch, here.ids.to(device), weights.to(device), {})
                self._hand_out(chosen)
            self.ledger.enter("train")
            try:
                yield chosen
            finally:
                self.ledger.leave()

    def _choose(self, candidates: Candidates, generator: torch.Generator) -> Chosen:
        size = candidates.ids.numel()
        k = rows_to_keep(self._keep, self._n_candidates or size)
        seed = stream_seed(self._seed, self._step)
        generator.manual_seed(seed)
        now = {"epoch": self._epoch, "step": self._step, "seed": seed}
        choice = self._selector.choose(
            self._measuring.look(self._selector, candidates, **now), k, generator=generator
        )
        self._selector.observe(choice.evidence, choice.selection)
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
        return Chosen(
            batch=gather(candidates.batch, choice.positions, size),
            ids=choice.evidence.ids[choice.selection.index],
            weights=choice.selection.weight,
            info=choice.selection.info,
            shadows=shadows,
        )

    def _hand_out(self, chosen: Chosen) -> None:
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

    def remember(self, ids: Tensor, per_example_loss: Tensor) -> None:
        """Report the losses ([K]) of rows that are trained on, for rules that remember them."""
        if self._planner is not None:
            self._planner.remember(ids, per_example(per_example_loss, ids.numel()), self._step)

    # -- candidates ----------------------------------------------------------------------------

    def _candidate_batches(self) -> Iterator[tuple[Candidates, Tensor | None]]:
        """Candidate batches of one pass; with weights where their rows are chosen already."""
        draws = self._planner is None and not self._selector.needs and not self._shadows
        order = index_batches(self._loader)
        with self.ledger.phase("load"):
            iterator, ahead = self._open(order, draws)
        while True:
            with self.ledger.phase("load"):
                try:
                    candidates = self._unpack(next(iterator))
                except StopIteration:
                    break
            self._position = ahead.ends.popleft() if ahead else self._position + 1
            size = candidates.ids.numel()
            if self._planner is not None:
                yield candidates, self._planner.weights(self._position - 1)
            elif draws and order is not None:
                yield candidates, torch.ones(size)
            elif self._is_whole(size):
                yield candidates, None
        self._order, self._position = None, 0

    def _is_whole(self, size: int) -> bool:
        """Whether a candidate batch has n_B rows, which is the first one's number."""
        if self._n_candidates is None:
            rows_to_keep(self._keep, size)
            self._n_candidates = size
        return size >= self._n_candidates

    def _open(self, order: Any, draws: bool) -> tuple[Iterator[Any], Reordered | None]:
        """An iterator over the loader, at the saved position where a pass is resumed.

        With it the order that is read ahead of loading, where there is one.
        """
        resuming, self._resuming = self._resuming, False
        if not resuming:
            self._epoch += 1
            self._position = 0
            self._order = order_state(self._loader)
            if self._planner is not None:
                self._plan_epoch(self._planner)
        ahead: Reordered | None = None
        if self._planner is not None:
            ahead = Reordered(self._planner.batches(), self._position, _as_it_is)
        elif order is not None and (draws or resuming):
            ahead = Reordered(order, self._position, self._drawer() if draws else _as_it_is)
        loader = self._loader if ahead is None else rebuilt(self._loader, ahead)
        if not resuming or self._order is None:
            return iter(loader), ahead
        with replayed(self._loader, self._order):
            iterator = iter(loader)
            if ahead is not None:
                ahead.prime()
            else:
                for _ in range(self._position):
                    next(iterator, None)
        return iterator, ahead

    def _plan_epoch(self, planner: EpochPlanner) -> None:
        generator = torch.Generator().manual_seed(stream_seed(self._seed, -1 - self._epoch))
        with self.ledger.phase("pick"):
            planner.plan(
                epoch=self._epoch,
                step=self._step,
                total_steps=self._total_steps,
                generator=generator,
            )

    def _drawer(self) -> Callable[[int, Indices], Indices | None]:
        """Draws the rows of a candidate batch by a rule that needs no evidence."""
        start = self._step  # workers read ahead of the step that is trained on

        def draw(given: int, indices: Indices) -> Indices | None:
            size = len(indices)
            if not self._is_whole(size):
                return None
            k = rows_to_keep(self._keep, self._n_candidates or size)
            generator = torch.Generator().manual_seed(stream_seed(self._seed, start + given))
            evidence = Evidence(ids=torch.arange(size))
            selection = self._selector.select(evidence, k, generator=generator)
            return [indices[i] for i in selection.index.tolist()]

        return draw

    def _unpack(self, batch: Any) -> Candidates:
        if isinstance(batch, Candidates):
            return batch
        if self._ids_key is not None and isinstance(batch, Mapping) and self._ids_key in batch:
            return Candidates(batch[self._ids_key], batch)
        what = type(batch).__name__
        if isinstance(batch, Mapping):
            what += f" with keys {sorted(map(str, batch))}"
        raise DataError(
            f"the loader's batches carry no ids: got {what}. Wrap the data set as "
            "reducible.WithIds(dataset), or name the key that holds them with ids=…."
        )

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped.

        Take it after the update on the batch handed out last. The model, the optimizer and the
        global random streams are the caller's to save.
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            "step": self._step,
            "n_candidates": self._n_candidates,
            "order": self._order or order_state(self._loader),
            "inside": self._order is not None,
            "selector": self._selector.state_dict(),
            "shadows": {name: rule.state_dict() for name, rule in self._shadows.items()},
            "measuring": self._measuring.state_dict(),
            "planner": self._planner.state_dict() if self._planner else None,
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: the next iteration continues the pass it was taken in."""
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._step = state["step"]
        self._n_candidates = state["n_candidates"]
        self._order = state["order"] if state["inside"] else None
        self._resuming = state["inside"]
        if not state["inside"]:
            set_order_state(self._loader, state["order"])
        self._selector.load_state_dict(state["selector"])
        for name, rule in self._shadows.items():
            rule.load_state_dict(state["shadows"][name])
        self._measuring.load_state_dict(state["measuring"])
        if self._planner is not None:
            self._planner.load_state_dict(state["planner"])
        self.ledger.load_state_dict(state["ledger"])


def rows_to_keep(keep: float, candidates: int) -> int:
    """n_b for a candidate batch of ``candidates`` rows.

    >>> rows_to_keep(0.1, 320), rows_to_keep(16, 320)
    (32, 16)
    """
    k = int(keep) if isinstance(keep, Integral) else math.floor(keep * candidates + 0.5)
    if k < 1:
        raise ConfigurationError(
            f"keep={keep} of {candidates} candidates rounds to no row at all. Raise keep, or the "
            "loader's batch size."
        )
    if k > candidates:
        raise ConfigurationError(
            f"keep={keep} rows, but the candidate batch has {candidates}. Give the loader the "
            "larger batch size n_B; keep is what is trained on."
        )
    return k


def _check_keep(keep: float) -> None:
    whole = isinstance(keep, Integral) and not isinstance(keep, bool)
    if not whole and (not isinstance(keep, Real) or isinstance(keep, bool)):
        raise ConfigurationError(f"keep must be a number of rows or a share, got {keep!r}.")
    if (whole and keep < 1) or (not whole and not 0 < keep <= 1):
        raise ConfigurationError(
            f"keep must be at least 1 row (int) or a share in (0, 1] (float), got {keep!r}."
        )


def stream_seed(seed: int, step: int) -> int:
    """A seed of its own for every step, so that a choice depends on (seed, step) alone."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) & 0x7FFFFFFFFFFFFFFF


def _as_it_is(given: int, indices: Indices) -> Indices:
    return indices


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
