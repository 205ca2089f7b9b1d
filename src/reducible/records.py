"""The run's log: picks in an Arrow stream, metrics in JSON lines, results in JSON files.

All files can be read up to the last complete write after a process was killed, and gone on with
by ``resume``. Reading needs no torch, so reports import this module lightly.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from reducible.files import replacing

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

    from reducible.types import ReducibleError

__all__ = [
    "MetricsWriter",
    "PickWriter",
    "read_json",
    "read_metrics",
    "read_picks",
    "record_error",
    "summarise",
    "write_json",
]


def record_error(message: str) -> ReducibleError:
    """A ``ReducibleError`` to raise; imported here, as its class lives beside torch."""
    from reducible.types import ReducibleError

    return ReducibleError(message)


# Whole files: the old one or the new one, never half of either


def write_json(path: str | Path, obj: Any) -> None:
    """Replace ``path`` by ``obj`` as JSON; a crash or a full disk leaves the old file whole.

    Raises ReducibleError, naming the entry, where ``obj`` holds NaN or infinity (JSON has neither).
    """
    _replace(Path(path), [_json(obj, indent=2), b"\n"])


def read_json(path: str | Path) -> Any:
    """What ``write_json`` wrote; raises ReducibleError where the file is not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise record_error(
            f"{path} is not JSON ({error}). Files written here are replaced whole, so it was "
            "edited or written by something else: restore it, or delete it and run again."
        ) from error


def _replace(path: Path, chunks: Iterable[bytes]) -> None:
    """Replace ``path`` by ``chunks``, whole or not at all."""
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.writelines(chunks)


def _json(obj: Any, *, indent: int | None = None) -> bytes:
    try:
        return json.dumps(obj, indent=indent, allow_nan=False, ensure_ascii=False).encode()
    except ValueError as error:
        where = next(_non_finite(obj), None)
        if where is None:
            raise
        raise record_error(
            f"{where[0]} is {where[1]}, and JSON has no such number. A measurement that does not "
            "exist is None here; one that overflowed is worth a look before it is logged."
        ) from error


def _non_finite(obj: Any, name: str = "the value") -> Iterator[tuple[str, float]]:
    if isinstance(obj, float) and not math.isfinite(obj):
        yield name, obj
    elif isinstance(obj, Mapping):
        for key, value in obj.items():
            yield from _non_finite(value, f"{name}[{key!r}]")
    elif isinstance(obj, list | tuple):
        for i, value in enumerate(obj):
            yield from _non_finite(value, f"{name}[{i}]")


# Growing files: every append is whole, or cut at the end of the file where readers drop it


class _Appender:
    """A file that grows by whole records; one that fails half-way (a full disk) is taken back."""

    def __init__(self, path: Path):
        self._path = path
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  (closed by close)
        self._end = path.stat().st_size

    def append(self, record: bytes) -> None:
        if self._file.closed:
            raise record_error(
                f"{self._path} is closed, so nothing more can be logged to it. Keep the writer "
                "open for the whole run, or go on with resume(path, step)."
            )
        rest = memoryview(record)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except BaseException:
            self._file.truncate(self._end)
            raise
        self._end += len(record)

    def close(self) -> None:
        self._file.close()


def _refuse_existing(path: Path, kind: str) -> None:
    if path.exists():
        raise record_error(
            f"{path} exists: it is the log of an earlier run, which is not overwritten. "
            f"Go on with {kind}.resume(path, step), choose another folder, or delete it."
        )


# Picks


def _schema() -> pa.Schema:
    import pyarrow as pa

    return pa.schema(
        [
            ("step", pa.int64()),
            ("ids", pa.list_(pa.int64())),
            ("scores", pa.list_(pa.float32())),
            ("weights", pa.list_(pa.float32())),
        ]
    )


class PickWriter:
    """Chosen ids with scores and weights, one row per step, as an Arrow IPC stream in a file.

    Columns: ``step`` int64, ``ids`` list<int64>, ``scores`` and ``weights`` list<float32>. The file
    is the schema message followed by one self-contained record batch per flush, each appended by
    one write, so a killed process loses the steps since the last flush and nothing else. There is
    no end marker (the format asks for none), so appending is all that going on needs.

    Between flushes tensors stay where they are: no device is waited for until ``flush_every`` steps
    have come together. Call ``flush`` before saving a checkpoint, so that ``resume`` finds every
    step that the checkpoint has seen.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "picks.arrow"
    >>> with PickWriter(path) as picks:
    ...     picks.write(0, torch.tensor([7, 2**53 + 1]), torch.tensor([1.5, 0.25]))
    >>> read_picks(path).to_pylist()
    [{'step': 0, 'ids': [7, 9007199254740993], 'scores': [1.5, 0.25], 'weights': [1.0, 1.0]}]
    """

    def __init__(self, path: str | Path, *, flush_every: int = 64):
        _refuse_existing(Path(path), "PickWriter")
        self._start(Path(path), flush_every, [])

    @classmethod
    def resume(cls, path: str | Path, step: int, *, flush_every: int = 64) -> Self:
        """Go on from a checkpoint made before the update ``step``: keep the rows of smaller steps.

        The kept rows replace the file in one rename. Without a file the log starts anew.
        """
        import pyarrow.compute as pc

        path = Path(path)
        kept = [
            batch.filter(pc.less(batch.column("step"), step))  # pyright: ignore[reportAttributeAccessIssue]
            for batch in (_batches(path) if path.exists() else ())
        ]
        self = cls.__new__(cls)
        self._start(path, flush_every, [batch for batch in kept if batch.num_rows])
        return self

    def _start(self, path: Path, flush_every: int, batches: list[pa.RecordBatch]) -> None:
        import torch

        from reducible.types import require_between

        require_between("flush_every", flush_every, 1, whole=True)
        self._int64, self._float32 = torch.int64, torch.float32  # an import a step costs more
        _replace(path, [part.serialize().to_pybytes() for part in (_schema(), *batches)])
        self._flush_every = flush_every
        self._steps: list[int] = []
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._log = _Appender(path)

    def write(
        self, step: int, ids: Tensor, scores: Tensor | None = None, weights: Tensor | None = None
    ) -> None:
        """Log one step's choice: ``ids`` [K] int64, ``scores`` and ``weights`` [K].

        A rule without scores logs NaN, without weights ones. Values are copied on their device, so
        the caller may reuse the memory.
        """
        if ids.dtype != self._int64 or ids.dim() != 1:
            raise record_error(
                f"ids must be [K] int64, got {list(ids.shape)} {ids.dtype}: ids that pass through "
                "floats come back as other ids. Keep them in a tensor of their own."
            )
        columns = []
        for name, value, absent in (("scores", scores, math.nan), ("weights", weights, 1.0)):
            if value is None:
                value = ids.new_full(ids.shape, absent, dtype=self._float32)
            elif value.shape != ids.shape:
                raise record_error(
                    f"{name} must have one entry per id, {list(ids.shape)}, got "
                    f"{list(value.shape)}: index those of the candidates by selection.index."
                )
            else:  # made float32 with all others of a flush
                value = (value.detach() if value.requires_grad else value).clone()
            columns.append(value)
        self._steps.append(int(step))
        self._rows.append((ids.clone(), *columns))
        if len(self._steps) >= self._flush_every:
            self.flush()

    def flush(self) -> None:
        """Append the rows so far to the file; they then survive the death of the process."""
        if not self._steps:
            return
        import numpy as np
        import pyarrow as pa
        import torch

        dtypes = (self._int64, self._float32, self._float32)
        lengths = [len(ids) for ids, _, _ in self._rows]
        offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
        columns = [
            pa.ListArray.from_arrays(offsets, pa.array(torch.cat(column).to("cpu", dtype).numpy()))
            for column, dtype in zip(zip(*self._rows, strict=True), dtypes, strict=True)
        ]
        batch = pa.record_batch([pa.array(self._steps, pa.int64()), *columns], schema=_schema())
        self._log.append(batch.serialize().to_pybytes())
        self._steps.clear()
        self._rows.clear()

    def close(self) -> None:
        """Flush, and close the file."""
        try:
            self.flush()
        finally:
            self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_picks(path: str | Path) -> pa.Table:
    """Every pick up to the last complete flush, also where the writer was killed or still runs.

    Returns a table of the columns named at ``PickWriter``. Raises ReducibleError where the
    file holds no readable header, or something other than picks.
    """
    import pyarrow as pa

    return pa.Table.from_batches(_batches(Path(path)), schema=_schema())


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    try:
        stream = pa.ipc.open_stream(pa.py_buffer(path.read_bytes()))
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise record_error(
            f"{path} has no complete header ({path.stat().st_size} bytes: {error}). Writers put it "
            "there whole, so the file was cut later or is not a log of picks: restore it from a "
            "copy, or delete it and run again."
        ) from error
    if stream.schema != _schema():
        raise record_error(
            f"{path} is an Arrow stream of {', '.join(stream.schema.names)}, not of picks "
            f"({', '.join(_schema().names)}). Name the run's picks.arrow."
        )
    while True:
        try:
            yield stream.read_next_batch()
        except (StopIteration, pa.ArrowException, OSError):  # the end, or a batch cut by a kill
            return


# Metrics


class MetricsWriter:
    """One JSON object per evaluation and line, in the file as soon as ``write`` returns.

    A line's ``step`` counts the updates made before that evaluation.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "metrics.jsonl"
    >>> with MetricsWriter(path) as metrics:
    ...     metrics.write({"step": 100, "seconds": 2.5, "accuracy": 0.81})
    >>> read_metrics(path)
    [{'step': 100, 'seconds': 2.5, 'accuracy': 0.81}]
    """

    def __init__(self, path: str | Path):
        _refuse_existing(Path(path), "MetricsWriter")
        self._log = _Appender(Path(path))

    @classmethod
    def resume(cls, path: str | Path, step: int) -> Self:
        """Go on from a checkpoint made after ``step`` updates: drop the lines of later steps."""
        path = Path(path)
        lines = read_metrics(path) if path.exists() else []
        _replace(path, [_json(line) + b"\n" for line in lines if line["step"] <= step])
        self = cls.__new__(cls)
        self._log = _Appender(path)
        return self

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append one evaluation; raises ReducibleError on NaN, infinity, or no whole ``step``."""
        if not isinstance(metrics.get("step"), int):
            raise record_error(
                f"a line of metrics needs a whole 'step', got {metrics.get('step')!r} beside "
                f"{', '.join(metrics)}: resume sorts lines by it. Add the number of updates made."
            )
        self._log.append(_json(dict(metrics)) + b"\n")

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The evaluations in a file of metrics; a last line cut by a kill is left out."""
    *lines, last = Path(path).read_bytes().split(b"\n")
    records = []
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or "step" not in record:
                raise ValueError("no object with a 'step'")
        except ValueError as error:
            if number > len(lines):
                break
            raise record_error(
                f"line {number} of {path} is damaged ({error}). Only a last line can be cut by a "
                "kill, so the file was edited: remove the line, or restore the file."
            ) from error
        records.append(record)
    return records


# What a curve says


def summarise(
    curve: Sequence[Sequence[float]], target: float
) -> tuple[int, float] | tuple[None, None]:
    """Steps and seconds at which ``curve``, [[step, seconds, accuracy], …], reached ``target``.

    That is the first evaluation where the mean of three consecutive ones, it and the two before, is
    at or above the target: one crossing of a noisy curve says little. (None, None): never reached.

    >>> summarise([[10, 1.0, 0.6], [20, 2.0, 0.9], [30, 3.0, 0.6], [40, 4.0, 0.9]], 0.8)
    (40, 4.0)
    """
    for (_, _, first), (_, _, second), (step, seconds, third) in zip(
        curve, curve[1:], curve[2:], strict=False
    ):
        # statistics.mean is exact: a sum of floats puts the mean of three 0.7 below 0.7
        if statistics.mean((first, second, third)) >= target:
            return int(step), seconds
    return None, None
