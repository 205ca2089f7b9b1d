"""Tells which example is which: ids of data sets, their origin, fingerprints of labels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import (
    ConcatDataset,
    Dataset,
    StackDataset,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

from reducible.loading.fetching import (
    WholeBatch,
    as_positions,
    fetcher_of,
    has_columns,
    items_at,
    take,
)
from reducible.loading.labels import as_tensor
from reducible.loading.streams import packed, unpack
from reducible.types import Candidates, DataError, name_ids

_BATCH = 4096  # ids up to which a Python set beats a sort
_QUICKLY = 2**24  # ids that are sorted in about a second
_LABELS = ("labels", "label", "targets", "target", "y")  # names that a task finds labels under


@final
class WithIds(Dataset[Candidates]):
    """A map-style data set whose item i is ``Candidates(id, item)``.

    Ids belong to the base data set: ``Subset(WithIds(d), …)`` and ``WithIds(Subset(d, …))``
    give the same ids. Data sets are joined first and wrapped then: ``WithIds(ConcatDataset([a,
    b]))``. Pickles with its base, so it works with any worker start method.

    Args:
        dataset: map-style: has ``__len__`` and ``__getitem__`` (``__getitems__`` is used if
            it exists).
        ids: [N] int64 of one's own, such as a column of keys (a list or NumPy array too);
            positions if None.

    Raises:
        DataError: the data set is empty, is not map-style, or yields Candidates already; ids of
            one's own that are not one for each row.

    >>> data = WithIds(TensorDataset(torch.eye(3), torch.arange(3)))
    >>> data[2].ids, Subset(data, [1, 2])[0].ids
    (tensor(2), tensor(1))
    """

    def __init__(self, dataset: Any, *, ids: Tensor | Sequence[int] | None = None) -> None:
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(
                f"WithIds needs a map-style data set (__len__ and __getitem__), got "
                f"{type(dataset).__name__}. Let an iterable data set yield Candidates(id, item)."
            )
        if len(dataset) == 0:
            raise DataError(f"the data set {type(dataset).__name__} is empty.")
        if _yields_candidates(dataset):
            raise _wrapped_twice(dataset)
        self.dataset = dataset
        self.origin, positions = _base(dataset)
        if ids is not None:
            own: Tensor = as_tensor(ids)
            require_ids(own)
            if len(own) != len(dataset):
                raise DataError(f"{len(own)} ids for a data set of {len(dataset)} rows.")
            positions = own
        self.ids = torch.arange(len(dataset)) if positions is None else positions  # [N]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Candidates:
        (item,) = self._plain([self.dataset[index]])
        return Candidates(self.ids[index], item)

    def __getitems__(self, indices: list[int]) -> list[Candidates]:
        items = self._plain(items_at(self.dataset, indices))
        return [Candidates(i, item) for i, item in zip(self.ids[indices], items, strict=True)]

    def whole_batch_fetcher(self) -> WholeBatch:
        """Returns a function from positions to the batch that torch's default collate makes.

        Ids are cut at once, and the items too if the data set can; see ``fetching``.
        """
        dataset, ids, inner = self.dataset, self.ids, fetcher_of(self.dataset)

        def fetch(positions: Sequence[int]) -> Candidates:
            if inner is not None:
                batch = inner(positions)
            else:
                batch = default_collate(self._plain(items_at(dataset, positions)))
            return Candidates(take(ids, as_positions(positions)), batch)

        return fetch

    def _plain(self, items: list[Any]) -> list[Any]:
        if items and isinstance(items[0], Candidates):
            raise _wrapped_twice(self.dataset)
        return items

    @property
    def targets(self) -> Tensor | None:
        """[N] int64 labels of the items, if the base data set tells them; see ``labels_of``."""
        return labels_of(self.dataset)

    def state_dict(self) -> dict[str, Any]:
        """Random streams of the worker that this is in, and the state of a data set that has one.

        For loaders that ask for it in their workers, such as torchdata's StatefulDataLoader.
        """
        inner = self.dataset.state_dict() if hasattr(self.dataset, "load_state_dict") else None
        return {"streams": packed() if get_worker_info() is not None else None, "dataset": inner}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Sets the streams of the worker, and the state of the data set."""
        if state["dataset"] is not None:
            self.dataset.load_state_dict(state["dataset"])
        if state["streams"] is not None and get_worker_info() is not None:
            unpack(state["streams"])


def _wrapped_twice(dataset: Any) -> DataError:
    return DataError(
        f"the items of {type(dataset).__name__} are Candidates already, so each would get a second "
        "id. Wrap once, outermost: WithIds(ConcatDataset([a, b])), WithIds(Subset(a, …)), of data "
        "sets as they are."
    )


def _parts(dataset: Any) -> list[Any]:
    """Lists what a data set is composed of; nothing if it is none of torch's compositions."""
    if isinstance(dataset, Subset):
        return [dataset.dataset]
    if isinstance(dataset, ConcatDataset):
        return list(dataset.datasets)
    if isinstance(dataset, StackDataset):
        parts: Any = dataset.datasets
        return list(parts.values() if isinstance(parts, dict) else parts)
    return []


def _yields_candidates(dataset: Any) -> bool:
    """Whether items are, or hold, Candidates, as far as can be told without loading one."""
    parts = _parts(dataset)
    if parts:
        return any(map(_yields_candidates, parts))
    if isinstance(dataset, WithIds):
        return True
    has_ids = isinstance(getattr(dataset, "ids", None), Tensor)
    return has_ids and isinstance(dataset[0], Candidates)


def _base(dataset: Any) -> tuple[Any, Tensor | None]:
    """The data set under any Subsets, and the positions in it (None: all, in order)."""
    positions: Tensor | None = None
    while isinstance(dataset, Subset):
        here = torch.as_tensor(dataset.indices, dtype=torch.int64)  # [M]
        positions = here if positions is None else here[positions]
        dataset = dataset.dataset
    return dataset, positions


def known_ids(dataset: Any) -> Tensor | None:
    """[N] int64: the id of each item without loading it; None for a data set without ids.

    Raises:
        DataError: data sets that were joined or stacked after they got ids, so that one id would
            stand for two rows, or a row would have two.
    """
    base, positions = _base(dataset)
    if isinstance(base, ConcatDataset):
        ids = _joined_ids(base)
    elif isinstance(base, StackDataset):
        if _yields_candidates(base):
            raise DataError(
                "a StackDataset of data sets with ids has rows of several ids. Stack first: "
                "reducible.WithIds(StackDataset(a, b))."
            )
        ids = None
    else:
        ids = getattr(base, "ids", None)
    if not isinstance(ids, Tensor):
        return None
    return ids if positions is None else ids[positions]


def _joined_ids(dataset: ConcatDataset[Any]) -> Tensor | None:
    parts = [known_ids(part) for part in dataset.datasets]
    there = [part for part in parts if part is not None]
    if not there:
        return None
    if len(there) < len(parts):
        raise DataError(
            f"{len(there)} of the {len(parts)} data sets that a ConcatDataset joins have ids. Join "
            "first: reducible.WithIds(ConcatDataset([a, b])), of data sets without ids."
        )
    ids = torch.cat(there)
    twice = _repeated(ids)
    if twice.numel():
        raise DataError(
            f"ids {name_ids(twice)} stand for more than one row of a ConcatDataset: data sets "
            "joined after they got ids, each counting from 0? Join first: "
            "reducible.WithIds(ConcatDataset([a, b]))."
        )
    return ids


def ids_of(dataset: Any) -> Tensor:
    """[N] int64: the id of each item of a data set that carries ids, without loading it.

    Raises:
        DataError: the data set has no ids, or joins others as ``known_ids`` does not take.
    """
    ids = known_ids(dataset)
    if ids is None:
        raise DataError(
            f"{type(_base(dataset)[0]).__name__} carries no ids: wrap it as "
            "reducible.WithIds(dataset)."
        )
    return ids


def known_length(dataset: Any) -> int | None:
    """Returns how many items a data set has; None if it does not tell, as streams do not."""
    try:
        return len(dataset)
    except TypeError:
        return None


def origin_of(dataset: Any) -> Any:
    """Returns what ids of a data set count: of equal origins, equal ids are the same example."""
    base, _ = _base(dataset)
    if isinstance(base, ConcatDataset):
        first, *others = map(origin_of, base.datasets)
        return first if all(_same_origin(first, other) for other in others) else base
    return getattr(base, "origin", base)


def _same_origin(a: Any, b: Any) -> bool:
    return a is b or (isinstance(a, str) and a == b)


def labels_of(dataset: Any) -> Tensor | None:
    """[N] int64 labels that a data set tells of without loading its items, or None.

    They are found as ``.targets`` or ``.labels``, as the second tensor of a TensorDataset, or as a
    column (Hugging Face's) named labels, label, targets, target or y; through Subsets and joined
    data sets too.
    """
    base, positions = _base(dataset)
    labels = _joined_labels(base) if isinstance(base, ConcatDataset) else _own_labels(base)
    return labels if labels is None or positions is None else labels[positions]


def _joined_labels(dataset: ConcatDataset[Any]) -> Tensor | None:
    parts = [labels_of(part) for part in dataset.datasets]
    there = [part for part in parts if part is not None]
    return torch.cat(there) if len(there) == len(parts) else None


def _own_labels(dataset: Any) -> Tensor | None:
    """The first of the places to look at that holds one whole number for each row."""
    for found in _places(dataset):
        labels = as_tensor(found)
        if not isinstance(labels, Tensor) or labels.is_complex() or labels.numel() != len(dataset):
            continue
        if labels.dim() == 1 or labels.shape[1:] == (1,):
            whole = labels.flatten().long()
            if bool((whole == labels.flatten()).all()):
                return whole
    return None


def _places(dataset: Any) -> Iterable[Any]:
    for name in ("targets", "labels"):
        yield getattr(dataset, name, None)
    if type(dataset) is TensorDataset:
        yield dataset.tensors[1] if len(dataset.tensors) == 2 else None
    elif has_columns(dataset):
        plain = dataset.with_format(None) if hasattr(dataset, "with_format") else dataset
        for name in _LABELS:
            if name in dataset.column_names:
                yield plain[name][:]


def shared_ids(first: Any, second: Any) -> Tensor:
    """[M] ids that both data sets hold; none if they were not cut from one data set."""
    if not _same_origin(origin_of(first), origin_of(second)):
        return torch.empty(0, dtype=torch.int64)
    ids = ids_of(first)
    return ids[torch.isin(ids, ids_of(second))]


def require_disjoint(holdout: Any, train: Any) -> None:
    """Raise DataError if holdout and train set, cut from one data set, share ids."""
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


def refuse_keys(ids: Any) -> None:
    """Raise DataError unless ``ids`` is a tensor, as strings and lists are not."""
    if isinstance(ids, Tensor):
        return
    first = ids[0] if isinstance(ids, list | tuple) and ids else ids
    if isinstance(first, str):
        raise DataError(
            f"ids must be int64 of shape [B], got strings such as {first!r}. Hash them once, "
            "outside the loop, and keep the numbers beside the rows: "
            "reducible.stores.key_ids(keys)."
        )
    raise DataError(
        f"ids must be int64 of shape [B], got {type(ids).__name__}. Numbers? Make them a tensor "
        "in the loader's collate_fn."
    )


_REPEATS = (
    "A sampler that draws with replacement, or pads the last batch, repeats examples; so does a "
    "Subset that names a row twice."
)


def require_ids(ids: Tensor, *, distinct: bool = False, repeats: str = _REPEATS) -> None:
    """Raise DataError unless ``ids`` is [B] int64, non-negative and without repeats.

    Args:
        ids: of a batch or a data set.
        distinct: known not to be negative and to differ, which costs more to see than the rest.
        repeats: why ids may occur more than once, and what to do.
    """
    refuse_keys(ids)
    if ids.dtype != torch.int64 or ids.dim() != 1:
        raise DataError(
            f"ids must be int64 of shape [B], got {ids.dtype} of shape {tuple(ids.shape)}. Floats "
            "and short integers lose ids above 2**24; keep them apart from other tensors."
        )
    if ids.numel() == 0:
        raise DataError("there are no ids: an empty batch or data set.")
    if distinct or (ids.numel() <= _BATCH and _all_different(ids.tolist())):
        return
    if bool((ids < 0).any()):
        raise DataError(f"ids must not be negative, got {name_ids(ids[ids < 0])}.")
    twice = _repeated(ids)
    if twice.numel():
        raise DataError(f"ids {name_ids(twice)} occur more than once. {repeats}")


def _repeated(ids: Tensor) -> Tensor:
    """[M] ids that occur more than once, ascending; a walk tells if they ascend already."""
    if bool((ids[1:] > ids[:-1]).all()):
        return ids[:0]
    ordered = ids.sort().values
    return ordered[1:][ordered[1:] == ordered[:-1]].unique()


def _all_different(ids: list[int]) -> bool:
    """Whether ids are not negative and differ; for a batch several times faster than a sort."""
    return min(ids) >= 0 and len(set(ids)) == len(ids)
