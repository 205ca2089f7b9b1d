"""TensorSet: ids that stay, rows taken at once, bytes turned to floats as they are taken."""

import pickle
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import DataLoader

from reducible.lab.data import TensorSet
from reducible.types import Candidates, ConfigurationError, DataError

INPUTS = torch.tensor([[0, 51], [102, 153], [204, 255], [5, 10]], dtype=torch.uint8)  # [4, 2]
TARGETS = torch.tensor([2, 0, 1, 1])  # [4]


def make(n: int = 4, **options) -> TensorSet:
    return TensorSet(INPUTS[:n], TARGETS[:n], **options)


def test_bytes_become_standardised_floats():
    data = make(mean=0.5, std=0.25)
    ids, (x, y) = data.fetch(torch.tensor([1, 0]))
    assert ids.tolist() == [1, 0]
    assert y.tolist() == [0, 2]
    assert x.dtype == torch.float32
    # 102 / 255 = .4, 153 / 255 = .6, 51 / 255 = .2; (v − .5) · 4
    torch.testing.assert_close(x, torch.tensor([[-0.4, 0.4], [-2.0, -1.2]]))
    assert data.inputs.dtype == torch.uint8


def test_floats_are_standardised_and_the_stored_ones_untouched():
    stored = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    data = TensorSet(stored, torch.tensor([0, 1]), mean=1.0, std=2.0)
    x = data[[0, 1]].batch[0]
    assert x.dtype == torch.float32
    assert x.tolist() == [[0.0], [1.0]]
    assert stored.tolist() == [[1.0], [3.0]]


def test_token_ids_pass_as_they_are():
    tokens = torch.tensor([[101, 30_521], [101, 2**24 + 1]])
    assert TensorSet(tokens, torch.tensor([0, 1]))[[1]].batch[0].tolist() == [[101, 2**24 + 1]]


@pytest.mark.parametrize("at", [0, 3, -1, -4])
def test_an_int_gives_one_example(at: int):
    item = make()[at]
    assert isinstance(item, Candidates)
    assert item.ids.shape == item.batch[1].shape == ()
    assert item.ids.item() == at % 4
    torch.testing.assert_close(item.batch[0], INPUTS[at] / 255)


def test_iterating_ends():
    assert [c.ids.item() for c in make()] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    for at in (4, -5):
        with pytest.raises(IndexError, match=f"position {at} of a data set of 4"):
            make()[at]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_a_batch_is_its_examples_stacked(positions: list[int]):
    data = make(mean=0.3, std=0.4)
    single = [data[i] for i in positions]
    for batch in (data[positions], data[torch.tensor(positions)]):
        assert torch.equal(batch.ids, torch.stack([c.ids for c in single]))
        assert torch.equal(batch.batch[0], torch.stack([c.batch[0] for c in single]))
        assert torch.equal(batch.batch[1], torch.stack([c.batch[1] for c in single]))


def test_the_transform_sees_the_rows_taken_and_can_be_dropped():
    seen: list[tuple[int, ...]] = []

    def negative(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return -x

    data = make(transform=negative)
    plain = make()
    assert torch.equal(data[[1, 2]].batch[0], -plain[[1, 2]].batch[0])
    assert torch.equal(data[1].batch[0], -plain[1].batch[0])
    assert seen == [(2, 2), (1, 2)]
    assert torch.equal(data.with_transform(None)[1].batch[0], plain[1].batch[0])
    assert torch.equal(data.subset(torch.tensor([3]))[0].batch[0], -plain[3].batch[0])


def test_ids_survive_subsets_of_subsets_however_large():
    ids = torch.tensor([2**24 + 1, 2**53 + 1, 7, 2**62 + 1])
    data = make(ids=ids, origin="here")
    part = data.subset(torch.tensor([3, 1, 0])).subset(torch.tensor([1, 0]))
    assert part.ids.tolist() == [2**53 + 1, 2**62 + 1]
    assert part[[1, 0]].ids.tolist() == [2**62 + 1, 2**53 + 1]
    assert part.targets.tolist() == [0, 1]
    assert torch.equal(part.inputs, INPUTS[[1, 3]])
    assert part.origin == "here"
    assert part.num_classes == 3


def test_origin_tells_sets_apart():
    one, other = make(), make()
    assert one.origin != other.origin
    assert one.subset(torch.tensor([0])).origin == one.origin
    assert one.relabelled(TARGETS.flip(0)).origin == one.origin
    assert one.resampled(torch.tensor([0])).origin != one.origin


def test_pickling_keeps_data_and_origin():
    data = make(origin="fashion-mnist/train", classes=("a", "b", "c"))
    again, part = pickle.loads(pickle.dumps((data, data.subset(torch.tensor([2])))))
    assert torch.equal(again.ids, data.ids)
    assert again.origin == part.origin == "fashion-mnist/train"
    assert again.classes == ("a", "b", "c")


def test_relabelled_changes_the_labels_alone():
    data = make(mean=0.5, ids=torch.tensor([9, 8, 7, 6]))
    again = data.relabelled(torch.tensor([0, 0, 0, 0]))
    assert again.targets.tolist() == [0, 0, 0, 0]
    assert again.num_classes == 3
    assert data.targets.tolist() == TARGETS.tolist()
    assert torch.equal(again[0].batch[0], data[0].batch[0])
    assert again.ids.tolist() == [9, 8, 7, 6]


def test_resampled_rows_are_examples_of_their_own():
    data = make(ids=torch.tensor([9, 8, 7, 6])).resampled(torch.tensor([2, 2, 0]), origin="web")
    assert data.ids.tolist() == [0, 1, 2]
    assert data.targets.tolist() == [1, 1, 2]
    assert torch.equal(data.inputs, INPUTS[[2, 2, 0]])
    assert data.origin == "web"


@pytest.mark.usefixtures("streams_untouched")
def test_loader_shuffles_by_its_generator():
    data = TensorSet(torch.zeros(103, 1), torch.zeros(103, dtype=torch.int64))

    def epochs() -> list[list[int]]:
        loader = data.loader(10, generator=torch.Generator().manual_seed(3))
        return [[i for batch in loader for i in batch.ids.tolist()] for _ in range(2)]

    first, second = epochs()
    assert (first, second) == tuple(epochs())
    assert first != second
    assert len(first) == len(set(first)) == 100
    assert first != sorted(first)


@pytest.mark.usefixtures("streams_untouched")
def test_loader_in_order_keeps_the_last_batch_on_request():
    batches = list(make().loader(3, shuffle=False, drop_last=False))
    assert [b.ids.tolist() for b in batches] == [[0, 1, 2], [3]]
    assert len(make().loader(3, shuffle=False)) == 1
    assert isinstance(batches[0], Candidates)
    assert type(batches[0].batch) is tuple
    assert batches[0].batch[0].shape == (3, 2)


def test_loader_fetches_a_batch_at_once(monkeypatch: pytest.MonkeyPatch):
    asked: list[int] = []
    fetch = TensorSet.fetch
    monkeypatch.setattr(
        TensorSet, "fetch", lambda self, at: asked.append(at.numel()) or fetch(self, at)
    )
    list(make().loader(2))
    assert asked == [2, 2]


def test_torchs_own_collation_keeps_ids():
    batch = next(iter(DataLoader(make(), batch_size=3)))
    assert isinstance(batch, Candidates)
    assert batch.ids.dtype == torch.int64
    assert batch.ids.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("inputs", "targets", "options", "message"),
    [
        (INPUTS[:0], TARGETS[:0], {}, "the data set is empty"),
        (INPUTS[:3], TARGETS, {}, r"same N; got \(3, 2\), \(4,\) and \(4,\)"),
        (INPUTS, TARGETS, {"ids": torch.arange(3)}, r"same N; got .* and \(3,\)"),
        (INPUTS, TARGETS.float(), {}, r"targets must be \[N\] int64.*float32"),
        (INPUTS, TARGETS[:, None], {}, r"targets must be \[N\] int64.*\(4, 1\)"),
        (INPUTS, TARGETS, {"num_classes": 2}, r"must lie in \[0, 2\); got 0 to 2"),
        (INPUTS, TARGETS - 1, {}, r"must lie in \[0, 2\); got -1 to 1"),
        (INPUTS, TARGETS, {"ids": torch.arange(4.0)}, "ids must be int64; got torch.float32"),
        (INPUTS, TARGETS, {"ids": torch.arange(4) - 1}, "not be negative; got -1"),
        (INPUTS, TARGETS, {"ids": torch.tensor([5, 3, 5, 3])}, "more than once: 3, 5"),
    ],
)
def test_data_that_cannot_be_a_set(inputs: Tensor, targets: Tensor, options, message: str):
    with pytest.raises(DataError, match=message):
        TensorSet(inputs, targets, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"std": 0.0}, r"std must be a number in \(0.0, inf\], got 0.0"),
        ({"classes": ("a", "b")}, "2 names for 3 classes"),
    ],
)
def test_settings_that_cannot_work(options, message: str):
    with pytest.raises(ConfigurationError, match=message):
        make(**options)


def test_standardising_token_ids_is_refused():
    with pytest.raises(ConfigurationError, match=r"torch.int64 are handed over as they are"):
        TensorSet(torch.tensor([[1]]), torch.tensor([0]), mean=0.5)


@pytest.mark.parametrize(
    ("positions", "message"),
    [
        (torch.tensor([True, False, True, True]), "A mask"),
        (torch.tensor([[0, 1]]), r"\[M\] int64; got torch.int64 of shape \(1, 2\)"),
        (torch.tensor([0, 4]), r"lie in \[0, 4\); got 0 to 4. Ids instead of positions"),
        (torch.tensor([-1, 0]), r"lie in \[0, 4\); got -1 to 0"),
    ],
)
def test_positions_that_are_none(positions: Tensor, message: str):
    data = make()
    for take in (data.fetch, data.subset, data.resampled):
        with pytest.raises(DataError, match=message):
            take(positions)


def test_a_subset_repeats_no_row_and_is_not_empty():
    with pytest.raises(DataError, match=r"1 of 3 positions repeat .* Use resampled\(\)"):
        make().subset(torch.tensor([0, 1, 0]))
    with pytest.raises(DataError, match="the data set is empty"):
        make().subset(torch.tensor([], dtype=torch.int64))


def test_a_loader_without_batches_is_refused():
    with pytest.raises(ConfigurationError, match="batch_size=5 of 4 examples with drop_last=True"):
        make().loader(5)
    with pytest.raises(ConfigurationError, match="batch_size must be a whole number"):
        make().loader(0)
    assert len(make().loader(5, drop_last=False)) == 1


def test_without_a_generator_torchs_seed_decides():
    data = TensorSet(torch.zeros(50, 1), torch.zeros(50, dtype=torch.int64))
    orders = []
    with torch.random.fork_rng(devices=[]):
        for seed in (random.Random(0).randrange(99), 5, 5):
            torch.manual_seed(seed)
            orders.append(next(iter(data.loader(50))).ids.tolist())
    assert orders[1] == orders[2] != orders[0]
