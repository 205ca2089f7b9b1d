"""The data of a run: train set, holdout and test set, cut and corrupted by seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from reducible.data import (
    EMBEDDED,
    NoisyLabels,
    TensorSet,
    confusable_pairs,
    confuse_labels,
    fashion_mnist,
    flip_labels,
    web_like,
)
from reducible.irreducible import fit_proxy
from reducible.models import MODELS
from reducible.recipe import Recipe
from reducible.seeds import stream_seed
from reducible.types import ConfigurationError


@final
@dataclass(frozen=True, slots=True)
class Splits:
    """The data of one run.

    Attributes:
        train: D, with its wrong labels.
        holdout: disjoint from D; None where the recipe has none.
        test: what runs are evaluated on: the test set, or a validation part of the training images.
        corrupted: [max id + 1] bool, whether a train id's label is wrong.
    """

    train: TensorSet
    holdout: TensorSet | None
    test: TensorSet
    corrupted: Tensor


def make_splits(recipe: Recipe, seed: int) -> Splits:
    """Cut train set, holdout and validation set from the training images, and corrupt labels."""
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    root = EMBEDDED if recipe.dataset == "fashion-mnist-30k" else None
    pool, test = fashion_mnist("train", root=root), fashion_mnist("test", root=root)
    ends = [recipe.train_examples, recipe.holdout_examples, recipe.validation_examples]
    if sum(ends) > len(pool):
        raise ConfigurationError(
            f"train, holdout and validation want {sum(ends)} examples, the data set has "
            f"{len(pool)}. Ask for fewer, or take dataset='fashion-mnist'."
        )
    order = torch.randperm(len(pool), generator=generator)
    own, held, validation = order[: sum(ends)].split(ends)
    confusion = _confusion(pool, own) if recipe.noise == "asymmetric" else None
    train, wrong = _corrupted(
        pool.subset(own), recipe.noise, recipe.label_noise, confusion, "train", generator
    )
    holdout, holdout_wrong = None, torch.empty(0, dtype=torch.bool)
    if held.numel():
        clean = pool.subset(held)
        holdout, holdout_wrong = _corrupted(
            clean, recipe.noise, recipe.holdout_noise, confusion, "holdout", generator
        )
    if validation.numel():
        test = pool.subset(validation)
    corrupted = torch.zeros(int(train.ids.max()) + 1, dtype=torch.bool)
    corrupted[train.ids] = wrong
    if recipe.train_on != "train" and holdout is not None:
        train, corrupted = _with_holdout(recipe, train, holdout, wrong, holdout_wrong)
    return Splits(train, holdout, test, corrupted)


def _corrupted(
    part: TensorSet,
    noise: str,
    share: float,
    confusion: Tensor | None,
    name: str,
    generator: torch.Generator,
) -> tuple[TensorSet, Tensor]:
    """The part with wrong labels, and which are wrong ([M] bool)."""
    classes = part.num_classes
    if noise == "web-like" and (share > 0 or name == "train"):
        web = web_like(part.targets, num_classes=classes, noise=share, generator=generator)
        rows = part.resampled(web.positions, origin=f"{part.origin}/web-like/{name}")
        return rows.relabelled(web.targets), web.corrupted
    if confusion is not None:
        labels = _asymmetric(part.targets, confusion, share, generator)
    else:
        labels = flip_labels(part.targets, share, num_classes=classes, generator=generator)
    return part.relabelled(labels.targets), labels.corrupted


def _asymmetric(
    targets: Tensor, confusion: Tensor, share: float, generator: torch.Generator
) -> NoisyLabels:
    """Every class goes to the one it is confused with, with probability ``share``."""
    table = confusable_pairs(confusion, pairs=len(confusion), probability=share)
    return confuse_labels(targets, table, generator=generator)


def _confusion(pool: TensorSet, rows: Tensor) -> Tensor:
    """[C, C] counts of a small model's predictions by true class, on images it never saw."""
    half = rows.numel() // 2
    fitted, seen = pool.subset(rows[:half]), pool.subset(rows[half:])
    model = fit_proxy(MODELS["mlp-64"], fitted, epochs=2, batch_size=128, progress=False)
    classes = pool.num_classes
    # One is added everywhere, so that a class that is never confused has a partner too.
    counts = torch.ones(classes * classes, dtype=torch.int64)
    with torch.inference_mode():
        for _, (x, y) in seen.loader(1000, shuffle=False, drop_last=False):
            cells = y * classes + model(x).argmax(1)
            counts += torch.bincount(cells, minlength=classes * classes)
    return counts.view(classes, classes)


def _with_holdout(
    recipe: Recipe, train: TensorSet, holdout: TensorSet, wrong: Tensor, holdout_wrong: Tensor
) -> tuple[TensorSet, Tensor]:
    """What the baselines that use the holdout for training are trained on."""
    if recipe.train_on == "holdout":
        only = holdout.resampled(torch.arange(len(holdout)))
        return only, holdout_wrong
    both = TensorSet(
        torch.cat([train.inputs, holdout.inputs]),
        torch.cat([train.targets, holdout.targets]),
        num_classes=train.num_classes,
        mean=train.mean,
        std=train.std,
    )
    return both, torch.cat([wrong, holdout_wrong])
