"""Fitting irreducible losses: who is scored by whom, in which mode, by which seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.data import Subset

import reducible as rd
from fitting_toys import QUIET, Numbered, Slides, Spy, cut_sets, making, sgd_at, slide_sets
from reducible.fitting.irreducible import assign_folds
from reducible.lab.data import TensorSet

# -- who is scored by whom ------------------------------------------------------------------------


def test_the_holdout_is_trained_on_and_only_the_train_set_scored() -> None:
    models: list[Spy] = []
    holdout, train = cut_sets()
    store = rd.fit_irreducible_loss(making(models), holdout, train, epochs=2, **QUIET)
    (model,) = models
    assert sorted(model.trained) == sorted([*range(20)] * 2)
    assert sorted(model.scored) == sorted([*range(20, 60)] * 2)  # once per check
    assert store.ids.tolist() == list(range(20, 60))


@pytest.mark.parametrize("folds", [2, 3, 7, 60])
@pytest.mark.parametrize("shape", ["all", "subset outside", "subset inside", "tensors"])
def test_no_example_is_scored_by_a_model_that_trained_on_it(folds: int, shape: str) -> None:
    data = Numbered()
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    train = {
        "all": lambda: rd.WithIds(data),
        "subset outside": lambda: Subset(rd.WithIds(data), shuffled.tolist()),
        "subset inside": lambda: rd.WithIds(Subset(data, shuffled.tolist())),
        "tensors": lambda: TensorSet(data.x[shuffled], data.targets[shuffled], ids=shuffled),
    }[shape]()
    models: list[Spy] = []
    store = rd.cross_fit_irreducible_loss(
        making(models), train, folds=folds, epochs=1, batch_size=59, **QUIET
    )
    assert len(models) == folds
    by_both = [set(m.trained) & set(m.scored) for m in models]
    assert by_both == [set()] * folds  # exactly 0 %
    assert sorted(i for m in models for i in m.scored) == list(range(60))
    assert all(set(m.trained) | set(m.scored) == set(range(60)) for m in models)
    sizes = [len(m.scored) for m in models]
    assert max(sizes) - min(sizes) <= 1
    # and what the store says of an id is what the model that scored it says
    for model in models:
        ids = torch.tensor(sorted(model.scored))
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(data.x[ids]), data.targets[ids], reduction="none")
        torch.testing.assert_close(store.lookup(ids), loss)


@settings(max_examples=50)
@given(n=st.integers(2, 200), seed=st.integers(0, 2**31), data=st.data())
def test_folds_are_even_and_cover_everything(n: int, seed: int, data: st.DataObject) -> None:
    folds = data.draw(st.integers(2, n))
    counts = assign_folds(n, folds, seed=seed).bincount(minlength=folds)
    assert counts.numel() == folds
    assert int(counts.sum()) == n
    assert int(counts.max() - counts.min()) <= 1


def test_folds_are_drawn_by_seed() -> None:
    assert assign_folds(40, 2, seed=0).tolist() != assign_folds(40, 2, seed=1).tolist()
    assert assign_folds(40, 2, seed=0).tolist() != [i % 2 for i in range(40)]


# -- how it scores --------------------------------------------------------------------------------


def test_scores_are_those_of_eval_mode_on_plain_inputs() -> None:
    data, models = Numbered(), list[Spy]()
    holdout, train = cut_sets(data)
    augmented: list[int] = []

    def augment(batch: Any) -> Any:
        x, y = batch
        augmented.extend(x[:, 0].long().tolist())
        return torch.cat([x[:, :1], x[:, 1:] + 50], dim=1), y

    store = rd.fit_irreducible_loss(
        making(models), holdout, train, epochs=1, batch_size=5, augment=augment, **QUIET
    )
    (model,) = models
    assert sorted(augmented) == list(range(20))  # updates only
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(data.x[20:]), data.targets[20:], reduction="none")
    torch.testing.assert_close(store.values, loss)
    mean = model.net[0].running_mean
    assert isinstance(mean, Tensor)
    assert bool((mean > 10).all())  # the augmentation did reach training


def test_the_checkpoint_of_lowest_loss_on_the_train_set_is_kept(tmp_path: Path) -> None:
    """On the way from −2 upwards, b passes the best value; the epochs after it are worse."""
    holdout, train = slide_sets()
    path = tmp_path / "kept.safetensors"
    options: dict[str, Any] = {"make_optimizer": sgd_at(0.2), "batch_size": 8, **QUIET}
    store = rd.fit_irreducible_loss(Slides, holdout, train, epochs=30, save_model=path, **options)
    curve = store.header["mean_losses"][0]
    kept = int(store.header["kept_epoch"][0])
    assert len(curve) == 30
    assert 1 < kept < 30
    assert curve[kept - 1] == min(curve) < curve[-1] - 0.5
    assert store.values.mean().item() == pytest.approx(min(curve), abs=1e-6)
    b = load_file(path)["b"].item()
    expected = [math.log1p(math.exp(-2 * b)), math.log1p(math.exp(2 * b))]
    assert store.values[:2].tolist() == pytest.approx(expected, abs=1e-6)
    # the holdout's own loss falls to the end, so it was not what decided
    assert abs(b) < 0.5


def test_checks_within_an_epoch() -> None:
    models: list[Spy] = []
    holdout, train = cut_sets()
    store = rd.fit_irreducible_loss(
        making(models), holdout, train, epochs=2, batch_size=5, checks_per_epoch=4, **QUIET
    )
    assert len(store.header["mean_losses"][0]) == 8
    assert len(models[0].scored) == 8 * 40
    assert len(models[0].trained) == 2 * 20


def test_label_smoothing_is_of_updates_alone() -> None:
    """With all labels 0, smoothing ε has its optimum at p_0 = 1 − ε/2, not at 1."""
    holdout, train = slide_sets()
    train = train.relabelled(torch.zeros(40).long())
    options: dict[str, Any] = {"make_optimizer": sgd_at(1.0), "batch_size": 8, **QUIET}
    store = rd.fit_irreducible_loss(
        Slides, holdout, train, epochs=200, label_smoothing=0.2, **options
    )
    assert store.values[0].item() == pytest.approx(-math.log(0.9), abs=1e-3)


def test_an_irreducible_loss_model_never_moves_while_the_target_trains() -> None:
    data, models = Numbered(), list[Spy]()
    holdout, train = cut_sets(data)
    store = rd.fit_irreducible_loss(making(models), holdout, train, epochs=2, **QUIET)
    (model,) = models
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen, values = len(model.trained) + len(model.scored), store.values.clone()

    torch.manual_seed(0)
    target = Spy().train()
    moving = {k: v.clone() for k, v in target.state_dict().items()}
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(train, batch_size=20)
    for chosen in rd.SelectingLoader(loader, target, rd.selector("rho"), keep=5, store=store):
        x, y = chosen.batch
        loss = F.cross_entropy(target(x), y, reduction="none")
        optimizer.zero_grad()
        rd.weighted_mean(loss, chosen.weights).backward()
        optimizer.step()
    assert not torch.equal(target.state_dict()["net.0.running_mean"], moving["net.0.running_mean"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(model.trained) + len(model.scored) == seen
    assert torch.equal(store.values, values)


# -- copies ---------------------------------------------------------------------------------------


class Copied(Numbered):
    """Examples 3i, 3i + 1 and 3i + 2 are one input, each with a label of its own."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index // 3], int(self.targets[index])


def test_no_example_is_scored_by_a_model_that_trained_on_its_copy() -> None:
    models: list[Spy] = []
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    train = Subset(rd.WithIds(Copied()), shuffled.tolist())
    store = rd.cross_fit_irreducible_loss(
        making(models), train, folds=3, groups=torch.arange(60) // 3, epochs=1, **QUIET
    )
    assert [set(m.trained) & set(m.scored) for m in models] == [set()] * 3  # exactly 0 %
    assert sorted(i for m in models for i in m.scored) == sorted([*range(20)] * 3)
    assert store.header["kept_together"] == 20
    assert store.ids.tolist() == list(range(60))


def test_copies_in_different_folds_are_named() -> None:
    models: list[Spy] = []
    with pytest.warns(UserWarning, match="have an exact copy in another fold, ids") as caught:
        rd.cross_fit_irreducible_loss(making(models), rd.WithIds(Copied()), epochs=1, **QUIET)
    inputs = [set(m.scored) for m in models]
    fold_of = assign_folds(60, 2, seed=0)
    apart = [i for i in range(60) if (i // 3) in inputs[0] & inputs[1]]
    said = str(caught[0].message)
    assert said.startswith(f"{len(apart)} of 60 examples have")
    assert 0 < len(apart) < 60
    assert all(int(i) in apart for i in said.split("ids ")[1].split(" and")[0].split(", "))
    assert fold_of.sum() == 30


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.arange(59), r"groups of shape \(59,\) .* but there is an id 59.*by_id\[ids\]"),
        (torch.zeros(60), "as whole numbers"),
        (torch.zeros(60, dtype=torch.int64), "2 folds of 1 groups, which stay together"),
    ],
)
def test_groups_that_cannot_be(groups: Tensor, message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.cross_fit_irreducible_loss(Spy, rd.WithIds(Numbered()), groups=groups, **QUIET)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=5, max_size=40),
    folds=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_groups_stay_together_and_folds_even(sizes: list[int], folds: int, seed: int) -> None:
    groups = torch.repeat_interleave(torch.arange(len(sizes)) * 7, torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
    fold_of = assign_folds(len(groups), folds, seed=seed, groups=groups)
    assert all(fold_of[groups == g].unique().numel() == 1 for g in groups.unique())
    counts = torch.bincount(fold_of, minlength=folds)
    assert int(counts.min()) > 0
    assert int(counts.max() - counts.min()) <= max(sizes)
    assert assign_folds(len(groups), folds, seed=seed, groups=groups).equal(fold_of)


def test_groups_of_one_fill_up_what_large_ones_leave() -> None:
    groups = torch.tensor([0] * 10 + [1] * 5 + [*range(2, 12)])
    assert torch.bincount(assign_folds(25, 3, seed=1, groups=groups)).tolist() == [10, 8, 7]
    drawn = [assign_folds(60, 2, seed=s, groups=torch.arange(60)).tolist() for s in (0, 1)]
    assert drawn[0] != drawn[1]


# -- seeds and streams ----------------------------------------------------------------------------


def test_same_seed_same_store_and_streams_left_alone(global_streams: Callable[[], Any]) -> None:
    holdout, train = cut_sets()
    stores = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        streams = global_streams()
        for fit in (
            lambda s=seed: rd.fit_irreducible_loss(Spy, holdout, train, epochs=2, seed=s, **QUIET),
            lambda s=seed: rd.cross_fit_irreducible_loss(Spy, train, epochs=2, seed=s, **QUIET),
        ):
            stores.append(fit().values)
            assert global_streams() == streams
    assert torch.equal(stores[0], stores[2])
    assert torch.equal(stores[1], stores[3])
    assert not torch.equal(stores[0], stores[4])
    assert not torch.equal(stores[1], stores[5])


def test_the_folds_models_start_differently() -> None:
    models: list[Spy] = []
    rd.cross_fit_irreducible_loss(
        making(models), rd.WithIds(Numbered()), epochs=1, make_optimizer=sgd_at(0.0), **QUIET
    )
    assert not torch.equal(models[0].net[1].weight, models[1].net[1].weight)  # pyright: ignore[reportArgumentType]


def test_workers_give_the_same_losses() -> None:
    holdout, train = cut_sets()
    one, two = (
        rd.fit_irreducible_loss(Spy, holdout, train, epochs=1, num_workers=w, **QUIET)
        for w in (0, 1)
    )
    assert torch.equal(one.values, two.values)
