"""Record batches in sealed Arrow streams: written beside an accelerator's work, and read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from reducible.files.seals import BLANK, Seals, count
from reducible.lab.logs import Mark, SealedLog, damaged, record_error, warn_of_cut

if TYPE_CHECKING:
    import pyarrow as pa
    from torch import Tensor


@final
class RecordStream:
    """A log of record batches, as an Arrow IPC stream of sealed messages in a file.

    Tensors of a batch that are on an accelerator are copied while it goes on, and appended when the
    next batch is sent, so nothing waits for it.

    Args:
        path: is replaced.
        schema: of the batches.
        batches: to begin with.
    """

    def __init__(
        self, path: Path, schema: pa.Schema, batches: Iterable[pa.RecordBatch] = ()
    ) -> None:
        self._log = SealedLog(path, [arrow_header(schema), *map(arrow_record, batches)])
        self._sent: tuple[HostCopy, Callable[[list[Tensor]], pa.RecordBatch]] | None = None

    def send(
        self, tensors: Sequence[Tensor], batch: Callable[[list[Tensor]], pa.RecordBatch]
    ) -> None:
        """Append ``batch`` of ``tensors`` once they are on the CPU, and what was sent before now.

        Where that cannot be appended (a full disk), nothing is sent.
        """
        self.drain()
        self._sent = HostCopy(tensors), batch
        if self._sent[0].is_here:
            self.drain()

    def drain(self) -> None:
        """Append what was sent; it then survives the death of the process."""
        if self._sent is not None:
            copy, batch = self._sent
            self._log.append(arrow_record(batch(copy.wait())))
            self._sent = None

    def mark(self) -> Mark:
        """All that was appended so far, once the disk has it."""
        return self._log.mark()

    def close(self) -> None:
        """Close the file."""
        self._log.close()


@final
class HostCopy:
    """Tensors on their way to the CPU; those of one type and device are copied as one.

    Args:
        tensors: [n] each, of any devices.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        import torch

        alike: dict[tuple[torch.dtype, torch.device], list[int]] = {}
        for i, tensor in enumerate(tensors):
            alike.setdefault((tensor.dtype, tensor.device), []).append(i)
        self._sizes = [tensor.numel() for tensor in tensors]
        self._copies: list[tuple[list[int], Tensor]] = []
        self._events: list[Any] = []
        for (_, device), places in alike.items():
            whole = torch.cat([tensors[i] for i in places])
            if device.type != "cpu":
                module = getattr(torch, device.type, None)
                known = hasattr(module, "Event") and hasattr(module, "current_stream")
                whole = whole.to("cpu", non_blocking=known)
                if module is not None and known:
                    self._events.append(module.Event())
                    self._events[-1].record(module.current_stream(device))
            self._copies.append((places, whole))

    @property
    def is_here(self) -> bool:
        """Whether no device has to be waited for."""
        return not self._events

    def wait(self) -> list[Tensor]:
        """The tensors on the CPU, in the order given."""
        for event in self._events:
            event.synchronize()
        found: dict[int, Tensor] = {}
        for places, whole in self._copies:
            found |= zip(places, whole.split([self._sizes[i] for i in places]), strict=True)
        return [found[i] for i in range(len(found))]


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
