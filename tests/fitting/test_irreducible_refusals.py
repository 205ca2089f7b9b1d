"""Fitting irreducible losses: sets, options and models that cannot work."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import reducible as rd
from fitting_toys import QUIET, Numbered, Spy, cut_sets, sgd_at


def test_holdout_and_train_set_must_not_overlap() -> None:
    data = Numbered()
    everything = rd.WithIds(data)
    with pytest.raises(rd.DataError, match="share 10 examples of one data set, ids 20, 21"):
        rd.fit_irreducible_loss(
            Spy, Subset(everything, range(30)), rd.WithIds(Subset(data, range(20, 60))), **QUIET
        )


@pytest.mark.parametrize("which", ["holdout", "train"])
def test_an_empty_set(which: str) -> None:
    holdout, train = cut_sets()
    empty = Subset(rd.WithIds(Numbered()), [])
    sets = {"holdout": holdout, "train": train} | {which: empty}
    with pytest.raises(rd.DataError, match=f"the {which} set is empty"):
        rd.fit_irreducible_loss(Spy, sets["holdout"], sets["train"], **QUIET)
    with pytest.raises(rd.DataError, match="the train set is empty"):
        rd.cross_fit_irreducible_loss(Spy, empty, **QUIET)


@pytest.mark.parametrize("which", ["holdout", "train"])
def test_a_data_set_without_ids(which: str) -> None:
    holdout, train = cut_sets()
    sets = {"holdout": holdout, "train": train} | {which: Numbered()}
    with pytest.raises(rd.DataError, match=r"WithIds\("):
        rd.fit_irreducible_loss(Spy, sets["holdout"], sets["train"], epochs=1, **QUIET)
    with pytest.raises(rd.DataError, match=r"WithIds\("):
        rd.cross_fit_irreducible_loss(Spy, Numbered(), epochs=1, **QUIET)


def test_a_data_set_may_yield_candidates_itself() -> None:
    class Own(Numbered):
        def __getitem__(self, index: int) -> Any:
            return rd.Candidates(torch.tensor(500 + index), super().__getitem__(index))

    store = rd.cross_fit_irreducible_loss(Spy, Own(), epochs=1, **QUIET)
    assert store.ids.tolist() == list(range(500, 560))


@pytest.mark.parametrize("folds", [0, 1, 61, 2.5])
def test_folds_out_of_range(folds: Any) -> None:
    with pytest.raises(rd.ConfigurationError, match=r"folds must be a whole number in \[2, 60\]"):
        rd.cross_fit_irreducible_loss(Spy, rd.WithIds(Numbered()), folds=folds, **QUIET)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epoch": 3}, r"no such options of fitting: \['epoch'\]"),
        ({"epochs": -1}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"checks_per_epoch": 0}, "checks_per_epoch must be"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
    ],
)
def test_options_that_cannot_work(option: dict[str, Any], message: str) -> None:
    holdout, train = cut_sets()
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.fit_irreducible_loss(Spy, holdout, train, **option, **QUIET)


@pytest.mark.parametrize("option", ["start_from", "save_model"])
def test_cross_fitting_has_no_single_model(option: str) -> None:
    given: dict[str, Any] = {option: "il.safetensors"}
    with pytest.raises(rd.ConfigurationError, match=f"{option} is of one model"):
        rd.cross_fit_irreducible_loss(Spy, rd.WithIds(Numbered()), **given, **QUIET)


def test_a_fit_that_diverges_is_said() -> None:
    holdout, train = cut_sets()
    with pytest.raises(rd.StoreError, match=r"no checkpoint .* has a finite loss .*diverged"):
        rd.fit_irreducible_loss(
            Spy, holdout, train, epochs=2, make_optimizer=sgd_at(math.inf), **QUIET
        )


def test_inputs_that_are_not_numbers_are_said() -> None:
    data = Numbered()
    data.x[30, 2] = math.nan
    with pytest.raises(rd.StoreError, match="check the inputs for NaN"):
        rd.fit_irreducible_loss(Spy, *cut_sets(data), epochs=1, **QUIET)


class CachesAScale(nn.Module):
    """Makes a table and its last layer in its first forward, which may be one that scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.LazyLinear(3)
        self.tables: dict[int, Tensor] = {}  # for even and odd batches

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)  # [B, 8]
        table = self.tables.setdefault(len(x) % 2, torch.ones(8))
        return self.last(hidden * table)


@pytest.mark.parametrize("checked_first", [False, True])
def test_a_check_leaves_a_model_that_can_be_trained_on(checked_first: bool) -> None:
    holdout, train = cut_sets(holdout=21)  # updates on 10, 10 and 1 rows, scores of 39
    model, made = CachesAScale(), CachesAScale()
    made(torch.zeros(2, 4))
    start: dict[str, Any] = {"start_from": made.state_dict()} if checked_first else {}
    store = rd.fit_irreducible_loss(
        lambda: model, holdout, train, epochs=2, batch_size=10, checks_per_epoch=2, **start, **QUIET
    )
    assert [len(curve) for curve in store.header["mean_losses"]] == [4 + checked_first]
