"""Every row of the table is run by a recipe for a few steps; a recipe says what cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

import reducible as rd
from reducible.lab.recipes import Recipe
from reducible.lab.run import Run

DROPOUT = {"bald", "conditional_entropy", "entropy", "loss_minus_conditional_entropy", "rho_bald"}


def _recipe(rule: str, model: str) -> Recipe:
    return Recipe(
        name=f"test/{rule}",
        selector=rule,
        model=model,
        train_examples=400,
        holdout_examples=200,
        n_b=8,
        n_candidates=8 if rule == "infobatch" else 40,
        steps=3,
        evaluate_every=3,
        irreducible_model="mlp-64",
        irreducible_epochs=1,
        group_irreducible="shared",
    )


@pytest.mark.parametrize("rule", rd.SELECTORS)
def test_a_recipe_runs_it(rule: str, tmp_path: Path) -> None:
    model = "mlp-64-dropout" if rule in DROPOUT else "mlp-64"
    run = Run(_recipe(rule, model), tmp_path / "run", progress=False, target=0.0)
    summary = run.start()
    assert summary["examples_trained"] > 0
    assert summary["target_accuracy"] == 0.0
    assert 0.0 <= summary["final_accuracy"] <= 1.0


@pytest.mark.parametrize("rule", sorted(DROPOUT))
def test_a_network_without_dropout_is_refused_at_construction(rule: str) -> None:
    with pytest.raises(
        rd.ConfigurationError, match=r"passes with dropout on, but mlp-64, .*dropout"
    ):
        _recipe(rule, "mlp-64")
