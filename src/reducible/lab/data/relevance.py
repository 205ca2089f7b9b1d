"""Chooses which rows a data set has: imbalance, low-relevance classes, web-like data.

Pure functions from labels to positions, random by their generator alone. Counts are exact:
round(share · n), never a coin per row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reducible.lab.data._checks import check_classes, check_targets
from reducible.lab.data.noise import flip_labels
from reducible.types import ConfigurationError, DataError, require_between


class WebLike(NamedTuple):
    """Rows of a data set made web-like, some of them repeated; each counts as an example."""

    positions: Tensor
    """[M] int64 rows of the data set given, for ``TensorSet.resampled``."""
    targets: Tensor
    """[M] int64 labels of these rows, after noise."""
    corrupted: Tensor
    """[M] bool, True if the label is wrong."""


class RelevanceSplit(NamedTuple):
    """Rows of a data set in which few classes hold most of the data."""

    positions: Tensor
    """[M] int64, ascending."""
    relevant: Tensor
    """[R] int64, the classes that kept all of their rows, ascending."""


def imbalance(
    targets: Tensor, classes: Sequence[int], share: float, *, generator: torch.Generator
) -> Tensor:
    """Positions ([M] int64, ascending) of data of which each of ``classes`` holds a ``share``.

    The other classes keep their R rows. With m classes named, each keeps
    share·R / (1 − m·share) of its own, to the nearest row but at least one, drawn without
    replacement. For one of C equal classes a share of 1/C is all of the data.

    Bankes et al. 2024 (REDUCR), Section 5.3 and Appendix A.10: the percent imbalance p is the
    "percentage of training data that belong to the imbalanced class", 10 % (balanced), 2.5, 1, 0.5
    and 0.25 % of CIFAR-10. There rows are drawn with probability p for the class and
    (1 − p)/(C − 1) for each other class, so the size of the data stays; here the class is thinned.

    Args:
        targets: [N] int64, not negative.
        classes: the classes to thin.
        share: of all rows that are left, for each of the classes; in (0, 1/m).
        generator: on the targets' device.

    Raises:
        ConfigurationError: a share other than this, or one that a class does not reach even with
            all of its rows.
        DataError: a class that has no rows, targets other than these, or no other class.
    """
    require_between("share", share, 0.0, 1.0, open_low=True, open_high=True)
    check_targets(targets, int(targets.max()) + 1 if targets.numel() else 0)
    classes = list(dict.fromkeys(classes))
    if share * len(classes) >= 1:
        raise ConfigurationError(
            f"share={share} of all rows for each of {len(classes)} classes leaves none for the "
            "others. Lower it."
        )
    sizes = _sizes(targets, classes)
    others = targets.numel() - sum(sizes)
    if classes and not others:
        raise DataError(f"all rows are of the classes {classes}: there are none to be rare among.")
    wanted = max(1, round(share * others / (1 - len(classes) * share)))
    for label, n in zip(classes, sizes, strict=True):
        if wanted > n:
            raise ConfigurationError(
                f"a share of {share} of all rows is {wanted} of class {label}, which has {n}. "
                f"Thinning only makes it rarer: lower the share, as the {others} rows of other "
                "classes stay."
            )
    return _thinned(targets, dict.fromkeys(classes, wanted), generator)


def _sizes(targets: Tensor, classes: Sequence[int]) -> list[int]:
    """Rows of each class; raises DataError if a class has none."""
    sizes = [int((targets == label).sum()) for label in classes]
    for label, n in zip(classes, sizes, strict=True):
        if not n:
            raise DataError(
                f"class {label} has no rows to thin; there are classes "
                f"{targets.unique().tolist()}. Was the data set cut to fewer classes before?"
            )
    return sizes


def _thinned(targets: Tensor, keep: Mapping[int, int], generator: torch.Generator) -> Tensor:
    """Positions ([M] int64, ascending) of all rows, but of each class named so many at random."""
    kept = torch.ones_like(targets, dtype=torch.bool)  # [N]
    for label, count in keep.items():
        rows = (targets == label).nonzero().squeeze(1)  # [n]
        order = torch.randperm(rows.numel(), generator=generator, device=rows.device)  # [n]
        kept[rows[order[count:]]] = False
    return kept.nonzero().squeeze(1)


def _shares(targets: Tensor, classes: Sequence[int], share: float) -> dict[int, int]:
    """max(1, round(share·n)) for each of the classes, of n rows."""
    sizes = zip(classes, _sizes(targets, classes), strict=True)
    return {label: max(1, round(share * n)) for label, n in sizes}


def relevance_split(
    targets: Tensor,
    *,
    num_classes: int,
    relevant: float = 0.2,
    mass: float = 0.8,
    generator: torch.Generator,
) -> RelevanceSplit:
    """A share ``relevant`` of the classes, drawn at random, holds a share ``mass`` of the data.

    round(relevant·C) classes, but at least one, keep all of their n_R rows; the others, with n_L
    rows, are thinned to s = n_R (1 − mass) / (mass · n_L) each, to the nearest row. For 100 equal
    classes s = 6.25 %: the CIFAR-100 Relevance data of Mindermann et al. 2022, Section 4.3.

    Args:
        targets: [N] int64, in [0, C).
        num_classes: C, at least 2.
        relevant: share of the classes, in (0, 1).
        mass: share of the data, in (0, 1).
        generator: on the targets' device.

    Raises:
        ConfigurationError: shares other than these, no class left to be thinned, or a mass that
            the relevant classes exceed before any thinning.
        DataError: targets other than these, or classes without rows.
    """
    require_between("relevant", relevant, 0.0, 1.0, open_low=True, open_high=True)
    require_between("mass", mass, 0.0, 1.0, open_low=True, open_high=True)
    check_classes(num_classes, 2, "a split into classes of high and low relevance")
    check_targets(targets, num_classes)
    count = max(1, round(relevant * num_classes))
    if count == num_classes:
        raise ConfigurationError(
            f"relevant={relevant} of {num_classes} classes leaves none of low relevance; lower it."
        )
    order = torch.randperm(num_classes, generator=generator, device=targets.device)  # [C]
    high, low = order[:count].sort().values, order[count:].sort().values  # [R], [C − R]
    sizes = targets.bincount(minlength=num_classes)  # [C]
    if bool((sizes == 0).any()):
        raise DataError(
            f"classes {(sizes == 0).nonzero().squeeze(1).tolist()} have no rows. Count only the "
            "classes that are there in num_classes, and number them from 0."
        )
    n_high, n_low = int(sizes[high].sum()), int(sizes[low].sum())
    share = n_high * (1 - mass) / (mass * n_low)
    if share > 1:
        raise ConfigurationError(
            f"the relevant classes {high.tolist()} already hold {n_high} of {n_high + n_low} rows, "
            f"more than mass={mass}, and thinning the others only adds to that. Raise mass, or "
            "lower relevant."
        )
    positions = _thinned(targets, _shares(targets, low.tolist(), share), generator)
    return RelevanceSplit(positions, high)


def web_like(
    targets: Tensor,
    *,
    num_classes: int,
    generator: torch.Generator,
    noise: float = 0.3,
    duplicated: float = 1 / 3,
    copies: int = 5,
    rare_classes: int = 2,
    rarity: float = 10.0,
) -> WebLike:
    """Rows as scraping finds them: rare classes, many duplicates, wrong labels, in this order.

    1. ``rare_classes`` classes, drawn at random, keep round(n / rarity) of their n rows.
    2. Of the N' rows left, round(duplicated·N') come ``copies`` times each, the others once.
    3. Of the M rows that makes, round(noise·M) are flipped to another class, copies each on
       their own.

    Args:
        targets: [N] int64, in [0, C).
        num_classes: C.
        generator: on the targets' device.
        noise: share of rows flipped, in [0, 1].
        duplicated: share of points duplicated, in [0, 1].
        copies: how often such a point is there in all, ≥ 1.
        rare_classes: how many classes are rare, 0 … C.
        rarity: how many times rarer, ≥ 1.

    Raises:
        ConfigurationError: hyperparameters other than these.
        DataError: targets other than these, or a rare class without rows.
    """
    require_between("duplicated", duplicated, 0.0, 1.0)
    require_between("copies", copies, 1, whole=True)
    require_between("rare_classes", rare_classes, 0, num_classes, whole=True)
    require_between("rarity", rarity, 1.0)
    check_targets(targets, num_classes)
    device = targets.device
    rare = torch.randperm(num_classes, generator=generator, device=device)[:rare_classes]
    kept = _thinned(targets, _shares(targets, rare.tolist(), 1 / rarity), generator)  # [N']
    order = torch.randperm(kept.numel(), generator=generator, device=device)  # [N']
    times = torch.ones_like(kept)  # [N']
    times[order[: round(duplicated * kept.numel())]] = copies
    positions = kept.repeat_interleave(times)  # [M]
    noisy = flip_labels(targets[positions], noise, num_classes=num_classes, generator=generator)
    return WebLike(positions, noisy.targets, noisy.corrupted)
