"""Runs and their folders: the same twice, the same after a stop, refused where one lies."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import reducible as rd
from reducible.files import checkpoints
from reducible.lab.data import TensorSet
from reducible.lab.evaluation import evaluate
from reducible.lab.logs import mark_of
from reducible.lab.recipe import Recipe
from reducible.lab.recipes import RECIPES, recipe
from reducible.lab.records import read_json, read_metrics, read_picks
from reducible.lab.run import Run, refuse_used_folder
from reducible.lab.splits import make_splits
from reducible.lab.training import WEIGHTS, final_accuracy, with_target
from reducible.ledger import PHASES
from toys import killed_at

STEPS = 30
SHORT = {
    "train_examples": "2000",
    "holdout_examples": "500",
    "steps": str(STEPS),
    "evaluate_every": "10",
    "irreducible_epochs": "1",
    "model": "mlp-64",
    "irreducible_model": "mlp-64",
}
DEMO = ["demo/uniform", "demo/rho"]


def _recipe(name: str, **settings: str) -> Recipe:
    return recipe(name).with_settings(SHORT | settings)


def _run(name: str, out: Path, *, checkpoint_every: int = 500, **settings: str) -> Run:
    return Run(
        _recipe(name, **settings), out, seed=1, progress=False, checkpoint_every=checkpoint_every
    )


def _contents(out: Path) -> dict[str, Any]:
    """What of a run's folder depends on the recipe and the seed alone."""
    config = read_json(out / "config.json")
    config.pop("irreducible_loss", None)  # the store's checksum; the store says what it cost
    return {
        "picks": (out / "picks.arrow").read_bytes(),
        "model": (out / "model.safetensors").read_bytes(),
        "config": config,
        "curve": [
            (m["step"], m["accuracy"], m["loss"]) for m in read_metrics(out / "metrics.jsonl")
        ],
        "selected": [m["selected"] for m in read_metrics(out / "metrics.jsonl")],
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Every demo recipe, run once without a stop."""
    done = {}
    for name in DEMO:
        out = tmp_path_factory.mktemp("runs") / name
        done[name] = (out, _run(name, out).start())
    return done


# -- one run --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEMO)
def test_the_folder_holds_what_it_should(name: str, finished: Any) -> None:
    out, summary = finished[name]
    files = {p.name for p in out.iterdir()}
    store = {"irreducible_loss.safetensors"} if name == "demo/rho" else set()
    written = {"config.json", "metrics.jsonl", "picks.arrow", "summary.json", "model.safetensors"}
    assert files == written | store
    assert read_json(out / "summary.json") == summary
    config = read_json(out / "config.json")
    assert (config["recipe"], config["seed"], config["steps"]) == (name, 1, STEPS)
    assert Recipe.from_settings(config["settings"]) == _recipe(name)


@pytest.mark.parametrize("name", DEMO)
def test_the_summary_says_what_is_promised(name: str, finished: Any) -> None:
    _, summary = finished[name]
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


def test_uniform_picks_wrong_labels_as_often_as_there_are(finished: Any) -> None:
    _, summary = finished["demo/uniform"]
    # 960 picks, of which 10 % are wrong: five standard errors
    assert abs(summary["corrupted_share"] - 0.1) < 5 * math.sqrt(0.09 / 960)


@pytest.mark.parametrize("name", DEMO)
def test_picks_are_logged_for_every_step_from_the_train_set(name: str, finished: Any) -> None:
    out, summary = finished[name]
    picks = read_picks(out / "picks.arrow").to_pydict()
    assert picks["step"] == list(range(STEPS))
    splits = make_splits(_recipe(name), 1)
    known = set(splits.train.ids.tolist())
    corrupted = 0
    for ids in picks["ids"]:
        assert len(set(ids)) == 32
        assert set(ids) <= known
        corrupted += int(splits.corrupted[torch.tensor(ids)].sum())
    assert summary["corrupted_share"] == pytest.approx(corrupted / (STEPS * 32))


@pytest.mark.parametrize("name", DEMO)
def test_the_same_seed_gives_the_same_bytes(name: str, finished: Any, tmp_path: Path) -> None:
    torch.manual_seed(77)
    before = torch.get_rng_state()
    _run(name, tmp_path / "again").start()
    assert torch.equal(torch.get_rng_state(), before)
    assert _contents(tmp_path / "again") == _contents(finished[name][0])


def test_another_seed_gives_others(finished: Any, tmp_path: Path) -> None:
    Run(_recipe("demo/uniform"), tmp_path / "other", seed=2, progress=False).start()
    mine, other = _contents(finished["demo/uniform"][0]), _contents(tmp_path / "other")
    assert mine["picks"] != other["picks"]
    assert mine["model"] != other["model"]


def test_both_rules_begin_from_the_same_data_and_see_the_same_candidates(finished: Any) -> None:
    """Runs are paired: one seed, one split, one noise, one order of candidates."""
    splits = [make_splits(_recipe(name), 1) for name in DEMO]
    assert torch.equal(splits[0].train.ids, splits[1].train.ids)
    assert torch.equal(splits[0].train.targets, splits[1].train.targets)
    picks = [read_picks(finished[n][0] / "picks.arrow").to_pydict()["ids"] for n in DEMO]
    # six candidate batches of 320 are an epoch, in which no id can be picked twice
    for ids in picks:
        first = [i for row in ids[:6] for i in row]
        assert len(set(first)) == len(first)


def test_max_steps_stops_earlier(tmp_path: Path) -> None:
    run = Run(_recipe("demo/uniform"), tmp_path, seed=1, max_steps=12, progress=False)
    assert [point[0] for point in run.start()["curve"]] == [10, 12]


# -- stopping -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEMO)
@pytest.mark.parametrize("at", [9, 17, 30], ids=["after one", "after two", "at the last step"])
def test_killed_and_resumed_equals_never_stopped(
    name: str, at: int, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with killed_at(at):
        _run(name, out, checkpoint_every=8).start()
    assert checkpoints.saved(out)
    torch.manual_seed(5)
    summary = _run(name, out, checkpoint_every=8).resume()
    whole, expected = finished[name]
    mine, other = _contents(out), _contents(whole)
    for contents in (mine, other):
        contents["config"].pop("checkpoint_every")
        contents.pop("picks")  # flushed at other steps, so compared by content
    assert mine == other
    picks = [read_picks(folder / "picks.arrow").to_pydict() for folder in (out, whole)]
    torch.testing.assert_close(picks[0], picks[1], rtol=0, atol=0, equal_nan=True)
    for key in ("final_accuracy", "examples_scored", "examples_trained", "selected"):
        assert summary[key] == expected[key]
    assert summary["ledger"]["flops_score"] == expected["ledger"]["flops_score"]
    assert summary["ledger"]["flops_train"] == expected["ledger"]["flops_train"]
    assert not checkpoints.saved(out)


@pytest.mark.parametrize("name", DEMO)
def test_killed_before_the_first_checkpoint_starts_again_and_charges_the_fit_once(
    name: str, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with killed_at(5):
        _run(name, out).start()
    assert not checkpoints.saved(out)
    summary = _run(name, out).resume()
    assert _contents(out) == _contents(finished[name][0])
    seconds = summary["seconds"]["irreducible_loss"]
    if name == "demo/rho":
        store = rd.IrreducibleLossStore.load(out / "irreducible_loss.safetensors")
        assert seconds == pytest.approx(store.header["seconds"])
        assert summary["ledger"]["flops_irreducible_loss"] == store.header["flops"]
    else:
        assert seconds == 0


def test_the_fit_is_charged_once_after_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with killed_at(9):
        _run("demo/rho", out, checkpoint_every=8).start()
    store = rd.IrreducibleLossStore.load(out / "irreducible_loss.safetensors")
    summary = _run("demo/rho", out, checkpoint_every=8).resume()
    assert summary["seconds"]["irreducible_loss"] == pytest.approx(store.header["seconds"])
    assert summary["ledger"]["flops_irreducible_loss"] == store.header["flops"]


def _flip(path: Path, place: float, bit: int = 1) -> None:
    """Change one bit of a file, at a share of its length."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= bit
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"checkpoint-24.safetensors": 0.7}, ["checkpoint-24.safetensors is not as"]),
        (
            {"checkpoint-24.safetensors": 0.3, "checkpoint-16.safetensors": 0.5},
            ["checkpoint-24.safetensors is not", "checkpoint-16.safetensors is not"],
        ),
        ({"picks.arrow": 0.4}, [r"picks.arrow in .* changed since checkpoint-24", "checkpoint-16"]),
        ({"metrics.jsonl": 0.1}, ["metrics.jsonl in .* changed since checkpoint-24", "point-16"]),
    ],
)
def test_what_is_damaged_is_passed_over_with_a_word_and_the_run_is_the_same(
    damage: dict[str, float],
    said: list[str],
    finished: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with killed_at(27):
        _run("demo/rho", out, checkpoint_every=8).start()
    for name, place in damage.items():
        _flip(out / name, place)
    with pytest.warns(UserWarning, match="goes on from before it") as warned:
        _run("demo/rho", out, checkpoint_every=8).resume()
    assert len(warned) == len(said)
    for warning, words in zip(warned, said, strict=True):
        assert re.search(words, str(warning.message))
    mine, other = _contents(out), _contents(finished["demo/rho"][0])
    mine["config"].pop("checkpoint_every")
    other["config"].pop("checkpoint_every")
    mine.pop("picks")
    other.pop("picks")
    assert mine == other
    picks = [
        read_picks(folder / "picks.arrow").to_pydict() for folder in (out, finished["demo/rho"][0])
    ]
    torch.testing.assert_close(picks[0], picks[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("plan", ["none", "filter"])
def test_workers_load_the_same_rows(plan: str, tmp_path: Path) -> None:
    found = []
    for workers in ("0", "2"):
        out = tmp_path / workers
        _run("demo/rho", out, workers=workers, plan=plan, steps="12").start()
        picks = read_picks(out / "picks.arrow").to_pydict()
        found.append((picks["ids"], picks["scores"], checkpoints.load_weights(out / WEIGHTS)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_finished_run_says_what_its_files_were(finished: Any) -> None:
    for out, summary in finished.values():
        assert {"picks.arrow", "metrics.jsonl", "model.safetensors"} <= summary["files"].keys()
        for name, mark in summary["files"].items():
            assert mark == mark_of(out / name)


# -- folders --------------------------------------------------------------------------------------


@pytest.mark.parametrize("held", ["config.json", "metrics.jsonl", "summary.json"])
def test_a_folder_that_holds_a_run_is_refused_and_not_touched(held: str, tmp_path: Path) -> None:
    (tmp_path / held).write_text("precious")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(
        rd.ConfigurationError, match=rf"holds a run already \({held}\); nothing was"
    ):
        _run("demo/uniform", tmp_path).start()
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {
        held: "precious",
        "notes.txt": "mine",
    }


def test_a_finished_run_is_refused(finished: Any) -> None:
    out, _ = finished["demo/uniform"]
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    with pytest.raises(rd.ConfigurationError, match="holds a run already"):
        _run("demo/uniform", out).start()
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
        make_splits(_recipe("demo/uniform", train_examples="1000000"), 0)


def test_splits_are_disjoint_noisy_where_asked_and_by_seed() -> None:
    splits = make_splits(_recipe("demo/rho"), 1)
    assert splits.holdout is not None
    train, holdout = splits.train.ids, splits.holdout.ids
    assert not set(train.tolist()) & set(holdout.tolist())
    clean = make_splits(_recipe("demo/rho", label_noise="0"), 1)
    assert torch.equal(clean.train.ids, train)
    changed = splits.train.targets != clean.train.targets
    assert torch.equal(changed, splits.corrupted[train])
    assert int(changed.sum()) == 200  # flipped to another class, so all of the 10 % are wrong
    assert int(splits.corrupted.sum()) == 200
    assert not torch.equal(make_splits(_recipe("demo/rho"), 2).train.ids, train)


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


def test_summaries_are_json(finished: Any) -> None:
    for out, _ in finished.values():
        assert "NaN" not in (out / "summary.json").read_text()
        for line in (out / "metrics.jsonl").read_text().splitlines():
            json.loads(line)
