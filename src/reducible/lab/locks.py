"""Folders that one process at a time writes to."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from reducible.files.whole import TEMPORARY
from reducible.types import ConfigurationError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of ``folder``, which is made if need be, while the body runs.

    The system releases the lock with the process, however that ends. Temporary files that a killed
    process left in the folder are removed.

    Raises:
        ConfigurationError: another process holds the lock, or ``folder`` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigurationError(f"{folder} is a file; name a folder for the run.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    lock = FileLock(path, timeout=0, on_acquired=_sign)
    try:
        lock.acquire()
    except Timeout as error:
        raise ConfigurationError(
            f"{folder} is in use by {_holder(path)}; nothing was touched. Wait until that ends, "
            "stop it, or name another folder."
        ) from error
    except NotImplementedError as error:
        raise ConfigurationError(
            f"{folder} is on a file system that knows no locks ({error}). Name a folder on another."
        ) from error
    try:
        _remove_left_over(folder)
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            path.unlink(missing_ok=True)
        lock.release()


def _sign(descriptor: int) -> None:
    os.ftruncate(descriptor, 0)
    os.write(descriptor, str(os.getpid()).encode())


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"


def _remove_left_over(folder: Path) -> None:
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
