"""How a store lies in its file: as safetensors, with a checksum among the metadata."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

from reducible.files import replacing

FORMAT = "reducible.irreducible_loss.1"
CHUNK = 1 << 24  # elements checked, hashed or written at a time
_DTYPES = {torch.float32: "F32", torch.int64: "I64"}
_NO_CHECKSUM = "0" * 32


class Column(NamedTuple):
    """One tensor of a file, as it is written or read."""

    dtype: torch.dtype
    shape: Sequence[int]
    pieces: Iterable[Tensor]
    """Contiguous, on the CPU; one after the other they are the tensor."""

    @classmethod
    def of(cls, tensor: Tensor) -> Self:
        """A whole tensor, in pieces of CHUNK elements."""
        return cls(tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).split(CHUNK))


def write(
    path: str | os.PathLike[str],
    columns: Mapping[str, Column],
    *,
    fingerprint: str,
    header: Mapping[str, Any],
) -> None:
    """Write a store, its columns in the order of their names; whole or not at all."""
    metadata = {
        "format": FORMAT,
        "fingerprint": fingerprint,
        "header": json.dumps(header),
        "checksum": _NO_CHECKSUM,
    }
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(_head(columns, metadata))
        metadata["checksum"] = _digest(columns, metadata, file.write)
        file.seek(0)
        file.write(_head(columns, metadata))  # of the same length


def checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Digest of the metadata and of names, shapes and bytes of the tensors, read in pieces."""
    columns = {name: Column.of(tensor) for name, tensor in tensors.items()}
    return _digest(columns, metadata, lambda _: None)


def _digest(
    columns: Mapping[str, Column],
    metadata: Mapping[str, str],
    write: Callable[[memoryview], object],
) -> str:
    """The checksum; contents go to ``write`` on the way, so that they are made once."""
    digest = hashlib.blake2b(digest_size=16)
    for key in ("format", "fingerprint", "header"):
        digest.update(f"{key}={metadata.get(key)};".encode())
    for name in sorted(columns):
        column = columns[name]
        digest.update(f"{name}:{column.dtype}:{tuple(column.shape)};".encode())
        for piece in column.pieces:
            contents = piece.numpy().data
            digest.update(contents)
            write(contents)
    return digest.hexdigest()


def _head(columns: Mapping[str, Column], metadata: Mapping[str, str]) -> bytes:
    """How the file begins; its contents then start at a multiple of 8 bytes."""
    head: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in sorted(columns):
        column = columns[name]
        begin, end = end, end + math.prod(column.shape) * column.dtype.itemsize
        head[name] = {
            "dtype": _DTYPES[column.dtype],
            "shape": list(column.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(head, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
