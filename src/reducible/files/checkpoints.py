"""Checkpoints: states of any structure in safetensors files with a checksum, the last few kept."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from reducible.files.seals import BLANK, Seals
from reducible.files.whole import replacing
from reducible.types import ReducibleError, require_between

_NAME = re.compile(r"checkpoint-(\d+)\.safetensors")


def save(folder: Path, state: Mapping[str, Any], *, step: int, keep: int = 2) -> Path:
    """Write ``state`` as the checkpoint of ``step``, whole or not at all; returns its path.

    Tensors go into a safetensors file, everything else into its metadata as JSON, nothing is
    pickled. The ``keep`` last checkpoints of the folder stay, older ones are removed.

    Args:
        folder: of the checkpoints.
        state: of dicts, lists, tuples, tensors, NumPy arrays, numbers, text, bytes, None.
        step: updates made.
        keep: how many checkpoints stay, at least 1.

    Raises:
        ReducibleError: the state holds something else; its place is named.
    """
    require_between("keep", keep, 1, whole=True)
    require_between("step", step, 0, whole=True)
    path = folder / f"checkpoint-{step}.safetensors"
    write(path, state)
    for old in saved(folder)[keep:]:
        old.unlink(missing_ok=True)
    return path


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Write ``state`` to ``path``; see ``save``."""
    data = packed(state)
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def load(path: Path) -> dict[str, Any]:
    """Read what ``save`` or ``write`` wrote, onto the CPU; raises ReducibleError if it is not."""
    try:
        return unpacked(path.read_bytes())
    except ValueError as error:
        raise ReducibleError(f"{path} is {error}.") from error


def saved(folder: Path) -> list[Path]:
    """The checkpoints in ``folder``, the newest first."""
    found = [(int(m[1]), p) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name))]
    return [path for _, path in sorted(found, reverse=True)]


def remove(folder: Path) -> None:
    """Remove all checkpoints in ``folder``."""
    for path in saved(folder):
        path.unlink(missing_ok=True)


def packed(state: Mapping[str, Any]) -> bytes:
    """``state`` as the bytes of a sealed safetensors file; see ``save``."""
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, tensors, "state"), allow_nan=False)
    data = save_tensors(tensors, metadata={"state": text, "check": BLANK})
    try:
        return Seals().seal(data)
    except ValueError as error:
        raise ReducibleError(f"this state cannot be sealed: {error}.") from error


def unpacked(data: bytes) -> dict[str, Any]:
    """The state in ``data``; raises ValueError saying what is wrong with it."""
    if not Seals().holds(data):
        raise ValueError("not as it was written: its checksum is missing or differs")
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    return _unpack(json.loads(header["__metadata__"]["state"]), load_tensors(data))


def save_weights(path: str | os.PathLike[str], weights: Mapping[str, Tensor]) -> None:
    """Write a state dict as a safetensors file with a checksum, whole or not at all."""
    tensors = {name: _plain(tensor) for name, tensor in weights.items()}
    data = Seals().seal(save_tensors(tensors, metadata={"check": BLANK}))
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(data)


def load_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read what ``save_weights`` wrote; raises ReducibleError if the file is not that."""
    data = Path(path).read_bytes()
    if not Seals().holds(data):
        raise ReducibleError(
            f"{path} is not as it was written: its checksum is missing or differs. Restore it from "
            "a copy, or delete it and fit again."
        )
    return load_tensors(data)


def _pack(value: Any, tensors: dict[str, Tensor], where: str) -> Any:
    """``value`` as JSON; its tensors are put into ``tensors`` and named in their place."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), tensors, where)
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, Tensor | np.ndarray):
        name = str(len(tensors))
        array = isinstance(value, np.ndarray)
        try:
            tensors[name] = _plain(torch.from_numpy(value) if array else value)
        except (TypeError, RuntimeError) as error:
            raise _unknown(value, where) from error
        return {"array" if array else "tensor": name}
    if isinstance(value, Mapping):
        pairs = [
            [_pack(k, tensors, f"a key of {where}"), _pack(v, tensors, f"{where}[{k!r}]")]
            for k, v in value.items()
        ]
        return {"dict": pairs}
    if isinstance(value, list | tuple):
        items = [_pack(v, tensors, f"{where}[{i}]") for i, v in enumerate(value)]
        return items if isinstance(value, list) else {"tuple": items}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    raise _unknown(value, where)


def _plain(tensor: Tensor) -> Tensor:
    """A dense copy on the CPU with memory of its own, as the file format asks for."""
    if tensor.layout is not torch.strided or tensor.is_quantized:
        raise TypeError(tensor.layout)
    return tensor.detach().to("cpu", copy=True).contiguous()


def _unknown(value: Any, where: str) -> ReducibleError:
    return ReducibleError(
        f"{where} is of type {type(value).__module__}.{type(value).__qualname__}, which a "
        "checkpoint does not hold: nothing is pickled. Return dicts, lists, tuples, dense tensors, "
        "NumPy arrays of numbers, numbers, text or bytes from state_dict()."
    )


def _unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(packed, list):
        return [_unpack(item, tensors) for item in packed]
    if not isinstance(packed, dict):
        return packed
    ((kind, value),) = packed.items()
    if kind == "tensor":
        return tensors[value]
    if kind == "array":
        return tensors[value].numpy()
    if kind == "dict":
        return {_unpack(k, tensors): _unpack(v, tensors) for k, v in value}
    if kind == "tuple":
        return tuple(_unpack(item, tensors) for item in value)
    if kind == "bytes":
        return base64.b64decode(value)
    return float(value)
