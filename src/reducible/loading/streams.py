"""Random streams as text: those of the process, and all that the order of a loader depends on."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from reducible.types import DataError


def packed() -> str:
    """Returns the process's streams (torch's on the CPU, NumPy's, Python's) as JSON."""
    state = {
        "torch": torch.get_rng_state().numpy(),
        "numpy": np.random.get_state(legacy=False),  # noqa: NPY002
        "python": _of_python(random.getstate()),
    }
    return _text(state)


def unpack(text: str) -> None:
    """Sets the process's streams to what ``packed`` returned."""
    state = _read(text)
    torch.set_rng_state(torch.from_numpy(state["torch"]))
    np.random.set_state(state["numpy"])  # noqa: NPY002
    random.setstate(_for_python(state["python"]))


def order_state(loader: Any) -> dict[str, Any]:
    """Returns all that the order of the loader's next pass depends on.

    These are the process's streams, the generators that the loader and its samplers hold (torch's,
    NumPy's or Python's), and their epochs.
    """
    return {
        "global": packed(),
        "own": [_text(_state_of(source)) for source in _sources(loader)],
        "epochs": [owner.epoch for owner in _with_epochs(loader)],
    }


def set_order_state(loader: Any, state: dict[str, Any]) -> None:
    """Sets the loader's own generators and epochs; leaves the process's streams alone.

    Raises:
        DataError: the state is of a loader with other generators or epochs.
    """
    sources, owners = _sources(loader), _with_epochs(loader)
    if (len(sources), len(owners)) != (len(state["own"]), len(state["epochs"])):
        raise DataError(
            f"the state is of a loader with {len(state['own'])} generators and "
            f"{len(state['epochs'])} epochs in its samplers; this one has {len(sources)} and "
            f"{len(owners)}. Resume with the loader and samplers that the run was stopped with."
        )
    for source, text in zip(sources, state["own"], strict=True):
        _set_state(source, _read(text))
    for owner, epoch in zip(owners, state["epochs"], strict=True):
        if owner.epoch == epoch:
            continue
        if callable(getattr(owner, "set_epoch", None)):
            owner.set_epoch(epoch)
        else:
            owner.epoch = epoch


@contextmanager
def replayed(loader: Any, state: dict[str, Any]) -> Iterator[None]:
    """Draws the order in the body as from ``state``; puts the process's streams back after it."""
    mine = packed()
    try:
        set_order_state(loader, state)
        unpack(state["global"])
        yield
    finally:
        unpack(mine)


def _owners(loader: Any) -> list[Any]:
    """The loader and the samplers in it, at any depth, in a fixed order."""
    found = [loader]
    for owner in found:
        inside = [getattr(owner, name, None) for name in ("sampler", "batch_sampler")]
        inside += [v for v in _attributes(owner) if isinstance(v, Sampler | DataLoader)]
        found += _new(inside, found)
    return found


def _sources(loader: Any) -> list[Any]:
    """The generators that the loader and its samplers hold, in a fixed order."""
    found: list[Any] = []
    for owner in _owners(loader):
        held = [getattr(owner, "generator", None), *_attributes(owner)]
        found += _new([v for v in held if isinstance(v, _SOURCES)], found)
    return found


_SOURCES = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


def _with_epochs(loader: Any) -> list[Any]:
    """Yields what counts epochs: the loader, its samplers, a data set that is told of them."""
    dataset = getattr(loader, "dataset", None)
    owners = _owners(loader)
    if callable(getattr(dataset, "set_epoch", None)):
        owners += _new([dataset], owners)
    return [o for o in owners if type(getattr(o, "epoch", None)) is int]


def _attributes(owner: Any) -> list[Any]:
    return list(getattr(owner, "__dict__", {}).values())


def _new(values: list[Any], known: list[Any]) -> list[Any]:
    """Those of ``values`` that are not None and not yet known, once each."""
    new: list[Any] = []
    for value in values:
        if value is not None and all(value is not k for k in (*known, *new)):
            new.append(value)
    return new


def _state_of(source: Any) -> Any:
    if isinstance(source, torch.Generator):
        return source.get_state().numpy()
    if isinstance(source, np.random.Generator):
        return source.bit_generator.state
    if isinstance(source, np.random.RandomState):
        return source.get_state(legacy=False)
    return None if isinstance(source, random.SystemRandom) else _of_python(source.getstate())


def _set_state(source: Any, state: Any) -> None:
    if isinstance(source, torch.Generator):
        source.set_state(torch.from_numpy(state))
    elif isinstance(source, np.random.Generator):
        source.bit_generator.state = state
    elif isinstance(source, np.random.RandomState):
        source.set_state(state)
    elif state is not None:
        source.setstate(_for_python(state))


def _of_python(state: tuple[Any, ...]) -> list[Any]:
    version, words, gauss = state
    return [version, np.array(words, dtype=np.uint32), gauss]


def _for_python(state: list[Any]) -> tuple[Any, ...]:
    version, words, gauss = state
    return version, tuple(words.tolist()), gauss


def _text(state: Any) -> str:
    return json.dumps(state, default=_as_json)


def _as_json(value: Any) -> Any:
    """An array, which JSON has no word for; or a number of NumPy's."""
    if isinstance(value, np.ndarray):
        data = base64.b64encode(value.tobytes()).decode()
        return {"dtype": value.dtype.str, "base64": data}
    return value.item()


def _read(text: str) -> Any:
    return json.loads(text, object_hook=_from_json)


def _from_json(value: dict[str, Any]) -> Any:
    if value.keys() == {"dtype", "base64"}:
        return np.frombuffer(base64.b64decode(value["base64"]), dtype=value["dtype"]).copy()
    return value
