"""Irreducible losses per class: ten models beside one shared network with adapters."""

from dataclasses import replace

from reducible.lab.recipe import Recipe

REDUCR = Recipe(
    name="groups/models",
    selector="reducr",
    steps=2000,
    irreducible_model="mlp-64",
    irreducible_smoothing=0.02,
)

GROUPS = (
    Recipe(name="groups/uniform", selector="uniform", steps=2000),
    replace(REDUCR, name="groups/rho", selector="rho"),
    REDUCR,
    replace(REDUCR, name="groups/shared", group_irreducible="shared"),
)
