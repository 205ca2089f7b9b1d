"""An accelerator to test on: the one there is, or tensors that behave as on one.

A ``Far`` tensor says that it is on the device ``far:0`` and holds its numbers in a tensor on the
CPU. It refuses to meet a CPU tensor in one operation, as an accelerator's does, and counts how
often its numbers are asked for, which is what makes a program wait for an accelerator.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)

_READS = {"_local_scalar_dense", "nonzero", "equal", "_unique2", "unique_dim", "masked_select"}
_MAY_MEET_THE_CPU = {"_to_copy", "copy_", "index", "index_put", "index_put_"}


FAR = "far:0"


class Far(Tensor):
    """A tensor on the device ``far:0``."""

    near: Tensor

    @staticmethod
    def __new__(cls, near: Tensor) -> Far:
        return torch.Tensor._make_wrapper_subclass(  # pyright: ignore[reportAttributeAccessIssue]
            cls,
            near.size(),
            strides=near.stride(),
            storage_offset=near.storage_offset(),
            dtype=near.dtype,
            device=torch.device(FAR),
        )

    def __init__(self, near: Tensor) -> None:
        self.near = near

    def __repr__(self, **_: Any) -> str:
        return f"Far({self.near})"

    def tolist(self) -> Any:
        waits.count += 1
        return self.near.tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError("can't convert a tensor on far:0 to numpy. Use Tensor.cpu() first.")

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Waits:
    """How often a program has waited for the far device."""

    count = 0


waits = Waits()


class _Backend(_DummyBackendModule):
    """The far device's own random stream, which nothing draws from."""

    def get_rng_state(self, device: Any = None) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: Any = None) -> None:
        assert state.tolist() == [0]

    def current_stream(self, device: Any) -> str:
        return str(device)

    class Event:
        """Waited for, it has come; so that only copies that were made to wait are counted."""

        recorded = False

        def record(self, stream: str) -> None:
            self.recorded = stream == FAR

        def synchronize(self) -> None:
            assert self.recorded


class FarMode(TorchDispatchMode):
    """Makes new tensors on the far device, where they are asked for there."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    name = func.overloadpacket.__name__
    tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, Tensor)]
    here = any(isinstance(t, Far) for t in tensors)
    wanted = kwargs.get("device")
    if not here and (wanted is None or torch.device(wanted).type != "far"):
        return func(*args, **kwargs)
    if here and name not in _MAY_MEET_THE_CPU:
        for t in tensors:
            if not isinstance(t, Far) and t.dim() > 0:
                raise RuntimeError(
                    f"{name}: expected all tensors to be on the same device, but found far:0 and "
                    f"{t.device}"
                )
    if here and name in _READS:
        waits.count += 1
    if here and name == "index":  # by a mask: how many rows come out is not known beforehand
        waits.count += any(i is not None and i.dtype == torch.bool for i in args[1])
    if name == "copy_":
        return _copied(*args)
    near_args, near_kwargs = tree_map(_near, (args, kwargs))
    to_the_cpu = False
    if "device" in near_kwargs and wanted is not None:
        to_the_cpu = torch.device(wanted).type == "cpu"
        near_kwargs["device"] = torch.device("cpu")
    if name == "_to_copy" and to_the_cpu and not kwargs.get("non_blocking"):
        waits.count += 1
    out = func(*near_args, **near_kwargs)
    if to_the_cpu:
        return out
    return tree_map(lambda t: _far(t, tensors), out)


def _copied(target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
    if isinstance(source, Far) and not isinstance(target, Far):
        waits.count += 1
    _near(target).copy_(_near(source))
    return target


def _near(value: Any) -> Any:
    return value.near if isinstance(value, Far) else value


def _far(value: Any, given: list[Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    for tensor in given:  # in place: the same tensor comes back
        if isinstance(tensor, Far) and tensor.near is value:
            return tensor
    return Far(value)


@dataclass(frozen=True)
class Accelerator:
    """A device other than the CPU, and a count of how often something waits for it."""

    device: torch.device

    def put(self, value: Any) -> Any:
        """``value`` with its tensors on the device."""
        return tree_map(lambda t: t.to(self.device) if isinstance(t, Tensor) else t, value)

    @contextmanager
    def counting(self) -> Iterator[Callable[[], int]]:
        """A function that says how often the body has waited so far."""
        if self.device.type != "cuda":
            before = waits.count
            yield lambda: waits.count - before
            return
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                yield lambda: sum("called a synchronizing CUDA" in str(w.message) for w in said)
        finally:
            torch.cuda.set_sync_debug_mode("default")


_IN_ITS_OWN_PROCESS = "REDUCIBLE_TEST_FAR" in os.environ


if _IN_ITS_OWN_PROCESS:  # before the first backward pass, which counts the devices there are
    _setup_privateuseone_for_python_backend("far", backend_module=_Backend())


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """The far device in the process that test_far.py starts; elsewhere a CUDA device."""
    if not _IN_ITS_OWN_PROCESS:
        yield Accelerator(torch.device("cuda", 0))
        return
    with FarMode():
        yield Accelerator(torch.device(FAR))
