"""Files that grow by sealed records."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from reducible.files import naming, replacing
from reducible.files.seals import Seals, digest

if TYPE_CHECKING:
    from reducible.types import ReducibleError

Mark = dict[str, int | str]
"""``bytes`` of a file and their ``digest``: up to where it is known to be whole."""


def record_error(message: str) -> ReducibleError:
    """A ``ReducibleError`` to raise; imported here, as its class lives beside torch."""
    from reducible.types import ReducibleError

    return ReducibleError(message)


@final
class SealedLog:
    """A file of sealed records that are appended one by one, each by one write.

    A process that is killed leaves at most the beginning of one record at the end, which readers
    drop; a record that cannot be written (a full disk) is taken back.

    Args:
        path: is replaced by ``records``.
        records: with ``BLANK`` where their checksums belong.
    """

    def __init__(self, path: Path, records: Iterable[bytes] = ()) -> None:
        self._path = path
        self._seals = Seals()
        with replacing(path) as temporary, open(temporary, "wb") as file:
            file.writelines(map(self._seals.seal, records))
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by close)
        self._end = path.stat().st_size

    def append(self, record: bytes) -> None:
        """Seal and append ``record``; raises ReducibleError if the log is closed."""
        if self._file.closed:
            raise record_error(
                f"{self._path} is closed, so nothing more can be logged to it. Keep the writer "
                "open for the whole run, or go on with resume(path, step)."
            )
        seals = self._seals.copy()
        sealed = seal(seals, record)
        rest = memoryview(sealed)
        try:
            with naming(self._path):
                while rest:
                    rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(self._end)
            raise
        self._end += len(sealed)
        self._seals = seals

    def mark(self) -> Mark:
        """All that was appended so far, once the disk has it."""
        os.fsync(self._file.fileno())
        return {"bytes": self._end, "digest": self._seals.digest}

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def seal(seals: Seals, record: bytes) -> bytes:
    """``seals.seal``, with a ReducibleError for a record that holds a text like a checksum."""
    try:
        return seals.seal(record)
    except ValueError as error:
        raise record_error(f"this cannot be sealed: {error}. Rename the text in it.") from error


def refuse_existing(path: Path, kind: str) -> None:
    """Raise ReducibleError if ``path`` exists, naming the writer's ``kind``."""
    if path.exists():
        raise record_error(
            f"{path} exists: it is the log of an earlier run, which is not overwritten. "
            f"Go on with {kind}.resume(path, step), choose another folder, or delete it."
        )


def mark_of(path: Path) -> Mark:
    """The mark of a whole file."""
    data = path.read_bytes()
    return {"bytes": len(data), "digest": digest(data).hexdigest()}


def is_whole(path: Path, mark: Mapping[str, int | str], *, up_to: bool = False) -> bool:
    """Whether ``path`` is as ``mark`` says; ``up_to``: or begins with that, and has grown since."""
    try:
        data = path.read_bytes()
    except OSError:
        return False
    size = int(mark["bytes"])
    return (len(data) >= size if up_to else len(data) == size) and (
        digest(data[:size]).hexdigest() == mark["digest"]
    )


def warn_of_cut(path: Path, lost: int) -> None:
    """Say that the last ``lost`` bytes of a log are no whole record."""
    warnings.warn(
        f"the last {lost} bytes of {path} are no whole record and are left out: the writer was "
        "killed in the middle of it, or the file was cut. `reducible resume` makes it anew.",
        stacklevel=2,
    )


def damaged(path: Path, where: str) -> ReducibleError:
    """The error of a log whose bytes are not those that were written."""
    return record_error(
        f"{path} is damaged: {where} is not what was written (its checksum is missing or differs). "
        "Restore the file from a copy; if the run is not finished, `reducible resume` goes on from "
        "a checkpoint that was made before the damage."
    )
