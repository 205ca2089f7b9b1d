"""Runs and their folders: the same twice, refused where one lies; recipes and summaries."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.lab.evaluation import evaluate
from reducible.lab.recipe import Recipe
from reducible.lab.recipes import RECIPES, recipe
from reducible.lab.records import read_json, read_picks
from reducible.lab.run import Run, refuse_used_folder
from reducible.lab.splits import make_splits
from reducible.lab.training import final_accuracy, with_target
from reducible.ledger import PHASES
from run_toys import DEMO, STEPS, contents_of, short_recipe, short_run

# -- one run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEMO)
def test_the_folder_holds_what_it_should(name: str, finished_demos: Any) -> None:
    out, summary = finished_demos[name]
    files = {p.name for p in out.iterdir()}
    store = {"irreducible_loss.safetensors"} if name == "demo/rho" else set()
    written = {"config.json", "metrics.jsonl", "picks.arrow", "summary.json", "model.safetensors"}
    assert files == written | store
    assert read_json(out / "summary.json") == summary
    config = read_json(out / "config.json")
    assert (config["recipe"], config["seed"], config["steps"]) == (name, 1, STEPS)
    assert Recipe.from_settings(config["settings"]) == short_recipe(name)


@pytest.mark.parametrize("name", DEMO)
def test_the_summary_says_what_is_promised(name: str, finished_demos: Any) -> None:
    _, summary = finished_demos[name]
    assert set(summary) >= {
        "steps_to_target", "seconds_to_target", "final_accuracy", "seconds", "examples_scored",
        "examples_trained", "corrupted_share", "already_correct_share", "curve",
    }  # fmt: skip
    assert set(summary["seconds"]) == {*PHASES, "total"}
    assert summary["examples_trained"] == STEPS * 32
    assert summary["examples_scored"] == (STEPS * 320 if name == "demo/rho" else 0)
    seconds = summary["seconds"]
    assert (seconds["irreducible_loss"] > 0) == (name == "demo/rho")
    assert seconds["total"] == pytest.approx(sum(seconds[p] for p in PHASES))
    assert all(seconds[p] > 0 for p in ("load", "pick", "train", "evaluate"))
    assert 0 <= summary["corrupted_share"] <= 1
    assert 0 <= summary["already_correct_share"] <= 1
    assert [point[0] for point in summary["curve"]] == [10, 20, 30]
    accuracies = [point[2] for point in summary["curve"]]
    assert summary["final_accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert accuracies[-1] > 0.3  # it learnt something
    times = [point[1] for point in summary["curve"]]
    assert times == sorted(times)
    assert times[-1] <= seconds["total"] - seconds["evaluate"] + 1e-9


def test_uniform_picks_wrong_labels_as_often_as_there_are(finished_demos: Any) -> None:
    _, summary = finished_demos["demo/uniform"]
    # 960 picks, of which 10 % are wrong: five standard errors
    assert abs(summary["corrupted_share"] - 0.1) < 5 * math.sqrt(0.09 / 960)


@pytest.mark.parametrize("name", DEMO)
def test_picks_are_logged_for_every_step_from_the_train_set(name: str, finished_demos: Any) -> None:
    out, summary = finished_demos[name]
    picks = read_picks(out / "picks.arrow").to_pydict()
    assert picks["step"] == list(range(STEPS))
    splits = make_splits(short_recipe(name), 1)
    known = set(splits.train.ids.tolist())
    corrupted = 0
    for ids in picks["ids"]:
        assert len(set(ids)) == 32
        assert set(ids) <= known
        corrupted += int(splits.corrupted[torch.tensor(ids)].sum())
    assert summary["corrupted_share"] == pytest.approx(corrupted / (STEPS * 32))


@pytest.mark.parametrize("name", DEMO)
def test_the_same_seed_gives_the_same_bytes(name: str, finished_demos: Any, tmp_path: Path) -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    short_run(name, tmp_path / "again").start()
    assert torch.equal(torch.get_rng_state(), before)
    assert contents_of(tmp_path / "again") == contents_of(finished_demos[name][0])


def test_another_seed_gives_others(finished_demos: Any, tmp_path: Path) -> None:
    Run(short_recipe("demo/uniform"), tmp_path / "other", seed=2, progress=False).start()
    mine, other = contents_of(finished_demos["demo/uniform"][0]), contents_of(tmp_path / "other")
    assert mine["picks"] != other["picks"]
    assert mine["model"] != other["model"]


def test_both_rules_begin_from_the_same_data_and_see_the_same_candidates(
    finished_demos: Any,
) -> None:
    """Runs are paired: one seed, one split, one noise, one order of candidates."""
    splits = [make_splits(short_recipe(name), 1) for name in DEMO]
    assert torch.equal(splits[0].train.ids, splits[1].train.ids)
    assert torch.equal(splits[0].train.targets, splits[1].train.targets)
    picks = [read_picks(finished_demos[n][0] / "picks.arrow").to_pydict()["ids"] for n in DEMO]
    # six candidate batches of 320 are an epoch, in which no id can be picked twice
    for ids in picks:
        first = [i for row in ids[:6] for i in row]
        assert len(set(first)) == len(first)


def test_max_steps_stops_earlier(tmp_path: Path) -> None:
    run = Run(short_recipe("demo/uniform"), tmp_path, seed=1, max_steps=12, progress=False)
    assert [point[0] for point in run.start()["curve"]] == [10, 12]


# -- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["config.json", "metrics.jsonl", "summary.json"])
def test_a_folder_that_holds_a_run_is_refused_and_not_touched(held: str, tmp_path: Path) -> None:
    (tmp_path / held).write_text("precious")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        rd.ConfigurationError, match=rf"holds a run already \({held}\); nothing was"
    ):
        short_run("demo/uniform", tmp_path).start()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        held: "precious",
        "notes.txt": "mine",
    }


def test_a_finished_run_is_refused(finished_demos: Any) -> None:
    out, _ = finished_demos["demo/uniform"]
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(rd.ConfigurationError, match="holds a run already"):
        short_run("demo/uniform", out).start()
    assert {p.name: p.read_bytes() for p in out.iterdir()} == before


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")
    with pytest.raises(rd.ConfigurationError, match="is a file; name a folder"):
        refuse_used_folder(path)
    refuse_used_folder(tmp_path / "new")
    refuse_used_folder(tmp_path)


# -- recipes --------------------------------------------------------------------------------------


def test_settings_are_read_as_their_type() -> None:
    changed = recipe("demo/rho").with_settings(
        {"steps": "7", "learning_rate": "1e-4", "label_noise": "0", "model": "mlp-64"}
    )
    assert (changed.steps, changed.learning_rate, changed.model) == (7, 1e-4, "mlp-64")
    assert isinstance(changed.label_noise, float)
    assert changed == replace(
        recipe("demo/rho"), steps=7, learning_rate=1e-4, label_noise=0.0, model="mlp-64"
    )
    bound = {"selector": "grad_norm", "hyperparameters": '{"bound": "last_layer"}'}
    assert recipe("demo/uniform").with_settings(bound).hyperparameters == {"bound": "last_layer"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": "7"}, "a recipe has no setting 'stepz'. It has: selector"),
        ({"name": "mine"}, "a recipe has no setting 'name'"),
        ({"steps": "7.5"}, "steps='7.5' is no int; it is 3000 by default"),
        ({"steps": "many"}, "steps='many' is no int"),
        ({"steps": "true"}, "steps='true' is no int"),
        ({"learning_rate": "fast"}, "learning_rate='fast' is no float"),
        ({"hyperparameters": "[1]"}, "hyperparameters="),
        ({"steps": "0"}, r"steps must be a whole number in \[1"),
        ({"n_b": "400"}, r"n_b must be a whole number in \[1, 320\]"),
        ({"n_candidates": "30000"}, r"n_candidates must be a whole number in \[1, 20000\]"),
        ({"label_noise": "1.5"}, "label_noise must be a number in"),
        ({"label_noise": "NaN"}, "label_noise must be a number in"),
        ({"learning_rate": "0"}, "learning_rate must be a number in"),
        ({"model": "mlp-9"}, "model must be one of"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"batchnorm": "mine"}, "batchnorm must be one of"),
        ({"selector": "roh"}, "Did you mean 'rho'"),
        ({"hyperparameters": '{"beta": 1}'}, "has no hyperparameter 'beta'"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, str], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        recipe("demo/rho").with_settings(settings)


def test_recipes_by_name() -> None:
    assert {"demo/uniform", "demo/rho"} <= set(RECIPES)
    assert all(name == made.name for name, made in RECIPES.items())
    with pytest.raises(
        rd.ConfigurationError, match=r"no recipe 'demo/roh'\. Did you mean 'demo/rho'"
    ):
        recipe("demo/roh")


def test_more_data_than_there_is() -> None:
    with pytest.raises(rd.ConfigurationError, match="want 1000500 examples, the data set has"):
        make_splits(short_recipe("demo/uniform", train_examples="1000000"), 0)


def test_splits_are_disjoint_noisy_where_asked_and_by_seed() -> None:
    splits = make_splits(short_recipe("demo/rho"), 1)
    assert splits.holdout is not None
    train, holdout = splits.train.ids, splits.holdout.ids
    assert not set(train.tolist()) & set(holdout.tolist())
    clean = make_splits(short_recipe("demo/rho", label_noise="0"), 1)
    assert torch.equal(clean.train.ids, train)
    changed = splits.train.targets != clean.train.targets
    assert torch.equal(changed, splits.corrupted[train])
    assert int(changed.sum()) == 200  # flipped to another class, so all of the 10 % are wrong
    assert int(splits.corrupted.sum()) == 200
    assert not torch.equal(make_splits(short_recipe("demo/rho"), 2).train.ids, train)


# -- what summaries are made of -------------------------------------------------------------------


def test_final_accuracy_is_the_mean_of_the_last_five() -> None:
    curve = [[i, 0.0, float(i)] for i in range(1, 9)]
    assert final_accuracy(curve) == (4 + 5 + 6 + 7 + 8) / 5
    assert final_accuracy(curve[:2]) == 1.5


def test_a_target_is_read_off_the_curve() -> None:
    curve = [[10, 1.0, 0.5], [20, 2.0, 0.7], [30, 3.0, 0.9]]
    assert with_target({"curve": curve}, 0.7)["steps_to_target"] == 30
    assert with_target({"curve": curve}, 0.7)["seconds_to_target"] == 3.0
    assert with_target({"curve": curve}, 0.71)["steps_to_target"] is None


def test_evaluation_by_hand() -> None:
    x = torch.tensor([[2.0, 0.0, 0.0], [0.0, 2.0, 0.0], [2.0, 0.0, 0.0]])
    data = TensorSet(x, torch.tensor([0, 1, 2]))
    model = nn.Sequential(nn.Dropout(0.9)).train()
    found = evaluate(model, data)
    assert found.accuracy == pytest.approx(2 / 3)
    assert found.by_class == [1.0, 1.0, 0.0]
    assert found.loss == pytest.approx((0.239545 * 2 + 2.239545) / 3, abs=1e-5)
    assert model.training


def test_what_a_model_makes_while_it_is_evaluated_can_be_trained() -> None:
    class Scaled(nn.Sequential):
        table: torch.Tensor | None = None

        def forward(self, input: torch.Tensor) -> torch.Tensor:
            hidden = super().forward(input)
            self.table = torch.ones(3) if self.table is None else self.table
            return hidden * self.table

    model = Scaled(nn.LazyLinear(3))
    evaluate(model, TensorSet(torch.randn(4, 3), torch.tensor([0, 1, 2, 0])))
    x = torch.ones(2, 3)
    model(x).sum().backward()
    layer = model[0]
    assert isinstance(layer, nn.Linear)
    assert layer.weight.grad is not None
    assert layer.weight.grad.tolist() == [[2.0] * 3] * 3


def test_summaries_are_json(finished_demos: Any) -> None:
    for out, _ in finished_demos.values():
        assert "NaN" not in (out / "summary.json").read_text()
        for line in (out / "metrics.jsonl").read_text().splitlines():
            json.loads(line)
