"""The random streams of a loader's workers: told with every batch, and begun again from there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, final

from torch.utils.data import get_worker_info

from reducible.loading.streams import packed, unpack


@final
class Telling:
    """Collates in a worker; gives (batch, (worker, its streams after the batch)).

    Attributes:
        restore: streams that the first so many workers have after their first batch.
    """

    def __init__(self, collate: Callable[[Any], Any]) -> None:
        self._collate = collate
        self.restore: list[str | None] = []

    def __call__(self, items: Any) -> tuple[Any, tuple[int, str]]:
        """Collates ``items``; tells the worker and its streams beside."""
        batch = self._collate(items)
        info = get_worker_info()
        worker = 0 if info is None else info.id
        told = batch, (worker, packed())
        _set(self.restore, worker)
        self.restore = []  # in this worker
        return told


@final
class Beginning:
    """Initialises a worker as ``init`` does, then sets its streams.

    Attributes:
        streams: of each worker; None if they begin as workers' streams do.
    """

    def __init__(self, init: Callable[[int], Any] | None) -> None:
        self._init = init
        self.streams: list[str | None] = []

    def __call__(self, worker: int) -> None:
        """Initialises the worker of that number."""
        if self._init is not None:
            self._init(worker)
        _set(self.streams, worker)


def _set(streams: list[str | None], worker: int) -> None:
    text = streams[worker] if worker < len(streams) else None
    if text is not None:
        unpack(text)


@final
class Workers:
    """Saves where the streams of a loader's workers are, after the batches taken so far.

    Batches go round the workers in turn, and every pass begins with worker 0. A resumed pass would
    too, so the workers before the one whose turn it is load the next batch in vain.
    """

    def __init__(self, loader: Any) -> None:
        self.tell = Telling(loader.collate_fn)
        self.init = Beginning(loader.worker_init_fn)
        self.streams: list[str | None] = [None] * loader.num_workers
        self._turn = 0  # the worker of the next batch
        self._last: str | None = None  # the streams of the last batch's worker before it

    def begin(self, *, awake: bool) -> None:
        """A pass begins, with workers of the one before if they are awake."""
        self._turn = 0
        if not awake:
            self.streams = [None] * len(self.streams)

    def resume(self, state: dict[str, Any], *, inside: bool) -> int:
        """Has workers that are started next go on from ``state``, in a pass or at a new one.

        Returns:
            How many of them are to load a batch in vain.
        """
        self.streams = list(state["streams"])
        self._turn = state["turn"] if inside else 0
        self.init.streams = list(self.streams)
        self.tell.restore = self.streams[: self._turn]
        return self._turn

    def started(self) -> None:
        """Those who are started later begin as workers do."""
        self.init.streams, self.tell.restore = [], []

    def listened(self, loaded: Iterator[Any]) -> Iterator[Any]:
        """The batches of what has been collated by ``tell``."""
        for batch, (worker, streams) in loaded:
            self._last, self.streams[worker] = self.streams[worker], streams
            self._turn = (worker + 1) % len(self.streams)
            yield batch

    def state_dict(self, *, back: bool) -> dict[str, Any]:
        """Streams of each worker, and whose batch comes next.

        Args:
            back: as before the last batch.
        """
        streams, turn = list(self.streams), self._turn
        if back:
            turn = (turn - 1) % len(streams)
            streams[turn] = self._last
        return {"streams": streams, "turn": turn}
