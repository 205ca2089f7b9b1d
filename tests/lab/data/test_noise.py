"""Label noise: exact shares, no label kept by a flip, no stream moved but the generator's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reducible.lab.data import ambiguous_mix, confusable_pairs, confuse_labels, flip_labels
from reducible.types import ConfigurationError, DataError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def labels(n: int, classes: int, seed: int = 0) -> Tensor:
    return torch.randint(classes, (n,), generator=seeded(seed))


@given(st.integers(1, 60), st.integers(2, 7), st.floats(0, 1), st.integers(0, 99))
def test_a_flip_changes_exactly_the_share(n: int, classes: int, share: float, seed: int):
    targets = labels(n, classes, seed)
    before = targets.clone()
    noisy = flip_labels(targets, share, num_classes=classes, generator=seeded(seed))
    assert int(noisy.corrupted.sum()) == round(share * n)
    assert torch.equal(noisy.corrupted, noisy.targets != targets)
    assert 0 <= int(noisy.targets.min()) <= int(noisy.targets.max()) < classes
    assert noisy.targets.dtype == torch.int64
    assert torch.equal(targets, before)


@given(st.integers(1, 60), st.integers(1, 7), st.floats(0, 1), st.integers(0, 99))
def test_a_redraw_counts_only_labels_that_changed(n: int, classes: int, share: float, seed: int):
    targets = labels(n, classes, seed)
    noisy = flip_labels(targets, share, num_classes=classes, mode="redraw", generator=seeded(seed))
    assert int(noisy.corrupted.sum()) <= round(share * n)
    assert torch.equal(noisy.corrupted, noisy.targets != targets)
    assert 0 <= int(noisy.targets.min()) <= int(noisy.targets.max()) < classes


@pytest.mark.parametrize(("mode", "moved"), [("flip", 1.0), ("redraw", 0.75)])
def test_new_labels_are_uniform(mode, moved: float, generator: torch.Generator):
    n = 40_000
    targets = torch.full((n,), 2)
    noisy = flip_labels(targets, 1.0, num_classes=4, mode=mode, generator=generator)
    shares = noisy.targets.bincount(minlength=4) / n  # [4]
    expected = torch.full((4,), moved / 3)
    expected[2] = 1 - moved
    # 4 standard errors of a share of at most 1/2
    torch.testing.assert_close(shares, expected, atol=4 * 0.5 / n**0.5, rtol=0)
    assert float(noisy.corrupted.float().mean()) == pytest.approx(moved, abs=0.01)


def test_the_flipped_rows_are_spread_evenly(generator: torch.Generator):
    hits = torch.zeros(10)
    for _ in range(2_000):
        hits += flip_labels(
            torch.zeros(10, dtype=torch.int64), 0.3, num_classes=2, generator=generator
        ).corrupted
    torch.testing.assert_close(hits / 2_000, torch.full((10,), 0.3), atol=0.045, rtol=0)


@pytest.mark.usefixtures("streams_untouched")
def test_only_the_generator_moves():
    targets, table = labels(50, 4), torch.full((4, 4), 0.25)
    images = torch.rand(50, 2, generator=seeded(9))

    def everything(seed: int) -> list[Tensor]:
        g = seeded(seed)
        return [
            flip_labels(targets, 0.5, num_classes=4, generator=g).targets,
            flip_labels(targets, 0.5, num_classes=4, mode="redraw", generator=g).targets,
            confuse_labels(targets, table, generator=g).targets,
            ambiguous_mix(images, images.flip(0), targets, targets.flip(0), generator=g).inputs,
        ]

    for one, same, other in zip(everything(1), everything(1), everything(2), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


@pytest.mark.parametrize(
    ("share", "classes", "mode", "message"),
    [
        (1.2, 3, "flip", r"share must be a number in \[0.0, 1.0\], got 1.2"),
        (float("nan"), 3, "flip", "share must be"),
        (0.1, 3, "swap", "mode must be one of 'flip', 'redraw'; got 'swap'"),
        (0.1, 1, "flip", "moving labels to another class needs at least 2 classes, got 1"),
    ],
)
def test_flips_that_cannot_be(share: float, classes: int, mode, message: str, generator):
    with pytest.raises(ConfigurationError, match=message):
        flip_labels(
            torch.zeros(4, dtype=torch.int64),
            share,
            num_classes=classes,
            mode=mode,
            generator=generator,
        )


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.tensor([0.0, 1.0]), r"\[N\] int64.*float32"),
        (torch.tensor([0, 3]), r"lie in \[0, 3\); got 0 to 3"),
        (torch.tensor([], dtype=torch.int64), "the data set is empty"),
    ],
)
def test_labels_that_are_none(targets: Tensor, message: str, generator: torch.Generator):
    with pytest.raises(DataError, match=message):
        flip_labels(targets, 0.1, num_classes=3, generator=generator)
    with pytest.raises(DataError, match=message):
        confuse_labels(targets, torch.eye(3), generator=generator)


def test_a_table_decides_where_labels_go(generator: torch.Generator):
    table = torch.tensor([[0.2, 0.8, 0.0], [0.0, 1.0, 0.0], [0.5, 0.25, 0.25]])
    targets = torch.arange(3).repeat_interleave(20_000)
    noisy = confuse_labels(targets, table, generator=generator)
    counts = torch.stack([noisy.targets[targets == c].bincount(minlength=3) for c in range(3)])
    shares = counts / 20_000  # [3, 3]
    torch.testing.assert_close(shares, table, atol=4 * 0.5 / 20_000**0.5, rtol=0)
    assert bool((shares[table == 0] == 0).all())  # what has no probability never happens
    assert torch.equal(noisy.corrupted, noisy.targets != targets)


@given(st.integers(1, 5), st.integers(0, 99))
def test_the_identity_confuses_nothing(classes: int, seed: int):
    targets = labels(20, classes, seed)
    noisy = confuse_labels(targets, torch.eye(classes), generator=seeded(seed))
    assert torch.equal(noisy.targets, targets)
    assert not bool(noisy.corrupted.any())


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (torch.ones(2, 3) / 3, r"table must be \[C, C\].*got \(2, 3\)"),
        (torch.tensor([[0.5, 0.6], [0.0, 1.0]]), r"rows sum to 1 … 1.1"),
        (torch.tensor([[1.5, -0.5], [0.0, 1.0]]), "the least entry is -0.5"),
        (torch.full((2, 2), float("nan")), "must be a distribution"),
    ],
)
def test_tables_that_are_none(table: Tensor, message: str, generator: torch.Generator):
    with pytest.raises(DataError, match=message):
        confuse_labels(torch.tensor([0, 1]), table, generator=generator)


def test_confusable_pairs_by_hand():
    # As shares of its row: 0 → 1 .3, 1 → 0 .1, 2 → 3 .2 (of half as many examples), 3 → 2 .05.
    confusion = torch.tensor([[60, 30, 10, 0], [10, 85, 5, 0], [0, 5, 35, 10], [0, 0, 5, 95]])
    table = confusable_pairs(confusion, pairs=2, probability=0.4)
    assert table.tolist() == [[0.6, 0.4, 0, 0], [0, 1, 0, 0], [0, 0, 0.6, 0.4], [0, 0, 0, 1]]
    assert confusion[0, 0] == 60
    assert torch.equal(confusable_pairs(confusion, pairs=0), torch.eye(4, dtype=torch.float64))


def test_confusable_pairs_is_a_table_for_confuse_labels(generator: torch.Generator):
    confusion = torch.randint(1, 50, (10, 10), generator=generator) + 500 * torch.eye(10).long()
    table = confusable_pairs(confusion)
    assert int((table.diagonal() == 0.5).sum()) == 4
    targets = labels(20_000, 10)
    share = confuse_labels(targets, table, generator=generator).corrupted.float().mean()
    assert float(share) == pytest.approx(0.4 * 0.5, abs=0.02)


@pytest.mark.parametrize(
    ("confusion", "message"),
    [
        (torch.ones(2, 3), r"confusion must be \[C, C\]"),
        (torch.tensor([[1, 1], [0, 0]]), "at least one example of every true class"),
        (torch.tensor([[3, -1], [1, 1]]), "must hold counts"),
        (torch.tensor([[3, 1], [0, 4]]), "only 1 classes are ever confused, fewer than pairs=2"),
    ],
)
def test_confusions_that_are_none(confusion: Tensor, message: str):
    with pytest.raises(DataError, match=message):
        confusable_pairs(confusion, pairs=2)


def test_no_more_pairs_than_classes():
    with pytest.raises(ConfigurationError, match=r"pairs must be a whole number in \[0, 3\]"):
        confusable_pairs(torch.ones(3, 3))


def test_a_mix_lies_between_and_is_labelled_by_its_share(generator: torch.Generator):
    n = 20_000
    zeros, ones = torch.zeros(n, 1, 2), torch.ones(n, 1, 2)
    three, seven = torch.full((n,), 3), torch.full((n,), 7)
    mix = ambiguous_mix(ones, zeros, three, seven, generator=generator)
    torch.testing.assert_close(mix.inputs, mix.share[:, None, None].expand(n, 1, 2))
    assert 0 <= float(mix.share.min()) < 0.01
    assert 0.99 < float(mix.share.max()) <= 1
    assert set(mix.targets.tolist()) == {3, 7}
    for tenth in range(10):  # calibrated: p(y = y_a | λ) = λ
        rows = (mix.share * 10).floor() == tenth
        hit = (mix.targets[rows] == 3).float().mean()
        assert float(hit) == pytest.approx((tenth + 0.5) / 10, abs=0.06)


def test_a_mix_of_bytes_is_bytes(generator: torch.Generator):
    a = torch.full((500, 3), 200, dtype=torch.uint8)
    b = torch.full((500, 3), 100, dtype=torch.uint8)
    y = torch.zeros(500, dtype=torch.int64)
    mix = ambiguous_mix(a, b, y, y, generator=generator)
    assert mix.inputs.dtype == torch.uint8
    expected = (100 + 100 * mix.share).round()[:, None].expand(500, 3)
    assert int((mix.inputs.float() - expected).abs().max()) <= 1


def test_sides_that_differ_are_refused(generator: torch.Generator):
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64)
    for other, labels_b in ((x[:2], y), (x.double(), y), (x, y[:2])):
        with pytest.raises(DataError, match="both sides must be alike"):
            ambiguous_mix(x, other, y, labels_b, generator=generator)
