"""What a fitted store says: how it was made, of which data, at what cost."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import reducible as rd
from fitting_toys import QUIET, Numbered, Spy, cut_sets, making
from reducible.lab.data import TensorSet
from reducible.plans.floors import learned_noise
from reducible.stores import fingerprint
from reducible.tasks import Outputs, Task


def test_the_header_says_how_it_was_made() -> None:
    holdout, train = cut_sets()
    ledger = rd.Ledger()
    store = rd.fit_irreducible_loss(
        Spy, holdout, train, epochs=2, batch_size=8, seed=3, ledger=ledger, **QUIET
    )
    header = store.header
    assert json.loads(json.dumps(header)) == header
    expected = {
        "method": "holdout",
        "holdout_examples": 20,
        "model": "Spy",
        "checkpoint": "lowest mean loss on the scored set",
        "augmentation": "none in scoring",
        "mode": "eval",
        "epochs": 2,
        "batch_size": 8,
        "seed": 3,
        "updates": 2 * 3,
    }
    assert {k: header[k] for k in expected} == expected
    assert header["seconds"] == ledger.seconds["irreducible_loss"] > 0
    assert header["flops"] == ledger.counts.flops_irreducible_loss > 0
    crossed = rd.cross_fit_irreducible_loss(Spy, train, folds=4, epochs=1, **QUIET).header
    assert (crossed["method"], crossed["folds"], crossed["model"]) == ("cross-fit", 4, "Spy")
    assert len(crossed["kept_epoch"]) == len(crossed["mean_losses"]) == 4


def test_the_fingerprint_is_that_of_the_train_set() -> None:
    data = Numbered()
    holdout, train = cut_sets(data)
    ids = torch.arange(20, 60)
    for store in (
        rd.fit_irreducible_loss(Spy, holdout, train, epochs=1, **QUIET),
        rd.cross_fit_irreducible_loss(Spy, train, epochs=1, **QUIET),
    ):
        assert store.fingerprint == fingerprint(ids, data.targets[20:])
        store.check_data(ids, data.targets[20:])
        with pytest.raises(rd.StoreError, match="other labels"):
            store.check_data(ids, data.targets[20:].flip(0))


def test_the_noise_floor_is_the_median_probability_of_each_class() -> None:
    data, models = Numbered(), list[Spy]()
    holdout, train = cut_sets(data)
    store = rd.fit_irreducible_loss(making(models), holdout, train, epochs=1, **QUIET)
    with torch.no_grad():
        p = models[0].eval()(data.x[20:]).softmax(1)
    assert store.header["noise_floor"] == pytest.approx(p.median(0).values.tolist(), abs=1e-6)


def test_what_plans_need_is_learned_of_the_rows_that_no_model_trained_on() -> None:
    data, models = Numbered(), list[Spy]()
    store = rd.cross_fit_irreducible_loss(making(models), rd.WithIds(data), epochs=1, **QUIET)
    folds = [torch.tensor(sorted(set(model.scored))) for model in models]
    with torch.no_grad():
        p = torch.cat([m.eval()(data.x[f]).softmax(1) for m, f in zip(models, folds, strict=True)])
    learned = learned_noise(p, data.targets[torch.cat(folds)])
    for name, expected in learned._asdict().items():
        assert store.header["learned_noise"][name] == pytest.approx(expected.tolist(), abs=1e-6)


class _Several(Task):
    """Targets of a column each: squared errors, summed over the columns."""

    def targets(self, batch: Any) -> Tensor:
        return batch[1]

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        return Outputs(model(batch[0]), None)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets.view(len(targets), -1)).square().sum(1)


@pytest.mark.parametrize("columns", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_of_targets_that_are_no_classes_no_noise_is_learned(
    columns: int | None, dtype: torch.dtype
) -> None:
    shape = (60,) if columns is None else (60, columns)
    targets = torch.arange(60 * (columns or 1)).view(shape).to(dtype)
    data = TensorDataset(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), targets)
    everything = rd.WithIds(data)
    parts = Subset(everything, range(20)), Subset(everything, range(20, 60))
    store = rd.fit_irreducible_loss(
        lambda: nn.Linear(4, columns or 1), *parts, task=_Several(), epochs=1, **QUIET
    )
    assert "learned_noise" not in store.header
    assert len(store.header["noise_floor"]) == (columns or 1)


def test_only_fitting_is_charged() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    class Slow(Spy):
        def forward(self, x: Tensor) -> Tensor:
            clock.now += 1
            return super().forward(x)

    holdout, train = cut_sets()
    ledger = rd.Ledger(clock=clock)
    for total in (5, 10):  # a second store is charged on top, its own header says its own cost
        store = rd.fit_irreducible_loss(
            Slow, holdout, train, epochs=1, batch_size=5, ledger=ledger, **QUIET
        )
        assert ledger.seconds["irreducible_loss"] == ledger.total == total
        assert store.header["seconds"] == 5  # four updates, one pass over the train set


def test_flops_by_hand() -> None:
    """Linear(4, 2): 2·4·2 = 16 a row forward, as many again for its weight's gradient."""
    x, y = torch.randn(30, 4), torch.arange(30) % 2
    data = TensorSet(x, y)
    holdout, train = data.subset(torch.arange(10)), data.subset(torch.arange(10, 30))
    ledger = rd.Ledger()
    rd.fit_irreducible_loss(
        lambda: nn.Linear(4, 2), holdout, train, epochs=3, batch_size=5, ledger=ledger, **QUIET
    )
    updates = 3 * 2 * (32 * 5)
    scoring = 3 * 16 * 20
    # scoring is estimated as a third of an update's FLOPs a row, here 32/3 and not 16
    assert updates + scoring * 0.6 <= ledger.counts.flops_irreducible_loss <= updates + scoring
