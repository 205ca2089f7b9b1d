"""Recipes: settings from text, and those that cannot work refused before anything is run."""

from __future__ import annotations

from typing import Any

import pytest

import reducible as rd
from reducible.lab.recipe import Recipe


def _recipe(selector: str = "rho", **settings: Any) -> Recipe:
    return Recipe.from_settings({"name": "r", "selector": selector} | settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vgg"}, "model must be one of .*got 'vgg'"),
        ({"irreducible_model": "vgg"}, "irreducible_model must be one of"),
        ({"scorer": "vgg"}, "scorer must be one of"),
        ({"dataset": "cifar"}, "dataset must be one of 'fashion-mnist-30k'"),
        ({"train_on": "test"}, "train_on must be one of"),
        ({"noise": "pairs"}, "noise must be one of 'flip', 'asymmetric', 'web-like'"),
        ({"schedule": "linear"}, "schedule must be one of"),
        ({"loss": "hinge"}, "loss must be one of"),
        ({"plan": "drop"}, "plan must be one of"),
        ({"irreducible_from": "train"}, "irreducible_from must be one of"),
        ({"group_irreducible": "one"}, "group_irreducible must be one of"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"batchnorm": "eval"}, "batchnorm must be one of"),
        ({"updates_per_scoring": 0}, "updates_per_scoring must be"),
        ({"channels_last": "yes"}, "channels_last must be one of True, False; got 'yes'"),
        ({"distil": "yes"}, "distil must be one of True, False; got 'yes'"),
        ({"distil": True}, "distil=True, but there is no scorer"),
        ({"resolution": -14}, "resolution must be a whole number"),
        ({"resolution": 1.5}, "resolution must be a whole number"),
        ({"resolution": 14}, "resolution=14, but mlp-512 takes images of one size alone"),
        (
            {"resolution": 14, "model": "resnet-18-16", "scorer": "lenet"},
            "resolution=14, but lenet takes images of one size alone",
        ),
        ({"max_age": -1}, "max_age must be"),
        ({"max_age": 9, "rescore": 1.5}, "rescore must be"),
        ({"label_noise": 1.5}, r"label_noise must be a number in \[0.0, 1.0\]"),
        ({"holdout_noise": -0.1}, "holdout_noise must be"),
        ({"steps": 0}, "steps must be a whole number"),
        ({"evaluate_every": 0}, "evaluate_every must be"),
        ({"n_b": 321}, r"n_b must be a whole number in \[1, 320\]"),
        ({"n_candidates": 500, "train_examples": 400}, "n_candidates must be"),
        ({"validation_examples": -1}, "validation_examples must be"),
        ({"learning_rate": 0.0}, "learning_rate must be"),
        ({"plan_multiple": -1.0}, "plan_multiple must be"),
        ({"plan_exponent": float("inf")}, "plan_exponent must be"),
        ({"holdout_examples": 0}, "r needs a holdout, but holdout_examples=0"),
        ({"train_on": "holdout"}, "train_on='holdout', but irreducible losses are of a holdout"),
        ({"hyperparameters": {"gama": 1}}, "gama"),
        ({"select_until": 0.0}, r"select_until must be a number in \(0.0, 1.0\], got 0.0"),
        ({"select_until": 1.1}, "select_until must be"),
        ({"select_anneal": -0.1}, "select_anneal must be"),
        ({"select_until": 0.5, "select_anneal": 0.6}, r"select_anneal must be .* \[0.0, 0.5\]"),
        ({"random_share": 1.0}, r"random_share must be a number in \[0.0, 1.0\), got 1.0"),
        ({"random_share": -0.1}, "random_share must be"),
    ],
)
def test_settings_that_cannot_work(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        _recipe(**settings)


@pytest.mark.parametrize(
    ("selector", "settings", "message"),
    [
        ("rh0", {}, "rh0"),
        ("uniform", {"train_on": "holdout", "holdout_examples": 0}, "needs a holdout"),
        (
            "uniform",
            {"train_on": "holdout", "holdout_examples": 100},
            r"n_candidates must be a whole number in \[1, 100\]",
        ),
        (
            "uniform",
            {"train_on": "holdout", "plan": "filter", "holdout_examples": 400},
            "irreducible losses are of a holdout that is not trained on",
        ),
        (
            "rho",
            {"train_on": "train+holdout"},
            "irreducible losses are of a holdout that is not trained on",
        ),
        ("uniform", {"loss": "noise-floor"}, "reads the floor of a plan: take plan='filter'"),
        ("train_loss", {"gate": "auto", "holdout_examples": 0}, "the gate watches a holdout"),
        ("uniform", {"gate": "auto", "train_on": "holdout"}, "the gate watches a holdout"),
        ("uniform", {"plan": "filter", "holdout_examples": 0}, "needs a holdout"),
        ("reducr", {"holdout_examples": 0, "irreducible_from": "cross-fit"}, "needs a holdout"),
        ("reducr", {"plan": "weights"}, "one irreducible loss per example, reducr one per group"),
        (
            "infobatch",
            {},
            "every candidate is trained on, but n_b=32 and n_candidates=320. Take n_ca",
        ),
        ("infobatch", {"n_candidates": 33}, "n_b=32 and n_candidates=33. Take n_candidates=32"),
        (
            "infobatch",
            {"plan": "filter", "n_candidates": 32},
            "infobatch plans its epochs itself, so plan='filter'",
        ),
        ("svp", {"plan": "filter"}, "svp plans its epochs itself"),
        ("rho_updating", {"irreducible_from": "cross-fit"}, "but cross-fitting makes two"),
        ("uniform", {"select_until": 0.5}, "uniform chooses at random, so select_until=0.5"),
        ("uniform", {"random_share": 0.5}, "uniform chooses at random"),
        ("rs2", {"select_anneal": 0.5}, "rs2 plans its epochs itself, so .*select_anneal=0.5"),
        ("infobatch", {"select_until": 0.5}, "infobatch plans its epochs itself"),
        ("svp", {"random_share": 0.5}, "svp plans its epochs itself"),
        ("grad_norm", {"max_age": 9}, "max_age=9 remembers losses, but grad_norm needs logits"),
    ],
)
def test_settings_that_do_not_go_together(
    selector: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        _recipe(selector, **settings)


@pytest.mark.parametrize(
    ("selector", "settings", "reads", "holdout"),
    [
        ("uniform", {}, False, False),
        ("train_loss", {"plan": "filter"}, True, True),
        ("rho", {}, True, True),
        ("rho", {"irreducible_from": "cross-fit", "holdout_examples": 0}, True, False),
        ("uniform", {"plan": "weights", "irreducible_from": "cross-fit"}, True, False),
        ("reducr", {}, True, True),
        ("rho_updating", {}, True, True),
    ],
)
def test_what_a_recipe_reads(
    selector: str, settings: dict[str, Any], reads: bool, holdout: bool
) -> None:
    recipe = _recipe(selector, **settings)
    assert (recipe.reads_irreducible_loss, recipe.from_holdout) == (reads, holdout)


TEXTS: dict[str, Any] = {
    "dataset": "film-sentences", "model": "minilm", "irreducible_model": "bag-of-embeddings",
    "train_examples": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "mlp-64"}, "model='mlp-64' reads images, but dataset='film-sentences' holds"),
        ({"irreducible_model": "lenet"}, "irreducible_model='lenet' reads images"),
        ({"scorer": "mlp-64"}, "scorer='mlp-64' .*Models of texts: minilm, bag-of-embeddings"),
        ({"dataset": "fashion-mnist"}, "model='minilm' reads texts, .*Models of images: mlp-512"),
        ({"noise": "asymmetric"}, "noise='asymmetric' is made for ten classes of images"),
        ({"noise": "web-like"}, "noise='web-like' .*Take noise='flip'"),
    ],
)
def test_models_and_noise_go_with_the_data(settings: dict[str, Any], message: str) -> None:
    assert _recipe(**TEXTS).of_texts
    with pytest.raises(rd.ConfigurationError, match=message):
        _recipe(**(TEXTS | settings))


def test_a_recipe_knows_what_its_batches_mean() -> None:
    assert isinstance(_recipe().task, rd.Classification)
    assert isinstance(_recipe(**TEXTS, scorer="bag-of-embeddings").task, rd.SequenceClassification)
    for model in ("irreducible_model", "scorer"):
        with pytest.raises(rd.ConfigurationError, match=f"{model}='minilm' reads texts"):
            _recipe(**{model: "minilm"})


def test_scoring_and_rule_are_those_of_the_settings() -> None:
    settings: dict[str, Any] = {
        "batchnorm": "running", "precision": "bfloat16", "channels_last": True, "resolution": 14,
        "updates_per_scoring": 3, "max_age": 7, "rescore": 0.1,
    }  # fmt: skip
    recipe = _recipe("reducr", hyperparameters={"gamma": 4.0}, model="resnet-18-16", **settings)
    assert recipe.scoring == rd.Scoring(**settings)
    assert _recipe().scoring == rd.Scoring()
    assert recipe.make_rule() is not recipe.make_rule()  # a new one, with no memory of another run


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({"select_until": 0.5}, [1, 1, 1, 1, 0, 0, 0, 0]),
        ({"select_anneal": 1.0}, [1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ({"select_until": 0.5, "select_anneal": 0.25}, [1, 1, 1, 0.5, 0, 0, 0, 0]),
        ({"random_share": 0.75}, [0.25] * 8),
        ({"random_share": 0.5, "select_until": 0.25, "select_anneal": 0.25}, [0.5, 0.25, *[0] * 6]),
    ],
    ids=str,
)
def test_a_schedule_is_of_the_recipes_steps(settings: dict[str, Any], shares: list[float]) -> None:
    rule = _recipe(steps=8, **settings).make_rule()
    assert isinstance(rule, rd.Scheduled)
    assert [rule.share(step) for step in range(8)] == pytest.approx(shares)
    assert rule.needs == {"loss", "irreducible_loss", "step"}


def test_without_a_schedule_the_rule_is_bare() -> None:
    for selector in ("rho", "uniform", "svp"):
        assert type(_recipe(selector).make_rule()) is type(rd.selector(selector))


def test_settings_from_text() -> None:
    changed = _recipe().with_settings(
        {
            "steps": "7", "learning_rate": "1", "model": "mlp-64", "plan": "filter",
            "scorer": "mlp-64", "hyperparameters": "{}", "updates_per_scoring": "2",
            "channels_last": "true", "distil": "true",
        }
    )  # fmt: skip
    assert (changed.steps, changed.learning_rate, changed.model) == (7, 1.0, "mlp-64")
    assert isinstance(changed.learning_rate, float)
    assert (changed.plan, changed.scorer) == ("filter", "mlp-64")
    assert changed.distil is True
    assert changed.scoring == rd.Scoring(updates_per_scoring=2, channels_last=True)
    shrunk = _recipe(model="resnet-18-16").with_settings({"resolution": "14"})
    assert shrunk.scoring.resolution == 14
    assert shrunk.with_settings({"resolution": "10"}).scoring.resolution == 10
    assert changed.with_settings({"distil": "false"}).distil is False


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": "7"}, "a recipe has no setting 'step'. It has: selector,"),
        ({"name": "x"}, "a recipe has no setting 'name'"),
        ({"steps": "many"}, "steps='many' is no int; it is 3000 by default"),
        ({"steps": "1.5"}, "steps='1.5' is no int"),
        ({"steps": "true"}, "steps='true' is no int"),
        ({"learning_rate": "true"}, "learning_rate='true' is no float; it is 0.001 by default"),
        ({"channels_last": "1"}, "channels_last='1' is no bool; it is False by default"),
        ({"channels_last": "yes"}, "channels_last='yes' is no bool"),
        ({"hyperparameters": "[1]"}, r"hyperparameters='\[1\]' is no dict"),
        ({"resolution": "wide"}, "resolution='wide' is no whole number or null; it is None by"),
        ({"noise": "3"}, "noise must be one of"),
    ],
)
def test_text_that_is_no_setting(settings: dict[str, str], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        _recipe().with_settings(settings)
