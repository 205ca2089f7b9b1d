"""The data of a run: train set, holdout and test set, cut and corrupted by seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from reducible.fitting import fit_proxy
from reducible.lab.data import (
    EMBEDDED,
    NoisyLabels,
    TensorSet,
    TokenSet,
    confusable_pairs,
    confuse_labels,
    fashion_mnist,
    flip_labels,
    sentiment,
    web_like,
)
from reducible.lab.encoders import minilm_tokenizer
from reducible.lab.models import MODELS
from reducible.lab.recipe import Recipe
from reducible.loop import stream_seed
from reducible.types import ConfigurationError

_TEST_SENTENCES = 2_000  # film sentences have no official test set; these are one for every seed


@final
@dataclass(frozen=True, slots=True)
class Splits:
    """The data of one run.

    Attributes:
        train: D, with its wrong labels.
        holdout: disjoint from D; None if the recipe has none.
        test: what runs are evaluated on: the test set, or a validation part of the training data.
        corrupted: [max id + 1] bool, whether a train id's label is wrong.
        scored: what a model of the holdout gives irreducible losses to: all of ``train`` that is
            not of the holdout.
        copies: [max id + 1] int64, a number for each train id that its copies share; None if
            there are no copies.
    """

    train: TensorSet | TokenSet
    holdout: TensorSet | TokenSet | None
    test: TensorSet | TokenSet
    corrupted: Tensor
    scored: TensorSet | TokenSet
    copies: Tensor | None = None


def make_splits(recipe: Recipe, seed: int) -> Splits:
    """Cut train set, holdout and validation set from the training data, and corrupt labels."""
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    pool, test = _pool_and_test(recipe.dataset)
    ends = [recipe.train_examples, recipe.holdout_examples, recipe.validation_examples]
    if sum(ends) > len(pool):
        raise ConfigurationError(
            f"train, holdout and validation want {sum(ends)} examples, the data set has "
            f"{len(pool)}. Ask for fewer"
            + ("." if recipe.of_texts else ", or take dataset='fashion-mnist'.")
        )
    order = torch.randperm(len(pool), generator=generator)
    own, held, validation = order[: sum(ends)].split(ends)
    confusion = None
    if recipe.noise == "asymmetric" and isinstance(pool, TensorSet):
        confusion = _confusion(pool, own)
    train, wrong, copies = _corrupted(
        pool.subset(own), recipe.noise, recipe.label_noise, confusion, "train", generator
    )
    holdout, holdout_wrong, holdout_copies = None, torch.empty(0, dtype=torch.bool), None
    if held.numel():
        clean = pool.subset(held)
        holdout, holdout_wrong, holdout_copies = _corrupted(
            clean, recipe.noise, recipe.holdout_noise, confusion, "holdout", generator
        )
    if validation.numel():
        test = pool.subset(validation)
    corrupted = torch.zeros(int(train.ids.max()) + 1, dtype=torch.bool)
    corrupted[train.ids] = wrong
    scored = train
    if recipe.train_on == "holdout" and holdout is not None:
        train, corrupted = holdout.resampled(torch.arange(len(holdout))), holdout_wrong
        scored, copies = train, holdout_copies
    elif recipe.train_on == "train+holdout" and holdout is not None:
        own_rows = len(train)
        if copies is not None or holdout_copies is not None:
            copies = _joined_copies(copies, own_rows, holdout_copies, len(holdout))
        train, corrupted = _joined(train, holdout), torch.cat([wrong, holdout_wrong])
        scored, holdout = (
            train.subset(rows) for rows in torch.arange(len(train)).tensor_split([own_rows])
        )
    return Splits(train, holdout, test, corrupted, scored, copies)


def _joined_copies(first: Tensor | None, n: int, second: Tensor | None, m: int) -> Tensor:
    """[N + M] int64: which rows of two sets without common images are copies of one another."""
    first = torch.arange(n) if first is None else first
    second = torch.arange(m) if second is None else second
    return torch.cat([first, second + int(first.max()) + 1])


def _pool_and_test(dataset: str) -> tuple[TensorSet | TokenSet, TensorSet | TokenSet]:
    """Loads what train set, holdout and validation set are cut from, and the test set."""
    if dataset == "film-sentences":
        data = sentiment(minilm_tokenizer())
        order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
        return data.subset(order[_TEST_SENTENCES:]), data.subset(order[:_TEST_SENTENCES])
    if dataset == "fashion-mnist-30k":
        return _embedded()
    return fashion_mnist("train"), fashion_mnist("test")


@lru_cache(maxsize=1)
def _embedded() -> tuple[TensorSet, TensorSet]:
    """The embedded images; a process that makes many runs decompresses them once."""
    return fashion_mnist("train", root=EMBEDDED), fashion_mnist("test", root=EMBEDDED)


def _corrupted(
    part: TensorSet | TokenSet,
    noise: str,
    share: float,
    confusion: Tensor | None,
    name: str,
    generator: torch.Generator,
) -> tuple[TensorSet | TokenSet, Tensor, Tensor | None]:
    """The part with wrong labels, which are wrong ([M] bool), and what each is a copy of ([M])."""
    classes = part.num_classes
    if noise == "web-like" and (share > 0 or name == "train"):
        web = web_like(part.targets, num_classes=classes, noise=share, generator=generator)
        rows = part.resampled(web.positions, origin=f"{part.origin}/web-like/{name}")
        return rows.relabelled(web.targets), web.corrupted, web.positions
    if confusion is not None:
        labels = _asymmetric(part.targets, confusion, share, generator)
    else:
        labels = flip_labels(part.targets, share, num_classes=classes, generator=generator)
    return part.relabelled(labels.targets), labels.corrupted, None


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


def _joined(first: TensorSet | TokenSet, second: TensorSet | TokenSet) -> TensorSet | TokenSet:
    """The rows of both, as a data set of its own."""
    targets = torch.cat([first.targets, second.targets])
    if isinstance(first, TokenSet) and isinstance(second, TokenSet):
        return TokenSet(
            torch.cat([first.tokens, second.tokens]),
            torch.cat([first.lengths, second.lengths]),
            targets,
            num_classes=first.num_classes,
        )
    assert isinstance(first, TensorSet)
    assert isinstance(second, TensorSet)
    return TensorSet(
        torch.cat([first.inputs, second.inputs]),
        targets,
        num_classes=first.num_classes,
        mean=first.mean,
        std=first.std,
    )
