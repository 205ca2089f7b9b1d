"""Reads a loader pass by pass, and goes on inside a pass that a stopped run was in."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from typing import Any, final

import torch
from torch import Tensor

from reducible.loading.order import (
    Drawn,
    Indices,
    OrderDigest,
    Reordered,
    as_given,
    batches_of,
    index_batches,
    rebuilt,
)
from reducible.loading.streams import order_state, replayed, set_order_state
from reducible.loading.workers import Workers
from reducible.types import ConfigurationError


@final
class Reader:
    """The batches of a loader, whose order is remembered and drawn again.

    The index lists of a plain DataLoader are read ahead of loading, so that a pass is resumed
    without loading what was loaded before; its workers tell where their random streams are. A
    loader that keeps a state of its own (torchdata's StatefulDataLoader) is asked for it. Of any
    other the batches are loaded again up to the place.

    Args:
        loader: any.
        looks_back: whether states may be wanted of before the last batch.

    Attributes:
        reads_ahead: whether the order can be read ahead of loading.

    Raises:
        ConfigurationError: workers hand over batches as they come.
    """

    def __init__(self, loader: Any, *, looks_back: bool = False) -> None:
        self._loader = loader
        self._indices = index_batches(loader)
        self.reads_ahead = self._indices is not None
        self._workers_count: int = getattr(loader, "num_workers", 0)
        if self._workers_count > 1 and not getattr(loader, "in_order", True):
            raise ConfigurationError(
                "the loader has in_order=False: its batches come in another order in every run, so "
                "the same seed would choose other rows, and a run could not be resumed. Leave "
                "in_order=True."
            )
        self._ahead = Reordered()
        self._reads: Any = None if self.reads_ahead else loader
        told = self.reads_ahead and self._workers_count > 0
        self._workers = Workers(loader) if told else None
        self._keeps_state = not self.reads_ahead and _is_stateful(loader)
        self._states = [None, None] if looks_back and self._keeps_state else None
        self._loaded = OrderDigest()  # of the ids, if the order cannot be read ahead
        self._order: dict[str, Any] | None = None  # what this pass's order began from
        self._state: dict[str, Any] | None = None  # loaded, and not yet gone on from
        self._warned = False

    def open(
        self,
        position: int | None,
        ids_of: Callable[[Any], Tensor],
        *,
        source: Iterable[Indices] | None = None,
        draw: Drawn = as_given,
    ) -> Iterator[Any]:
        """The batches of a new pass, or of the one that the state was taken in.

        Args:
            position: batches done with of the pass that is resumed; None begins one.
            ids_of: the ids of a batch.
            source: of index lists, in the stead of the loader's own.
            draw: what index lists are passed through, see ``Reordered``.
        """
        state, self._state = self._state, None
        awake = self._is_awake() if state is None else state["awake"]
        if position is None or state is None:
            self._order = order_state(self._loader) | {"awake": awake}
        else:
            self._order = {name: state[name] for name in ("global", "own", "epochs", "awake")}
        resumed = state if position is not None else None
        if self.reads_ahead:
            order = self._indices if source is None else source
            assert order is not None
            known = (0, 0) if resumed is None else resumed["seen"]
            vain = self._begin_workers(state, resumed)
            self._ahead.aim(order, skip=position or 0, draw=draw, known=known, vain=vain)
            return self._open_ahead(resumed, vain)
        if state is not None and self._keeps_state and state["loader"] is not None:
            self._loader.load_state_dict(state["loader"])
        return self._open_loaded(position or 0, ids_of, resumed)

    def _open_ahead(self, resumed: dict[str, Any] | None, vain: int) -> Iterator[Any]:
        workers = self._workers
        if self._reads is None or not self._reads.persistent_workers:
            theirs: dict[str, Any] = {}
            if workers is not None:
                theirs = {"collate_fn": workers.tell, "worker_init_fn": workers.init}
            self._reads = rebuilt(self._loader, self._ahead, **theirs)
        with self._as_from(resumed):
            iterator = batches_of(self._reads)
            self._ahead.prime()
        if workers is None:
            return iterator
        workers.started()
        for _ in islice(iterator, vain):
            pass
        return workers.listened(iterator)

    def _begin_workers(self, state: dict[str, Any] | None, resumed: dict[str, Any] | None) -> int:
        """Has workers begin where those of the stopped run were.

        Returns:
            How many of them are to load a batch in vain.
        """
        assert self._order is not None
        theirs = None if state is None else state["workers"]
        count = 0 if theirs is None else len(theirs["streams"])
        if resumed is not None and count != self._workers_count:
            self._warn(f"the run was stopped with num_workers={count}", "Resume with as many.")
        if self._workers is None:
            return 0
        if theirs is None or count != self._workers_count:
            self._workers.begin(awake=self._order["awake"])
            return 0
        if self._order["awake"] and None in theirs["streams"]:
            self._warn("some of its persistent workers had no batch yet", "Use fewer of them.")
        return self._workers.resume(theirs, inside=resumed is not None)

    def _open_loaded(
        self, skip: int, ids_of: Callable[[Any], Tensor], resumed: dict[str, Any] | None
    ) -> Iterator[Any]:
        with self._as_from(resumed):
            iterator = iter(self._loader)
            self._loaded = OrderDigest()
            if resumed is not None and not self._keeps_state:
                self._loaded = OrderDigest(resumed["seen"])
                for batch in islice(iterator, skip):
                    self._loaded.add(_bytes_of(ids_of(batch)))
                if self._loaded.count < skip:
                    self._loaded.end()
        if resumed is not None:
            self._warn_of_workers()
        if self._states is not None:
            self._states = [None, self._state_of_loader()]
        return iterator

    @contextmanager
    def _as_from(self, resumed: dict[str, Any] | None) -> Iterator[None]:
        """Draws an order as it was drawn in the pass that is resumed, workers' seed included.

        Persistent workers that were there before the pass had their seed drawn before it too.
        """
        assert self._order is not None
        replay: AbstractContextManager[None] = nullcontext()
        if resumed is not None:
            replay = replayed(self._loader, self._order)
        with replay:
            if not self._order["awake"]:
                yield
                return
            mine, self._reads.generator = self._reads.generator, torch.Generator()
            try:
                yield
            finally:
                self._reads.generator = mine

    def place(self, position: int, ids: Tensor | None = None) -> int:
        """Returns how far the pass has been read with the batch loaded last.

        Args:
            position: how far before it.
            ids: of the batch, [B] int64.

        Raises:
            DataError: the batch is not that of before the stop.
        """
        if self.reads_ahead:
            return self._ahead.ends.popleft()
        if ids is not None and not self._keeps_state:
            self._loaded.add(_bytes_of(ids))
        if self._states is not None:
            self._states = [self._states[1], self._state_of_loader()]
        return position + 1

    @property
    def inside(self) -> bool:
        """Whether a pass has been opened that is not over."""
        return self._order is not None

    def close(self) -> None:
        """The pass is over."""
        self._order = None

    def state_dict(self, *, back: bool = False) -> dict[str, Any]:
        """Saves what the order is drawn again from, and where workers or a loader's state are.

        Args:
            back: as before the last batch.
        """
        if self._state is not None:
            return dict(self._state)
        inside = self.inside
        order = self._order or order_state(self._loader) | {"awake": self._is_awake()}
        seen = self._ahead.seen if self.reads_ahead else self._loaded
        workers = self._workers
        if self._workers is not None and not inside and not order["awake"]:
            workers = None
        theirs = None
        if self._keeps_state and (inside or order["awake"]):
            theirs = self._state_of_loader() if self._states is None else self._states[not back]
        return order | {
            "seen": (seen.count, seen.digest) if inside else (0, 0),
            "workers": None if workers is None else workers.state_dict(back=back),
            "loader": theirs,
        }

    def load_state_dict(self, state: dict[str, Any], *, inside: bool) -> None:
        """Goes on from a state when a pass is opened next; ``inside``: it was taken in one."""
        self._state, self._order = dict(state), None
        if not inside:
            set_order_state(self._loader, state)

    def _is_awake(self) -> bool:
        """Whether workers of a pass before are there, and go on."""
        persistent = getattr(self._reads, "persistent_workers", False)
        return bool(persistent) and getattr(self._reads, "_iterator", None) is not None

    def _state_of_loader(self) -> Any:
        return copy.deepcopy(self._loader.state_dict())

    def _warn_of_workers(self) -> None:
        """Says where rows may be augmented otherwise than without the stop, if that is so."""
        assert self._order is not None
        if not self._workers_count:
            return
        if self._keeps_state:
            if not _is_stateful(getattr(self._loader, "dataset", None)):
                self._warn(
                    "the loader keeps a state, but its data set does not",
                    "Let WithIds be the outermost data set: WithIds(Subset(…)).",
                )
        elif self._order["awake"]:
            self._warn(
                "its workers persist from pass to pass",
                "Use a plain DataLoader, or torchdata's StatefulDataLoader.",
            )

    def _warn(self, why: str, cure: str) -> None:
        if self._warned:
            return
        self._warned = True
        warnings.warn(
            f"the pass is resumed with the same rows, but {why}: what the loader's workers draw at "
            f"random, as augmentations do, is not what it would have been. {cure}",
            stacklevel=2,
        )


def _is_stateful(owner: Any) -> bool:
    names = ("state_dict", "load_state_dict")
    return all(callable(getattr(owner, name, None)) for name in names)


def _bytes_of(ids: Any) -> Any:
    """The bytes of ids that are on the CPU; of others nothing is read."""
    readable = isinstance(ids, Tensor) and ids.is_cpu and not ids.is_floating_point()
    return ids.numpy().tobytes() if readable else None
