"""Makes what a recipe's rule is given: irreducible losses, a plan, models that learn along."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from torch import nn
from torch.utils.data import BatchSampler, DataLoader

from reducible.files.checkpoints import load_weights
from reducible.fitting import (
    cross_fit_irreducible_loss,
    fit_group_irreducible_loss,
    fit_irreducible_loss,
    fit_proxy,
)
from reducible.lab.data import TensorSet, TokenSet
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, write_json
from reducible.lab.splits import Splits
from reducible.ledger import Ledger
from reducible.loading.order import as_it_is
from reducible.loop import stream_seed
from reducible.plans import Plan
from reducible.scoring import CoTrained
from reducible.stores import IrreducibleLossStore
from reducible.types import StoreError

CONFIG = "config.json"
STORE, PLAN, MODEL = "irreducible_loss.safetensors", "plan.safetensors", "irreducible.safetensors"


def irreducible_store(
    recipe: Recipe,
    splits: Splits,
    seed: int,
    out: Path,
    *,
    ledger: Ledger,
    progress: bool | Progress,
) -> IrreducibleLossStore | None:
    """The irreducible losses that the recipe asks for, kept in ``out``; None without any.

    A store that is there already was fitted before a stop, and its cost is this run's. It must be
    the one that the run's config.json names by its checksum, if there is a config.json.

    Raises:
        StoreError: a store that is damaged, or of another run.
    """
    if not recipe.reads_irreducible_loss:
        return None
    grouped = "group_irreducible_loss" in recipe.facts.needs
    of_train = grouped or recipe.irreducible_from == "cross-fit"
    if (out / STORE).exists():
        store = IrreducibleLossStore.load(out / STORE)
        _require_own(store, out, splits.train if of_train else splits.scored)
        ledger.seconds["irreducible_loss"] += store.header["seconds"]
        ledger.counts.flops_irreducible_loss += store.header["flops"]
        return store
    options: dict[str, Any] = {
        "task": recipe.task,
        "epochs": recipe.irreducible_epochs,
        "check_rows": None,  # as when the results that are kept here were made
        "label_smoothing": recipe.irreducible_smoothing,
        "batch_size": recipe.irreducible_batch,
        "make_optimizer": partial(torch.optim.AdamW, lr=recipe.irreducible_rate, fused=True),
        "seed": seed,
        "ledger": ledger,
        "progress": progress,
    }
    make_model, train = recipe.models[recipe.irreducible_model], splits.train
    if grouped:
        store = fit_group_irreducible_loss(
            make_model,
            splits.holdout,
            train,
            gamma=recipe.hyperparameters.get("gamma", 9.0),
            shared=recipe.group_irreducible == "shared",
            **options,
        )
    elif recipe.irreducible_from == "cross-fit":
        store = cross_fit_irreducible_loss(make_model, train, groups=splits.copies, **options)
    else:
        if recipe.facts.lr_ratio is not None:
            options["save_model"] = out / MODEL
        store = fit_irreducible_loss(make_model, splits.holdout, splits.scored, **options)
    config = out / CONFIG
    if config.exists():  # before it is saved: a store that no config names is none of this run
        named = read_json(config, sealed=True) | {"irreducible_loss": store.checksum}
        write_json(config, named, sealed=True)
    store.save(out / STORE)
    return store


def _require_own(store: IrreducibleLossStore, out: Path, scored: TensorSet | TokenSet) -> None:
    """Raise StoreError unless ``store`` is of ``scored``, and is that of the run in ``out``."""
    config = out / CONFIG
    named = read_json(config, sealed=True).get("irreducible_loss") if config.exists() else None
    if not store.fingerprint or (config.exists() and named != store.checksum):
        raise StoreError(
            f"{out / STORE} was not fitted by this run: its checksum is {store.checksum}, the run "
            f"names {named or 'none'}; its fingerprint is {store.fingerprint!r}. Copied from "
            "elsewhere? Put the run's own back, or delete it and resume, to have it fitted again."
        )
    store.check_data(scored.ids, scored.targets)


def make_plan(
    recipe: Recipe, splits: Splits, store: IrreducibleLossStore | None, out: Path
) -> Plan | None:
    """The plan that the recipe asks for, kept in ``out``; None without any."""
    if recipe.plan == "none" or store is None:
        return None
    judged = splits.scored if recipe.irreducible_from == "holdout" else splits.train
    plan = Plan.from_irreducible_loss(
        store,
        judged.ids,
        judged.targets,
        multiple=recipe.plan_multiple if "filter" in recipe.plan else 0.0,
        exponent=recipe.plan_exponent if "weights" in recipe.plan else 0.0,
    )
    if judged is not splits.train and len(judged) < len(splits.train):
        plan = plan.including(splits.train.ids[~torch.isin(splits.train.ids, judged.ids)])
    plan.save(out / PLAN)
    return plan


def candidate_loader(
    recipe: Recipe, splits: Splits, plan: Plan | None, *, generator: torch.Generator
) -> Any:
    """Candidate batches in the order of the plan, or shuffled if there is none."""
    train = splits.train
    if plan is None:
        return train.loader(recipe.n_candidates, generator=generator, workers=recipe.workers)
    order = plan.sampler(train, generator=generator, batch_size=recipe.n_candidates)
    batches = BatchSampler(order, recipe.n_candidates, True)
    return DataLoader(
        train, batch_size=None, sampler=batches, collate_fn=as_it_is, num_workers=recipe.workers
    )


def loader_options(
    recipe: Recipe,
    splits: Splits,
    seed: int,
    out: Path,
    optimizer: torch.optim.Optimizer,
    *,
    ledger: Ledger,
    progress: bool | Progress,
) -> dict[str, Any]:
    """Keywords for SelectingLoader that the rule needs beside the store."""
    rule = recipe.facts
    options: dict[str, Any] = {}
    if "group_holdout_loss" in rule.needs and splits.holdout is not None:
        options["group_holdout"] = splits.holdout.loader(1000, shuffle=False, drop_last=False)
    if recipe.gate == "auto" and splits.holdout is not None:
        held_out = splits.holdout.loader(512, shuffle=False, drop_last=False)
        options |= {"gate": "auto", "held_out": held_out}
    if rule.lr_ratio is not None:
        live = _new(recipe, recipe.irreducible_model, seed)
        live.load_state_dict(load_weights(out / MODEL))
        options |= {"irreducible_model": live.eval(), "optimizer": optimizer}
    if rule.horizon == "run":
        options["proxy"] = fit_proxy(
            recipe.models[recipe.irreducible_model],
            splits.train,
            task=recipe.task,
            epochs=recipe.irreducible_epochs,
            check_rows=None,
            batch_size=recipe.irreducible_batch,
            seed=seed,
            ledger=ledger,
            progress=progress,
        )
    if recipe.scorer:
        scorer = _new(recipe, recipe.scorer, seed)
        options["scorer"] = CoTrained.following(
            scorer, optimizer, lr_ratio=1.0, distil=recipe.distil
        )
    return options


def _new(recipe: Recipe, model: str, seed: int) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(stream_seed(seed, 3))
        return recipe.models[model]()
