"""Settings of recipes given as text, and what is known of a recipe's rule before it runs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from reducible.types import ConfigurationError


class RuleFacts(NamedTuple):
    """Tells the loop of a recipe's rule before it runs; see ``Selector``."""

    needs: frozenset[str]
    samples: int
    lr_ratio: float | None
    horizon: Literal["batch", "epoch", "run"]
    takes_all: bool


class KeptFacts:
    """A place for what is computed once of a frozen recipe; no setting, so it is not recorded."""

    __slots__ = ("_facts",)
    _facts: RuleFacts


def as_type(name: str, text: str, old: Any) -> Any:
    """Reads ``text`` as a value of the type of ``old``; a number, or null, if ``old`` is None."""
    if isinstance(old, str):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    boolean = isinstance(value, bool)
    if old is None:
        wanted: Any = int | None
    else:
        wanted = Mapping if isinstance(old, Mapping) else type(old)
    if wanted is float and isinstance(value, int) and not boolean:
        value = float(value)
    if not isinstance(value, wanted) or boolean != (wanted is bool):
        kind = "whole number or null" if old is None else type(old).__name__
        raise ConfigurationError(f"{name}={text!r} is no {kind}; it is {old!r} by default.")
    return value
