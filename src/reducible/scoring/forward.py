"""A forward pass that leaves no trace: buffers, random streams and modes as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from reducible.scoring.settings import DTYPES, Scoring

_CPU = torch.device("cpu")
_KEPT_AS = "_reducible_compiled"  # attribute of a model that is scored compiled


@contextmanager
def without_graph() -> Iterator[None]:
    """Runs a model in the body so that it can be trained afterwards, whatever it keeps of the pass.

    Inference mode would leave tensors in the model that cannot be saved for backward. Under an
    autocast of the caller's, weights that are cast here would be found in its cache without their
    gradients.
    """
    cache = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cache)


class _Compiled:
    """A model compiled for scoring; kept with the model, so that it lives no longer than that."""

    def __init__(self, model: nn.Module) -> None:
        self.runs: Any = torch.compile(model, dynamic=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()  # copies of the model and files of it hold none


def compiled(model: nn.Module) -> Any:
    """The model compiled for scoring; made once."""
    kept = model.__dict__.get(_KEPT_AS)
    if not isinstance(kept, _Compiled):
        kept = model.__dict__[_KEPT_AS] = _Compiled(model)
    return kept.runs


class Pass:
    """A forward pass of ``model`` in its scoring mode that leaves no trace; may be entered again.

    Plain loops in the place of generators and of ``modules()``, for every step passes through it.
    """

    def __init__(
        self, model: nn.Module, scoring: Scoring, *, dropout: bool = False, seed: int = 0
    ) -> None:
        self._model = model
        self._batchnorm, self._dtype = scoring.batchnorm, DTYPES[scoring.precision]
        self._dropout, self._seed = dropout, seed
        self._chance = dropout or scoring.batchnorm == "reference"
        self._draws_from_python = _draws_from_python.get(model, True)
        self._switched: list[nn.Module] = []
        self._untracked: list[_BatchNorm] = []

    def __enter__(self) -> None:
        # Grows as it is walked over: the whole tree, without a generator per module.
        modules: list[nn.Module | None] = [self._model]
        parameter: Tensor | None = None
        for module in modules:
            if module is not None:
                modules += module._modules.values()
                if parameter is None:
                    for parameter in module._parameters.values():
                        if parameter is not None:
                            break
        # What can fail comes first, while nothing has been changed.
        device = _CPU if parameter is None or parameter.is_cpu else parameter.device
        dtype = self._dtype
        self._autocast = (
            None if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)
        )
        self._accelerator = None if device is _CPU else _Accelerator(device)
        self._others = _others() if self._chance or self._draws_from_python else None
        # Kept even if nothing should draw: a model may call torch.rand in eval mode.
        self._stream = torch.default_generator.get_state()
        self._cache = torch.is_autocast_cache_enabled()
        self._set_modes(modules)
        if self._dropout:
            torch.manual_seed(self._seed)
        torch.set_autocast_cache_enabled(False)  # see without_graph
        if self._autocast is not None:
            self._autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._autocast is not None:
            self._autocast.__exit__(*error)
        torch.set_autocast_cache_enabled(self._cache)
        for norm in self._untracked:
            norm.track_running_stats = True
        # Whatever was switched is switched back, so no second list of modes is kept.
        for module in self._switched:
            module.__dict__["training"] = not module.training
        self._untracked.clear()
        self._switched.clear()
        torch.default_generator.set_state(self._stream)
        if self._accelerator is not None:
            self._accelerator.restore()
        if self._others is not None:
            self._draws_from_python = _draws_from_python[self._model] = _restore(self._others)

    def _set_modes(self, modules: list[nn.Module | None]) -> None:
        """Put every module, the model first, into its scoring mode; notes what to put back."""
        trains, chance, batchnorm = self._model.training, self._chance, self._batchnorm
        for module in modules:
            if module is None:
                continue
            was = module.training
            mode = chance
            if trains and not was:  # frozen on purpose, and stays so
                mode = False
            elif isinstance(module, _NormBase):
                mode = chance and batchnorm == "reference"
                if batchnorm == "candidates" and isinstance(module, _BatchNorm):
                    # Train mode without tracking: the batch's statistics, running ones kept.
                    mode = True
                    if module.track_running_stats:
                        self._untracked.append(module)
                        module.track_running_stats = False
            if mode != was:
                self._switched.append(module)
                module.__dict__["training"] = mode  # without nn.Module's search on every set


_draws_from_python: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether passes of a model move NumPy's or Python's stream, as its first one showed.

Torch's stream costs a microsecond to keep and is kept always. These cost fifty times that, so they
are kept if chance is on, or if the model draws from them.
"""


class _Accelerator:
    """The stream of a device other than the CPU, as it was found."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        self._state = self._module.get_rng_state(device)

    def restore(self) -> None:
        """Give it back."""
        self._module.set_rng_state(self._state, self._device)


def _others() -> tuple[Any, tuple[Any, ...]]:
    """NumPy's and Python's streams."""
    return np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(found: tuple[Any, tuple[Any, ...]]) -> bool:
    """Give them back; whether they had moved."""
    numpy_state, python_state = found
    here: Any = np.random.get_state()  # noqa: NPY002
    numpy_moved = here[2:] != numpy_state[2:] or not np.array_equal(here[1], numpy_state[1])
    moved = numpy_moved or random.getstate() != python_state
    if moved:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
    return moved
