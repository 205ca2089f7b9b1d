"""What a recipe's rule is given: stores, what they were made of, and whose they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import reducible as rd
from reducible.fitting.irreducible import assign_folds
from reducible.lab.models import MODELS
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, write_json
from reducible.lab.setup import irreducible_store
from reducible.lab.splits import Splits, make_splits
from reducible.stores import fingerprint
from setup_toys import STEPS, fitted_store, options_of, picked_ids, summary_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("read_once")

# -- stores ---------------------------------------------------------------------------------------


def test_nothing_is_fitted_for_a_rule_that_reads_nothing(tmp_path: Path) -> None:
    recipe = tiny_recipe("train_loss")
    splits, ledger = make_splits(recipe, 3), rd.Ledger()
    assert irreducible_store(recipe, splits, 3, tmp_path, ledger=ledger, progress=False) is None
    assert ledger.total == 0
    assert list(tmp_path.iterdir()) == []
    assert options_of(recipe, splits, tmp_path)[0] == {}


def test_a_store_from_the_holdout(tmp_path: Path) -> None:
    splits, store = fitted_store(tiny_recipe(), tmp_path)
    assert store.header["method"] == "holdout"
    assert store.header["holdout_examples"] == 200
    assert store.ids.tolist() == sorted(splits.train.ids.tolist())
    store.check_data(splits.train.ids, splits.train.targets)
    assert [p.name for p in tmp_path.iterdir()] == ["irreducible_loss.safetensors"]


def test_a_store_that_is_there_is_taken_and_charged(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    splits, first = fitted_store(recipe, tmp_path)
    ledger = rd.Ledger()
    again = irreducible_store(recipe, splits, 3, tmp_path, ledger=ledger, progress=False)
    assert again is not None
    assert torch.equal(again.values, first.values)
    assert ledger.seconds["irreducible_loss"] == first.header["seconds"]
    assert ledger.counts.flops_irreducible_loss == first.header["flops"]


@pytest.mark.parametrize("train_on", ["train", "train+holdout"])
def test_no_copy_of_an_image_is_scored_by_a_model_that_trained_on_it(
    train_on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(
        irreducible_from="cross-fit", noise="web-like", label_noise=0.3, train_on=train_on,
        selector="uniform", plan="filter",
    )  # fmt: skip
    trained: list[set[bytes]] = []
    scored: list[set[bytes]] = []
    make = MODELS["mlp-64"]

    class Watched(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = make()
            trained.append(set())
            scored.append(set())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            seen = trained if self.training else scored
            seen[-1].update(row.numpy().tobytes() for row in x)
            return self.net(x)

    monkeypatch.setattr(
        "reducible.lab.recipe.Recipe.models", {**recipe.models, "mlp-64": Watched}, raising=False
    )
    splits, store = fitted_store(recipe, tmp_path)
    assert splits.copies is not None
    assert splits.copies.unique().numel() < len(splits.train)
    assert [len(t & s) for t, s in zip(trained, scored, strict=True)] == [0, 0]  # exactly 0 %
    assert len(trained) == 2
    images = {
        row.numpy().tobytes() for row in splits.train[torch.arange(len(splits.train))].batch[0]
    }
    assert scored[0] | scored[1] == images
    assert store.header["kept_together"] == splits.copies[splits.train.ids].unique().numel()


def test_a_store_by_cross_fitting_needs_no_holdout(tmp_path: Path) -> None:
    recipe = tiny_recipe(irreducible_from="cross-fit", holdout_examples=0)
    summary = summary_of(recipe, tmp_path / "run")
    store = rd.IrreducibleLossStore.load(tmp_path / "run" / "irreducible_loss.safetensors")
    assert (store.header["method"], store.header["folds"]) == ("cross-fit", 2)
    assert len(store) == 400
    assert summary["seconds"]["irreducible_loss"] > 0
    # each fold is scored by a model of its own: their losses are of two fits
    assert len(store.header["kept_epoch"]) == 2
    assert assign_folds(400, 2, seed=3).bincount().tolist() == [200, 200]


@pytest.mark.parametrize(
    ("kind", "method"),
    [("models", "a model per group"), ("shared", "shared network with adapters")],
)
def test_a_store_per_group(kind: str, method: str, tmp_path: Path) -> None:
    recipe = tiny_recipe("reducr", group_irreducible=kind, hyperparameters={"gamma": 4.0})
    summary = summary_of(recipe, tmp_path / "run")
    store = rd.IrreducibleLossStore.load(tmp_path / "run" / "irreducible_loss.safetensors")
    assert store.groups == 10
    assert (store.header["method"], store.header["gamma"]) == (method, 4.0)
    assert summary["examples_scored"] == STEPS * 40
    assert len(picked_ids(tmp_path / "run")) == STEPS


def test_the_group_holdout_is_all_of_the_holdout_in_order(tmp_path: Path) -> None:
    recipe = tiny_recipe("reducr")
    splits = make_splits(recipe, 3)
    options, _ = options_of(recipe, splits, tmp_path)
    assert splits.holdout is not None
    ids = torch.cat([ids for ids, _ in options["group_holdout"]])
    assert torch.equal(ids, splits.holdout.ids)


# -- whose store it is -----------------------------------------------------------------------------


def _again(recipe: Recipe, splits: Splits, out: Path) -> Any:
    return irreducible_store(recipe, splits, 3, out, ledger=rd.Ledger(), progress=False)


def test_the_config_of_a_run_names_its_store(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    write_json(tmp_path / "config.json", {"seed": 3}, sealed=True)
    splits, store = fitted_store(recipe, tmp_path)
    named = read_json(tmp_path / "config.json", sealed=True)
    assert named == {"seed": 3, "irreducible_loss": store.checksum}
    assert torch.equal(_again(recipe, splits, tmp_path).values, store.values)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["no fingerprint", "other values", "other data"])
def test_a_store_from_elsewhere_is_refused(kind: str, named: bool, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    if named:
        write_json(tmp_path / "config.json", {"seed": 3}, sealed=True)
    splits, own = fitted_store(recipe, tmp_path)
    values, mark = own.values + 0.5, own.fingerprint
    if kind == "no fingerprint":
        values, mark = own.values, ""
    if kind == "other data":
        mark = fingerprint(own.ids + 1)
    other = rd.IrreducibleLossStore.from_tensor(
        values, ids=own.ids, fingerprint=mark, header=own.header
    )
    other.save(tmp_path / "irreducible_loss.safetensors")
    if kind == "other values" and not named:
        assert torch.equal(_again(recipe, splits, tmp_path).values, values)  # nobody can tell
        return
    message = "was not fitted by this run" if named or not mark else "other examples"
    with pytest.raises(rd.StoreError, match=message):
        _again(recipe, splits, tmp_path)


def test_a_store_that_no_config_names_is_refused(tmp_path: Path) -> None:
    recipe = tiny_recipe()
    splits, _ = fitted_store(recipe, tmp_path)
    write_json(tmp_path / "config.json", {"seed": 3}, sealed=True)
    with pytest.raises(rd.StoreError, match=r"the run names none; .* delete it and resume"):
        _again(recipe, splits, tmp_path)
