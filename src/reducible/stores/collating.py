"""Collates items with ids by any collate function."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from operator import index
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import default_collate

from reducible.types import Candidates, ConfigurationError, DataError

Collate = Callable[[list[Any]], Any]


def collate_with_ids(collate: Collate | None = None, *, ids: str | None = None) -> Collate:
    """A collate function whose batches are Candidates, around one that knows nothing of ids.

    For collators that read the items themselves, such as those of transformers. The items come
    from a data set in ``WithIds``, or are mappings with an id among them.

    Args:
        collate: items → batch, as a DataLoader takes it; torch's default if None.
        ids: the key that holds each item's id, which the collator then does not see; None: items
            come from ``WithIds``.

    Raises:
        ConfigurationError: ``collate`` is not callable, or adds ids already.
        DataError: in collating: items without ids, or a batch that does not lead with them.

    >>> texts = [{"id": 7, "text": "a"}, {"id": 9, "text": "b"}]
    >>> collate_with_ids(ids="id")(texts)
    Candidates(ids=tensor([7, 9]), batch={'text': ['a', 'b']})
    """
    if isinstance(collate, _CollateWithIds):
        raise ConfigurationError("this collate function adds ids already: pass it as it is.")
    if collate is not None and not callable(collate):
        raise ConfigurationError(
            f"collate must be a function from items to a batch, got {type(collate).__name__}."
        )
    return _CollateWithIds(default_collate if collate is None else collate, ids)


def noting_ids(collate: Collate) -> Collate:
    """The same collate function, whose errors say that the items carry ids."""
    if isinstance(collate, _CollateWithIds) or collate is default_collate:
        return collate
    return partial(_noting_ids, collate)


def _noting_ids(collate: Collate, items: list[Any]) -> Any:
    try:
        return collate(items)
    except Exception as error:
        error.add_note(
            "The items are reducible.Candidates, with ids. Is the collate function one that knows "
            "nothing of them? Wrap it: reducible.collate_with_ids(collate_fn)."
        )
        raise


@final
class _CollateWithIds:
    """A class, not a closure, so that workers that are spawned can be sent it."""

    def __init__(self, collate: Collate, key: str | None) -> None:
        self._collate, self._key = collate, key

    def __call__(self, items: list[Any]) -> Candidates:
        if not items:
            raise DataError("an empty batch was to be collated.")
        ids, plain = self._apart(items)
        batch = self._collate(plain)
        self._require_rows(batch, len(items))
        return Candidates(ids, batch)

    def _apart(self, items: list[Any]) -> tuple[Tensor, list[Any]]:
        if isinstance(items[0], Candidates):
            return torch.stack([item.ids for item in items]), [item.batch for item in items]
        first = items[0]
        if self._key is None or not isinstance(first, Mapping) or self._key not in first:
            what = type(first).__name__
            if isinstance(first, Mapping):
                what += f" with keys {sorted(map(str, first))}"
            raise DataError(
                f"the items carry no ids: got {what}. Wrap the data set as "
                "reducible.WithIds(dataset), or name the column that holds them: "
                "collate_with_ids(collator, ids=…)."
            )
        try:
            ids = torch.tensor([index(item[self._key]) for item in items], dtype=torch.int64)
        except TypeError:
            raise DataError(
                f"the column {self._key!r} holds {type(first[self._key]).__name__}, and ids are "
                "whole numbers: number the rows, dataset.map(…, with_indices=True)."
            ) from None
        return ids, [{k: v for k, v in item.items() if k != self._key} for item in items]

    @staticmethod
    def _require_rows(batch: Any, rows: int) -> None:
        """Raise DataError if tokens of several examples were joined into one row."""
        if not isinstance(batch, Mapping):
            return
        tokens = batch.get("input_ids")
        if isinstance(tokens, Tensor) and tokens.dim() == 2 and len(tokens) != rows:
            raise DataError(
                f"the collator made {len(tokens)} rows of tokens of {rows} items: it packs or "
                "flattens them, so that no row is one example any more. Turn padding_free (and "
                "packing in the collator) off; or pack the data set first, and give ids to the "
                "packs."
            )
