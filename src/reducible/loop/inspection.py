"""Looks at batches as they pass: labels that a store was not made for, doubled rows."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, final

from torch import Tensor
from torch.utils.data import IterableDataset

from reducible.stores import LABEL_SAMPLE, IrreducibleLossStore, label_values
from reducible.tasks import Task
from reducible.types import DataError, StoreError

_BATCHES = 2000  # that labels are looked for in, at most
_ROWS = 4096  # of one pass that workers are compared by, all together
_MANY = 64  # equal rows of two workers that say enough before a pass is over


@final
class LabelInspection:
    """Compares the labels of passing batches with those that a store was made for.

    The store's header holds the labels of at most 1,024 rows (``label_sample``). When each of them
    has passed once, after a pass, or after 2,000 batches, nothing is looked at any more. Labels
    that are on an accelerator are not looked at, because they would have to be waited for.

    Args:
        store: with a fingerprint, and maybe a sample.
        task: finds the labels in a batch.

    Attributes:
        done: whether nothing is to be looked at any more.
    """

    def __init__(self, store: IrreducibleLossStore, task: Task) -> None:
        sample: Mapping[str, Sequence[Any]] = store.header.get(LABEL_SAMPLE) or {}
        self._expected = dict(zip(sample.get("ids", ()), sample.get("labels", ()), strict=True))
        self._task = task
        self._looked, self._compared = 0, False
        self.done = not self._expected
        if self.done:
            self._warn(
                "neither its fingerprint and the data set's nor the store itself tell labels that "
                "could be compared"
            )

    def look(self, ids: Tensor, batch: Any) -> None:
        """Compares the rows of a batch that the sample holds.

        Args:
            ids: [B] int64.
            batch: as it was loaded.

        Raises:
            StoreError: a label is another one than in the store's data.
        """
        if not ids.is_cpu:
            return self._stop("the batches are on an accelerator already")
        # A look-up per id: the sample is small, and soon all of it was seen.
        rows = [row for row, i in enumerate(ids.tolist()) if i in self._expected]
        if rows:
            try:
                targets = self._task.targets(batch)
            except DataError:  # said in full when the labels are needed
                targets = None
            if targets is None:
                return self._stop("the batches carry no labels")
            if not targets.is_cpu:
                return self._stop("the labels are on an accelerator already")
            labels = self._task.labels(targets[rows])
            self._compare(ids[rows].tolist(), label_values(labels))
        self._looked += 1
        if not self._expected:
            self.done = True
        elif self._looked >= _BATCHES:
            self.end()
        return None

    def end(self) -> None:
        """A pass is over: what was not seen in it is not waited for."""
        self.done = True
        if self._looked and not self._compared:
            self._warn("none of the rows whose labels it keeps has passed")

    def _compare(self, ids: list[int], labels: list[Any]) -> None:
        pairs = [(i, self._expected[i], here) for i, here in zip(ids, labels, strict=True)]
        for i in ids:
            self._expected.pop(i, None)
        self._compared = True
        wrong = [(i, there, here) for i, there, here in pairs if there != here]
        if wrong:
            shown = "; ".join(f"id {i}: {there} there, {here} here" for i, there, here in wrong[:5])
            raise StoreError(
                f"this store of irreducible losses was made for other labels: {len(wrong)} of "
                f"{len(pairs)} labels compared in a batch differ ({shown}). Another split, "
                "relabelled, or the rows permuted? Load the store that was fitted for this data, "
                "or fit it again."
            )

    def _stop(self, why: str) -> None:
        self.done = True
        if not self._compared:
            self._warn(why)

    def _warn(self, why: str) -> None:
        warnings.warn(
            f"the labels of this store of irreducible losses cannot be checked: {why}. If it was "
            "made for another split or for other labels, nothing tells. Give the data set a "
            ".targets, and fit the store on it again if that was done without labels.",
            stacklevel=2,
        )


@final
class WorkerInspection:
    """Notices an iterable data set whose workers all yield the same rows.

    Over the first 4,096 rows of the first pass that begins, the rows of different workers are
    compared; a batch comes from each worker in turn.

    - Two workers give the same rows, each row once (64 rows or more, or all of a pass): an error.
    - Two workers share rows and neither gives a row twice, as if each shuffled all of the data: a
      warning, since a mixture of streams may mean it.
    - A worker gives a row twice itself, as one that draws with replacement does: rows are meant to
      repeat, and nothing is said.

    Args:
        loader: with ``num_workers`` of at least 2 over an IterableDataset; see ``watches``.

    Attributes:
        done: whether nothing is to be looked at any more.
    """

    def __init__(self, loader: Any) -> None:
        self._name = type(loader.dataset).__name__
        self._given: list[list[int]] = [[] for _ in range(loader.num_workers)]
        self._batches = 0
        self.done = False

    @staticmethod
    def watches(loader: Any) -> bool:
        """Whether several workers iterate over one data set, which is to split it by itself."""
        workers = getattr(loader, "num_workers", 0)
        return workers >= 2 and isinstance(getattr(loader, "dataset", None), IterableDataset)

    def look(self, ids: Tensor) -> None:
        """Takes in the ids ([B]) of the next batch of a pass.

        Raises:
            DataError: two workers give the same rows.
        """
        if not ids.is_cpu:
            self.done = True
            return
        self._given[self._batches % len(self._given)] += ids.tolist()
        self._batches += 1
        if self._batches % len(self._given) == 0:
            self._compare(at_least=_MANY)
            if sum(map(len, self._given)) >= _ROWS:
                self.end()

    def end(self) -> None:
        """The pass is over, or enough was seen of it."""
        self.done = True
        self._compare(at_least=1)
        shared = self._shared()
        self._given = []
        if shared:
            warnings.warn(
                f"workers of the loader yield the same rows of {self._name}, such as id {shared[0]}"
                f": {len(shared)} ids came from two of them. {_CURE} If they are meant to repeat, "
                "all is well.",
                stacklevel=2,
            )

    def begin(self) -> None:
        """Another pass begins; the one before may have been broken off."""
        self._given = [[] for _ in self._given]
        self._batches = 0

    def _once(self) -> list[list[int]]:
        """Rows of each worker that gives none twice."""
        return [rows for rows in self._given if len(set(rows)) == len(rows)]

    def _compare(self, *, at_least: int) -> None:
        # Sorted, because two workers may shuffle the same rows each its own way.
        seen: set[tuple[int, ...]] = set()
        for rows in self._once():
            if len(rows) < at_least:
                continue
            key = tuple(sorted(rows))
            if key in seen:
                raise DataError(
                    f"two of the loader's {len(self._given)} workers yield the same rows of "
                    f"{self._name}, ids {', '.join(map(str, rows[:5]))} …: every row comes as "
                    f"often as there are workers. {_CURE}"
                )
            seen.add(key)

    def _shared(self) -> list[int]:
        """Ids that came from more than one worker, of workers that repeat none."""
        seen: set[int] = set()
        shared: set[int] = set()
        for rows in self._once():
            shared |= seen.intersection(rows)
            seen.update(rows)
        return sorted(shared)


_CURE = (
    "Each worker holds a copy of the data set and iterates over all of it, unless its __iter__ "
    "takes a part: info = torch.utils.data.get_worker_info(), then every info.num_workers-th row "
    "from info.id on. Or use num_workers=1."
)


@final
class Inspection:
    """Looks at the batches of one loop as they pass, until enough was seen.

    Args:
        labels: compares them with a store's; None if there is nothing to compare.
        workers: compares them with each other; None if they need not be.
    """

    def __init__(
        self, labels: LabelInspection | None = None, workers: WorkerInspection | None = None
    ) -> None:
        self._labels, self._workers = labels, workers
        self._whole_pass = False

    def begin(self, *, resuming: bool) -> None:
        """A pass begins, or goes on. Workers are compared in passes seen from their beginning."""
        self._whole_pass = not resuming
        if self._workers is not None and self._whole_pass:
            self._workers.begin()

    def look(self, ids: Tensor, batch: Any) -> None:
        """Looks at a batch as it was loaded, whose ids are [B] int64; ids that are not are left.

        Raises:
            DataError: two workers give the same rows.
            StoreError: labels are not those of the store's data.
        """
        if ids.dim() != 1:
            return
        if self._workers is not None and self._whole_pass:
            self._workers.look(ids)
            if self._workers.done:
                self._workers = None
        if self._labels is not None:
            self._labels.look(ids, batch)
            if self._labels.done:
                self._labels = None

    def end(self) -> None:
        """The pass is over."""
        if self._whole_pass:
            for part in (self._workers, self._labels):
                if part is not None:
                    part.end()
            self._workers = self._labels = None


def inspection_of(
    loader: Any, store: IrreducibleLossStore | None, task: Task, *, labels_compared: bool
) -> Inspection:
    """Returns what a loop is to look at.

    Args:
        loader: of candidate batches.
        store: of irreducible losses; one without fingerprint is not to be checked.
        task: finds labels.
        labels_compared: whether all labels were compared with the store's before.
    """
    # Of a loss without targets nobody expects labels.
    labelled = task.needs_targets or (store is not None and store.knows_labels)
    wanted = store is not None and store.fingerprint and not labels_compared and labelled
    return Inspection(
        LabelInspection(store, task) if store is not None and wanted else None,
        WorkerInspection(loader) if WorkerInspection.watches(loader) else None,
    )
