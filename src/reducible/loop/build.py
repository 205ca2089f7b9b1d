"""Builds and checks the parts of a SelectingLoader, from what it is given."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from reducible.ledger import Ledger
from reducible.loading.order import batch_size_of, index_batches
from reducible.loop.epochs import EpochPlanner
from reducible.loop.evidence import EvidenceSource
from reducible.loop.gate import Gate
from reducible.loop.keep import check_keep, rows_to_keep
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
