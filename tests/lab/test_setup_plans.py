"""What a recipe's run is given: plans, and going on with all of it after a stop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import reducible as rd
from reducible.lab import evaluation
from reducible.lab.records import read_json
from reducible.lab.run import Run
from reducible.lab.setup import candidate_loader, make_plan
from reducible.lab.splits import make_splits
from setup_toys import LEARNT, fitted_store, picked_ids, summary_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("read_once")


@pytest.mark.parametrize("plan", ["filter", "weights", "filter+weights"])
@pytest.mark.parametrize("selector", ["uniform", "rho"])
def test_candidates_come_by_the_plan(plan: str, selector: str, tmp_path: Path) -> None:
    # a few passes over the plan's examples
    decided = {"plan": plan, "plan_multiple": 2.0, "plan_exponent": 0.5}
    recipe = tiny_recipe(selector, **decided, label_noise=0.3, steps=20, **LEARNT)
    summary_of(recipe, tmp_path / "run")
    saved = rd.Plan.load(tmp_path / "run" / "plan.safetensors")
    assert saved.report["multiple"] == (2.0 if "filter" in plan else 0.0)
    assert saved.report["exponent"] == (0.5 if "weights" in plan else 0.0)
    assert (saved.dropped.numel() > 0) == ("filter" in plan)
    assert (saved.weight.unique().numel() > 1) == ("weights" in plan)
    picked = {i for ids in picked_ids(tmp_path / "run") for i in ids}
    assert picked <= set(saved.ids.tolist())
    splits = make_splits(recipe, 3)
    assert set(saved.ids.tolist()) | set(saved.dropped.tolist()) == set(splits.train.ids.tolist())


def test_the_loader_of_a_plan_gives_whole_batches_without_repeats(tmp_path: Path) -> None:
    recipe = tiny_recipe("train_loss", plan="filter+weights", **LEARNT)
    splits, store = fitted_store(recipe, tmp_path)
    generator = torch.Generator().manual_seed(0)
    plan = make_plan(recipe, splits, store, tmp_path)
    loader = candidate_loader(recipe, splits, plan, generator=generator)
    kept = rd.Plan.load(tmp_path / "plan.safetensors").ids.numel()
    for _ in range(3):
        batches = list(loader)
        assert len(batches) == kept // 40
        for candidates in batches:
            assert isinstance(candidates, rd.Candidates)
            assert candidates.ids.unique().numel() == 40
            assert candidates.batch[0].shape == (40, 1, 28, 28)


def test_without_a_plan_the_order_is_a_shuffle(tmp_path: Path) -> None:
    recipe = tiny_recipe("train_loss")
    splits = make_splits(recipe, 3)
    assert make_plan(recipe, splits, None, tmp_path) is None
    loader = candidate_loader(recipe, splits, None, generator=torch.Generator())
    ids = torch.cat([ids for ids, _ in loader])
    assert sorted(ids.tolist()) == sorted(splits.train.ids.tolist())
    assert list(tmp_path.iterdir()) == []


def test_a_plan_lets_the_holdout_that_is_trained_on_pass(tmp_path: Path) -> None:
    recipe = tiny_recipe(
        "uniform", plan="filter", train_on="train+holdout", label_noise=0.3, **LEARNT
    )
    splits, store = fitted_store(recipe, tmp_path)
    assert sorted(store.ids.tolist()) == list(range(400))  # no example of the holdout is judged
    plan = make_plan(recipe, splits, store, tmp_path)
    assert plan is not None
    assert plan.dropped.numel() > 0
    assert plan.report["included"] == 200
    assert set(range(400, 600)) <= set(plan.ids.tolist())
    alone, its_store = fitted_store(replace(recipe, train_on="train"), tmp_path / "alone")
    mine, its = store.lookup(splits.scored.ids), its_store.lookup(alone.train.ids)
    assert torch.equal(mine, its)  # the same holdout, the same model
    same = make_plan(replace(recipe, train_on="train"), alone, its_store, tmp_path)
    assert same is not None
    kept = alone.train.targets[torch.isin(alone.train.ids, same.ids)]
    mine = splits.train.targets[plan.ids[plan.ids < 400]]
    assert torch.equal(kept.sort().values, mine.sort().values)
    summary_of(replace(recipe, steps=60), tmp_path / "run")
    picked = {i for ids in picked_ids(tmp_path / "run") for i in ids}
    assert picked <= set(plan.ids.tolist())
    assert picked & set(range(400, 600))


def test_the_loss_of_a_run_allows_for_the_noise_that_its_plan_leaves(tmp_path: Path) -> None:
    plain = tiny_recipe("uniform", plan="filter", label_noise=0.3, **LEARNT)
    summary_of(plain, tmp_path / "plain")
    summary_of(replace(plain, loss="noise-floor"), tmp_path / "floor")
    one, other = (tmp_path / name / "model.safetensors" for name in ("plain", "floor"))
    weights, floored = load_file(one), load_file(other)
    assert any(not torch.equal(weights[name], floored[name]) for name in weights)
    assert picked_ids(tmp_path / "plain") == picked_ids(tmp_path / "floor")  # the rows are the same


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"plan": "filter", "n_candidates": 399}, "batches of 399 from the .* that the plan keeps"),
        (
            {"plan": "weights", "n_candidates": 300, "plan_exponent": 9.0},
            "would hold it twice. Lower exponent",
        ),
    ],
)
def test_a_plan_that_cannot_fill_batches_is_told(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    recipe = tiny_recipe("train_loss", **LEARNT, **settings)
    with pytest.raises(rd.ConfigurationError, match=message):
        summary_of(recipe, tmp_path / "run")


@pytest.mark.parametrize(
    "settings",
    [
        {"selector": "uniform", "plan": "filter+weights"},
        {"selector": "rho", "scorer": "mlp-64", "updates_per_scoring": 2},
        {"selector": "rho_updating"},
        {"selector": "svp", "steps": 12},
        {
            "selector": "train_loss",
            "updates_per_scoring": 2,
            "plan": "filter",
            **LEARNT,
            "select_until": 2 / 3,
            "random_share": 0.25,
        },
    ],
    ids=lambda s: s["selector"],
)
@pytest.mark.filterwarnings("ignore:the plan keeps")  # a model of one epoch knows little
def test_a_run_resumes_with_its_ingredients(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(**settings)
    summary_of(recipe, tmp_path / "whole")
    stopped = Run(recipe, tmp_path / "stopped", seed=3, progress=False, checkpoint_every=3)

    evaluate = evaluation.evaluation_batches
    calls = 0

    def stop(data: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 2:  # at the second evaluation; the checkpoint is of the first
            raise KeyboardInterrupt
        return evaluate(data)

    monkeypatch.setattr("reducible.lab.evaluation.evaluation_batches", stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.start()
    monkeypatch.setattr("reducible.lab.evaluation.evaluation_batches", evaluate)
    again = Run(recipe, tmp_path / "stopped", seed=3, progress=False, checkpoint_every=3)
    summary = again.resume()
    assert picked_ids(tmp_path / "stopped") == picked_ids(tmp_path / "whole")
    for name in ("model.safetensors",):
        assert (tmp_path / "stopped" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
    assert (
        summary["examples_scored"]
        == read_json(tmp_path / "whole" / "summary.json")["examples_scored"]
    )
