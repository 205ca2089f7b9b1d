"""Fitting irreducible losses: which checkpoint is kept, and going on with a saved model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Subset, TensorDataset

import reducible as rd
from fitting_toys import QUIET, Slides, Spy, cut_sets, making, sgd_at, slide_sets
from reducible.stores import fingerprint
from reducible.tasks import Outputs, Task

# -- rows that tell checkpoints apart --------------------------------------------------------------


def test_checkpoints_are_told_apart_by_a_few_rows_and_the_kept_one_scores_all() -> None:
    models: list[Spy] = []
    holdout, train = cut_sets()
    store = rd.fit_irreducible_loss(
        making(models), holdout, train, epochs=3, check_rows=7, seed=4, **QUIET
    )
    (model,) = models
    checks, last = model.scored[:-40], model.scored[-40:]
    few = sorted(set(checks))
    assert len(few) == 7
    assert checks == few * 3
    assert last == list(range(20, 60))
    assert store.ids.tolist() == list(range(20, 60))
    assert store.header["check_rows"] == 7
    kept = rd.fit_irreducible_loss(
        making(models), holdout, train, epochs=3, check_rows=None, seed=4, **QUIET
    )
    assert sorted(models[1].scored) == sorted([*range(20, 60)] * 3)
    by_all, by_few = (s.header["mean_losses"][0] for s in (kept, store))
    assert by_all != by_few
    if by_all.index(min(by_all)) == by_few.index(min(by_few)):
        assert torch.equal(store.values, kept.values)  # the same updates, the same checkpoint


def test_the_checkpoint_kept_is_that_of_the_lowest_loss_on_the_few() -> None:
    """b walks to 0.5, past and back: what the few say decides, what all say does not."""
    holdout, train = slide_sets()
    store = rd.fit_irreducible_loss(
        Slides, holdout, train, epochs=5, check_rows=3, make_optimizer=sgd_at(0.5), **QUIET
    )
    curve = store.header["mean_losses"][0]
    assert len(curve) == 5
    assert store.header["kept_epoch"] == [1.0 + curve.index(min(curve))]
    assert len(store) == 40


def test_one_row_may_have_several_labels() -> None:
    class Several(Task):
        def targets(self, batch: Any) -> Tensor:
            return batch[1]

        def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Any:
            return Outputs(model(batch[0]), None)

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            every = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
            return every.mean(dim=1)

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=g), torch.randint(2, (30, 3), generator=g)
    data = rd.WithIds(TensorDataset(x, y))
    model = nn.Linear(4, 3)
    store = rd.fit_irreducible_loss(
        lambda: model, Subset(data, range(10)), Subset(data, range(10, 30)),
        task=Several(), epochs=2, **QUIET,
    )  # fmt: skip
    ids = torch.arange(10, 30)
    assert store.fingerprint == fingerprint(ids, y[10:])
    updates = 2 * 1
    assert store.header["updates"] == updates
    assert store.values.shape == (20,)


# -- going on -------------------------------------------------------------------------------------


def test_a_saved_model_goes_on_where_it_was(tmp_path: Path) -> None:
    holdout, train = cut_sets()
    path = tmp_path / "il.safetensors"
    first = rd.fit_irreducible_loss(Spy, holdout, train, epochs=3, save_model=path, **QUIET)
    for source in (path, str(path), load_file(path)):
        again = rd.fit_irreducible_loss(Spy, holdout, train, epochs=0, start_from=source, **QUIET)
        assert torch.equal(again.values, first.values)
        assert again.header["kept_epoch"] == [0.0]
    further = rd.fit_irreducible_loss(Spy, holdout, train, epochs=2, start_from=path, **QUIET)
    curve = further.header["mean_losses"][0]
    assert len(curve) == 3
    assert curve[0] == pytest.approx(min(first.header["mean_losses"][0]), abs=1e-6)


def test_a_start_that_only_gets_worse_is_kept() -> None:
    holdout, train = slide_sets()
    store = rd.fit_irreducible_loss(
        Slides, holdout, train, epochs=3, start_from={"b": torch.zeros(1)},
        make_optimizer=sgd_at(0.5), **QUIET,
    )  # fmt: skip
    assert store.header["kept_epoch"] == [0.0]
    assert store.values.tolist() == pytest.approx([math.log(2)] * 40)


def test_progress_is_shown_in_the_bar_given() -> None:
    holdout, train = cut_sets()
    bar = Progress(disable=True)
    rd.fit_irreducible_loss(Spy, holdout, train, epochs=2, batch_size=5, progress=bar)
    (task,) = bar.tasks
    assert task.total == task.completed == 8
    rd.cross_fit_irreducible_loss(Spy, train, folds=2, epochs=2, batch_size=5, progress=bar)
    assert bar.tasks[1].total == bar.tasks[1].completed == 16
