"""Holds data sets in memory: ids, labels, subsets, loaders of whole batches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from reducible.lab.data._checks import check_targets
from reducible.loading.order import as_it_is
from reducible.types import Candidates, ConfigurationError, DataError, name_ids, require_between


class InMemory(Dataset[Candidates], ABC):
    """N examples in memory that are fetched batch by batch.

    Args:
        targets: [N] int64, in [0, C).
        ids: [N] int64, unique, not negative; 0 … N−1 by default.
        num_classes: C; the largest target plus one by default.
        classes: the names of the C classes, or nothing.
        origin: what the ids belong to. Two sets of equal origin share their ids. By default an
            object that equals nothing else.

    Raises:
        DataError: no examples, or labels or ids not kept to the above.
        ConfigurationError: as many names as there are not classes.
    """

    def __init__(
        self,
        targets: Tensor,
        *,
        ids: Tensor | None,
        num_classes: int | None,
        classes: tuple[str, ...],
        origin: object | None,
    ) -> None:
        if num_classes is None:
            num_classes = int(targets.max()) + 1 if targets.numel() else 0
        check_targets(targets, num_classes)
        ids = torch.arange(targets.numel(), device=targets.device) if ids is None else ids
        if ids.shape != targets.shape:
            raise DataError(
                f"targets and ids must lead with the same N; got {tuple(targets.shape)} and "
                f"{tuple(ids.shape)}. Were they cut from one data set with one index?"
            )
        _check_ids(ids)
        if classes and len(classes) != num_classes:
            raise ConfigurationError(
                f"{len(classes)} names for {num_classes} classes: name every class, or none."
            )
        self.targets = targets  # [N]
        self.ids = ids  # [N]
        self.num_classes = num_classes
        self.classes = classes
        self.origin = object() if origin is None else origin

    @abstractmethod
    def fetch(self, indices: Tensor) -> Candidates:
        """The examples at positions ``indices`` ([B] int64), as one batch."""

    @abstractmethod
    def _single(self, batch: Any) -> Any:
        """The example of a batch of one."""

    @abstractmethod
    def _with(self, **changes: Any) -> Self:
        """Returns the same data set, but for ``changes`` to what it was made from."""

    @abstractmethod
    def _rows(self, at: Tensor, *, ids: Tensor | None, origin: object | None) -> Self:
        """The rows at ``at`` ([M] int64), with other ids and another origin."""

    def __len__(self) -> int:
        return self.targets.numel()

    def __getitem__(self, index: int | Sequence[int] | Tensor) -> Candidates:
        """One example (ids and y 0-d) at a position, or a batch at a list or [B] of positions."""
        positions = torch.as_tensor(index)  # [] or [B]
        if positions.dim():
            return self.fetch(positions)
        at = int(positions)
        if not -len(self) <= at < len(self):  # IndexError is also what ends iteration over a set
            raise IndexError(f"position {at} of a data set of {len(self)} examples")
        one = self.fetch(torch.tensor([at % len(self)]))
        return Candidates(one.ids[0], self._single(one.batch))

    def subset(self, positions: Tensor) -> Self:
        """The examples at ``positions`` ([M] int64, none twice), with the ids they have here.

        Raises:
            DataError: a position comes twice (two examples would share an id; see ``resampled``),
                or there are none.
        """
        at = check_positions(positions, len(self))
        if at.unique().numel() < at.numel():
            raise DataError(
                f"{at.numel() - at.unique().numel()} of {at.numel()} positions repeat one before "
                "them, and an id must be unique. Rows duplicated on purpose? Use resampled()."
            )
        return self._rows(at, ids=self.ids[at], origin=self.origin)

    def resampled(self, positions: Tensor, *, origin: object | None = None) -> Self:
        """The rows at ``positions`` ([M] int64, repeats allowed) as a data set of its own.

        Every row counts as an example: ids are 0 … M−1, and they belong to ``origin``.
        """
        return self._rows(check_positions(positions, len(self)), ids=None, origin=origin)

    def relabelled(self, targets: Tensor) -> Self:
        """Returns the same examples and ids, labelled ``targets`` ([N] int64)."""
        return self._with(targets=targets)

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        generator: torch.Generator | None = None,
        workers: int = 0,
    ) -> DataLoader[Candidates]:
        """Batches of ``batch_size``, each fetched at once; in order if not ``shuffle``.

        ``generator`` draws the order, so that the global random stream stays as it was; without
        one, a shuffling loader draws from that stream, as torch's own do. ``workers`` processes
        fetch them; 0: this one does.

        Raises:
            ConfigurationError: not a single batch would come out.
        """
        require_between("batch_size", batch_size, 1, whole=True)
        if drop_last and batch_size > len(self):
            raise ConfigurationError(
                f"batch_size={batch_size} of {len(self)} examples with drop_last=True gives no "
                "batch at all. Take a smaller batch_size, or drop_last=False."
            )
        order = RandomSampler(self, generator=generator) if shuffle else SequentialSampler(self)
        if generator is None and not shuffle:
            generator = torch.Generator()  # a DataLoader draws a seed even if nothing is random
        return DataLoader(
            self,
            batch_size=None,
            sampler=BatchSampler(order, batch_size, drop_last),
            collate_fn=as_it_is,  # DataLoader's own would turn the (x, y) tuple into a list
            generator=generator,
            num_workers=workers,
        )


def check_positions(positions: Tensor, n: int) -> Tensor:
    """``positions`` if they are [M] int64 in [0, n); raises DataError if they are not."""
    if positions.dtype != torch.int64 or positions.dim() != 1:
        raise DataError(
            f"positions must be [M] int64; got {positions.dtype} of shape "
            f"{tuple(positions.shape)}. A mask? Use mask.nonzero().squeeze(1)."
        )
    if positions.numel() and (int(positions.min()) < 0 or int(positions.max()) >= n):
        raise DataError(
            f"positions must lie in [0, {n}); got {int(positions.min())} to "
            f"{int(positions.max())}. Ids instead of positions? In a subset the two differ."
        )
    return positions


def _check_ids(ids: Tensor) -> None:
    if ids.dtype != torch.int64:
        raise DataError(
            f"ids must be int64; got {ids.dtype}. A float holds no id above 2**24 exactly: keep "
            "ids out of tensors of floats, and cast nothing."
        )
    if bool((ids < 0).any()):
        raise DataError(
            f"ids must not be negative; got {name_ids(ids[ids < 0])}. Strings hashed to signed "
            "numbers? Take the hash modulo 2**63."
        )
    values, counts = ids.unique(return_counts=True)
    if values.numel() < ids.numel():
        raise DataError(
            f"ids must be unique; these come more than once: {name_ids(values[counts > 1])}. "
            "Two data sets joined whose ids both start at 0? Shift one of them."
        )
