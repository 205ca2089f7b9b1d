"""The store of irreducible losses: computed once, looked up by id, shared by many runs."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from reducible.stores import layout
from reducible.stores.identity import fingerprint as make_fingerprint
from reducible.stores.identity import require_ids
from reducible.types import ReducibleError, StoreError, name_ids, require_between


@final
class IrreducibleLossStore:
    """Irreducible losses of one data set, by id. Make it with ``from_tensor`` or ``load``.

    A NaN marks an id that was never scored; looking it up raises. Dense ids (0 … N−1) cost no
    index. A loaded store is memory-mapped, so its size is bounded by the disk, not by memory.

    Attributes:
        fingerprint: which data set, split and labelling it is of; empty: unchecked.
        header: what fitting recorded (model, checkpoint rule, cost, …); JSON types only.
    """

    def __init__(
        self, values: Tensor, ids: Tensor | None, fingerprint: str, header: Mapping[str, Any]
    ) -> None:
        self._values = values  # [N] or [N, G] float32 on the CPU
        self._ids = ids  # [N] int64 ascending, or None where ids are 0 … N−1
        self.fingerprint = fingerprint
        self.header = dict(header)
        pieces = values.view(-1).split(layout.CHUNK)
        self._complete = not any(math.isnan(float(piece.sum())) for piece in pieces)

    @classmethod
    def from_tensor(
        cls,
        values: Tensor,
        *,
        ids: Tensor | None = None,
        fingerprint: str = "",
        header: Mapping[str, Any] | None = None,
    ) -> IrreducibleLossStore:
        """A store of ``values`` ([N] or [N, G] floating, NaN: never scored) by ``ids``.

        Args:
            values: kept as float32 on the CPU.
            ids: [N] int64, any order; None: 0 … N−1.
            fingerprint: from ``reducible.stores.fingerprint``; empty: unchecked.
            header: anything JSON takes.

        Raises:
            StoreError: shapes do not fit, no rows, an infinite value.
            DataError: ids that are not int64, negative, or twice.
        """
        if values.dim() not in (1, 2) or values.shape[0] == 0 or not values.is_floating_point():
            raise StoreError(
                f"irreducible losses must be floating, [N] or [N, G] with N ≥ 1; got "
                f"{values.dtype} of shape {tuple(values.shape)}."
            )
        values = values.detach().to("cpu", torch.float32).contiguous()
        for piece in values.view(-1).split(layout.CHUNK):
            _require_no_infinity(piece)
        if ids is not None:
            ids = ids.detach().cpu()
            if ids.shape != values.shape[:1]:
                raise StoreError(f"{values.shape[0]} rows of values but ids of {tuple(ids.shape)}.")
            require_ids(ids)
            if bool((ids == torch.arange(ids.numel())).all()):
                ids = None
            else:
                ids, order = ids.sort()
                values = values[order]
        return cls(values, ids, fingerprint, header or {})

    def __len__(self) -> int:
        return self._values.shape[0]

    @property
    def groups(self) -> int:
        """Number of columns G; 0 where the store has one loss per example."""
        return self._values.shape[1] if self._values.dim() == 2 else 0

    @property
    def ids(self) -> Tensor:
        """[N] int64, ascending."""
        return torch.arange(len(self)) if self._ids is None else self._ids

    @property
    def values(self) -> Tensor:
        """[N] or [N, G] float32, in the order of ``ids``; not a copy."""
        return self._values

    @property
    def knows_labels(self) -> bool:
        """Whether the fingerprint covers labels, so that ``check`` compares them."""
        parts = dict(part.split("=", 1) for part in self.fingerprint.split(";") if "=" in part)
        return parts.get("labels", "none") != "none"

    def lookup(self, ids: Tensor) -> Tensor:
        """Irreducible losses of ``ids`` ([B] int64): [B], or [B, G]; float32 on the ids' device.

        Raises:
            StoreError: an id that the store does not hold, or that was never scored.
        """
        where = ids if ids.is_cpu else ids.cpu()
        if self._ids is None:
            try:
                found = self._values.index_select(0, where)  # [B] or [B, G]
            except IndexError:
                raise self._unknown(where[(where < 0) | (where >= len(self))]) from None
        else:
            rows = torch.searchsorted(self._ids, where).clamp_(max=len(self) - 1)
            known = self._ids[rows] == where
            if not bool(known.all()):
                raise self._unknown(where[~known])
            found = self._values.index_select(0, rows)
        if not self._complete and math.isnan(float(found.sum())):
            bad = found.isnan() if found.dim() == 1 else found.isnan().any(1)
            raise StoreError(
                f"{int(bad.sum())} ids were never scored: {name_ids(where[bad])}. "
                "Fit irreducible losses on all of the train set."
            )
        return found if ids.is_cpu else found.to(ids.device)

    def _unknown(self, ids: Tensor) -> StoreError:
        return StoreError(
            f"{ids.numel()} ids without irreducible loss: {name_ids(ids)}. The store holds "
            f"{len(self)} ids: it is of another data set or split."
        )

    def check(self, fingerprint: str) -> None:
        """Raise StoreError unless this store is of the data with ``fingerprint``.

        An empty fingerprint on either side is unchecked; where one side has no labels, the ids
        alone are compared.
        """
        if not self.fingerprint or not fingerprint or self.fingerprint == fingerprint:
            return
        mine = dict(part.split("=", 1) for part in self.fingerprint.split(";") if "=" in part)
        theirs = dict(part.split("=", 1) for part in fingerprint.split(";") if "=" in part)
        same_ids = bool(mine) and all(mine.get(k) == theirs.get(k) for k in ("n", "ids"))
        if same_ids and "none" in (mine.get("labels"), theirs.get("labels")):
            return
        cause = (
            "the same ids with other labels: relabelled, other noise, or the rows permuted"
            if same_ids
            else f"other examples ({mine.get('n', '?')} in the store, {theirs.get('n', '?')} here)"
        )
        raise StoreError(
            f"this store of irreducible losses is of {cause}. Store: {self.fingerprint!r}, data: "
            f"{fingerprint!r}. Load the store that was fitted for this data, or fit it again."
        )

    def check_data(self, ids: Tensor, labels: Tensor | None = None) -> None:
        """``check`` against the fingerprint of ``ids`` ([N]) and ``labels`` ([N])."""
        if self.fingerprint:
            self.check(make_fingerprint(ids, labels))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the store as one safetensors file; whole or not at all.

        Written to a temporary file beside it, flushed to disk, then renamed. Where that fails
        (a full disk), the temporary file is removed and a previous store stays.
        """
        tensors = {"values": self._values} | ({} if self._ids is None else {"ids": self._ids})
        columns = {name: layout.Column.of(tensor) for name, tensor in tensors.items()}
        layout.write(path, columns, fingerprint=self.fingerprint, header=self.header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IrreducibleLossStore:
        """Open a saved store, memory-mapped, after verifying its checksum.

        Raises:
            StoreError: the file is truncated, damaged, or not such a store.
        """
        damaged = f"{path} is not a readable store of irreducible losses"
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise StoreError(f"{damaged} ({error}): truncated or damaged. Fit it again.") from error
        if metadata.get("format") != layout.FORMAT or "values" not in tensors:
            raise StoreError(f"{damaged}: its format is {metadata.get('format')!r}.")
        if layout.checksum(tensors, metadata) != metadata.get("checksum"):
            raise StoreError(f"{damaged}: its checksum does not match. Fit it again.")
        try:
            header = json.loads(metadata["header"])
            _require_sound(tensors, header)
            return cls(tensors["values"], tensors.get("ids"), metadata["fingerprint"], header)
        except (ReducibleError, KeyError, ValueError) as error:
            raise StoreError(f"{damaged}: {error} It was written by something else.") from error


def _require_sound(tensors: Mapping[str, Tensor], header: Any) -> None:
    """Raise unless the contents are what ``from_tensor`` makes, sorted by ids."""
    values, ids = tensors["values"], tensors.get("ids")
    if values.dtype != torch.float32 or values.dim() not in (1, 2) or values.shape[0] == 0:
        raise StoreError(f"its values are {values.dtype} of shape {tuple(values.shape)}.")
    for piece in values.view(-1).split(layout.CHUNK):
        _require_no_infinity(piece)
    if not isinstance(header, dict):
        raise StoreError(f"its header is of type {type(header).__name__}.")
    if ids is None:
        return
    if ids.dtype != torch.int64 or ids.shape != values.shape[:1]:
        raise StoreError(f"its ids are {ids.dtype} of shape {tuple(ids.shape)}.")
    if int(ids[0]) < 0 or not bool((ids[1:] > ids[:-1]).all()):
        raise StoreError("its ids are not ascending from 0, each once.")


def write_in_pieces(
    path: str | os.PathLike[str],
    pieces: Iterable[Tensor],
    rows: int,
    *,
    groups: int = 0,
    fingerprint: str = "",
    header: Mapping[str, Any] | None = None,
) -> None:
    """Write a store of ids 0 … N−1 that need not fit into memory; whole or not at all.

    The file is the one that ``IrreducibleLossStore.save`` writes of all the pieces together.

    Args:
        path: of the file.
        pieces: [M] or [M, G] floating, NaN: never scored; in the order of ids.
        rows: N, of all of them.
        groups: G; 0: one loss per example.
        fingerprint: see ``IrreducibleLossStore.from_tensor``.
        header: anything JSON takes.

    Raises:
        StoreError: pieces of another shape, more or fewer rows than ``rows``, an infinite value.
        ConfigurationError: ``rows`` or ``groups`` that cannot be.
    """
    require_between("rows", rows, 1, whole=True)
    require_between("groups", groups, 0, whole=True)
    shape = (rows, groups) if groups else (rows,)
    column = layout.Column(torch.float32, shape, _checked(pieces, shape))
    layout.write(path, {"values": column}, fingerprint=fingerprint, header=header or {})


def _checked(pieces: Iterable[Tensor], shape: tuple[int, ...]) -> Iterator[Tensor]:
    """The pieces as float32 on the CPU, which are those of a tensor of ``shape``."""
    rows = 0
    for piece in pieces:
        if piece.shape[1:] != shape[1:] or piece.dim() == 0 or not piece.is_floating_point():
            wanted = "[M, G] with G = " + str(shape[1]) if len(shape) == 2 else "[M]"
            raise StoreError(
                f"a piece of irreducible losses must be floating, {wanted}; got {piece.dtype} of "
                f"shape {tuple(piece.shape)}."
            )
        rows += len(piece)
        piece = piece.detach().to("cpu", torch.float32).contiguous()
        _require_no_infinity(piece)
        yield piece
    if rows != shape[0]:
        raise StoreError(f"the pieces hold {rows} rows of irreducible losses, not rows={shape[0]}.")


def _require_no_infinity(values: Tensor) -> None:
    if bool(values.isinf().any()):
        raise StoreError(
            "irreducible losses hold infinite values: the irreducible-loss model diverged. "
            "Fit it with a lower learning rate. (NaN marks an example never scored.)"
        )
