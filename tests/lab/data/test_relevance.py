"""Which rows are there: imbalance, relevance and web-like data, to the exact row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reducible.lab.data import TensorSet, imbalance, relevance_split, web_like
from reducible.types import ConfigurationError, DataError

BALANCED = torch.arange(10).repeat(300)  # [3000]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("share", "kept"), [(0.1, 300), (0.025, 69), (0.01, 27), (0.005, 14), (0.0025, 7)]
)
def test_imbalance_is_the_papers(share: float, kept: int, generator: torch.Generator):
    """REDUCR's percentages, of all data: of 2,700 others 0.025/0.975 is 69.2; 10 % is balanced."""
    positions = imbalance(BALANCED, [4], share, generator=generator)
    sizes = BALANCED[positions].bincount(minlength=10).tolist()
    assert sizes == [300] * 4 + [kept] + [300] * 5
    assert kept / len(positions) == pytest.approx(share, rel=0.04)
    assert positions.tolist() == sorted(set(positions.tolist()))


def test_two_rare_classes_have_the_share_each(generator: torch.Generator):
    positions = imbalance(BALANCED, [4, 4, 7], 0.02, generator=generator)
    sizes = BALANCED[positions].bincount(minlength=10)
    assert sizes[[4, 7]].tolist() == [50, 50]  # 0.02·2400/0.96
    assert (sizes[[4, 7]] / sizes.sum()).tolist() == pytest.approx([0.02, 0.02])


@given(st.integers(2, 6), st.integers(1, 40), st.floats(0.001, 0.9), st.data())
def test_imbalance_thins_the_named_class_alone(classes: int, size: int, share: float, data):
    targets = torch.arange(classes).repeat(size)
    label = data.draw(st.integers(0, classes - 1))
    others = size * (classes - 1)
    wanted = max(1, round(share * others / (1 - share)))
    if wanted > size:
        with pytest.raises(ConfigurationError, match=f"is {wanted} of class {label}, which has"):
            imbalance(targets, [label], share, generator=seeded(0))
        return
    sizes = targets[imbalance(targets, [label], share, generator=seeded(0))].bincount()
    assert sizes.tolist() == [wanted if c == label else size for c in range(classes)]


def test_the_rows_kept_are_drawn_not_the_first():
    targets = torch.cat([torch.zeros(100), torch.ones(100)]).long()
    one, same, other = (imbalance(targets, [0], 1 / 6, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert int((one < 100).sum()) == 20
    assert int(one[one < 100].max()) > 50


def test_relevance_is_the_papers():
    targets = torch.arange(100).repeat(500)  # CIFAR-100 in size
    split = relevance_split(targets, num_classes=100, generator=seeded(0))
    sizes = targets[split.positions].bincount(minlength=100)  # [100]
    assert split.relevant.numel() == 20
    high = torch.zeros(100, dtype=torch.bool)
    high[split.relevant] = True
    assert sizes[high].tolist() == [500] * 20
    assert sizes[~high].tolist() == [31] * 80  # "only 6 %": .0625 · 500 = 31.25
    assert float(sizes[high].sum() / sizes.sum()) == pytest.approx(0.8, abs=0.002)
    assert split.positions.tolist() == sorted(set(split.positions.tolist()))


@given(st.integers(2, 12), st.floats(0.05, 0.95), st.integers(0, 50))
def test_the_relevant_hold_the_mass(classes: int, relevant: float, seed: int):
    count = max(1, round(relevant * classes))
    if count == classes:
        return
    targets = torch.arange(classes).repeat(400)
    mass = (1 + count / classes) / 2  # above what they hold before thinning
    split = relevance_split(
        targets, num_classes=classes, relevant=relevant, mass=mass, generator=seeded(seed)
    )
    kept = targets[split.positions]
    held = torch.isin(kept, split.relevant).float().mean()
    assert split.relevant.numel() == count
    assert float(held) == pytest.approx(mass, abs=0.01)


def test_web_like_row_for_row():
    web = web_like(BALANCED, num_classes=10, generator=seeded(0))
    clean = BALANCED[web.positions]
    points = web.positions.unique()
    sizes = BALANCED[points].bincount()
    assert sorted(sizes.tolist()) == [30, 30] + [300] * 8
    times = web.positions.bincount(minlength=3000)[points]  # [2460]
    assert times.unique().tolist() == [1, 5]
    assert int((times == 5).sum()) == 820  # a third of 2460
    rows = 2460 + 4 * 820
    assert web.positions.numel() == web.targets.numel() == web.corrupted.numel() == rows
    assert int(web.corrupted.sum()) == round(0.3 * rows)
    assert torch.equal(web.corrupted, web.targets != clean)
    # Copies of a point are flipped on their own.
    wrong = torch.zeros(3000).index_add_(0, web.positions, web.corrupted.float())[points]
    assert {1.0, 2.0} <= set(wrong[times == 5].tolist())


def test_web_like_without_its_parts_is_the_data():
    web = web_like(
        BALANCED, num_classes=10, generator=seeded(0), noise=0, duplicated=0, rare_classes=0
    )
    assert torch.equal(web.positions, torch.arange(3000))
    assert torch.equal(web.targets, BALANCED)
    assert not bool(web.corrupted.any())


def test_web_like_rows_make_a_data_set():
    data = TensorSet(torch.arange(3000)[:, None], BALANCED, num_classes=10)
    web = web_like(BALANCED, num_classes=10, generator=seeded(0))
    noisy = data.resampled(web.positions, origin="web").relabelled(web.targets)
    assert torch.equal(noisy.inputs[:, 0], web.positions)
    assert torch.equal(noisy.targets, web.targets)
    assert torch.equal(noisy.ids, torch.arange(len(web.positions)))
    assert noisy.origin == "web"


@pytest.mark.usefixtures("streams_untouched")
def test_only_the_generator_moves():
    def everything(seed: int) -> list[Tensor]:
        g = seeded(seed)
        split = relevance_split(BALANCED, num_classes=10, generator=g)
        return [
            imbalance(BALANCED, [3, 6], 0.05, generator=g),
            split.positions,
            *web_like(BALANCED, num_classes=10, generator=g),
        ]

    for one, same, other in zip(everything(1), everything(1), everything(4), strict=True):
        assert torch.equal(one, same)
        assert not torch.equal(one, other)


def test_what_cannot_be_thinned(generator: torch.Generator):
    with pytest.raises(DataError, match=r"class 10 has no rows to thin; there are classes \[0, 1"):
        imbalance(BALANCED, [10], 0.1, generator=generator)
    with pytest.raises(ConfigurationError, match=r"share must be a number in \(0.0, 1.0\), got 0"):
        imbalance(BALANCED, [1], 0, generator=generator)
    with pytest.raises(ConfigurationError, match=r"0.5 of all rows for each of 2 classes leaves"):
        imbalance(BALANCED, [1, 2], 0.5, generator=generator)
    with pytest.raises(DataError, match="there are none to be rare among"):
        imbalance(torch.zeros(4).long(), [0], 0.5, generator=generator)
    with pytest.raises(DataError, match="the data set is empty"):
        imbalance(BALANCED[:0], [], 0.5, generator=generator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"relevant": 0.0}, r"relevant must be a number in \(0.0, 1.0\)"),
        ({"mass": 1.0}, r"mass must be a number in \(0.0, 1.0\)"),
        ({"relevant": 0.97}, "relevant=0.97 of 10 classes leaves none of low relevance"),
        ({"mass": 0.1}, r"already hold 600 of 3000 rows, more than mass=0.1"),
        ({"num_classes": 1}, "a split into classes .* needs at least 2 classes, got 1"),
    ],
)
def test_relevance_that_cannot_be(options, message: str, generator: torch.Generator):
    with pytest.raises(ConfigurationError, match=message):
        relevance_split(BALANCED, **({"num_classes": 10, "generator": generator} | options))


def test_relevance_needs_rows_of_every_class(generator: torch.Generator):
    with pytest.raises(DataError, match=r"classes \[10, 11\] have no rows"):
        relevance_split(BALANCED, num_classes=12, generator=generator)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": -0.1}, r"share must be a number in \[0.0, 1.0\], got -0.1"),
        ({"duplicated": 2}, "duplicated must be"),
        ({"copies": 0}, "copies must be a whole number"),
        ({"rare_classes": 11}, r"rare_classes must be a whole number in \[0, 10\]"),
        ({"rarity": 0.5}, "rarity must be"),
    ],
)
def test_a_web_that_cannot_be(options, message: str, generator: torch.Generator):
    with pytest.raises(ConfigurationError, match=message):
        web_like(BALANCED, num_classes=10, generator=generator, **options)
