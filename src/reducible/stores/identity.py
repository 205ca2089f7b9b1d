"""Which example is which: ids of data sets, where they come from, and the fingerprint of labels."""

from __future__ import annotations

import hashlib
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from reducible.types import Candidates, DataError, name_ids

_BATCH = 4096  # ids up to which a Python set beats a sort
_QUICKLY = 2**24  # ids that are sorted in about a second


@final
class WithIds(Dataset[Candidates]):
    """A map-style data set whose item i is ``Candidates(id, item)``.

    Ids belong to the base data set: ``Subset(WithIds(d), …)`` and ``WithIds(Subset(d, …))``
    give the same ids. Pickles with its base, so it works with any worker start method.

    Args:
        dataset: map-style: has ``__len__`` and ``__getitem__`` (``__getitems__`` is used where
            it exists).

    Raises:
        DataError: the data set is empty or is not map-style.
    """

    def __init__(self, dataset: Any) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"WithIds needs a map-style data set (__len__ and __getitem__), got "
                f"{type(dataset).__name__}. Let an iterable data set yield Candidates(id, item)."
            )
        if len(dataset) == 0:
            raise DataError(f"the data set {type(dataset).__name__} is empty.")
        self.dataset = dataset
        self.origin, positions = _base(dataset)
        self.ids = torch.arange(len(dataset)) if positions is None else positions  # [N]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Candidates:
        return Candidates(self.ids[index], self.dataset[index])

    def __getitems__(self, indices: list[int]) -> list[Candidates]:
        many = getattr(self.dataset, "__getitems__", None)
        items = many(indices) if many is not None else [self.dataset[i] for i in indices]
        return [Candidates(i, item) for i, item in zip(self.ids[indices], items, strict=True)]

    @property
    def targets(self) -> Tensor | None:
        """[N] labels of the items, where the base data set has ``.targets``."""
        return labels_of(self.dataset)


def _base(dataset: Any) -> tuple[Any, Tensor | None]:
    """The data set under any Subsets, and the positions in it (None: all, in order)."""
    positions: Tensor | None = None
    while isinstance(dataset, Subset):
        here = torch.as_tensor(dataset.indices, dtype=torch.int64)  # [M]
        positions = here if positions is None else here[positions]
        dataset = dataset.dataset
    return dataset, positions


def ids_of(dataset: Any) -> Tensor:
    """[N] int64: the id of each item of a data set that carries ids, without loading it.

    Raises:
        DataError: the data set has no ids.
    """
    base, positions = _base(dataset)
    ids = getattr(base, "ids", None)
    if not isinstance(ids, Tensor):
        raise DataError(
            f"{type(base).__name__} carries no ids: wrap it as reducible.WithIds(dataset)."
        )
    return ids if positions is None else ids[positions]


def origin_of(dataset: Any) -> Any:
    """What the ids of a data set count: equal origins mean equal ids are the same example."""
    base, _ = _base(dataset)
    return getattr(base, "origin", base)


def labels_of(dataset: Any) -> Tensor | None:
    """[N] labels from ``.targets`` (through Subsets), or None where there are none."""
    base, positions = _base(dataset)
    targets = getattr(base, "targets", None)
    if targets is None:
        return None
    try:
        labels = torch.as_tensor(targets)
    except (TypeError, ValueError):
        return None
    if labels.dim() != 1 or labels.numel() != len(base):
        return None
    return labels if positions is None else labels[positions]


def shared_ids(first: Any, second: Any) -> Tensor:
    """[M] ids that both data sets hold; none where they were not cut from one data set."""
    a, b = origin_of(first), origin_of(second)
    if a is not b and not (isinstance(a, str) and a == b):
        return torch.empty(0, dtype=torch.int64)
    ids = ids_of(first)
    return ids[torch.isin(ids, ids_of(second))]


def require_disjoint(holdout: Any, train: Any) -> None:
    """Raise DataError where holdout and train set, cut from one data set, share ids."""
    both = shared_ids(holdout, train)
    if both.numel():
        raise DataError(
            f"holdout and train set share {both.numel()} examples of one data set, ids "
            f"{name_ids(both)}: their irreducible loss would be that of a model which trained on "
            "them. Cut the two without overlap, or use cross_fit_irreducible_loss."
        )


def has_distinct_ids(dataset: Any) -> bool:
    """Whether a data set carries ids and they are as ``require_ids`` wants them.

    Of more than 2**24 of them it is not found out: that would take seconds.
    """
    try:
        ids = ids_of(dataset)
        if ids.numel() > _QUICKLY:
            return False
        require_ids(ids.cpu())
    except DataError:
        return False
    return True


def require_ids(ids: Tensor, *, distinct: bool = False) -> None:
    """Raise DataError unless ``ids`` is [B] int64, non-negative and without repeats.

    Args:
        ids: of a batch or a data set.
        distinct: known not to be negative and to differ, which costs more to see than the rest.
    """
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise DataError(
            f"ids must be int64 of shape [B], got {ids.dtype} of shape {tuple(ids.shape)}. Floats "
            "and short integers lose ids above 2**24; keep them apart from other tensors."
        )
    if ids.numel() == 0:
        raise DataError("there are no ids: an empty batch or data set.")
    if distinct or (ids.numel() <= _BATCH and _all_different(ids.tolist())):
        return
    ordered = ids.sort().values
    if int(ordered[0]) < 0:
        raise DataError(f"ids must not be negative, got {name_ids(ids[ids < 0])}.")
    repeated = ordered[1:] == ordered[:-1]
    if bool(repeated.any()):
        raise DataError(
            f"ids {name_ids(ordered[1:][repeated].unique())} occur more than once. A sampler that "
            "draws with replacement, or pads the last batch, repeats examples."
        )


def _all_different(ids: list[int]) -> bool:
    """Whether ids are not negative and differ; for a batch several times faster than a sort."""
    return min(ids) >= 0 and len(set(ids)) == len(ids)


def fingerprint(ids: Tensor, labels: Tensor | None = None) -> str:
    """What a store is of: the number of examples, their ids and, where given, their labels.

    The order of the examples does not matter. Without labels the fingerprint says so and covers
    the ids alone.

    Args:
        ids: [N] int64.
        labels: [N], hashed by value.

    >>> fingerprint(torch.tensor([1, 0])) == fingerprint(torch.tensor([0, 1]))
    True
    """
    order = ids.cpu().argsort()
    parts = [f"n={ids.numel()}", f"ids={_digest(ids.cpu()[order])}"]
    parts.append("labels=none" if labels is None else f"labels={_digest(labels.cpu()[order])}")
    return ";".join(parts)


def _digest(values: Tensor) -> str:
    return hashlib.blake2b(values.contiguous().numpy().data, digest_size=8).hexdigest()
