"""Recipes: named runs. One module per paper; ``RECIPES`` holds them all."""

from collections.abc import Mapping
from types import MappingProxyType

from reducible.recipe import Recipe
from reducible.recipes.demo import DEMO
from reducible.recipes.groups import GROUPS
from reducible.selectors.table import did_you_mean
from reducible.types import ConfigurationError

RECIPES: Mapping[str, Recipe] = MappingProxyType({r.name: r for r in (*DEMO, *GROUPS)})


def recipe(name: str) -> Recipe:
    """The recipe ``name``; raises ConfigurationError with the closest name otherwise."""
    if name not in RECIPES:
        raise ConfigurationError(f"no recipe {name!r}. {did_you_mean(name, RECIPES)}")
    return RECIPES[name]


__all__ = ["DEMO", "GROUPS", "RECIPES", "Recipe", "recipe"]
