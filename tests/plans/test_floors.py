"""Noise floors: by hand, and on exact posteriors of any prior, clean and with wrong labels."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reducible.lab.data import flip_labels
from reducible.plans.floors import LearnedNoise, drop_below, learned_noise


def _posterior(
    prior: Tensor, rows: int, apart: float, seed: int
) -> tuple[Tensor, Tensor, torch.Generator]:
    """[N, C] exact p(k | x) of Gaussians ``apart`` from the origin, each its own way, and [N] k."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.multinomial(prior, rows, replacement=True, generator=g)
    x = torch.randn(rows, len(prior), generator=g, dtype=torch.float64)
    x[torch.arange(rows), truth] += apart
    return (prior.double().log() + apart * x).softmax(1), truth, g


def _with_flips(clean: Tensor, share: float) -> Tensor:
    """[N, C] exact p(label = k | x), a share of the labels moved to any other class."""
    return (1 - share) * clean + share * (1 - clean) / (clean.shape[1] - 1)


def _prior(classes: int, largest: float) -> Tensor:
    """[C]: one class of a share, the others alike."""
    rest = (1.0 - largest) / (classes - 1)
    return torch.tensor([largest] + [rest] * (classes - 1))


def _dropped(p: Tensor, labels: Tensor) -> Tensor:
    """[N] bool, by what the rows themselves teach."""
    learned, own = learned_noise(p, labels), p[torch.arange(len(p)), labels]
    return own < drop_below(own, labels, learned.cut, learned.share)[labels]


PRIORS = st.one_of(
    st.tuples(st.just(2), st.sampled_from([0.5, 0.6, 0.75, 0.9, 0.95, 0.99])),
    st.tuples(st.sampled_from([3, 4, 10, 30]), st.sampled_from([0.0, 0.4, 0.6, 0.9])),
).map(lambda found: (found[0], max(found[1], 1 / found[0])))


@settings(deadline=None, max_examples=60)
@given(prior=PRIORS, apart=st.floats(1.5, 5.0), seed=st.integers(0, 10**6))
def test_clean_labels_of_any_prior_stay(prior: tuple[int, float], apart: float, seed: int) -> None:
    """At most 1 % of any class with more than 100 examples is dropped, however they overlap."""
    p, labels, _ = _posterior(_prior(*prior), 4000, apart, seed)
    dropped = _dropped(p, labels)
    for k in range(prior[0]):
        own = labels == k
        if int(own.sum()) > 100:
            assert int((dropped & own).sum()) <= 0.01 * int(own.sum())


@settings(deadline=None, max_examples=60)
@given(
    prior=PRIORS,
    share=st.sampled_from([0.1, 0.2, 0.4]),
    apart=st.floats(3.0, 5.0),
    seed=st.integers(0, 10**6),
)
def test_flips_are_found_whatever_the_prior(
    prior: tuple[int, float], share: float, apart: float, seed: int
) -> None:
    """As many as medians over all rows find, but for chance, and without a class's right half."""
    classes = prior[0]
    assume(share < 0.4 or classes > 2 or apart > 4)  # where 0.4 and 0.6 are told apart
    clean, truth, g = _posterior(_prior(*prior), 4000, apart, seed)
    p = _with_flips(clean, share)
    labels = flip_labels(truth, share, num_classes=classes, generator=g).targets
    wrong, dropped = labels != truth, _dropped(p, labels)
    by_median = p[torch.arange(4000), labels] < p.median(0).values[labels]
    found = int((dropped & wrong).sum())
    assert found >= 0.97 * int((by_median & wrong).sum())
    assert found >= 0.45 * int(wrong.sum())
    assert int((dropped & ~wrong).sum()) <= 0.15 * int((~wrong).sum())


def test_a_class_of_half_the_rows_by_hand() -> None:
    """Ten of 40 rows of class 1 are labelled 0, two of 60 of class 0 are labelled 1."""
    p0 = torch.cat([torch.linspace(0.8, 0.85, 60), torch.linspace(0.2, 0.25, 40)]).double()
    p = torch.stack([p0, 1 - p0], dim=1)
    labels = torch.tensor([0] * 40 + [1, 1] + [0] * 18 + [0, 1, 1, 1] * 10)
    learned = learned_noise(p, labels)
    # of class 0's rows alone, and of class 1's
    assert learned.floor.tolist() == pytest.approx([0.2 + 0.05 * 19 / 39, 0.15 + 0.05 * 29 / 59])
    assert learned.cut.tolist() == pytest.approx([0.8 + 0.05 * 9 / 59, 0.2])
    # one in the lowest tenths, which may be chance: no sign of noise
    assert learned.share.tolist() == [0.01, 0.01]
    often = learned_noise(p.repeat(100, 1), labels.repeat(100))  # 100, which are none
    prior = 2 / (700 / 5000)  # rows in which two labels are expected, at the rate of both halves
    rates = [502 / (2000 + prior), 202 / (3000 + prior)]
    expected = [1.75 * rates[0] * 4000 / 6800, 1.75 * rates[1] * 6000 / 3200]
    assert often.share.tolist() == pytest.approx(expected)


def test_dropping_below_by_hand() -> None:
    """A cut of 0.5 where 40 % may go, then where all may; the least two of five lie below 0.3."""
    p = torch.tensor([0.1, 0.3, 0.9, 0.2, 0.4, 0.6, 0.7], dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 0, 2, 2])
    cut = torch.tensor([0.5, 0.5, 0.5], dtype=torch.float64)
    some = drop_below(p, labels, cut, torch.tensor([0.4, 0.4, 0.4]))
    assert some.tolist() == [0.3, 0.5, 0.5]  # class 1 has no rows
    assert drop_below(p, labels, cut, torch.ones(3)).tolist() == [0.5, 0.5, 0.5]
    assert drop_below(p, labels, cut, torch.zeros(3)).tolist() == [0.1, 0.5, 0.5]
    single = drop_below(p.float(), labels, cut.float(), torch.tensor([0.4, 0.4, 0.4]))
    assert single.dtype == torch.float64
    assert single.tolist() == pytest.approx([0.3, 0.5, 0.5])


def test_many_classes_of_like_size_keep_their_medians() -> None:
    clean, truth, g = _posterior(torch.full((10,), 0.1), 4000, 3.0, 0)
    labels = flip_labels(truth, 0.2, num_classes=10, generator=g).targets
    p = _with_flips(clean, 0.2)
    learned = learned_noise(p, labels)
    for found in (learned.floor, learned.cut):
        torch.testing.assert_close(found, p.median(0).values)
    by_median = p[torch.arange(4000), labels] < p.median(0).values[labels]
    assert torch.equal(_dropped(p, labels), by_median)


def test_the_share_of_wrong_labels_of_each_class_is_learned() -> None:
    """Three quarters more than the truth, for a class of nine in ten and for the other."""
    clean, truth, g = _posterior(_prior(2, 0.9), 20_000, 4.0, 1)
    labels = flip_labels(truth, 0.2, num_classes=2, generator=g).targets
    share = learned_noise(_with_flips(clean, 0.2), labels).share
    for k in range(2):
        wrong = float((truth != k)[labels == k].double().mean())
        assert float(share[k]) == pytest.approx(min(1.0, 1.75 * wrong), rel=0.15)


def test_wrong_labels_of_one_class_alone_are_found() -> None:
    """Three in ten of the positives, a tenth of all, are labelled negative."""
    clean, truth, g = _posterior(_prior(2, 0.9), 10_000, 4.0, 2)
    missed = (truth == 1) & (torch.rand(10_000, generator=g) < 0.3)
    p = torch.stack([clean[:, 0] + 0.3 * clean[:, 1], 0.7 * clean[:, 1]], dim=1)
    dropped = _dropped(p, torch.where(missed, 0, truth))
    assert int((dropped & missed).sum()) >= 0.8 * int(missed.sum())
    assert int((dropped & ~missed).sum()) <= 0.02 * 10_000


def test_systematic_wrong_labels_are_found_by_a_model_of_clean_ones() -> None:
    """Class k becomes k + 4 of a ring of ten, and k + 5 is always less likely than that."""
    g = torch.Generator().manual_seed(3)
    truth = torch.randint(10, (20_000,), generator=g)
    x = truth + 0.2 * torch.randn(20_000, generator=g, dtype=torch.float64)
    apart = (x.unsqueeze(1) - torch.arange(10)).abs()  # [N, C]
    p = (-(torch.minimum(apart, 10 - apart) ** 2) / 0.08).softmax(1)
    wrong = torch.rand(20_000, generator=g) < 0.3
    labels = torch.where(wrong, (truth + 4) % 10, truth)
    dropped = _dropped(p, labels)
    assert int((dropped & wrong).sum()) >= 0.4 * int(wrong.sum())
    assert int((dropped & ~wrong).sum()) <= 0.01 * 20_000


def test_what_cannot_be_told_is_kept() -> None:
    """Rows of one class; a class that is never predicted; outputs without a label."""
    sure = torch.tensor([[0.9, 0.07, 0.03]], dtype=torch.float64).repeat(500, 1)
    sure[:, 0] -= torch.linspace(0, 0.1, 500, dtype=torch.float64)
    alone = torch.zeros(500, dtype=torch.int64)
    assert learned_noise(sure, alone).share.tolist() == [0.0, 0.01, 0.01]
    assert not bool(_dropped(sure, alone).any())
    single = torch.ones(500, 1, dtype=torch.float64)
    assert learned_noise(single, alone).share.tolist() == [0.0]
    assert not bool(_dropped(single, alone).any())
    rare = alone.clone()
    rare[:3] = 1
    assert not bool(_dropped(sure, rare).any())


@pytest.mark.parametrize("prior", [0.5, 0.9])
def test_two_thousand_rows_tell_clean_labels_from_one_wrong_in_ten(prior: float) -> None:
    for seed in range(20):
        clean, truth, g = _posterior(_prior(2, prior), 2000, 3.0, seed)
        assert learned_noise(clean, truth).share.tolist() == [0.01, 0.01]
        labels = flip_labels(truth, 0.1, num_classes=2, generator=g).targets
        p = _with_flips(clean, 0.1)
        wrong, dropped = labels != truth, _dropped(p, labels)
        assert int((dropped & wrong).sum()) >= 0.7 * int(wrong.sum())


# -- row by row -----------------------------------------------------------------------------------


def _reckoned(p: list[list[float]], labels: list[int]) -> tuple[list[float], ...]:
    """Floor, cut and share as the docstrings define them, in plain Python."""
    rows, classes = len(p), len(p[0])
    count = Counter(labels)

    def quantile(values: list[float], share: float) -> float:
        place = min(max(1, round(share * len(values))), len(values))
        return sorted(values)[place - 1]

    apart = 1 - sum((count[k] / rows) ** 2 for k in range(classes))
    level = min(1.0, 0.5 / max(apart, 0.5))
    floor, cut, halves, half_rows, surest, surest_rows, others, expected = (
        [0.0] * classes for _ in range(8)
    )
    for k in range(classes):
        here = [i for i in range(rows) if p[i].index(max(p[i])) != k]
        values = [p[i][k] for i in here]
        others[k] = len(here)
        if not here:
            continue
        floor[k], cut[k] = quantile(values, 0.5), quantile(values, level)
        least = [i for i in here if p[i][k] <= quantile(values, 0.1)]
        lower = [i for i in here if p[i][k] <= floor[k]]
        surest_rows[k], surest[k] = len(least), sum(labels[i] == k for i in least)
        half_rows[k], halves[k] = len(lower), sum(labels[i] == k for i in lower)
        expected[k] = sum(p[i][k] for i in lower)
    medians = [sorted(row[k] for row in p)[(rows - 1) // 2] for k in range(classes)]
    if max(count.values()) <= 0.2 * rows:
        floor, cut = medians, medians
    else:
        cut = [max(pair) for pair in zip(cut, medians, strict=True)]

    lowest, half = sum(surest), sum(halves)
    noisy = (lowest - math.sqrt(lowest)) / (0.1 * rows) > 0.03
    noisy = noisy or 2 * (half - math.sqrt(half) - 3 * sum(expected)) / rows > 0.03
    common = half / max(1, sum(half_rows))
    share = [0.0] * classes
    for k in range(classes):
        if others[k] == 0:
            continue
        share[k] = 0.01
        if noisy or surest[k] - 2 * math.sqrt(surest[k]) > 0.03 * surest_rows[k]:
            rate = (halves[k] + 2) / (half_rows[k] + 2 / max(common, 1e-9))
            wrong = rate * others[k] / max(1, count[k])
            share[k] = min(1.0, max(0.01, 1.75 * wrong))
    return floor, cut, share


def _agree(p: Tensor, labels: Tensor) -> LearnedNoise:
    learned = learned_noise(p, labels)
    for found, wanted in zip(learned, _reckoned(p.tolist(), labels.tolist()), strict=True):
        assert found.dtype == torch.float64
        assert found.tolist() == pytest.approx(wanted, rel=1e-12, abs=1e-15)
    return learned


@settings(deadline=None, max_examples=150)
@given(
    prior=PRIORS,
    rows=st.integers(20, 600),
    wrong=st.sampled_from([0.0, 0.01, 0.02, 0.03, 0.05, 0.1, 0.3]),
    believed=st.booleans(),
    apart=st.floats(0.5, 5.0),
    seed=st.integers(0, 10**6),
)
def test_floors_and_shares_are_those_reckoned_row_by_row(
    prior: tuple[int, float], rows: int, wrong: float, believed: bool, apart: float, seed: int
) -> None:
    clean, truth, g = _posterior(_prior(*prior), rows, apart, seed)
    labels = flip_labels(truth, wrong, num_classes=prior[0], generator=g).targets
    _agree(_with_flips(clean, wrong) if believed else clean, labels)


def _grid(found: list[int], *, rows: int = 1000) -> tuple[Tensor, Tensor]:
    """Two classes of half the rows; those of class 1 first, p_0 ascending, ``found`` labelled 0."""
    p0 = torch.arange(1, rows // 2 + 1, dtype=torch.float64) / (4 * rows)
    p0 = torch.cat([p0, 1 - p0])
    labels = torch.cat([torch.ones(rows // 2), torch.zeros(rows // 2)]).long()
    labels[found] = 0
    return torch.stack([p0, 1 - p0], dim=1), labels


@pytest.mark.parametrize(
    ("found", "noisy"),
    [
        # of a hundred in the lowest tenths 3 % and the square root of what is found
        ([0, 1, 2, 3], False),  # 4 − 2 = 2
        ([0, 1, 2, 3, 4], False),  # 5 − 2.2 = 2.8
        ([0, 1, 2, 3, 4, 5], True),  # 6 − 2.4 = 3.6
        (list(range(44, 50)), True),  # the fiftieth row is the last of the tenth
        (list(range(45, 51)), False),  # … and so one of six is missing
        # in the lower halves 15, the root, and three times the 15.7 that the model expects: 62.1
        (list(range(50, 120)), False),  # 70 − 8.4 = 61.6
        (list(range(50, 121)), True),  # 71 − 8.4 = 62.6
    ],
)
def test_a_sign_of_noise_by_hand(found: list[int], noisy: bool) -> None:
    p, labels = _grid(found)
    share = _agree(p, labels).share.tolist()
    assert (share[0] > 0.01) is noisy


def test_as_much_as_a_sign_of_noise_is_none() -> None:
    """9 − √9 are 3 % of the 200 in the lowest tenths, and 9 − 2·√9 of a label's own hundred."""
    p, labels = _grid(list(range(9)), rows=2000)
    assert _agree(p, labels).share.tolist() == [0.01, 0.01]


def test_probabilities_of_single_precision_are_taken_as_they_are() -> None:
    clean, truth, _ = _posterior(torch.full((6,), 1 / 6), 300, 3.0, 0)
    _agree(clean.float(), truth)


def test_classes_of_a_fifth_each_are_of_like_size() -> None:
    clean, _, _ = _posterior(torch.full((5,), 0.2), 200, 3.0, 4)
    learned = _agree(clean, torch.arange(200) % 5)
    torch.testing.assert_close(learned.floor, clean.median(0).values)
    other = _agree(clean, (torch.arange(200) % 5).clamp(max=3))
    assert not torch.equal(other.floor, learned.floor)


@pytest.mark.parametrize(("found", "alone"), [(13, False), (14, True)])
def test_one_label_may_be_noisy_by_itself(found: int, alone: bool) -> None:
    """14 − 2·√14 = 6.5 of its tenth, 13 − 2·√13 = 5.8; 3 % are 6, and of all labels 12."""
    p, labels = _grid(list(range(found)), rows=4000)
    share = _agree(p, labels).share.tolist()
    assert (share[0] > 0.01) is alone
    assert share[1] == 0.01
