"""Recipes: named runs. One module per paper; ``RECIPES`` holds them all."""

import fnmatch
from collections.abc import Iterable, Mapping
from types import MappingProxyType

from reducible.lab.recipe import Recipe
from reducible.lab.studies.demo.recipes import DEMO
from reducible.lab.studies.equal_time.recipes import EQUAL_TIME, ON_THE_CLOCK
from reducible.lab.studies.groups.recipes import GROUPS
from reducible.lab.studies.online.recipes import ONLINE
from reducible.lab.studies.scoring.recipes import SCORING
from reducible.selectors.table import did_you_mean
from reducible.types import ConfigurationError

RECIPES: Mapping[str, Recipe] = MappingProxyType(
    {r.name: r for r in (*DEMO, *GROUPS, *EQUAL_TIME, *ON_THE_CLOCK, *ONLINE, *SCORING)}
)


def matching(patterns: Iterable[str]) -> list[Recipe]:
    """The recipes that ``patterns`` name, each a name or a shell pattern like ``"demo/*"``.

    Raises:
        ConfigurationError: a pattern that names none.
    """
    found: dict[str, Recipe] = {}
    for pattern in patterns:
        names = fnmatch.filter(RECIPES, pattern) if set(pattern) & set("*?[") else [pattern]
        if not names:
            raise ConfigurationError(
                f"no recipe is like {pattern!r}: `reducible recipes` lists all."
            )
        found |= {name: recipe(name) for name in names}
    return list(found.values())


def recipe(name: str) -> Recipe:
    """The recipe ``name``; raises ConfigurationError with the closest name otherwise."""
    if name not in RECIPES:
        raise ConfigurationError(f"no recipe {name!r}. {did_you_mean(name, RECIPES)}")
    return RECIPES[name]


__all__ = [
    "DEMO",
    "EQUAL_TIME",
    "GROUPS",
    "ONLINE",
    "ON_THE_CLOCK",
    "RECIPES",
    "SCORING",
    "Recipe",
    "matching",
    "recipe",
]
