"""Finds data files: named by the user, or embedded; plain or compressed."""

from __future__ import annotations

import gzip
import lzma
import os
import zlib
from importlib.util import find_spec
from pathlib import Path

from reducible.types import DataError


def package_folder(name: str) -> Path:
    """The folder of an installed package; one that is not there if it is not installed."""
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        return Path(f"{name} (not installed)")
    return Path(spec.origin).parent


EMBEDDED = package_folder("reducible_data")
"""The folder of the embedded data, laid out as the folder of the original files is."""


def data_root(root: str | Path | None) -> Path:
    """``root``, else the environment variable REDUCIBLE_DATA, else the embedded data."""
    return Path(root or os.environ.get("REDUCIBLE_DATA") or EMBEDDED)


def find_file(root: Path, name: str, needed_for: str) -> Path:
    """``root/name``, or the same with .gz or .xz after it.

    Raises:
        DataError: none of the three is there; says what it is ``needed_for``.
    """
    for suffix in ("", ".gz", ".xz"):
        path = root / f"{name}{suffix}"
        if path.is_file():
            return path
    if not root.exists() and root == EMBEDDED:
        raise DataError(
            f"{needed_for} needs the embedded data, which are a package of their own: pip install "
            "'reducible[lab]', or name the folder of the original files by root= or by the "
            "environment variable REDUCIBLE_DATA."
        )
    raise DataError(
        f"{needed_for} needs {name} (or .gz, .xz) in {root}, which lacks it. root= and the "
        "environment variable REDUCIBLE_DATA must name the folder that holds the original files; "
        "without either, the smaller embedded data is used."
    )


def read_compressed(path: Path) -> bytes:
    """The bytes of a file, decompressed if its name ends in .gz or .xz.

    Raises:
        DataError: the compressed file is damaged or cut short.
    """
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    try:
        with opener(path, "rb") as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be decompressed: {error}. A download that was cut short, or a suffix "
            "that does not fit? Get the original file again."
        ) from error
