"""Records what a rule says of its choices, and what shadows would choose, beside the picks.

Reading needs no torch, as in ``records``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

from reducible.lab.arrow_logs import RecordStream, arrow_batches, batches_before
from reducible.lab.logs import Mark, record_error, refuse_existing
from reducible.lab.records import PickWriter

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = ["INFO", "PICKS", "InfoWriter", "StepWriter", "read_info"]

PICKS, INFO = "picks.arrow", "info.arrow"


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("step", pa.int64()),
            ("name", pa.string()),
            ("values", pa.list_(pa.float64())),
            ("ids", pa.list_(pa.int64())),
        ]
    )


class InfoWriter:
    """Small vectors by step and name, as an Arrow IPC stream in a file.

    Columns: ``step`` int64, ``name`` string, ``values`` list<float64>, ``ids`` list<int64>. A row
    is either what the rule says of its choice, in ``values``, or what a shadow rule would have
    chosen, in ``ids``; the other column is null. The file is there only when something was
    said. As in ``PickWriter`` every flush appends one self-contained record batch by one write, and
    tensors stay on their device until then.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "info.arrow"
    >>> with InfoWriter(path) as log:
    ...     log.write(3, {"group_weights": torch.tensor([0.25, 0.75])}, {})
    ...     log.write(4, {}, {"uniform": torch.tensor([2**53 + 1])})
    >>> for row in read_info(path).to_pylist():
    ...     print(*row.values())
    3 group_weights [0.25, 0.75] None
    4 uniform None [9007199254740993]
    """

    def __init__(self, path: str | Path, *, flush_every: int = 64) -> None:
        refuse_existing(Path(path), "InfoWriter")
        self._start(Path(path), flush_every)

    @classmethod
    def resume(cls, path: str | Path, step: int, *, flush_every: int = 64) -> Self:
        """Go on from a checkpoint made before the update ``step``: keep the rows of smaller steps.

        The kept rows replace the file in one rename. Without a file the log starts anew.
        """
        self = cls.__new__(cls)
        self._start(Path(path), flush_every, [*batches_before(step, Path(path), _schema())])
        return self

    def _start(self, path: Path, flush_every: int, batches: Sequence[pa.RecordBatch] = ()) -> None:
        from reducible.types import require_between

        require_between("flush_every", flush_every, 1, whole=True)
        self._path = path
        self._flush_every = flush_every
        self._rows: list[tuple[int, str, bool, Tensor]] = []  # step, name, of a shadow, [n]
        self._steps = 0
        self._stream: RecordStream | None = None
        path.unlink(missing_ok=True)
        if batches:
            self._begin(batches)

    def _begin(self, batches: Sequence[pa.RecordBatch] = ()) -> RecordStream:
        self._stream = RecordStream(self._path, _schema(), batches)
        return self._stream

    def write(self, step: int, info: Mapping[str, Tensor], shadows: Mapping[str, Tensor]) -> None:
        """Log what was said at one step: ``info`` 0-d or small, ``shadows`` [K'] int64 ids each.

        Rows of a matrix stand one after the other. ``info["score"]`` is left out, because the picks
        hold it. Values are copied on their device, so the caller may reuse the memory.
        """
        for name, value in info.items():
            if name != "score":
                self._rows.append((step, name, False, value.detach().reshape(-1).clone()))
        for name, ids in shadows.items():
            if ids.dim() != 1 or ids.is_floating_point():
                raise record_error(
                    f"the ids of shadow {name!r} must be [K'] int64, got {list(ids.shape)} "
                    f"{ids.dtype}: ids that pass through floats come back as other ids."
                )
            self._rows.append((step, name, True, ids.clone()))
        self._steps += 1
        if self._steps >= self._flush_every:
            self._send()

    def flush(self) -> None:
        """Append the rows so far to the file; they then survive the death of the process."""
        self._send()
        if self._stream is not None:
            self._stream.drain()

    def _send(self) -> None:
        if self._stream is not None:
            self._stream.drain()  # if that fails, the rows are still here
        self._steps = 0
        if not self._rows:
            return
        stream = self._stream or self._begin()
        rows, self._rows = self._rows, []
        tensors = [tensor for *_, tensor in rows]
        about = [(step, name, shadow) for step, name, shadow, _ in rows]
        stream.send(tensors, lambda arrays: _batch(about, arrays))

    def mark(self) -> Mark | None:
        """All that was flushed so far, once the disk has it; None if nothing was."""
        return None if self._stream is None else self._stream.mark()

    def close(self) -> None:
        """Flush, and close the file."""
        try:
            self.flush()
        finally:
            if self._stream is not None:
                self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class StepWriter:
    """Everything that is logged by step in a run's folder: ``picks.arrow`` and ``info.arrow``.

    The ``record=`` of a SelectingLoader.

    Args:
        folder: exists, and holds neither file.
        flush_every: steps between appends.
    """

    def __init__(self, folder: Path, *, flush_every: int = 64) -> None:
        self._logs = (
            PickWriter(folder / PICKS, flush_every=flush_every),
            InfoWriter(folder / INFO, flush_every=flush_every),
        )
        self.write, self.write_info = self._logs[0].write, self._logs[1].write

    @classmethod
    def resume(cls, folder: Path, step: int, *, flush_every: int = 64) -> Self:
        """Go on from a checkpoint made before the update ``step``; see the two writers."""
        self = cls.__new__(cls)
        self._logs = (
            PickWriter.resume(folder / PICKS, step, flush_every=flush_every),
            InfoWriter.resume(folder / INFO, step, flush_every=flush_every),
        )
        self.write, self.write_info = self._logs[0].write, self._logs[1].write
        return self

    def flush(self) -> None:
        """Flush both."""
        for log in self._logs:
            log.flush()

    def marks(self) -> dict[str, Mark]:
        """All that was flushed so far, by file name, once the disk has it."""
        picks, info = (log.mark() for log in self._logs)
        return {name: mark for name, mark in ((PICKS, picks), (INFO, info)) if mark is not None}

    def close(self) -> None:
        """Close both, also if the first one fails."""
        picks, info = self._logs
        try:
            picks.close()
        finally:
            info.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_info(path: str | Path) -> pa.Table:
    """Everything said up to the last complete flush, also if the writer was killed or still runs.

    Returns a table of the columns named at ``InfoWriter``. Warns and raises as ``read_picks``.
    """
    import pyarrow as pa

    return pa.Table.from_batches(arrow_batches(Path(path), _schema()), schema=_schema())


def _batch(about: list[tuple[int, str, bool]], arrays: list[Tensor]) -> pa.RecordBatch:
    """Rows of step, name, and values ([n]), which are ids if they are of a shadow."""
    import pyarrow as pa

    shadow = [of_shadow for *_, of_shadow in about]
    columns = [
        pa.array([step for step, *_ in about], pa.int64()),
        pa.array([name for _, name, _ in about], pa.string()),
        _lists(arrays, [not of_shadow for of_shadow in shadow], pa.float64()),
        _lists(arrays, shadow, pa.int64()),
    ]
    return pa.record_batch(columns, schema=_schema())


def _lists(tensors: Sequence[Tensor], wanted: Sequence[bool], of: pa.DataType) -> pa.Array:
    """A column of lists; null for a row that is not wanted in it."""
    import pyarrow as pa

    rows = [t.tolist() if here else None for t, here in zip(tensors, wanted, strict=True)]
    return pa.array(rows, pa.list_(of))
