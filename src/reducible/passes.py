"""Passes over the candidates: whole candidate batches, or rows that are chosen before loading."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any, Protocol, final

import torch
from torch import Tensor

from reducible.epochs import EpochPlanner
from reducible.ledger import Ledger
from reducible.loaders import (
    Drawn,
    Indices,
    as_given,
    batch_size_of,
    never_repeats,
    whole_batches,
)
from reducible.reader import Reader
from reducible.seeds import stream_seed
from reducible.selectors import Selector
from reducible.stores import has_distinct_ids, refuse_keys, require_ids
from reducible.structure import to_device
from reducible.types import (
    Candidates,
    ConfigurationError,
    DataError,
    Evidence,
    require_between,
)


class Draw(Protocol):
    """Chooses rows before they are loaded."""

    def __call__(self, step: int, size: int, k: int) -> tuple[list[int], bool]:
        """Positions to load of ``size`` candidates, and whether they are the k chosen ones."""
        ...


def blindly(rule: Selector, seed: int) -> Draw:
    """The draw of a rule that needs no evidence, at every step or at some; see ``is_blind``."""

    def draw(step: int, size: int, k: int) -> tuple[list[int], bool]:
        if not rule.is_blind(step, k, size):
            return list(range(size)), False
        evidence = Evidence(ids=torch.arange(size), context={"step": torch.tensor(step)})
        generator = torch.Generator().manual_seed(stream_seed(seed, step))
        return rule.select(evidence, k, generator=generator).index.tolist(), True

    return draw


@final
class CandidatePasses:
    """The candidate batches of a loader, pass by pass; remembers where it is.

    A rule that needs no evidence has its rows drawn before they are loaded, and a rule that decides
    by epoch has the epoch's order re-planned, wherever the loader's order can be read ahead.

    Args:
        loader: yields Candidates, or mappings with ids under ``ids_key``.
        ids_key: see ``loader``.
        keep: n_b, or a share of n_B.
        seed: of draws and plans.
        ledger: charged for loading.
        draw: says which rows of a candidate batch to load, where not all; see ``Draw``.
        updates: batches of n_b that are handed out from one candidate batch.
        planner: of a rule that decides by epoch.
        total_steps: planned updates, for the planner.
    """

    def __init__(
        self,
        loader: Any,
        *,
        ids_key: str | None,
        keep: float,
        seed: int,
        ledger: Ledger,
        draw: Draw | None = None,
        updates: int = 1,
        planner: EpochPlanner | None = None,
        total_steps: int | None = None,
    ) -> None:
        check_keep(keep)
        size = batch_size_of(loader)
        self._updates = updates
        if size is not None:
            require_rows(rows_to_keep(keep, size), updates, size)
        self._loader, self._ids_key = loader, ids_key
        self._keep, self._seed, self._ledger = keep, seed, ledger
        self._planner, self._total_steps = planner, total_steps
        self._reader = Reader(loader, looks_back=updates > 1)
        self._draw = draw if self._reader.reads_ahead else None
        # Seen once, where that says it for every batch; a planner's order is its own.
        self._distinct = (
            planner is None and never_repeats(loader) and has_distinct_ids(loader.dataset)
        )
        self.epoch = -1  # passes begun, from 0
        self._position = 0  # batches of this pass that are done with
        self._n_candidates: int | None = None  # n_B: the first batch's size
        self._rows: int | None = None  # n_b, once n_B is known
        self._resuming = False
        self._final: deque[bool] = deque()  # whether the rows drawn are the choice, batch by batch

    @property
    def resuming(self) -> bool:
        """Whether the next walk goes on inside a pass."""
        return self._resuming

    def __len__(self) -> int:
        """Batches handed out in a pass, as far as that is known beforehand."""
        if self._planner is not None:
            return len(self._planner)
        return whole_batches(self._loader) * self._updates

    def rows(self, size: int) -> int:
        """n_b for a candidate batch of ``size`` rows."""
        return self._rows or rows_to_keep(self._keep, size)

    def walk(self, step: int, device: torch.device) -> Iterator[tuple[Candidates, Tensor | None]]:
        """Candidate batches of one pass; with weights [K] where their rows are chosen already.

        Args:
            step: batches handed out over all passes, before the first candidate batch to come.
            device: where batches and weights are wanted; ids stay where they are.
        """
        loading = self._ledger.phase("load")
        with loading:
            iterator = self._open(step)
        while True:
            with loading:
                try:
                    loaded = next(iterator)
                except StopIteration:
                    break
                ids, batch = self._read(loaded)
                refuse_keys(ids)
                self._position = self._reader.place(self._position, ids)
                size, weights = ids.numel(), None
                if self._planner is not None:
                    weights = self._planner.weights(self._position - 1).to(device)
                elif self._draw is not None:
                    weights = torch.ones(size, device=device) if self._final.popleft() else None
                elif size != self._n_candidates and not self._is_whole(size):
                    continue
                require_ids(ids, distinct=self._distinct)
                candidates = Candidates(ids, to_device(batch, device))
            yield candidates, weights
        if self._planner is not None:
            self._planner.end_epoch(self._position)
        self._reader.close()
        self._position = 0

    def _is_whole(self, size: int) -> bool:
        """Whether a candidate batch has n_B rows, which is the first one's number."""
        if self._n_candidates is None:
            self._n_candidates, self._rows = size, rows_to_keep(self._keep, size)
            require_rows(self._rows, self._updates, size)
        return size >= self._n_candidates

    def _open(self, step: int) -> Iterator[Any]:
        """An iterator over the loader, at the saved position where a pass is resumed."""
        resuming, self._resuming = self._resuming, False
        if not resuming:
            if self._planner is not None:  # a pass may have been broken off
                self._planner.end_epoch(self._position)
            self.epoch += 1
            self._position = 0
            if self._planner is not None:
                self._plan(self._planner, step)
        position = self._position if resuming else None
        if self._planner is not None:
            return self._reader.open(position, self._ids, source=self._planner.batches())
        draw = as_given if self._draw is None else self._drawer(self._draw, step)
        return self._reader.open(position, self._ids, draw=draw)

    def _plan(self, planner: EpochPlanner, step: int) -> None:
        generator = torch.Generator().manual_seed(stream_seed(self._seed, -1 - self.epoch))
        with self._ledger.phase("pick"):
            planner.plan(
                epoch=self.epoch, step=step, total_steps=self._total_steps, generator=generator
            )

    def _drawer(self, draw: Draw, step: int) -> Drawn:
        """Draws rows of the n-th candidate batch from here, which will be n choices on.

        Workers read ahead of the step that is trained on, so the step is counted, not asked for.
        """
        self._final.clear()
        passes = weakref.proxy(self)  # which holds the order, and with it workers, in turn

        def drawn(given: int, indices: Indices) -> Indices | None:
            size = len(indices)
            if not passes._is_whole(size):
                return None
            k = passes.rows(size) * passes._updates
            rows, final = draw(step + given * passes._updates, size, k)
            passes._final.append(final)
            return [indices[i] for i in rows]

        return drawn

    def _read(self, loaded: Any) -> Candidates:
        return loaded if isinstance(loaded, Candidates) else self._by_key(loaded)

    def _ids(self, loaded: Any) -> Tensor:
        return self._read(loaded).ids

    def _by_key(self, batch: Any) -> Candidates:
        """A batch that is a mapping, with the ids in it."""
        if self._ids_key is not None and isinstance(batch, Mapping) and self._ids_key in batch:
            return Candidates(batch[self._ids_key], batch)
        what = type(batch).__name__
        if isinstance(batch, Mapping):
            what += f" with keys {sorted(map(str, batch))}"
        raise DataError(
            f"the loader's batches carry no ids: got {what}. Wrap the data set as "
            "reducible.WithIds(dataset), or name the key that holds them with ids=…."
        )

    def state_dict(self, *, again: bool = False) -> dict[str, Any]:
        """Where this pass is, and where its order began.

        Args:
            again: load the last batch once more on resuming; not all of it was handed out.
        """
        back = again and not self._resuming  # where nothing was loaded since, it was counted
        return {
            "epoch": self.epoch,
            "position": self._position - back,
            "n_candidates": self._n_candidates,
            "order": self._reader.state_dict(back=back),
            "inside": self._resuming or self._reader.inside,
            "planner": None if self._planner is None else self._planner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next walk continues the pass that ``state`` was taken in.

        Raises:
            ConfigurationError: the state is not one of a pass.
        """
        for name, least in (("epoch", -1), ("position", 0)):
            require_between(f"{name} in the state", state[name], least, whole=True)
        if state["n_candidates"] is not None:
            require_between("n_candidates in the state", state["n_candidates"], 1, whole=True)
        self.epoch = state["epoch"]
        self._position = state["position"]
        size = self._n_candidates = state["n_candidates"]
        self._rows = None if size is None else rows_to_keep(self._keep, size)
        self._resuming = state["inside"]
        self._reader.load_state_dict(state["order"], inside=self._resuming)
        if self._planner is not None:
            self._planner.load_state_dict(state["planner"])


def rows_to_keep(keep: float, candidates: int) -> int:
    """n_b for a candidate batch of ``candidates`` rows.

    >>> rows_to_keep(0.1, 320), rows_to_keep(16, 320)
    (32, 16)
    """
    k = int(keep) if isinstance(keep, Integral) else math.floor(keep * candidates + 0.5)
    if k < 1:
        raise ConfigurationError(
            f"keep={keep} of {candidates} candidates rounds to no row at all. Raise keep, or the "
            "loader's batch size."
        )
    if k > candidates:
        raise ConfigurationError(
            f"keep={keep} rows, but the candidate batch has {candidates}. Give the loader the "
            "larger batch size n_B; keep is what is trained on."
        )
    return k


def require_rows(k: int, updates: int, candidates: int) -> None:
    """Raise ConfigurationError unless ``updates`` batches of k rows are in the candidates."""
    if updates * k > candidates:
        raise ConfigurationError(
            f"updates_per_scoring={updates} of {k} rows each from {candidates} candidates: give "
            "the loader a larger batch size."
        )


def check_keep(keep: float) -> None:
    """Raise ConfigurationError unless ``keep`` is a number of rows or a share in (0, 1]."""
    whole = isinstance(keep, Integral) and not isinstance(keep, bool)
    if not whole and (not isinstance(keep, Real) or isinstance(keep, bool)):
        raise ConfigurationError(f"keep must be a number of rows or a share, got {keep!r}.")
    if (whole and keep < 1) or (not whole and not 0 < keep <= 1):
        raise ConfigurationError(
            f"keep must be at least 1 row (int) or a share in (0, 1] (float), got {keep!r}."
        )
