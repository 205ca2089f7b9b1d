"""The tally: shares of what was chosen are totals over totals, and survive a resume."""

import pytest
import torch

from reducible.lab.counts import ChosenCounts
from reducible.types import ReducibleError


def _add(tally, ids, targets, correct, corrupted):
    tally.add(
        torch.tensor(ids),
        torch.tensor(targets),
        torch.tensor(correct, dtype=torch.bool),
        None if corrupted is None else torch.tensor(corrupted, dtype=torch.bool),
    )


def test_tally_by_hand(tmp_path):
    tally = ChosenCounts(num_classes=3)
    _add(tally, [7, 2**53 + 1], [0, 2], [1, 0], [0, 0])
    _add(tally, [7, 4], [0, 0], [1, 1], [1, 0])
    _add(tally, [7], [0], [0], [0])
    assert tally.take() == {
        "chosen": 5,
        "corrupted": 1,
        "corrupted_share": 1 / 5,
        "already_correct": 3,
        "already_correct_share": 3 / 5,
        "by_class": [4, 0, 1],
        "distinct_ids": 3,
        "max_repeats": 3,
    }
    _add(tally, [2**53, 4], [1, 1], [0, 0], [1, 1])
    taken = tally.take()
    assert taken["chosen"] == taken["corrupted"] == 2
    assert taken["by_class"] == [0, 2, 0]
    assert (taken["distinct_ids"], taken["max_repeats"]) == (4, 3)
    whole = tally.overall()
    assert whole["corrupted_share"] == 3 / 7
    assert whole["already_correct_share"] == 3 / 7
    assert whole["by_class"] == [4, 2, 1]


def test_steps_without_corrupted_points_count():
    tally = ChosenCounts(num_classes=1)
    for step in range(100):
        _add(tally, [step] * 10, [0] * 10, [0] * 10, [step < 28] + [0] * 9)
    assert tally.take()["corrupted_share"] == 28 / 1000  # not 0.1, the mean over steps with any


def test_what_nobody_knows_is_none():
    tally = ChosenCounts(num_classes=2)
    assert tally.take()["corrupted_share"] is None
    assert tally.take()["max_repeats"] == 0
    tally.add(torch.tensor([1, 2]), torch.tensor([0, 1]))
    taken = tally.take()
    assert (taken["chosen"], taken["corrupted_share"], taken["already_correct_share"]) == (
        2,
        None,
        None,
    )
    _add(tally, [1, 2], [0, 1], [1, 1], None)
    _add(tally, [1, 2], [0, 1], [1, 1], [1, 0])
    assert tally.take()["corrupted_share"] == 0.5


@pytest.mark.parametrize("count_every", [1, 3, 1024])
def test_tally_saved_and_loaded_equals_never_stopped(tmp_path, count_every):
    whole, first = (ChosenCounts(5, count_every=count_every) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    steps = [
        (
            torch.randint(20, (6,), generator=generator),
            torch.randint(5, (6,), generator=generator),
            torch.rand(6, generator=generator) < 0.5,
            torch.rand(6, generator=generator) < 0.2,
        )
        for _ in range(10)
    ]
    for step in steps[:4]:
        whole.add(*step)
        first.add(*step)
    whole.take()
    first.take()
    for step in steps[4:7]:
        whole.add(*step)
        first.add(*step)
    torch.save(first.state_dict(), tmp_path / "tally.pt")
    second = ChosenCounts(5, count_every=count_every)
    second.add(*steps[0])  # forgotten by loading
    second.load_state_dict(torch.load(tmp_path / "tally.pt", weights_only=True))
    for step in steps[7:]:
        whole.add(*step)
        second.add(*step)
    ids = torch.cat([step[0] for step in steps]).tolist()
    assert second.overall() == whole.overall()
    assert whole.overall()["max_repeats"] == max(ids.count(i) for i in ids)
    assert whole.overall()["distinct_ids"] == len(set(ids))
    assert second.take() == whole.take()


def test_tally_errors():
    tally = ChosenCounts(num_classes=2)
    with pytest.raises(ReducibleError, match=r"corrupted must have one entry .* \[2\], got \[3\]"):
        tally.add(torch.arange(2), torch.zeros(2).long(), None, torch.zeros(3, dtype=torch.bool))
    with pytest.raises(ReducibleError, match=r"correct must be bool, got torch.float32"):
        tally.add(torch.arange(2), torch.zeros(2).long(), torch.zeros(2))
    with pytest.raises(ReducibleError, match="saved tally counted 3 classes, this one 2"):
        tally.load_state_dict(ChosenCounts(3).state_dict())
    tally.add(torch.arange(2), torch.tensor([0, 2]))
    with pytest.raises(ReducibleError, match="targets run from 0 to 2, the tally has 2 classes"):
        tally.take()
