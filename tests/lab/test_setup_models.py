"""What a recipe's rule is given: models beside its own, cheap scoring, schedules."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import reducible as rd
from reducible.lab.splits import make_splits
from setup_toys import N_B, STEPS, fitted_store, options_of, picked_ids, summary_of, tiny_recipe

pytestmark = pytest.mark.usefixtures("read_once")


def test_the_live_model_starts_from_the_fitted_weights(tmp_path: Path) -> None:
    recipe = tiny_recipe("rho_updating")
    splits, store = fitted_store(recipe, tmp_path)
    options, optimizer = options_of(recipe, splits, tmp_path)
    live = options["irreducible_model"]
    fitted = load_file(tmp_path / "irreducible.safetensors")
    torch.testing.assert_close(dict(live.state_dict()), fitted, rtol=0, atol=0)
    assert not live.training
    assert options["optimizer"] is optimizer
    # and what was fitted is what the store holds the losses of
    ids, (x, y) = splits.train.fetch(torch.arange(50))
    with torch.no_grad():
        loss = torch.nn.functional.cross_entropy(live(x), y, reduction="none")
    torch.testing.assert_close(loss, store.lookup(ids))


def test_rho_updating_runs(tmp_path: Path) -> None:
    summary = summary_of(tiny_recipe("rho_updating"), tmp_path / "run")
    assert summary["seconds"]["score"] > 0
    assert (tmp_path / "run" / "irreducible.safetensors").exists()


def test_svp_has_a_proxy_fitted_on_the_train_set(tmp_path: Path) -> None:
    recipe = tiny_recipe("svp", irreducible_epochs=5)
    splits = make_splits(recipe, 3)
    options, _ = options_of(recipe, splits, tmp_path)
    proxy = options["proxy"]
    assert not proxy.training
    x, y = splits.train.fetch(torch.arange(400)).batch
    with torch.inference_mode():
        right = (proxy(x).argmax(1) == y).double().mean()
    assert float(right) > 0.5
    summary = summary_of(recipe, tmp_path / "run")
    assert summary["examples_trained"] == STEPS * N_B
    assert not (tmp_path / "run" / "irreducible_loss.safetensors").exists()


def test_a_scorer_is_new_and_follows_the_models_optimizer(tmp_path: Path) -> None:
    recipe = tiny_recipe(scorer="mlp-128")
    splits = make_splits(recipe, 3)
    stream = torch.get_rng_state()
    options, optimizer = options_of(tiny_recipe(scorer="mlp-128"), splits, tmp_path)
    again, _ = options_of(recipe, splits, tmp_path)
    scorer = options["scorer"]
    assert isinstance(scorer, rd.CoTrained)
    start = copy.deepcopy(scorer.model.state_dict())
    torch.testing.assert_close(again["scorer"].model.state_dict(), start, rtol=0, atol=0)
    assert scorer.model.state_dict()["1.weight"].shape == (128, 784)
    torch.set_rng_state(stream)
    optimizer.param_groups[0]["lr"] = 0.0
    task, batch = rd.Classification(), splits.train.fetch(torch.arange(8)).batch
    scorer.step(task, batch, torch.ones(8))
    torch.testing.assert_close(scorer.model.state_dict(), start, rtol=0, atol=0)
    optimizer.param_groups[0]["lr"] = 0.01
    scorer.step(task, batch, torch.ones(8))
    assert not torch.equal(scorer.model.state_dict()["1.weight"], start["1.weight"])


def test_a_scorer_that_learns_predictions(tmp_path: Path) -> None:
    """In a run: the same scorer at the start, then another teacher."""
    recipe = tiny_recipe(scorer="mlp-64", distil=True)
    options, _ = options_of(recipe, make_splits(recipe, 3), tmp_path)
    assert options["scorer"].distil
    for name, distil in (("along", False), ("distilled", True)):
        summary_of(tiny_recipe(scorer="mlp-64", distil=distil), tmp_path / name)
    along, distilled = picked_ids(tmp_path / "along"), picked_ids(tmp_path / "distilled")
    assert along[0] == distilled[0]
    assert along[-1] != distilled[-1]


def test_a_run_that_remembers_losses_scores_less(tmp_path: Path) -> None:
    """400 rows in batches of 40 are seen again after at least one and at most 19 steps."""
    exact = summary_of(tiny_recipe(steps=20), tmp_path / "exact")
    lasting = summary_of(tiny_recipe(steps=20, max_age=19), tmp_path / "lasting")
    anew = summary_of(tiny_recipe(steps=20, max_age=19, rescore=1.0), tmp_path / "anew")
    assert exact["examples_scored"] == anew["examples_scored"] == 20 * 40
    assert lasting["examples_scored"] == 400
    assert picked_ids(tmp_path / "anew") == picked_ids(tmp_path / "exact")
    assert picked_ids(tmp_path / "lasting")[:10] == picked_ids(tmp_path / "exact")[:10]


def test_a_run_scores_small_images(tmp_path: Path) -> None:
    """A quarter of the pixels; what is trained on stays as it is."""
    settings: dict[str, Any] = {"model": "resnet-18-16", "steps": 2, "n_b": 4, "n_candidates": 8}
    whole = summary_of(tiny_recipe(**settings), tmp_path / "whole")
    small = summary_of(
        tiny_recipe(resolution=14, channels_last=True, **settings), tmp_path / "small"
    )
    flops = small["ledger"]["flops_score"] / whole["ledger"]["flops_score"]
    assert 0.2 < flops < 0.3
    assert small["ledger"]["flops_train"] == whole["ledger"]["flops_train"]


def test_a_run_with_a_scorer_scores_with_it(tmp_path: Path) -> None:
    summary = summary_of(tiny_recipe(scorer="mlp-64", model="mlp-128"), tmp_path / "run")
    # FLOPs of a forward of 784·64 + 64·64 + 64·10 weights
    forward = 2 * (784 * 64 + 64 * 64 + 64 * 10)
    assert summary["ledger"]["flops_score"] == STEPS * 40 * forward
    assert summary["examples_scored"] == STEPS * 40


@pytest.mark.parametrize("updates", [1, 2])
def test_a_schedule_scores_only_where_its_rule_chooses(updates: int, tmp_path: Path) -> None:
    whole = summary_of(tiny_recipe(updates_per_scoring=updates), tmp_path / "whole")
    half = tiny_recipe(updates_per_scoring=updates, select_until=2 / 3)
    summary = summary_of(half, tmp_path / "half")
    assert whole["examples_scored"] == STEPS // updates * 40
    assert summary["examples_scored"] == 4 // updates * 40
    mine, alone = picked_ids(tmp_path / "half"), picked_ids(tmp_path / "whole")
    assert mine[:4] == alone[:4]
    assert mine[4:] != alone[4:]
    assert [len(set(ids)) for ids in mine] == [N_B] * STEPS


def test_a_random_share_is_beside_the_rules_best_rows(tmp_path: Path) -> None:
    summary_of(tiny_recipe(), tmp_path / "whole")
    summary_of(tiny_recipe(random_share=0.25), tmp_path / "mixed")
    (first, *_), (mixed, *_) = picked_ids(tmp_path / "whole"), picked_ids(tmp_path / "mixed")
    assert mixed[:6] == first[:6]
    assert len(set(mixed)) == N_B
    assert set(mixed) != set(first)


def test_updates_per_scoring_reach_the_loop(tmp_path: Path) -> None:
    summary = summary_of(tiny_recipe(updates_per_scoring=3), tmp_path / "run")
    assert summary["examples_scored"] == STEPS // 3 * 40
    picked = picked_ids(tmp_path / "run")
    for first in (0, 3):
        assert len({i for ids in picked[first : first + 3] for i in ids}) == 3 * N_B
