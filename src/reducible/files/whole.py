"""Files that are written whole or not at all, and folders that one process at a time writes to."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

LOCK = ".lock"
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path`` to write to; renamed over it once flushed to disk.

    The rename is flushed too, if the system can flush a folder. Where the body or the flush fails
    (a full disk), the temporary file is removed and a previous ``path`` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path):
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # the error to tell is the one before
            temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Gives an OSError of the body that names no file, as of a full disk, the name ``path``."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(path)
        raise


def _sync_folder(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of ``folder``, which is made if need be, while the body runs.

    The system releases the lock with the process, however that ends. Temporary files that a killed
    process left in the folder are removed.

    Raises:
        ConfigurationError: another process holds the lock, or ``folder`` is a file.
    """
    from reducible.types import ConfigurationError

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
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
