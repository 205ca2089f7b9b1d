"""Which rows a data set has: imbalance, low-relevance classes, and web-like data.

Pure functions from labels to positions, random by their generator alone. Counts are exact:
round(share · n), never a coin per row.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reducible.data._checks import check_classes, check_targets
from reducible.data.noise import flip_labels
from reducible.types import ConfigurationError, DataError, require_between


class WebLike(NamedTuple):
    """Rows of a data set made web-like, some of them repeated; each counts as an example."""

    positions: Tensor
    """[M] int64 rows of the data set given, for ``TensorSet.resampled``."""
    targets: Tensor
    """[M] int64 labels of these rows, after noise."""
    corrupted: Tensor
    """[M] bool, True where the label is wrong."""


class RelevanceSplit(NamedTuple):
    """Rows of a data set in which few classes hold most of the data."""

    positions: Tensor
    """[M] int64, ascending."""
    relevant: Tensor
    """[R] int64, the classes that kept all of their rows, ascending."""


def imbalance(
    targets: Tensor, classes: Sequence[int], share: float, *, generator: torch.Generator
) -> Tensor:
    """Positions ([M] int64, ascending) of all rows but those of ``classes``, thinned to ``share``.

    Of n rows, each named class keeps max(1, round(share·n)), drawn without replacement.
    Bankes et al. 2024 (REDUCR), Appendix A.10, thins one class to 10 % … 0.25 %.

    Args:
        targets: [N] int64, not negative.
        classes: the classes to thin.
        share: in (0, 1].
        generator: on the targets' device.

    Raises:
        ConfigurationError: a share other than this.
        DataError: a class that has no rows, or targets other than these.
    """
    require_between("share", share, 0.0, 1.0, open_low=True)
    check_targets(targets, int(targets.max()) + 1 if targets.numel() else 0)
    keep = torch.ones_like(targets, dtype=torch.bool)  # [N]
    for label in dict.fromkeys(classes):
        rows = (targets == label).nonzero().squeeze(1)  # [n]
        n = rows.numel()
        if not n:
            raise DataError(
                f"class {label} has no rows to thin; there are classes "
                f"{targets.unique().tolist()}. Was the data set cut to fewer classes before?"
            )
        order = torch.randperm(n, generator=generator, device=rows.device)  # [n]
        keep[rows[order[max(1, round(share * n)) :]]] = False
    return keep.nonzero().squeeze(1)


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
    positions = imbalance(targets, low.tolist(), share, generator=generator)
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
    kept = imbalance(targets, rare.tolist(), 1 / rarity, generator=generator)  # [N']
    order = torch.randperm(kept.numel(), generator=generator, device=device)  # [N']
    times = torch.ones_like(kept)  # [N']
    times[order[: round(duplicated * kept.numel())]] = copies
    positions = kept.repeat_interleave(times)  # [M]
    noisy = flip_labels(targets[positions], noise, num_classes=num_classes, generator=generator)
    return WebLike(positions, noisy.targets, noisy.corrupted)
