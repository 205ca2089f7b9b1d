"""Passes over the candidates: whole candidate batches, or rows that are chosen before loading."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from reducible.batches import to_device
from reducible.ledger import Ledger
from reducible.loading.order import (
    Drawn,
    Indices,
    as_given,
    batch_size_of,
    even_size,
    is_rest,
    never_repeats,
    refuse_repeats,
    whole_batches,
    why_repeats,
)
from reducible.loading.reader import Reader
from reducible.loop.epochs import EpochPlanner
from reducible.loop.inspection import Inspection
from reducible.loop.keep import Keep
from reducible.loop.seeds import stream_seed
from reducible.selectors import Selector
from reducible.stores import has_distinct_ids, refuse_keys, require_ids
from reducible.types import Candidates, ConfigurationError, DataError, Evidence, require_between


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


class CandidateBatch(NamedTuple):
    """Candidates, and how many of them to train on at a time; what a walk yields."""

    candidates: Candidates
    weights: Tensor | None
    """[K] if the rows are chosen already."""
    k: int
    """n_b."""


@final
class CandidatePasses:
    """The candidate batches of a loader, pass by pass; remembers where it is.

    A rule that needs no evidence has its rows drawn before they are loaded, and a rule that decides
    by epoch has the epoch's order re-planned, wherever the loader's order can be read ahead.

    Only the last batch of a pass may be left out: the short rest of a loader that cuts its batches
    evenly (see ``even_size``), or, of any loader, a batch with fewer rows than ``keep`` asks for.

    Args:
        loader: yields Candidates, or mappings with ids under ``ids_key``.
        ids_key: see ``loader``.
        keep: n_b, or a share of n_B.
        seed: of draws and plans.
        ledger: charged for loading.
        updates: batches of n_b that are handed out from one candidate batch.
        draw: says which rows of a candidate batch to load, if not all; see ``Draw``.
        planner: of a rule that decides by epoch.
        total_steps: planned updates, for the planner.
        inspection: looks at the batches as they are loaded.

    Raises:
        ConfigurationError: ``keep`` cannot be had from batches of the loader's size.
        DataError: the loader's sampler draws rows more than once.
    """

    def __init__(
        self,
        loader: Any,
        *,
        ids_key: str | None,
        keep: float,
        seed: int,
        ledger: Ledger,
        updates: int,
        draw: Draw | None = None,
        planner: EpochPlanner | None = None,
        total_steps: int | None = None,
        inspection: Inspection | None = None,
    ) -> None:
        # First, so that a size that cannot work is told before anything is loaded.
        self._keep = Keep(keep, updates, batch_size_of(loader))
        if planner is None:
            refuse_repeats(loader)
        self._updates = updates
        self._loader, self._ids_key = loader, ids_key
        self._seed, self._ledger = seed, ledger
        self._planner, self._total_steps = planner, total_steps
        self._inspection = inspection or Inspection()
        self._reader = Reader(loader, looks_back=updates > 1)
        # An order that cannot be read ahead has its batches loaded whole.
        self._draw = draw if self._reader.reads_ahead else None
        # Seen once, if that says it for every batch; a planner's order is its own.
        self._distinct = (
            planner is None and never_repeats(loader) and has_distinct_ids(loader.dataset)
        )
        self.epoch = -1  # passes begun, from 0
        self._position = 0  # batches of this pass that are done with
        self._repeats = why_repeats(loader)
        self._even = even_size(loader)  # n_B; None if batches may be of any size
        self._resuming = False
        # By batch: how many of its rows were not drawn, and whether those drawn are the choice;
        # None of the short rest of a pass.
        self._drawn: deque[tuple[int, bool] | None] = deque()
        self._undrawn: int | None = None  # rows of an index list with too few of them

    @property
    def resuming(self) -> bool:
        """Whether the next walk goes on inside a pass."""
        return self._resuming

    def __len__(self) -> int:
        """Batches handed out in a pass, as far as that is known beforehand."""
        if self._planner is not None:
            return len(self._planner)
        last = self._last_size()
        too_few = last is not None and self._keep.rows(last, last) is None
        return (whole_batches(self._loader) - too_few) * self._updates

    def _last_size(self) -> int | None:
        """Rows of a pass's last batch, if the batches or their index lists stand in a list."""
        listed = getattr(self._loader, "batch_sampler", None)
        if isinstance(listed, list | tuple) and listed:
            return len(listed[-1])
        if isinstance(self._loader, list | tuple) and self._loader:
            ids: Any = self._ids(self._loader[-1])
            return ids.numel() if isinstance(ids, Tensor) else None  # told of as they are walked
        return None

    def walk(self, step: int, device: torch.device) -> Iterator[CandidateBatch]:
        """Candidate batches of one pass.

        Args:
            step: batches handed out over all passes, before the first candidate batch to come.
            device: of batches and weights; ids stay on theirs.

        Raises:
            DataError: a batch that is not the last has too few rows; the pass hands out nothing;
                ids are missing or occur twice.
        """
        some = self._resuming
        loading = self._ledger.phase("load")
        self._inspection.begin(resuming=self._resuming)
        with loading:
            iterator = self._open(step)
        short: tuple[int, bool] | None = None  # rows of a batch with too few, whether drawn
        while True:
            # Waiting for workers is loading too, so the clock runs over `next`.
            with loading:
                try:
                    loaded = next(iterator)
                except StopIteration:
                    break
                ids, batch = self._read(loaded)
                refuse_keys(ids)
                self._inspection.look(ids, batch)
                # Counted before the batch is used: a state taken in the loop's body is past it.
                self._position = self._reader.place(self._position, ids)
                # Another batch came, so the one with too few rows was not the last.
                if short is not None:
                    raise self._keep.too_few(*short)
                size, weights = ids.numel(), None
                if self._planner is not None:
                    k, weights = size, self._planned(self._planner, size).to(device)
                else:
                    drawn = self._drawn.popleft() if self._reader.reads_ahead else self._seen(size)
                    if drawn is None:
                        continue
                    # Rows that were left undrawn count for a share: it is taken of the whole batch.
                    left, final = drawn
                    k = self._keep.rows(size + left, size)
                    if k is None:
                        short = (size, final)
                        continue
                    weights = torch.ones(size, device=device) if final else None
                require_ids(ids, distinct=self._distinct, repeats=self._repeats)
                # Ids stay on the CPU, where stores are looked up: no copy to wait for.
                candidates = Candidates(ids, to_device(batch, device))
            some = True
            yield CandidateBatch(candidates, weights, k)
        # A pass without updates would make an epoch loop spin for ever, in silence.
        if not some:
            raise self._nothing(self._undrawn if short is None else short[0])
        if self._planner is not None:
            self._planner.end_epoch(self._position)
        self._reader.close()
        self._position = 0
        self._inspection.end()

    def _planned(self, planner: EpochPlanner, size: int) -> Tensor:
        """Weights of the rows of an update, of which the batch has ``size``."""
        weights = planner.weights(self._position - 1)
        if size != weights.numel():
            raise DataError(
                f"the selector decides by epoch and planned {weights.numel()} rows for an update, "
                f"but the batch has {size}. Let the loader's collate function keep all rows, and "
                "leave unreadable ones out beforehand: Subset(dataset, positions)."
            )
        return weights

    def _seen(self, size: int) -> tuple[int, bool] | None:
        """Returns what would stand in ``_drawn`` of a batch whose index list was not seen.

        A collate function may leave rows out of any batch, so that few rows alone tell nothing.
        """
        short = self._even is not None and size < self._even
        return None if short and is_rest(self._loader, self._position) else (0, False)

    def _nothing(self, size: int | None) -> DataError:
        """Builds the error for a pass that handed out nothing."""
        if size is not None:
            why = f"{self._keep.lacks(size)} There was no other batch."
        elif hasattr(self._loader, "__next__"):
            why = (
                "the loader is an iterator that is used up. Pass what can be iterated again, such "
                "as a DataLoader or a list."
            )
        else:
            why = (
                "the loader gave no batch. Is its sampler empty, or are there fewer rows than its "
                "batch size, with drop_last=True?"
            )
        return DataError(f"the pass hands out nothing: {why}")

    def _open(self, step: int) -> Iterator[Any]:
        """An iterator over the loader, at the saved position if a pass is resumed."""
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
        draw = self._drawer(self._draw, step) if self._reader.reads_ahead else as_given
        return self._reader.open(position, self._ids, draw=draw)

    def _plan(self, planner: EpochPlanner, step: int) -> None:
        # Passes have streams of their own, below 0; those from 0 are the steps'.
        generator = torch.Generator().manual_seed(stream_seed(self._seed, -1 - self.epoch))
        with self._ledger.phase("pick"):
            planner.plan(
                epoch=self.epoch, step=step, total_steps=self._total_steps, generator=generator
            )

    def _drawer(self, draw: Draw | None, step: int) -> Drawn:
        """Draws rows of the n-th candidate batch from here, which will be n choices on.

        Marks the short rest of an evenly cut pass, which is not loaded if rows are drawn. Workers
        read ahead of the step that is trained on, so the step is counted, not asked for.
        """
        self._drawn.clear()
        self._undrawn = None
        begun = self._position > 0
        passes = weakref.proxy(self)  # which holds the order, and with it workers, in turn

        def drawn(given: int, indices: Indices) -> Indices | None:
            even = passes._even
            rest = even is not None and len(indices) < even and (begun or given > 0)
            if draw is None:
                passes._drawn.append(None if rest else (0, False))
                return indices
            if rest:
                return None
            if passes._undrawn is not None:
                raise passes._keep.too_few(passes._undrawn)
            size = len(indices)
            k = passes._keep.rows(size, size)
            if k is None:
                passes._undrawn = size
                return None
            rows, final = draw(step + given * passes._updates, size, k * passes._updates)
            passes._drawn.append((size - len(rows), final))
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

    def state_dict(self, *, again: bool) -> dict[str, Any]:
        """Saves where this pass is, and where its order began.

        Args:
            again: load the last batch once more on resuming; not all of it was handed out.
        """
        # The parts left of the last batch need its rows, which a state does not hold.
        back = again and not self._resuming  # if nothing was loaded since, it was counted
        return {
            "epoch": self.epoch,
            "position": self._position - back,
            "n_candidates": self._even,
            "order": self._reader.state_dict(back=back),
            "inside": self._resuming or self._reader.inside,
            "planner": None if self._planner is None else self._planner.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next walk continues the pass that ``state`` was taken in.

        Raises:
            ConfigurationError: the state is not one of a pass, or is of a loader with another
                batch size.
        """
        for name, least in (("epoch", -1), ("position", 0)):
            require_between(f"{name} in the state", state[name], least, whole=True)
        if state["n_candidates"] is not None:
            require_between("n_candidates in the state", state["n_candidates"], 1, whole=True)
        if state["n_candidates"] != self._even:
            raise ConfigurationError(
                f"the state is of a loader with {_of_size(state['n_candidates'])}, but this one "
                f"has {_of_size(self._even)}: the pass cannot go on where it stopped. Give the "
                "loader the batch size that it had."
            )
        self.epoch = state["epoch"]
        self._position = state["position"]
        self._resuming = state["inside"]
        self._reader.load_state_dict(state["order"], inside=self._resuming)
        if self._planner is not None:
            self._planner.load_state_dict(state["planner"])


def _of_size(n_candidates: int | None) -> str:
    if n_candidates is None:
        return "candidate batches of varying size"
    return f"candidate batches of {n_candidates} rows"
