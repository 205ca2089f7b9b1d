"""Noise floors: what a model gives a class without a reason, whatever share of rows it has."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_LARGE = 0.2  # share of the labels from which the median over all rows is no floor
_SUREST = 0.1  # of the rows of other classes: those where a class is least likely
_NOISE = 0.03  # share of labels found there that is a sign of noise
_DEVIATIONS = (1.0, 2.0)  # by which a count is lowered first: of all labels, of one of many
_OVERCONFIDENT = 3.0  # times what a model expects to find may be its own mistake
_PRIOR = 2.0  # pseudo-counts, at the rate of all labels
_SLACK = 1.75  # over the estimate, so that few wrong labels are missed
_ALWAYS = 0.01  # of a label that may be dropped without a sign of noise


class LearnedNoise(NamedTuple):
    """Per label, as far as held-out predictions tell of wrong ones."""

    floor: Tensor
    """[C] float64 m_k: what the model gives class k without a reason."""
    cut: Tensor
    """[C] float64: up to where p(y | x) of a wrong label may go; at least m_k."""
    share: Tensor
    """[C] float64: the share of the rows labelled k that may be taken for wrong, at most."""


class _Counts(NamedTuple):
    """Counts rows that the model takes for other classes, per class k; all [C] float64."""

    others: Tensor  # rows taken for another class
    floor: Tensor  # their median of p(k | x)
    cut: Tensor  # a higher quantile of it
    surest_rows: Tensor  # the tenth where p(k | x) is least
    surest: Tensor  # of these, labelled k
    half_rows: Tensor  # the half where it is least
    half: Tensor  # of these, labelled k
    expected: Tensor  # of these, labelled k by what the model says


def learned_noise(probability: Tensor, labels: Tensor) -> LearnedNoise:
    """Floors, and how many rows of each label may be wrong.

    Label k is judged by the rows that the model takes for other classes, so that its share of all
    rows does not matter. Wrong labels k stand there wherever they may; right ones, of a class that
    overlaps with others, stand where p(k | x) is largest. So labels are noisy if more than 3 % are
    found where p(k | x) is least: in the lowest tenth, or in the lowest half beyond what the model
    expects, as under a model of clean labels. A label is noisy by itself if it is the label of
    more than 3 % of its lowest tenth.

    Of a noisy label, the share in the lowest half is the share in all those rows, and three
    quarters more may be dropped. Of any other label, 1 % may be; nothing if the model takes all
    rows for its class.

    The floor is the median of p(k | x) over all rows as long as no label has over a fifth of them,
    and over the rows of other classes otherwise. The cut is the same median, or the quantile
    ½ / (1 − Σ_k π_k²) over the rows of other classes, for labels of shares π: the same of many
    classes of like size, and all of these rows of two.

    Args:
        probability: [M, C] p(k | x) of a model that was fitted on none of these rows.
        labels: [M] int64 in [0, C), some of them wrong.
    """
    rows, classes = probability.shape
    count = torch.bincount(labels, minlength=classes).double()  # [C]
    prior = count / rows
    found = _count(probability, labels, 0.5 / max(float(1 - (prior**2).sum()), 0.5))
    median = probability.median(dim=0).values.double()
    large = float(prior.max()) > _LARGE
    floor = found.floor if large else median
    cut = torch.maximum(found.cut, median) if large else median

    noise = _surely(found.surest.sum(), _DEVIATIONS[0]) / (_SUREST * rows)
    unexpected = _surely(found.half.sum(), _DEVIATIONS[0]) - _OVERCONFIDENT * found.expected.sum()
    noisy = (noise > _NOISE) | (2.0 * unexpected / rows > _NOISE)  # []
    alone = _surely(found.surest, _DEVIATIONS[1]) > _NOISE * found.surest_rows  # [C]
    common = found.half.sum() / found.half_rows.sum()
    rate = (found.half + _PRIOR) / (found.half_rows + _PRIOR / common)
    wrong = rate * found.others / count.clamp(min=1.0)  # [C]
    share = torch.where(noisy | alone, (_SLACK * wrong).clamp(_ALWAYS, 1.0), _ALWAYS)
    return LearnedNoise(floor, cut, torch.where(found.others > 0, share, 0.0))


def drop_below(probability: Tensor, labels: Tensor, cut: Tensor, share: Tensor) -> Tensor:
    """[C] float64: the cut, or less, so that at most ``share`` of the rows of a label lie below.

    Args:
        probability: [N] p_IL(y_i | x_i).
        labels: [N] int64.
        cut: [C].
        share: [C] in [0, 1].
    """
    below = cut.double().clone()
    order = labels.argsort()
    count = torch.bincount(labels, minlength=cut.numel())
    for k, own in enumerate(probability[order].double().split(count.tolist())):
        most = int(float(share[k]) * own.numel())
        if most < own.numel():
            below[k] = torch.minimum(below[k], own.kthvalue(most + 1).values)
    return below


def _count(probability: Tensor, labels: Tensor, level: float) -> _Counts:
    predicted = probability.argmax(dim=1)  # [M]
    classes = probability.shape[1]
    found = _Counts(*torch.zeros(len(_Counts._fields), classes, dtype=torch.float64))
    for k in range(classes):
        here = predicted != k
        p, labelled = probability[here, k].double(), labels[here] == k
        if p.numel() == 0:
            continue
        surest, half = (p <= _quantile(p, share) for share in (_SUREST, 0.5))
        found.others[k] = p.numel()
        found.floor[k] = _quantile(p, 0.5)
        found.cut[k] = _quantile(p, level)
        found.surest_rows[k], found.surest[k] = surest.sum(), labelled[surest].sum()
        found.half_rows[k], found.half[k] = half.sum(), labelled[half].sum()
        found.expected[k] = p[half].sum()
    return found


def _quantile(values: Tensor, share: float) -> Tensor:
    """[]: the least of ``values`` ([M]) that ``share`` of them do not exceed."""
    return values.kthvalue(max(1, round(share * values.numel()))).values


def _surely(count: Tensor, deviations: float) -> Tensor:
    """A count less its standard deviation by chance, so often."""
    return count - deviations * count.sqrt()
