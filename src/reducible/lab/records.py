"""The run's log: picks in an Arrow stream, metrics in JSON lines, results in JSON files.

All files can be read up to the last complete write after a process was killed, and gone on with
by ``resume``. Reading needs no torch, so reports import this module lightly.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from reducible.files import replacing
from reducible.files.seals import BLANK, Seals, count
from reducible.lab.arrow_logs import RecordStream, arrow_batches, batches_before
from reducible.lab.logs import (
    Mark,
    SealedLog,
    damaged,
    record_error,
    refuse_existing,
    seal,
    warn_of_cut,
)

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor

__all__ = [
    "MetricsWriter",
    "PickWriter",
    "kept",
    "read_json",
    "read_metrics",
    "read_picks",
    "record_error",
    "summarise",
    "write_json",
]


# Whole files: the old one or the new one, never half of either


def write_json(path: str | Path, obj: Any, *, sealed: bool = False) -> None:
    """Replace ``path`` by ``obj`` as JSON; a crash or a full disk leaves the old file whole.

    ``sealed`` adds a checksum to an object, under the key ``check``, for ``read_json``.

    Raises ReducibleError, naming the entry, if ``obj`` holds NaN or infinity (JSON has neither).
    """
    text = _json(obj | {"check": BLANK} if sealed else obj, indent=2) + b"\n"
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(seal(Seals(), text) if sealed else text)


def read_json(path: str | Path, *, sealed: bool = False) -> Any:
    """Reads what ``write_json`` wrote; raises ReducibleError if that is not what the file holds.

    A checksum is checked and left out. ``sealed``: there must be one.
    """
    data = Path(path).read_bytes()
    try:
        found = json.loads(data)
    except ValueError as error:
        raise record_error(
            f"{path} is not JSON ({error}). Files written here are replaced whole, so it was "
            "edited or written by something else: restore it, or delete it and run again."
        ) from error
    has_seal = isinstance(found, dict) and "check" in found
    if not has_seal and not sealed:
        return found
    if not has_seal or not Seals().holds(data):
        what = "differs" if has_seal else "is missing"
        raise record_error(
            f"{path} is not as it was written: its checksum {what}. It was edited, damaged, or "
            "made by an older version: restore it from a copy, or run again in another folder."
        )
    return {name: value for name, value in found.items() if name != "check"}


def kept(path: str | Path, make: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Reads what an earlier call wrote to ``path``; if there is none, makes it and writes it."""
    path = Path(path)
    if not path.exists():
        made = make(*args, **kwargs)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, made)
        print(path, json.dumps(made), flush=True)
    return read_json(path)


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

    Between flushes tensors stay where they are. Once ``flush_every`` steps have come together they
    are copied; those of an accelerator are appended only when as many more have come, so that no
    step waits for it. Call ``flush`` before saving a checkpoint, so that ``resume`` finds every
    step that the checkpoint has seen.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "picks.arrow"
    >>> with PickWriter(path) as picks:
    ...     picks.write(0, torch.tensor([7, 2**53 + 1]), torch.tensor([1.5, 0.25]))
    >>> read_picks(path).to_pylist()
    [{'step': 0, 'ids': [7, 9007199254740993], 'scores': [1.5, 0.25], 'weights': [1.0, 1.0]}]
    """

    def __init__(self, path: str | Path, *, flush_every: int = 64):
        refuse_existing(Path(path), "PickWriter")
        self._start(Path(path), flush_every, [])

    @classmethod
    def resume(cls, path: str | Path, step: int, *, flush_every: int = 64) -> Self:
        """Go on from a checkpoint made before the update ``step``: keep the rows of smaller steps.

        The kept rows replace the file in one rename. Without a file the log starts anew.
        """
        self = cls.__new__(cls)
        self._start(Path(path), flush_every, [*batches_before(step, Path(path), _schema())])
        return self

    def _start(self, path: Path, flush_every: int, batches: list[pa.RecordBatch]) -> None:
        import torch

        from reducible.types import require_between

        require_between("flush_every", flush_every, 1, whole=True)
        self._int64, self._float32 = torch.int64, torch.float32  # an import a step costs more
        self._flush_every = flush_every
        self._steps: list[int] = []
        self._rows: list[tuple[Tensor, Tensor, Tensor]] = []
        self._stream = RecordStream(path, _schema(), batches)

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
            self._send()

    def flush(self) -> None:
        """Append the rows so far to the file; they then survive the death of the process."""
        if self._steps:
            self._send()
        self._stream.drain()

    def _send(self) -> None:
        import torch

        self._stream.drain()  # if that fails, the rows are still here
        dtypes = (self._int64, self._float32, self._float32)
        columns = [
            torch.cat(column).to(dtype)
            for column, dtype in zip(zip(*self._rows, strict=True), dtypes, strict=True)
        ]
        steps, lengths = self._steps, [len(ids) for ids, _, _ in self._rows]
        self._steps, self._rows = [], []
        self._stream.send(columns, lambda columns: _batch(steps, lengths, columns))

    def mark(self) -> Mark:
        """All that was flushed so far, once the disk has it."""
        return self._stream.mark()

    def close(self) -> None:
        """Flush, and close the file."""
        try:
            self.flush()
        finally:
            self._stream.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _batch(steps: list[int], lengths: list[int], columns: list[Tensor]) -> pa.RecordBatch:
    """Rows of ``lengths`` ids each; ``columns``: ids, scores, weights, [Σ lengths] each."""
    import numpy as np
    import pyarrow as pa

    offsets = pa.array(np.cumsum([0, *lengths], dtype=np.int32))
    lists = [pa.ListArray.from_arrays(offsets, pa.array(c.numpy())) for c in columns]
    return pa.record_batch([pa.array(steps, pa.int64()), *lists], schema=_schema())


def read_picks(path: str | Path) -> pa.Table:
    """Every pick up to the last complete flush, also if the writer was killed or still runs.

    Returns a table of the columns named at ``PickWriter``. Warns of a last record that was cut.
    Raises ReducibleError if the file holds no readable header, something other than picks, or
    what was not written so.
    """
    import pyarrow as pa

    return pa.Table.from_batches(arrow_batches(Path(path), _schema()), schema=_schema())


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
        refuse_existing(Path(path), "MetricsWriter")
        self._log = SealedLog(Path(path))

    @classmethod
    def resume(cls, path: str | Path, step: int) -> Self:
        """Go on from a checkpoint made after ``step`` updates: drop the lines of later steps."""
        path = Path(path)
        lines = itertools.takewhile(
            lambda line: line["step"] <= step, _lines(path, warn=False) if path.exists() else ()
        )
        self = cls.__new__(cls)
        self._log = SealedLog(path, [_line(line) for line in lines])
        return self

    def write(self, metrics: Mapping[str, Any]) -> None:
        """Append one evaluation; raises ReducibleError on NaN, infinity, or no whole ``step``."""
        if not isinstance(metrics.get("step"), int):
            raise record_error(
                f"a line of metrics needs a whole 'step', got {metrics.get('step')!r} beside "
                f"{', '.join(metrics)}: resume sorts lines by it. Add the number of updates made."
            )
        self._log.append(_line(dict(metrics)))

    def mark(self) -> Mark:
        """All that was written so far, once the disk has it."""
        return self._log.mark()

    def close(self) -> None:
        """Close the file."""
        self._log.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_metrics(path: str | Path) -> list[dict[str, Any]]:
    """The evaluations in a file of metrics, without their checksums.

    A last line cut by a kill is left out with a warning. Raises ReducibleError if a line is not
    what was written.
    """
    return list(_lines(Path(path)))


def _lines(path: Path, *, warn: bool = True) -> Iterator[dict[str, Any]]:
    *lines, last = path.read_bytes().split(b"\n")
    seals = Seals()
    for number, line in enumerate([*lines, last] if last else lines, start=1):
        if not seals.holds(line + b"\n"):
            if number <= len(lines) or count(last) > 1:
                raise damaged(path, f"line {number}")
            if warn:
                warn_of_cut(path, len(last))
            return
        record = json.loads(line)
        del record["check"]
        yield record


def _line(metrics: dict[str, Any]) -> bytes:
    if "check" in metrics:
        raise record_error(
            "a line of metrics cannot have an entry 'check', where its checksum stands: rename it."
        )
    return _json(metrics | {"check": BLANK}) + b"\n"


# What a curve says


def summarise(
    curve: Sequence[Sequence[float]], target: float
) -> tuple[int, float] | tuple[None, None]:
    """Steps and seconds at which ``curve``, [[step, seconds, accuracy], …], reached ``target``.

    That is the first evaluation at which the mean of three consecutive ones, it and the two before,
    is at or above the target: one crossing of a noisy curve says little. (None, None): never.

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
