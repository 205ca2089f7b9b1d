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
    holdouts,
    measured,
    setting,
    steps_within,
)
from reducible.recipes.scoring import SCORING, STEPS, WAYS


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
@pytest.mark.parametrize("data", DATA)
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


def test_a_budget_that_the_fit_eats_up_leaves_one_step() -> None:
    assert steps_within(0.5, plateau=100, cost=1.0, fit=80.0) == 1


def test_ways_of_scoring_make_as_many_updates_on_the_same_data() -> None:
    """What differs from exact scoring is the way alone."""
    made = {recipe.name: recipe for recipe in SCORING}
    for network, steps in STEPS.items():
        exact = made[f"scoring/{network}/exact"]
        assert (exact.selector, exact.n_b, exact.n_candidates, exact.steps) == (
            "rho", 32, 320, steps
        )  # fmt: skip
        assert (exact.label_noise, exact.holdout_noise, exact.holdout_examples) == (0.1, 0.0, 7500)
        assert (exact.schedule, exact.learning_rate, exact.train_examples) == (
            "cosine", 2e-3, 20_000
        )  # fmt: skip
        assert exact.scoring == rd.Scoring()
        for way, settings in WAYS.items():
            mine = made.get(f"scoring/{network}/{way}")
            if mine is None:
                assert (network, way) == ("cnn", "small")
                continue
            differ = {f for f in mine.__dataclass_fields__ if getattr(mine, f) != getattr(exact, f)}
            resnet_remembers = (network, way) == ("resnet", "remembered")
            allowed = {"batchnorm"} if resnet_remembers else set[str]()
            assert differ - {"name"} == set(settings) | allowed
            assert RECIPES[mine.name] == mine
