"""The named recipes: all can be made, the study's budgets hold, patterns find them."""

from __future__ import annotations

import pytest

import reducible as rd
from reducible.recipes import RECIPES, matching
from reducible.recipes.equal_time import (
    BUDGETS,
    DATA,
    RULES,
    cell,
    data_of,
    holdouts,
    measured,
    rules_of,
    setting,
    steps_within,
)


def test_names_are_their_own_and_patterns_find_them() -> None:
    assert all(name == recipe.name for name, recipe in RECIPES.items())
    assert [r.name for r in matching(["demo/rho"])] == ["demo/rho"]
    found = [r.name for r in matching(["demo/*", "demo/rho"])]
    assert found == [name for name in RECIPES if name.startswith("demo/")]
    with pytest.raises(rd.ConfigurationError, match="no recipe is like 'nothing/\\*'"):
        matching(["nothing/*"])
    with pytest.raises(rd.ConfigurationError, match="demo/rho"):
        matching(["demo/rhoo"])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("data", data_of("mlp"))
def test_every_cell_costs_its_budget(rule: str, data: str) -> None:
    known = measured()
    about = known["mlp"]
    for holdout in holdouts(rule):
        for budget, share in BUDGETS.items():
            made = cell("mlp", data, holdout, budget, rule, known)
            cost = about["rules"][rule]
            spent = made.steps * cost["cost"] + cost["fit"]
            assert spent <= share * about["plateau"] < spent + 2 * cost["cost"]
            assert made.schedule == "cosine"
            assert made.label_noise == DATA[data]["label_noise"]
            assert made.holdout_noise == (0.0 if holdout == "clean" else made.label_noise)
            assert RECIPES[made.name] == made


def test_rules_differ_from_uniform_in_what_they_say_alone() -> None:
    uniform, plan = (setting("mlp", "clean", "noisy", rule) for rule in ("uniform", "plan-filter"))
    differ = {
        name
        for name in uniform.__dataclass_fields__
        if getattr(uniform, name) != getattr(plan, name)
    }
    assert differ == {"name", "plan", "plan_exponent"}


def test_small_slices_of_the_study_are_of_one_kind_of_data_and_four_rules() -> None:
    assert data_of("cnn") == data_of("mlp") == tuple(d for d in DATA if d != "flip-20")
    assert rules_of("cnn") == rules_of("mlp") == tuple(RULES)
    for network, data in (("resnet", "flip-40"), ("minilm", "flip-20")):
        assert data_of(network) == (data,)
        assert rules_of(network) == ("uniform", "rho", "plan-filter", "plan-online")


@pytest.mark.parametrize("rule", rules_of("minilm"))
def test_minilm_is_fine_tuned_on_noisy_sentences(rule: str) -> None:
    made = setting("minilm", "flip-20", holdouts(rule)[0], rule)
    assert (made.dataset, made.model) == ("film-sentences", "minilm")
    assert made.irreducible_model == "bag-of-embeddings"
    assert (made.label_noise, made.holdout_noise) == (0.2, 0.2)
    assert made.n_b == 32
    assert made.schedule == "cosine"


def test_a_budget_that_the_fit_eats_up_leaves_one_step() -> None:
    assert steps_within(0.5, plateau=100, cost=1.0, fit=80.0) == 1
