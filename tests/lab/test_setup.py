"""What a recipe's rule is given: each ingredient through a tiny run, and what it was made of."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file

import reducible as rd
from reducible.fitting.irreducible import assign_folds
from reducible.lab import evaluation
from reducible.lab.data import EMBEDDED, fashion_mnist
from reducible.lab.models import MODELS
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, read_picks, write_json
from reducible.lab.run import Run
from reducible.lab.setup import candidate_loader, irreducible_store, loader_options, make_plan
from reducible.lab.splits import Splits, _embedded, make_splits
from reducible.stores import fingerprint

STEPS, N_B = 6, 8
LEARNT: dict[str, Any] = {"irreducible_epochs": 6, "irreducible_batch": 8}  # from 200 images
_READ: dict[str, Any] = {}


@pytest.fixture(autouse=True)
def read_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Reading the embedded files takes most of the time; no other module's tests see these."""

    def read(split: Any, **_: Any) -> Any:
        if split not in _READ:
            data = fashion_mnist(split, root=EMBEDDED)
            _READ[split] = data if split == "train" else data.subset(torch.arange(500))
        return _READ[split]

    monkeypatch.setattr("reducible.lab.splits.fashion_mnist", read)
    _embedded.cache_clear()
    yield
    _embedded.cache_clear()


def _recipe(selector: str = "rho", **settings: Any) -> Recipe:
    tiny: dict[str, Any] = {
        "train_examples": 400, "holdout_examples": 200, "steps": STEPS, "evaluate_every": 3,
        "n_b": N_B, "n_candidates": 40, "irreducible_epochs": 2, "model": "mlp-64",
        "irreducible_model": "mlp-64",
    }  # fmt: skip
    return Recipe.from_settings({"name": "tiny", "selector": selector} | tiny | settings)


def _run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Any]:
    summary = Run(recipe, out, seed=3, progress=False, **options).start()
    assert summary["curve"][-1][0] == recipe.steps
    return summary


def _picked(out: Path) -> list[list[int]]:
    return read_picks(out / "picks.arrow").to_pydict()["ids"]


def _store(recipe: Recipe, out: Path) -> tuple[Splits, rd.IrreducibleLossStore]:
    splits = make_splits(recipe, 3)
    out.mkdir(exist_ok=True)
    ledger = rd.Ledger()
    store = irreducible_store(recipe, splits, 3, out, ledger=ledger, progress=False)
    assert store is not None
    assert ledger.seconds["irreducible_loss"] > 0
    return splits, store


def _options(recipe: Recipe, splits: Splits, out: Path) -> tuple[dict[str, Any], Any]:
    model = MODELS[recipe.model]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    with Progress(disable=True) as bar:
        options = loader_options(
            recipe, splits, 3, out, optimizer, ledger=rd.Ledger(), progress=bar
        )
    return options, optimizer


# -- stores ---------------------------------------------------------------------------------------


def test_nothing_is_fitted_for_a_rule_that_reads_nothing(tmp_path: Path) -> None:
    recipe = _recipe("train_loss")
    splits, ledger = make_splits(recipe, 3), rd.Ledger()
    assert irreducible_store(recipe, splits, 3, tmp_path, ledger=ledger, progress=False) is None
    assert ledger.total == 0
    assert list(tmp_path.iterdir()) == []
    assert _options(recipe, splits, tmp_path)[0] == {}


def test_a_store_from_the_holdout(tmp_path: Path) -> None:
    splits, store = _store(_recipe(), tmp_path)
    assert store.header["method"] == "holdout"
    assert store.header["holdout_examples"] == 200
    assert store.ids.tolist() == sorted(splits.train.ids.tolist())
    store.check_data(splits.train.ids, splits.train.targets)
    assert [p.name for p in tmp_path.iterdir()] == ["irreducible_loss.safetensors"]


def test_a_store_that_is_there_is_taken_and_charged(tmp_path: Path) -> None:
    recipe = _recipe()
    splits, first = _store(recipe, tmp_path)
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
    recipe = _recipe(
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
    splits, store = _store(recipe, tmp_path)
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
    recipe = _recipe(irreducible_from="cross-fit", holdout_examples=0)
    summary = _run(recipe, tmp_path / "run")
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
    recipe = _recipe("reducr", group_irreducible=kind, hyperparameters={"gamma": 4.0})
    summary = _run(recipe, tmp_path / "run")
    store = rd.IrreducibleLossStore.load(tmp_path / "run" / "irreducible_loss.safetensors")
    assert store.groups == 10
    assert (store.header["method"], store.header["gamma"]) == (method, 4.0)
    assert summary["examples_scored"] == STEPS * 40
    assert len(_picked(tmp_path / "run")) == STEPS


def test_the_group_holdout_is_all_of_the_holdout_in_order(tmp_path: Path) -> None:
    recipe = _recipe("reducr")
    splits = make_splits(recipe, 3)
    options, _ = _options(recipe, splits, tmp_path)
    assert splits.holdout is not None
    ids = torch.cat([ids for ids, _ in options["group_holdout"]])
    assert torch.equal(ids, splits.holdout.ids)


# -- plans ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", ["filter", "weights", "filter+weights"])
@pytest.mark.parametrize("selector", ["uniform", "rho"])
def test_candidates_come_by_the_plan(plan: str, selector: str, tmp_path: Path) -> None:
    # a few passes over the plan's examples
    decided = {"plan": plan, "plan_multiple": 2.0, "plan_exponent": 0.5}
    recipe = _recipe(selector, **decided, label_noise=0.3, steps=20, **LEARNT)
    _run(recipe, tmp_path / "run")
    saved = rd.Plan.load(tmp_path / "run" / "plan.safetensors")
    assert saved.report["multiple"] == (2.0 if "filter" in plan else 0.0)
    assert saved.report["exponent"] == (0.5 if "weights" in plan else 0.0)
    assert (saved.dropped.numel() > 0) == ("filter" in plan)
    assert (saved.weight.unique().numel() > 1) == ("weights" in plan)
    picked = {i for ids in _picked(tmp_path / "run") for i in ids}
    assert picked <= set(saved.ids.tolist())
    splits = make_splits(recipe, 3)
    assert set(saved.ids.tolist()) | set(saved.dropped.tolist()) == set(splits.train.ids.tolist())


def test_the_loader_of_a_plan_gives_whole_batches_without_repeats(tmp_path: Path) -> None:
    recipe = _recipe("train_loss", plan="filter+weights", **LEARNT)
    splits, store = _store(recipe, tmp_path)
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
    recipe = _recipe("train_loss")
    splits = make_splits(recipe, 3)
    assert make_plan(recipe, splits, None, tmp_path) is None
    loader = candidate_loader(recipe, splits, None, generator=torch.Generator())
    ids = torch.cat([ids for ids, _ in loader])
    assert sorted(ids.tolist()) == sorted(splits.train.ids.tolist())
    assert list(tmp_path.iterdir()) == []


def test_a_plan_lets_the_holdout_that_is_trained_on_pass(tmp_path: Path) -> None:
    recipe = _recipe("uniform", plan="filter", train_on="train+holdout", label_noise=0.3, **LEARNT)
    splits, store = _store(recipe, tmp_path)
    assert sorted(store.ids.tolist()) == list(range(400))  # no example of the holdout is judged
    plan = make_plan(recipe, splits, store, tmp_path)
    assert plan is not None
    assert plan.dropped.numel() > 0
    assert plan.report["included"] == 200
    assert set(range(400, 600)) <= set(plan.ids.tolist())
    alone, its_store = _store(replace(recipe, train_on="train"), tmp_path / "alone")
    mine, its = store.lookup(splits.scored.ids), its_store.lookup(alone.train.ids)
    assert torch.equal(mine, its)  # the same holdout, the same model
    same = make_plan(replace(recipe, train_on="train"), alone, its_store, tmp_path)
    assert same is not None
    kept = alone.train.targets[torch.isin(alone.train.ids, same.ids)]
    mine = splits.train.targets[plan.ids[plan.ids < 400]]
    assert torch.equal(kept.sort().values, mine.sort().values)
    _run(replace(recipe, steps=60), tmp_path / "run")
    picked = {i for ids in _picked(tmp_path / "run") for i in ids}
    assert picked <= set(plan.ids.tolist())
    assert picked & set(range(400, 600))


def test_the_loss_of_a_run_allows_for_the_noise_that_its_plan_leaves(tmp_path: Path) -> None:
    plain = _recipe("uniform", plan="filter", label_noise=0.3, **LEARNT)
    _run(plain, tmp_path / "plain")
    _run(replace(plain, loss="noise-floor"), tmp_path / "floor")
    one, other = (tmp_path / name / "model.safetensors" for name in ("plain", "floor"))
    weights, floored = load_file(one), load_file(other)
    assert any(not torch.equal(weights[name], floored[name]) for name in weights)
    assert _picked(tmp_path / "plain") == _picked(tmp_path / "floor")  # the rows are the same


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
    recipe = _recipe("train_loss", **LEARNT, **settings)
    with pytest.raises(rd.ConfigurationError, match=message):
        _run(recipe, tmp_path / "run")


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
    recipe = _recipe(**settings)
    _run(recipe, tmp_path / "whole")
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
    assert _picked(tmp_path / "stopped") == _picked(tmp_path / "whole")
    for name in ("model.safetensors",):
        assert (tmp_path / "stopped" / name).read_bytes() == (
            tmp_path / "whole" / name
        ).read_bytes()
    assert (
        summary["examples_scored"]
        == read_json(tmp_path / "whole" / "summary.json")["examples_scored"]
    )


# -- models beside the one that is trained --------------------------------------------------------


def test_the_live_model_starts_from_the_fitted_weights(tmp_path: Path) -> None:
    recipe = _recipe("rho_updating")
    splits, store = _store(recipe, tmp_path)
    options, optimizer = _options(recipe, splits, tmp_path)
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
    summary = _run(_recipe("rho_updating"), tmp_path / "run")
    assert summary["seconds"]["score"] > 0
    assert (tmp_path / "run" / "irreducible.safetensors").exists()


def test_svp_has_a_proxy_fitted_on_the_train_set(tmp_path: Path) -> None:
    recipe = _recipe("svp", irreducible_epochs=5)
    splits = make_splits(recipe, 3)
    options, _ = _options(recipe, splits, tmp_path)
    proxy = options["proxy"]
    assert not proxy.training
    x, y = splits.train.fetch(torch.arange(400)).batch
    with torch.inference_mode():
        right = (proxy(x).argmax(1) == y).double().mean()
    assert float(right) > 0.5
    summary = _run(recipe, tmp_path / "run")
    assert summary["examples_trained"] == STEPS * N_B
    assert not (tmp_path / "run" / "irreducible_loss.safetensors").exists()


def test_a_scorer_is_new_and_follows_the_models_optimizer(tmp_path: Path) -> None:
    recipe = _recipe(scorer="mlp-128")
    splits = make_splits(recipe, 3)
    stream = torch.get_rng_state()
    options, optimizer = _options(_recipe(scorer="mlp-128"), splits, tmp_path)
    again, _ = _options(recipe, splits, tmp_path)
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
    recipe = _recipe(scorer="mlp-64", distil=True)
    options, _ = _options(recipe, make_splits(recipe, 3), tmp_path)
    assert options["scorer"].distil
    for name, distil in (("along", False), ("distilled", True)):
        _run(_recipe(scorer="mlp-64", distil=distil), tmp_path / name)
    along, distilled = _picked(tmp_path / "along"), _picked(tmp_path / "distilled")
    assert along[0] == distilled[0]
    assert along[-1] != distilled[-1]


def test_a_run_that_remembers_losses_scores_less(tmp_path: Path) -> None:
    """400 rows in batches of 40 are seen again after at least one and at most 19 steps."""
    exact = _run(_recipe(steps=20), tmp_path / "exact")
    lasting = _run(_recipe(steps=20, max_age=19), tmp_path / "lasting")
    anew = _run(_recipe(steps=20, max_age=19, rescore=1.0), tmp_path / "anew")
    assert exact["examples_scored"] == anew["examples_scored"] == 20 * 40
    assert lasting["examples_scored"] == 400
    assert _picked(tmp_path / "anew") == _picked(tmp_path / "exact")
    assert _picked(tmp_path / "lasting")[:10] == _picked(tmp_path / "exact")[:10]


def test_a_run_scores_small_images(tmp_path: Path) -> None:
    """A quarter of the pixels; what is trained on stays as it is."""
    settings: dict[str, Any] = {"model": "resnet-18-16", "steps": 2, "n_b": 4, "n_candidates": 8}
    whole = _run(_recipe(**settings), tmp_path / "whole")
    small = _run(_recipe(resolution=14, channels_last=True, **settings), tmp_path / "small")
    flops = small["ledger"]["flops_score"] / whole["ledger"]["flops_score"]
    assert 0.2 < flops < 0.3
    assert small["ledger"]["flops_train"] == whole["ledger"]["flops_train"]


def test_a_run_with_a_scorer_scores_with_it(tmp_path: Path) -> None:
    summary = _run(_recipe(scorer="mlp-64", model="mlp-128"), tmp_path / "run")
    # FLOPs of a forward of 784·64 + 64·64 + 64·10 weights
    forward = 2 * (784 * 64 + 64 * 64 + 64 * 10)
    assert summary["ledger"]["flops_score"] == STEPS * 40 * forward
    assert summary["examples_scored"] == STEPS * 40


@pytest.mark.parametrize("updates", [1, 2])
def test_a_schedule_scores_only_where_its_rule_chooses(updates: int, tmp_path: Path) -> None:
    whole = _run(_recipe(updates_per_scoring=updates), tmp_path / "whole")
    half = _recipe(updates_per_scoring=updates, select_until=2 / 3)
    summary = _run(half, tmp_path / "half")
    assert whole["examples_scored"] == STEPS // updates * 40
    assert summary["examples_scored"] == 4 // updates * 40
    mine, alone = _picked(tmp_path / "half"), _picked(tmp_path / "whole")
    assert mine[:4] == alone[:4]
    assert mine[4:] != alone[4:]
    assert [len(set(ids)) for ids in mine] == [N_B] * STEPS


def test_a_random_share_is_beside_the_rules_best_rows(tmp_path: Path) -> None:
    _run(_recipe(), tmp_path / "whole")
    _run(_recipe(random_share=0.25), tmp_path / "mixed")
    (first, *_), (mixed, *_) = _picked(tmp_path / "whole"), _picked(tmp_path / "mixed")
    assert mixed[:6] == first[:6]
    assert len(set(mixed)) == N_B
    assert set(mixed) != set(first)


def test_updates_per_scoring_reach_the_loop(tmp_path: Path) -> None:
    summary = _run(_recipe(updates_per_scoring=3), tmp_path / "run")
    assert summary["examples_scored"] == STEPS // 3 * 40
    picked = _picked(tmp_path / "run")
    for first in (0, 3):
        assert len({i for ids in picked[first : first + 3] for i in ids}) == 3 * N_B


# -- whose store it is -----------------------------------------------------------------------------


def _again(recipe: Recipe, splits: Splits, out: Path) -> Any:
    return irreducible_store(recipe, splits, 3, out, ledger=rd.Ledger(), progress=False)


def test_the_config_of_a_run_names_its_store(tmp_path: Path) -> None:
    recipe = _recipe()
    write_json(tmp_path / "config.json", {"seed": 3}, sealed=True)
    splits, store = _store(recipe, tmp_path)
    named = read_json(tmp_path / "config.json", sealed=True)
    assert named == {"seed": 3, "irreducible_loss": store.checksum}
    assert torch.equal(_again(recipe, splits, tmp_path).values, store.values)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("kind", ["no fingerprint", "other values", "other data"])
def test_a_store_from_elsewhere_is_refused(kind: str, named: bool, tmp_path: Path) -> None:
    recipe = _recipe()
    if named:
        write_json(tmp_path / "config.json", {"seed": 3}, sealed=True)
    splits, own = _store(recipe, tmp_path)
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
    recipe = _recipe()
    splits, _ = _store(recipe, tmp_path)
    write_json(tmp_path / "config.json", {"seed": 3}, sealed=True)
    with pytest.raises(rd.StoreError, match=r"the run names none; .* delete it and resume"):
        _again(recipe, splits, tmp_path)
