"""Files that grow by sealed records: lines of JSON, and Arrow streams."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, final

from reducible.files import replacing
from reducible.seals import BLANK, Seals, count, digest

if TYPE_CHECKING:
    import pyarrow as pa

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
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(self._end)
            raise
        self._end += len(sealed)
        self._seals = seals

    @property
    def mark(self) -> Mark:
        """All that was appended so far."""
        return {"bytes": self._end, "digest": self._seals.digest}

    def sync(self) -> None:
        """Returns when the disk has all that was appended."""
        os.fsync(self._file.fileno())

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


# Arrow streams


def arrow_header(schema: pa.Schema) -> bytes:
    """The schema message, to be sealed."""
    return schema.with_metadata({"check": BLANK}).serialize().to_pybytes()


def arrow_record(batch: pa.RecordBatch) -> bytes:
    """The message of ``batch``, to be sealed."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch, custom_metadata={"check": BLANK})
    whole = sink.getvalue().to_pybytes()
    first, last = len(batch.schema.serialize()), len(_END)
    assert whole.endswith(_END)
    return whole[first:-last]


_END = b"\xff\xff\xff\xff\0\0\0\0"


def arrow_batches(path: Path, schema: pa.Schema, *, warn: bool = True) -> Iterator[pa.RecordBatch]:
    """The record batches of a sealed stream of ``schema``, up to its last whole record.

    Args:
        path: of the file.
        schema: of the batches.
        warn: of a last record that was cut.

    Raises:
        ReducibleError: there is no whole header, the file is something else, or it is damaged.
    """
    import pyarrow as pa

    data = path.read_bytes()
    reader, seals, begin = pa.BufferReader(data), Seals(), 0
    found: pa.Schema | None = None
    while begin < len(data) or found is None:
        try:
            message = pa.ipc.read_message(reader)
        except (pa.ArrowException, EOFError, OSError) as error:
            if found is None:
                raise record_error(
                    f"{path} has no complete header ({len(data)} bytes: {error}). Writers put it "
                    "there whole, so the file was cut later or is another one: restore it from a "
                    "copy, or delete it and run again."
                ) from error
            if count(data[begin:]) > 1:
                raise damaged(path, f"the record at byte {begin}") from error
            if warn:
                warn_of_cut(path, len(data) - begin)
            return
        end = reader.tell()
        if found is None:
            found = _schema_in(message, schema, path)
        if not seals.holds(data[begin:end]):
            raise damaged(path, f"the record at byte {begin}")
        if begin:
            yield pa.ipc.read_record_batch(message, schema)
        begin = end


def batches_before(step: int, path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The rows of steps before ``step``, none if there is no file; what follows is not looked at.

    ``schema`` has an int64 column ``step``, which never falls.
    """
    import pyarrow.compute as pc

    for batch in arrow_batches(path, schema, warn=False) if path.exists() else ():
        steps = batch.column("step")
        kept = batch.filter(pc.less(steps, step))  # pyright: ignore[reportAttributeAccessIssue]
        if kept.num_rows:
            yield kept
        if steps[-1].as_py() >= step - 1:
            return


def _schema_in(message: pa.Message, wanted: pa.Schema, path: Path) -> pa.Schema:
    import pyarrow as pa

    try:
        found = pa.ipc.read_schema(message)
        names = ", ".join(found.names)
    except (pa.ArrowException, ValueError, OSError) as error:
        raise damaged(path, "its header") from error
    if not found.remove_metadata().equals(wanted):
        raise record_error(
            f"{path} is an Arrow stream of {names}, not of {', '.join(wanted.names)}. Name the "
            "file that holds these; if it is this one, it is damaged."
        )
    return found
