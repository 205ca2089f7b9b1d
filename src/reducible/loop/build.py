"""Builds and checks the parts of a SelectingLoader, from what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

import torch
from torch import Tensor, nn

from reducible.ledger import Ledger
from reducible.loading.order import batch_size_of, index_batches
from reducible.loop.epochs import EpochPlanner
from reducible.loop.evidence import EvidenceSource
from reducible.loop.gate import Gate
from reducible.loop.inspection import inspection_of
from reducible.loop.keep import check_keep, rows_to_keep
from reducible.loop.learners import Learners
from reducible.loop.passes import CandidatePasses, blindly
from reducible.loop.states import belongings
from reducible.loop.trials import GateTrials
from reducible.scoring import CoTrained, GroupHoldoutLoss, Scoring
from reducible.selectors import Selector
from reducible.stores import (
    IrreducibleLossStore,
    LossMemory,
    ids_of,
    known_ids,
    known_length,
    labels_of,
    require_ids,
)
from reducible.tasks import Task
from reducible.types import ConfigurationError, DataError

_AT_ONCE = 2**24  # ids of a data set that are looked at before training: about a second


@final
@dataclass(slots=True, kw_only=True)
class Given:
    """Holds what a SelectingLoader is given, and builds the parts of the loop from it.

    Checked when it is made; see SelectingLoader for the attributes, and for what is raised.
    """

    loader: Any
    model: nn.Module
    selector: Selector
    keep: float | None
    store: IrreducibleLossStore | None
    task: Task
    ids: str | None
    scoring: Scoring
    groups: Tensor | None
    group_holdout: Any
    refresh: Literal["epoch"] | int
    refresh_decay: float
    scorer: CoTrained | nn.Module | None
    irreducible_model: nn.Module | None
    optimizer: torch.optim.Optimizer | None
    proxy: nn.Module | None
    gate: Gate | Literal["auto"] | None
    held_out: Any
    shadows: Mapping[str, Selector]
    seed: int
    ledger: Ledger
    total_steps: int | None
    n_b: float = field(init=False)
    """``keep``, or all rows if that is not given."""
    labels_compared: bool = field(init=False)
    """Whether all labels were compared with the store's."""

    def __post_init__(self) -> None:
        self.n_b = check_settings(
            self.loader, self.model, self.selector, self.shadows, self.scorer, self.keep
        )
        self.labels_compared = check_data(self.loader, self.store, self.groups)

    def learners(self) -> Learners:
        """Models that learn along."""
        scorer = self.scorer if isinstance(self.scorer, CoTrained) else None
        if scorer is not None and scorer.distil and "logits" not in self.task.gives:
            raise ConfigurationError(
                f"a scorer learns the model's class probabilities, which {type(self.task).__name__}"
                " does not give: CoTrained(module, optimizer, distil=False) learns the loss."
            )
        irreducible = live_model(self.selector, self.irreducible_model, self.optimizer)
        return Learners(
            self.model,
            self.task,
            self.scoring,
            self.ledger,
            scorer=scorer,
            irreducible=irreducible,
        )

    def evidence(self, learners: Learners) -> EvidenceSource:
        """Measures candidates."""
        return EvidenceSource(
            self.model,
            self.task,
            self.scoring,
            self.ledger,
            learners,
            scorer=self.scorer if isinstance(self.scorer, nn.Module) else None,
            store=self.store,
            memory=loss_memory(self.loader, self.scoring),
            holdout=group_holdout_loss(
                self.group_holdout, self.store, self.groups, self.refresh, self.refresh_decay
            ),
            groups=self.groups,
            total_steps=self.total_steps,
        )

    def planner(self) -> EpochPlanner | None:
        """Plans the epochs of a rule that decides by epoch; None for the others."""
        return epoch_planner(
            self.loader,
            self.selector,
            self.n_b,
            proxy=self.proxy,
            task=self.task,
            total_steps=self.total_steps,
        )

    def trials(self, source: EvidenceSource) -> GateTrials | None:
        """Runs the gate, if there is one."""
        return gate_trials(
            self.gate,
            self.held_out,
            model=self.model,
            selector=self.selector,
            shadows=self.shadows,
            scoring=self.scoring,
            source=source,
            task=self.task,
            ledger=self.ledger,
            seed=self.seed,
        )

    def passes(self, planner: EpochPlanner | None, trials: GateTrials | None) -> CandidatePasses:
        """Walks over the candidates."""
        draw = None if trials is None else trials.draw
        if draw is None and planner is None and self._draws_ahead():
            draw = blindly(self.selector, self.seed)
        return CandidatePasses(
            self.loader,
            ids_key=self.ids,
            keep=self.n_b,
            seed=self.seed,
            ledger=self.ledger,
            draw=draw,
            updates=1 if planner is not None else self.scoring.updates_per_scoring,
            planner=planner,
            total_steps=self.total_steps,
            inspection=inspection_of(
                self.loader, self.store, self.task, labels_compared=self.labels_compared
            ),
        )

    def _draws_ahead(self) -> bool:
        """Whether rows may be drawn before they are loaded.

        Not if the decision to draw waits for a training pass: workers load ahead of that, and
        of a candidate batch that is handed out in parts a resumed loop would decide again.
        """
        if self.shadows or not self.selector.sometimes_blind:
            return False
        workers = getattr(self.loader, "num_workers", 0)
        in_turn = not workers and self.scoring.updates_per_scoring == 1
        # Else drawing ahead changes what is loaded, never what is chosen.
        return in_turn or not self.selector.hindsight

    def belongings(self) -> dict[str, Any]:
        """Describes what a state of the loop belongs to."""
        return belongings(
            loader=self.loader,
            keep=self.n_b,
            seed=self.seed,
            selector=self.selector,
            shadows=self.shadows,
            scoring=self.scoring,
            task=self.task,
            store=self.store,
            scorer=self.scorer,
            irreducible_model=self.irreducible_model,
            group_holdout=self.group_holdout,
            gate=self.gate,
        )


def check_settings(
    loader: Any,
    model: Any,
    selector: Any,
    shadows: Mapping[str, Any],
    scorer: object,
    keep: float | None,
) -> float:
    """Returns ``keep``; raises ConfigurationError for what is wrong, or does not go together."""
    for rule in (selector, *shadows.values()):
        if not isinstance(rule, Selector):
            raise ConfigurationError(
                f"selector is a {type(rule).__name__}; pass reducible.selector('rho')."
            )
    if any(rule.horizon != "batch" for rule in shadows.values()):
        raise ConfigurationError("a shadow selector must decide by candidate batch.")
    if shadows and selector.horizon != "batch":
        raise ConfigurationError(
            "shadows watch candidate batches; a selector that decides by epoch has none."
        )
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"model is a {type(model).__name__}, not a Module.")
    if scorer is not None and not isinstance(scorer, CoTrained | nn.Module):
        raise ConfigurationError(
            f"scorer is a {type(scorer).__name__}: pass a module, which stays as it is, or "
            "CoTrained(module, optimizer), which learns along."
        )
    if not hasattr(loader, "__iter__"):
        raise ConfigurationError(f"loader is a {type(loader).__name__}, not iterable.")
    if keep is None:
        if not selector.takes_all:
            raise ConfigurationError(
                "keep is missing: pass the rows to train on of each candidate batch (int), or a "
                "share of them (float)."
            )
        return 1.0
    check_keep(keep)
    return keep


def check_data(loader: Any, store: IrreducibleLossStore | None, groups: Tensor | None) -> bool:
    """Raise if the data set is empty or repeats ids, or store or groups are of other data.

    Returns:
        Whether the data set's labels were compared with the store's.
    """
    dataset = getattr(loader, "dataset", None)
    rows = known_length(dataset)
    if rows is None:
        return False
    if rows == 0:
        raise DataError("the loader's data set is empty.")
    # Looked at now, so that wrong ids are told before an hour of training, not after.
    here = known_ids(dataset)
    if here is None:
        return False  # ids come from inside the batches: known only as they are loaded
    require_ids(here, distinct=here.numel() > _AT_ONCE)
    if groups is not None and int(here.max()) >= groups.numel():
        raise ConfigurationError(
            f"groups has {groups.numel()} entries, but there is an id {int(here.max())}: it "
            "must hold the group of every id, by id."
        )
    if store is None or not store.fingerprint:
        return False
    labels = labels_of(dataset)
    store.check_data(here, labels)
    return labels is not None and store.knows_labels


def loss_memory(loader: Any, scoring: Scoring) -> LossMemory | None:
    """Losses that may stand in for scoring, if that is asked for."""
    if scoring.max_age == 0:
        return None
    try:
        return LossMemory(ids_of(getattr(loader, "dataset", None)))
    except DataError as error:
        raise ConfigurationError(f"max_age needs ids known beforehand: {error}") from error


def live_model(
    selector: Selector, model: nn.Module | None, lead: torch.optim.Optimizer | None
) -> CoTrained | None:
    """The irreducible-loss model that learns along, if the rule has one."""
    if selector.lr_ratio is None or model is None:
        return None
    if lead is None:
        raise ConfigurationError(
            "the irreducible-loss model learns at a ratio of the model's rate: pass the model's "
            "optimizer=."
        )
    return CoTrained.following(model, lead, lr_ratio=selector.lr_ratio)


def group_holdout_loss(
    loader: Any,
    store: IrreducibleLossStore | None,
    groups: Tensor | None,
    refresh: Literal["epoch"] | int,
    decay: float,
) -> GroupHoldoutLoss | None:
    """The average over the holdout by group, if a holdout is given for it."""
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

    return GroupHoldoutLoss(loader, store.groups, groups_of=groups_of, refresh=refresh, decay=decay)


def epoch_planner(
    loader: Any,
    selector: Selector,
    keep: float,
    *,
    proxy: nn.Module | None,
    task: Task,
    total_steps: int | None,
) -> EpochPlanner | None:
    """Builds the planner of a rule that decides by epoch; None for the others."""
    if selector.horizon == "batch":
        return None
    size, batches = batch_size_of(loader), index_batches(loader)
    if batches is None or size is None:
        what = "" if batches is None else f" with batches of varying size ({_name(batches)})"
        raise ConfigurationError(
            "the selector decides by epoch, so it re-plans the order of a plain DataLoader "
            f"over a map-style data set; got {_name(loader)}{what}."
        )
    if "total_steps" in selector.needs and total_steps is None:
        raise ConfigurationError("the selector needs total_steps=<planned updates>.")
    n_b = rows_to_keep(keep, size)
    if selector.takes_all and n_b < size:
        raise ConfigurationError(
            f"keep={keep} of batches of {size}, but the selector leaves rows out itself, so that "
            "an epoch is as much shorter; with a share of the rows it would be as long as ever. "
            f"Pass keep=1.0, and give the loader the batch size to train on: {n_b}."
        )
    return EpochPlanner(selector, loader, n_b=n_b, share=n_b / size, proxy=proxy, task=task)


def gate_trials(
    gate: Gate | str | None,
    held_out: Any,
    *,
    model: nn.Module,
    selector: Selector,
    shadows: Mapping[str, Selector],
    scoring: Scoring,
    source: EvidenceSource,
    task: Task,
    ledger: Ledger,
    seed: int,
) -> GateTrials | None:
    """Builds what runs the gate, if there is one."""
    if gate is None:
        return None
    if gate != "auto" and not isinstance(gate, Gate):
        raise ConfigurationError(f"gate={gate!r}: pass 'auto', or a reducible.Gate(…).")
    why = None
    if selector.horizon != "batch" or not selector.needs:
        why = "a selector that scores candidate batches; this one has no scoring to save"
    elif not {"logits", "features"} <= task.gives:
        why = f"class probabilities and features, which {type(task).__name__} does not give"
    elif shadows:
        why = "no shadows, which would have every candidate scored"
    elif scoring.updates_per_scoring > 1:
        why = "updates_per_scoring=1"
    if why is not None:
        raise ConfigurationError(f"the gate needs {why}.")
    return GateTrials(
        Gate() if isinstance(gate, str) else gate,
        model,
        selector,
        source,
        task,
        held_out,
        ledger,
        seed=seed,
    )


def _name(thing: object) -> str:
    return type(thing).__name__
