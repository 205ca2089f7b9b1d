"""Recipes: settings from text, and those that cannot work refused before anything is run."""

from __future__ import annotations

from typing import Any

import pytest

import reducible as rd
from reducible.recipe import Recipe


def _recipe(selector: str = "rho", **settings: Any) -> Recipe:
    return Recipe(name="r", selector=selector, **settings)


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
            {"train_on": "train+holdout", "plan": "filter"},
            "irreducible losses are of a holdout that is not trained on",
        ),
        ("train_loss", {"gate": "auto", "holdout_examples": 0}, "the gate watches a holdout"),
        ("uniform", {"gate": "auto", "train_on": "holdout"}, "the gate watches a holdout"),
        ("uniform", {"plan": "filter", "holdout_examples": 0}, "needs a holdout"),
        ("reducr", {"holdout_examples": 0, "irreducible_from": "cross-fit"}, "needs a holdout"),
        ("reducr", {"plan": "weights"}, "one irreducible loss per example, reducr one per group"),
        ("infobatch", {"plan": "filter"}, "infobatch plans its epochs itself, so plan='filter'"),
        ("svp", {"plan": "filter"}, "svp plans its epochs itself"),
        ("rho_updating", {"irreducible_from": "cross-fit"}, "but cross-fitting makes two"),
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
    recipe = _recipe(
        "reducr", hyperparameters={"gamma": 4.0}, precision="bfloat16", updates_per_scoring=3,
        batchnorm="running",
    )  # fmt: skip
    expected = rd.Scoring(batchnorm="running", precision="bfloat16", updates_per_scoring=3)
    assert recipe.scoring == expected
    assert recipe.rule is not recipe.rule  # a new one, with no memory of another run


def test_settings_from_text() -> None:
    changed = _recipe().with_settings(
        {
            "steps": "7", "learning_rate": "1", "model": "mlp-64", "plan": "filter",
            "scorer": "mlp-64", "hyperparameters": "{}", "updates_per_scoring": "2",
        }
    )  # fmt: skip
    assert (changed.steps, changed.learning_rate, changed.model) == (7, 1.0, "mlp-64")
    assert isinstance(changed.learning_rate, float)
    assert (changed.plan, changed.scorer, changed.updates_per_scoring) == ("filter", "mlp-64", 2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": "7"}, "a recipe has no setting 'step'. It has: selector,"),
        ({"name": "x"}, "a recipe has no setting 'name'"),
        ({"steps": "many"}, "steps='many' is no int; it is 3000 by default"),
        ({"steps": "1.5"}, "steps='1.5' is no int"),
        ({"steps": "true"}, "steps='true' is no int"),
        ({"hyperparameters": "[1]"}, r"hyperparameters='\[1\]' is no Mapping"),
        ({"noise": "3"}, "noise must be one of"),
    ],
)
def test_text_that_is_no_setting(settings: dict[str, str], message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        _recipe().with_settings(settings)
