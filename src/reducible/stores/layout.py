"""Lays out a store in its file: safetensors, with a checksum among the metadata."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reducible.files import replacing
from reducible.types import StoreError

FORMAT = "reducible.irreducible_loss.1"
CHUNK = 1 << 24  # elements checked, hashed or written at a time
_DTYPES = {torch.float32: "F32", torch.float64: "F64", torch.int64: "I64"}
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
    metadata = _metadata(fingerprint, header) | {"checksum": _NO_CHECKSUM}
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(_head(columns, metadata))
        metadata["checksum"] = _digest(columns, metadata, file.write)
        file.seek(0)
        file.write(_head(columns, metadata))  # of the same length


class Contents(NamedTuple):
    """Holds the contents of a file, once its checksum is seen to be right."""

    tensors: dict[str, Tensor]
    """On the CPU; mapped into memory, so that a page is read when it is first looked at."""
    fingerprint: str
    header: dict[str, Any]
    checksum: str
    mapped: Mapped


def read(path: str | os.PathLike[str]) -> Contents:
    """Open a file that ``write`` wrote, after reading all of it once for its checksum.

    Raises:
        StoreError: truncated, damaged, of another format, or metadata that are not as written.
        FileNotFoundError: there is no file.
    """
    damaged = f"{path} is not a readable store of irreducible losses"
    try:
        mapped = Mapped.at(path)
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, LookupError, TypeError) as error:
        raise StoreError(f"{damaged} ({error}): truncated or damaged. Fit it again.") from error
    found = metadata.get("format")
    if found != FORMAT:
        newer = str(found).rpartition(".")[0] == FORMAT.rpartition(".")[0]
        other = " It was written by another version of reducible." if newer else ""
        raise StoreError(f"{damaged}: its format is {found!r}.{other} Fit it again.")
    if checksum(tensors, metadata) != metadata.get("checksum"):
        raise StoreError(f"{damaged}: its checksum does not match. Fit it again.")
    if "fingerprint" not in metadata or "header" not in metadata:
        raise StoreError(f"{damaged}: fingerprint or header is missing. Fit it again.")
    try:
        header = json.loads(metadata["header"])
    except ValueError as error:
        raise StoreError(f"{damaged}: its header is no JSON ({error}). Fit it again.") from error
    if not isinstance(header, dict):
        raise StoreError(f"{damaged}: its header is a {type(header).__name__}. Fit it again.")
    return Contents(tensors, metadata["fingerprint"], header, metadata["checksum"], mapped)


class Mapped(NamedTuple):
    """A file as it was when it was mapped into memory."""

    path: Path
    stamp: tuple[int, int, int, int]
    """Device and number of the file, its size and the time of its last change."""

    @classmethod
    def at(cls, path: str | os.PathLike[str]) -> Self:
        """The file at ``path`` as it is now."""
        return cls(Path(path).absolute(), _stamp(os.stat(path)))

    def require_unchanged(self) -> None:
        """Raise StoreError if the file itself was cut or written to.

        Of a file that was deleted, or replaced by another one, the old one stays mapped.
        """
        try:
            now = _stamp(os.stat(self.path))
        except FileNotFoundError:
            return
        if now != self.stamp and now[:2] == self.stamp[:2]:
            raise StoreError(
                f"{self.path} was changed while it is in use: {self.stamp[2]} bytes when it was "
                f"loaded, {now[2]} now. To look at it could end the process without a word. "
                "Restore it and load it again; put another store in its place by renaming, as "
                "saving does."
            )


def _stamp(stat: os.stat_result) -> tuple[int, int, int, int]:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns


def checksum_of(
    tensors: Mapping[str, Tensor],
    *,
    fingerprint: str,
    header: Mapping[str, Any],
) -> str:
    """The checksum of the file that ``write`` writes of these."""
    return checksum(tensors, _metadata(fingerprint, header))


def _metadata(fingerprint: str, header: Mapping[str, Any]) -> dict[str, str]:
    return {"format": FORMAT, "fingerprint": fingerprint, "header": json.dumps(header)}


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
    """Builds the beginning of the file; its contents then start at a multiple of 8 bytes."""
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
