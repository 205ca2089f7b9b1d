"""Label noise and ambiguous inputs: pure functions, random by their generator alone."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

from reducible.lab.data._checks import check_classes, check_targets
from reducible.types import DataError, require_between, require_one_of


class NoisyLabels(NamedTuple):
    """Labels after noise, and which of them are wrong."""

    targets: Tensor
    """[N] int64."""
    corrupted: Tensor
    """[N] bool, True if the label differs from the one given."""


class AmbiguousMix(NamedTuple):
    """Inputs between two classes, each labelled with one of the two."""

    inputs: Tensor
    """[N, …], of the dtype given."""
    targets: Tensor
    """[N] int64."""
    share: Tensor
    """[N] λ, the share of the first input, which is the probability of its label."""


def flip_labels(
    targets: Tensor,
    share: float,
    *,
    num_classes: int,
    mode: Literal["flip", "redraw"] = "flip",
    generator: torch.Generator,
) -> NoisyLabels:
    """Uniform label noise on exactly round(share·N) rows, drawn without replacement.

    ``"flip"`` moves each of these to another class, y' = (y + d) mod C with d uniform on 1 … C−1,
    so all of them are corrupted. ``"redraw"`` draws y' uniformly from all C classes, so about one
    in C keeps its label by chance and is not counted as corrupted.

    Args:
        targets: [N] int64, in [0, C).
        share: in [0, 1].
        num_classes: C; at least 2 to flip.
        mode: ``"flip"`` or ``"redraw"``.
        generator: on the targets' device.

    Raises:
        ConfigurationError: a share, mode or number of classes other than these.
        DataError: targets other than these.
    """
    require_one_of("mode", mode, ("flip", "redraw"))
    require_between("share", share, 0.0, 1.0)
    check_targets(targets, num_classes)
    if mode == "flip":
        check_classes(num_classes, 2, "moving labels to another class")
    n, device = targets.numel(), targets.device
    rows = torch.randperm(n, generator=generator, device=device)[: round(share * n)]  # [R]
    low = 1 if mode == "flip" else 0
    drawn = torch.randint(low, num_classes, rows.shape, generator=generator, device=device)  # [R]
    noisy = targets.clone()  # [N]
    noisy[rows] = (targets[rows] + drawn) % num_classes  # uniform stays uniform when shifted
    return NoisyLabels(noisy, noisy != targets)


def confuse_labels(targets: Tensor, table: Tensor, *, generator: torch.Generator) -> NoisyLabels:
    """Noise that depends on the class: p(y' = j | y = i) = table[i, j], row by row.

    Args:
        targets: [N] int64, in [0, C).
        table: [C, C] probabilities, every row with sum 1.
        generator: on the targets' device.

    Raises:
        DataError: the table's rows are no distributions, or targets lie outside of it.
    """
    _check_square("table", table)
    check_targets(targets, len(table))
    table = table.to(targets.device, torch.float64)  # [C, C]
    sums = table.sum(1)  # [C]
    if bool((table < 0).any()) or not torch.allclose(sums, torch.ones_like(sums), atol=1e-5):
        raise DataError(
            f"every row of table must be a distribution, p(new | old); the least entry is "
            f"{float(table.min()):.4g} and rows sum to {float(sums.min()):.4g} … "
            f"{float(sums.max()):.4g}. Counts, or columns for rows? Divide each row by its sum."
        )
    noisy = torch.multinomial(table[targets], 1, generator=generator).squeeze(1)  # [N]
    return NoisyLabels(noisy, noisy != targets)


def confusable_pairs(confusion: Tensor, pairs: int = 4, probability: float = 0.5) -> Tensor:
    """The noise table that sends the most confused classes to what they are confused with.

    With r_ij = confusion_ij / Σ_j confusion_ij, a class i is confusable with j(i) = argmax_{j≠i}
    r_ij, and the most confused classes are those with the largest r_{i,j(i)}. Each of these gets
    table[i, i] = 1 − p and table[i, j(i)] = p; every other row leaves its class alone.
    Rolnick et al. 2017; Mindermann et al. 2022, Appendix C, with four classes and p = 0.5.

    Args:
        confusion: [C, C] counts, row = true class, column = class that a model predicts.
        pairs: how many classes, 0 ≤ pairs ≤ C.
        probability: p, in [0, 1].

    Returns:
        [C, C] float64, for ``confuse_labels``.

    Raises:
        ConfigurationError: pairs or probability other than these.
        DataError: confusion is not square, has a negative count or a class without any, or too
            few classes are ever confused.

    >>> confusable_pairs(torch.tensor([[9, 1], [0, 5]]), pairs=1)
    tensor([[0.5000, 0.5000],
            [0.0000, 1.0000]], dtype=torch.float64)
    """
    _check_square("confusion", confusion)
    require_between("pairs", pairs, 0, len(confusion), whole=True)
    require_between("probability", probability, 0.0, 1.0)
    counts = confusion.double()  # [C, C]
    if bool((counts < 0).any()) or bool((counts.sum(1) <= 0).any()):
        raise DataError(
            "confusion must hold counts, with at least one example of every true class (row); "
            f"got rows that sum to {counts.sum(1).tolist()}. Measured on too few examples, or "
            "with columns for rows?"
        )
    rates = counts / counts.sum(1, keepdim=True)  # [C, C]
    worst, partner = rates.fill_diagonal_(0).max(1)  # [C], [C]
    classes = worst.argsort(descending=True, stable=True)[:pairs]  # [P]
    if bool((worst[classes] == 0).any()):
        raise DataError(
            f"only {int((worst > 0).sum())} classes are ever confused, fewer than pairs={pairs}. "
            "Ask for fewer pairs, or take the confusion of a weaker model."
        )
    table = torch.eye(len(confusion), dtype=torch.float64, device=confusion.device)  # [C, C]
    table[classes, classes] = 1 - probability
    table[classes, partner[classes]] = probability
    return table


def ambiguous_mix(
    inputs_a: Tensor,
    inputs_b: Tensor,
    targets_a: Tensor,
    targets_b: Tensor,
    *,
    generator: torch.Generator,
) -> AmbiguousMix:
    """x = λ·a + (1 − λ)·b with λ ~ U(0, 1); y = y_a with probability λ, else y_b.

    No model can tell the label of such an input with certainty, and none is wrong: a stand-in for
    the ambiguous digits of Mukhoti et al. 2021. uint8 inputs are rounded back to uint8.

    Args:
        inputs_a: [N, …].
        inputs_b: [N, …], like inputs_a.
        targets_a: [N] int64.
        targets_b: [N] int64.
        generator: on the inputs' device.

    Raises:
        DataError: shapes or dtypes that differ.
    """
    n = targets_a.numel()
    alike = inputs_a.shape == inputs_b.shape and inputs_a.dtype == inputs_b.dtype
    if not alike or targets_a.shape != targets_b.shape or inputs_a.shape[:1] != (n,):
        raise DataError(
            f"both sides must be alike, [N, …] and [N]; got inputs {tuple(inputs_a.shape)} "
            f"{inputs_a.dtype} and {tuple(inputs_b.shape)} {inputs_b.dtype}, targets "
            f"{tuple(targets_a.shape)} and {tuple(targets_b.shape)}. Pair them with one index each."
        )
    share = torch.rand(n, generator=generator, device=inputs_a.device)  # [N]
    first = torch.rand(n, generator=generator, device=inputs_a.device) < share  # [N]
    weight = share.reshape(-1, *[1] * (inputs_a.dim() - 1))  # [N, 1, …]
    mixed = weight * inputs_a + (1 - weight) * inputs_b  # [N, …]
    if not inputs_a.is_floating_point():
        mixed = mixed.round()
    return AmbiguousMix(mixed.to(inputs_a.dtype), torch.where(first, targets_a, targets_b), share)


def _check_square(name: str, table: Tensor) -> None:
    if table.dim() != 2 or table.shape[0] != table.shape[1] or not table.numel():
        raise DataError(
            f"{name} must be [C, C], a row and a column per class; got {tuple(table.shape)}. "
            "Count with num_classes given, so that classes never predicted get a column too."
        )
