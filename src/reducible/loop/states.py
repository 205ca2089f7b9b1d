"""Says what a loop's state belongs to, and refuses states of something else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from reducible.loading.order import batch_size_of
from reducible.scoring import Scoring
from reducible.selectors import Selector
from reducible.stores import (
    IrreducibleLossStore,
    fingerprint,
    has_distinct_ids,
    ids_of,
    known_length,
    labels_of,
)
from reducible.types import ConfigurationError

VERSION = 1
"""Version of the states of a SelectingLoader: raised when their meaning changes."""
_AT_MOST = 1 << 22  # rows whose ids and labels are hashed: about a second


def belongings(
    *,
    loader: Any,
    keep: float,
    seed: int,
    selector: Selector,
    shadows: Mapping[str, Selector],
    scoring: Scoring,
    task: Any,
    store: IrreducibleLossStore | None,
    **parts: Any,
) -> dict[str, Any]:
    """Describes what a state belongs to, as JSON types.

    Equal for loops that may take each other's states.

    Args:
        loader: of the candidate batches.
        keep: see SelectingLoader, as are the others.
        seed: of every choice.
        selector: by its class and what it needs; hyperparameters may change on resuming.
        shadows: the same.
        scoring: all settings.
        task: by its class.
        store: by its digest.
        parts: anything else that is there or not.
    """
    return {
        "keep": keep,
        "seed": seed,
        "selector": _rule(selector),
        "shadows": {name: _rule(rule) for name, rule in shadows.items()},
        "scoring": {name: str(value) for name, value in asdict(scoring).items()},
        "task": type(task).__name__,
        "batch size": batch_size_of(loader),
        "data": _data(getattr(loader, "dataset", None)),
        "store": None if store is None else store.digest,
    } | {name: part is not None for name, part in parts.items()}


def require_belongs(state: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise ConfigurationError unless ``state`` is of this version and of what ``own`` says."""
    if not isinstance(state, Mapping):
        raise ConfigurationError(f"a state is a mapping, got {type(state).__name__}.")
    version = state.get("version")
    if version != VERSION:
        raise ConfigurationError(
            f"the state is of version {version}, this reducible reads version {VERSION}: it was "
            "saved by another one, or is not of a SelectingLoader. Resume with the version that "
            "saved it, or start anew."
        )
    theirs = state.get("of")
    if not isinstance(theirs, Mapping):
        raise ConfigurationError("the state does not say what it belongs to: 'of' is missing.")
    # Both ways round, so that a part which only the state knows is told too.
    names = [*own, *(name for name in theirs if name not in own)]
    wrong = [
        f"{name}: {theirs.get(name)!r} in the state, {own.get(name)!r} here"
        for name in names
        if theirs.get(name) != own.get(name)
    ]
    if wrong:
        raise ConfigurationError(
            f"the state is of another loop ({'; '.join(wrong)}). Build the loop as it was when the "
            "state was taken, or start anew."
        )


def require_counts(state: Mapping[str, Any], *names: str) -> None:
    """Raise ConfigurationError unless these entries of ``state`` are whole numbers from 0."""
    for name in names:
        value = state.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ConfigurationError(
                f"{name} in the state must be a whole number from 0, got {value!r}: the state is "
                "damaged, or was made by hand."
            )


def require_keys(state: Mapping[str, Any], own: Mapping[str, Any], *parts: str) -> None:
    """Raise ConfigurationError unless ``state``, and ``parts`` of it, have the keys of ``own``."""
    for name in ("", *parts):
        theirs, ours = (state[name], own[name]) if name else (state, own)
        if not isinstance(theirs, Mapping) or theirs.keys() != ours.keys():
            found = sorted(theirs) if isinstance(theirs, Mapping) else type(theirs).__name__
            raise ConfigurationError(
                f"the state{f' of the {name}' if name else ''} has {found} where "
                f"{sorted(ours)} belong: it is damaged, or was made by hand."
            )


def _rule(rule: Selector) -> str:
    return f"{type(rule).__name__}({', '.join(sorted(rule.needs))})"


def _data(dataset: Any) -> str | None:
    """The fingerprint of a data set that carries distinct ids, its length of others; None: none."""
    rows = known_length(dataset)
    if rows is None:
        return None
    # A state is asked for often; hashing a large data set each time is not worth it.
    if rows > _AT_MOST or not has_distinct_ids(dataset):
        return f"n={rows}"
    return fingerprint(ids_of(dataset), labels_of(dataset))
