"""The named recipes: all can be made, the study's budgets hold, patterns find them."""

from __future__ import annotations

from dataclasses import replace

import pytest

import reducible as rd
from reducible.lab.recipes import RECIPES, matching
from reducible.lab.studies.equal_time.recipes import (
    BUDGETS,
    DATA,
    FINER,
    RULES,
    cell,
    data_of,
    holdouts,
    measured,
    rules_of,
    setting,
    steps_within,
)
from reducible.lab.studies.online.recipes import ONLINE, VARIANTS, variant
from reducible.lab.studies.scoring.recipes import PASSES, SCORING, STUDIES, WAYS, ways_of


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
            if budget != "0.75x":
                assert RECIPES[made.name] == made


def test_a_run_between_budgets_is_that_of_the_finer_rule_alone() -> None:
    between = [recipe for name, recipe in RECIPES.items() if "/0.75x/" in name]
    assert between == [
        cell(network, data, "noisy", "0.75x", FINER, measured())
        for network in ("cnn", "mlp")
        for data in data_of(network)
    ]


def test_rules_differ_from_uniform_in_what_they_say_alone() -> None:
    uniform, plan = (setting("mlp", "clean", "noisy", rule) for rule in ("uniform", "plan-filter"))
    differ = {
        name
        for name in uniform.__dataclass_fields__
        if getattr(uniform, name) != getattr(plan, name)
    }
    assert differ == {"name", "plan", "n_candidates"}


def test_infobatch_of_the_study_trains_on_every_candidate() -> None:
    found = [recipe for name, recipe in RECIPES.items() if recipe.selector == "infobatch"]
    assert len(found) >= 30
    assert all(r.n_b == r.n_candidates == 32 and r.hyperparameters == {} for r in found)


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


# -- the online study -----------------------------------------------------------------------------


@pytest.mark.parametrize("data", data_of("mlp"))
@pytest.mark.parametrize(
    ("name", "same"),
    [
        ("uniform", "any/1x/uniform"),
        ("plan", "noisy/1x/plan-filter"),
        ("plan-train-loss", "noisy/1x/plan-online"),
        ("strong-rho", "noisy/1x/rho"),
    ],
)
def test_variants_that_are_rules_of_the_equal_time_study_are_its_cells(
    name: str, same: str, data: str
) -> None:
    cell = RECIPES[f"equal-time/mlp/{data}/{same}"]
    mine = RECIPES[f"online/{data}/{name}"]
    # which has a rate of its own where that was tuned to another
    assert replace(mine, name=cell.name, learning_rate=cell.learning_rate) == cell


COSTS = {
    # uniform, plan-filter, plan-online and rho cost 1, 2, 4 and 8 steps here, fits 0, 20, 40 and 80
    "uniform": 1000,
    "rho": (1000 - 40) // 4,
    "train-loss": 1000 // 4,  # nothing is fitted
    "rho-floor": 240,
    "rho-floor-30": 240,
    "rho-temperature": 240,
    "rho-anneal": 240,  # scores to the end
    "rho-early": int((1000 - 40) / 2.5),
    "rho-soft": 240,
    "rho-soft-corrected": 240,
    "rho-mixed": 240,
    "plan": (1000 - 20) // 2,
    "plan-rho": 240,
    "plan-rho-floor": 240,
    "plan-train-loss": 240,
    "plan-train-loss-early": (1000 - 40) // 3,
    "plan-train-loss-mixed": 240,
    "strong-rho": (1000 - 80) // 8,
    "strong-rho-floor": 115,
    "strong-rho-early": int((1000 - 80) / (0.1 * 8 + 0.9 * 1)),
    "strong-rho-anneal": 115,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_has_the_steps_that_it_can_pay_for(name: str) -> None:
    known = {
        "plateau": 1000,
        "rules": {
            "uniform": {"cost": 1.0, "fit": 0},
            "plan-filter": {"cost": 2.0, "fit": 20},
            "plan-online": {"cost": 4.0, "fit": 40},
            "rho": {"cost": 8.0, "fit": 80},
        },
    }
    assert set(COSTS) == set(VARIANTS)
    assert variant("flip-10", name, known).steps == COSTS[name]


def test_the_online_study_has_every_variant_on_every_kind_of_data() -> None:
    assert [r.name for r in ONLINE] == [f"online/{d}/{v}" for d in data_of("mlp") for v in VARIANTS]
    for recipe in ONLINE:
        _, data, name = recipe.name.split("/")
        assert (recipe.model, recipe.schedule, recipe.n_b) == ("mlp-512", "cosine", 32)
        assert recipe.learning_rate == 2e-3
        assert recipe.label_noise == recipe.holdout_noise == DATA[data]["label_noise"]
        assert (recipe.plan == "filter") is name.startswith("plan")
        strong = name.startswith("strong") or name == "uniform"
        way = (recipe.n_candidates, recipe.scoring.updates_per_scoring, recipe.scoring.precision)
        expected = (32, 1, "float32") if name == "plan" else (192, 4, "bfloat16")
        assert way == ((320, 1, "float32") if strong else expected)
        assert RECIPES[recipe.name] is recipe


def test_rules_of_variants() -> None:
    def chosen(name: str) -> tuple[object, ...]:
        r = RECIPES[f"online/clean/{name}"]
        schedule = (r.select_until, r.select_anneal, r.random_share)
        return r.selector, dict(r.hyperparameters), *schedule

    assert chosen("rho-floor-30") == ("rho_calibrated", {"floor": 0.3}, 1, 0, 0)
    assert chosen("rho-temperature") == ("rho_calibrated", {"temperature": 2, "floor": 0}, 1, 0, 0)
    assert chosen("rho-anneal") == ("rho", {}, 1, 1, 0)
    assert chosen("rho-early") == ("rho", {}, 0.5, 0, 0)
    assert chosen("rho-soft") == ("rho_soft", {"temperature": 1}, 1, 0, 0)
    assert chosen("rho-soft-corrected") == (
        "rho_soft",
        {"temperature": 1, "correct": True},
        1,
        0,
        0,
    )
    assert chosen("rho-mixed") == ("rho", {}, 1, 0, 0.5)
    assert chosen("plan-rho-floor") == ("rho_calibrated", {"floor": 0.1}, 1, 0, 0)
    assert chosen("plan-train-loss-early") == ("train_loss", {}, 0.5, 0, 0)
    assert chosen("plan-train-loss-mixed") == ("train_loss", {}, 1, 0, 0.5)
    assert chosen("strong-rho-floor") == ("rho_calibrated", {"floor": 0.1}, 1, 0, 0)
    assert chosen("strong-rho-early") == ("rho", {}, 0.1, 0, 0)
    assert chosen("strong-rho-anneal") == ("rho", {}, 1, 1, 0)


# -- the scoring study ----------------------------------------------------------------------------


def test_ways_of_scoring_make_as_many_updates_on_the_same_data() -> None:
    """What differs from exact scoring is the way alone."""
    made = {recipe.name: recipe for recipe in SCORING}
    for study, known in STUDIES.items():
        exact = made[f"scoring/{study}/exact"]
        assert (exact.selector, exact.n_b, exact.n_candidates) == ("rho", 32, 320)
        assert (exact.label_noise, exact.holdout_noise, exact.holdout_examples) == (0.1, 0.0, 7500)
        assert (exact.schedule, exact.learning_rate) == ("cosine", 2e-3)
        assert {name: exact.settings()[name] for name in known} == known
        assert exact.scoring == rd.Scoring()
        for way in ways_of(study):
            mine = made[f"scoring/{study}/{way}"]
            now, then = mine.settings(), exact.settings()
            differ = {name for name in now if now[name] != then[name]}
            allowed = {"max_age"} if way in PASSES else set[str]()
            assert differ - {"name"} == set(WAYS[way]) | allowed
            assert RECIPES[mine.name] == mine


def test_losses_are_remembered_for_as_many_passes_as_is_said() -> None:
    made = {recipe.name: recipe for recipe in SCORING}
    ages = {
        way: [made[f"scoring/{s}/{way}"].scoring.max_age for s in ("cnn", "resnet")]
        for way in PASSES
    }
    assert ages == {"remembered": [93, 93], "remembered-bfloat16": [527, 527]}  # a pass is 62
    assert made["scoring/resnet-longer/remembered-bfloat16"].scoring.max_age == 127  # a pass is 15
    assert set(ways_of("cnn")) == set(WAYS) - {"small", "co-trained-lenet"}
    assert ways_of("resnet") == tuple(WAYS)
    assert ways_of("resnet-longer") == ("uniform", "exact", "remembered-bfloat16")
