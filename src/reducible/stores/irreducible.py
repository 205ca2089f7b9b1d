"""The store of irreducible losses: computed once, looked up by id, shared by many runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor

from reducible.stores import layout
from reducible.stores.fingerprints import differ
from reducible.stores.fingerprints import fingerprint as make_fingerprint
from reducible.stores.ids import require_ids
from reducible.types import StoreError, name_ids, require_between


@final
class IrreducibleLossStore:
    """Irreducible losses of one data set, by id. Make it with ``from_tensor`` or ``load``.

    A NaN marks an id that was never scored; looking it up raises. Dense ids (0 … N−1) cost no
    index. A loaded store is memory-mapped, so its size is bounded by the disk, not by memory.

    What a file holds is checked when it is loaded, by reading it through once: see ``load``. Each
    look-up then asks the system whether the file is the one that was loaded, before it touches the
    mapping; a file that was cut or written to in place raises StoreError. Only a change between
    that question and the reading of a page is not seen: a cut may then end the process (SIGBUS).
    Replacing the file by renaming, as ``save`` does, or deleting it, does no harm.

    Attributes:
        fingerprint: which data set, split and labelling it is of; empty: unchecked.
        header: what fitting recorded (model, checkpoint rule, cost, …); JSON types only.

    >>> store = IrreducibleLossStore.from_tensor(torch.tensor([0.5, 2.0]))
    >>> store.lookup(torch.tensor([1]))
    tensor([2.])
    """

    def __init__(
        self, values: Tensor, ids: Tensor | None, fingerprint: str, header: Mapping[str, Any]
    ) -> None:
        _require_metadata(fingerprint, header)
        self._values = values  # [N] or [N, G] float32 on the CPU
        self._ids = ids  # [N] int64 ascending, or None if ids are 0 … N−1
        self.fingerprint = fingerprint
        self.header = dict(header)
        self._mapped: layout.Mapped | None = None
        self._checksum: str | None = None
        self._digest: str | None = None
        pieces = values.view(-1).split(layout.CHUNK)
        self._complete = not any(_holds_nan(piece) for piece in pieces)

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
            StoreError: shapes do not fit, no rows, an infinite value; a header that JSON does not
                take, or whose seconds, flops or noise floor are none.
            DataError: ids that are not int64, negative, or twice.
        """
        if values.dim() not in (1, 2) or values.numel() == 0 or not values.is_floating_point():
            raise StoreError(
                f"irreducible losses must be floating, [N] or [N, G] with N ≥ 1; got "
                f"{values.dtype} of shape {tuple(values.shape)}."
            )
        values = values.detach().to("cpu", torch.float32).contiguous()
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

    def __repr__(self) -> str:
        groups = f", {self.groups} groups" if self.groups else ""
        made = self.header.get("method")
        return (
            f"<irreducible losses of {len(self)} examples{groups}{f' by {made}' if made else ''}>"
        )

    @property
    def groups(self) -> int:
        """Number of columns G; 0 if the store has one loss per example."""
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
        self._require_unchanged()
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

    def _require_unchanged(self) -> None:
        if self._mapped is not None:
            self._mapped.require_unchanged()

    @property
    def digest(self) -> str:
        """Digest of fingerprint, size and up to 4096 evenly spaced rows; what a loop's state names.

        The same of a store in memory and of its file, however it was fitted and at what cost.
        """
        if self._digest is None:
            self._require_unchanged()
            rows = torch.linspace(0, len(self) - 1, min(len(self), 4096), dtype=torch.float64)
            rows = rows.round().long()
            found = hashlib.blake2b(digest_size=8)
            found.update(f"{self.fingerprint} {tuple(self._values.shape)};".encode())
            found.update((rows if self._ids is None else self._ids[rows]).numpy().data)
            found.update(self._values[rows].numpy().data)
            self._digest = found.hexdigest()
        return self._digest

    @property
    def checksum(self) -> str:
        """Checksum of all that its file holds or would hold, the header included."""
        if self._checksum is None:
            self._checksum = layout.checksum_of(
                self._tensors, fingerprint=self.fingerprint, header=self.header
            )
        return self._checksum

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {"values": self._values} | ({} if self._ids is None else {"ids": self._ids})

    def _unknown(self, ids: Tensor) -> StoreError:
        return StoreError(
            f"{ids.numel()} ids without irreducible loss: {name_ids(ids)}. The store holds "
            f"{len(self)} ids: it is of another data set or split."
        )

    def check(self, fingerprint: str) -> None:
        """Raise StoreError unless this store is of the data with ``fingerprint``.

        An empty fingerprint on either side is unchecked; if one side has no labels, the ids
        alone are compared.
        """
        cause = differ(self.fingerprint, fingerprint)
        if cause is not None:
            raise StoreError(
                f"this store of irreducible losses is of {cause}. Store: {self.fingerprint!r}, "
                f"data: {fingerprint!r}. Load the store that was fitted for this data, or fit it "
                "again."
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
        self._require_unchanged()
        columns = {name: layout.Column.of(tensor) for name, tensor in self._tensors.items()}
        layout.write(path, columns, fingerprint=self.fingerprint, header=self.header)

    @classmethod
    def merged(
        cls, stores: Iterable[IrreducibleLossStore], *, labels: Tensor | None = None
    ) -> IrreducibleLossStore:
        """One store of the examples of several, such as shards that processes made.

        Args:
            stores: of different examples.
            labels: [N] int64 of all examples, in the order of the ids, by which the data are known
                again; without them the ids tell.

        Raises:
            StoreError: there are none, or they have other groups.
            DataError: one example is in two of them.
        """
        parts = list(stores)
        if not parts:
            raise StoreError("there are no stores to merge.")
        if len({part.groups for part in parts}) > 1:
            raise StoreError(f"stores with {[part.groups for part in parts]} groups do not merge.")
        ids = torch.cat([part.ids for part in parts])
        header = {"merged": [part.header for part in parts]}
        of = make_fingerprint(ids.sort().values, labels)
        values = torch.cat([part.values for part in parts])
        return cls.from_tensor(values, ids=ids, fingerprint=of, header=header)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IrreducibleLossStore:
        """Open a saved store, memory-mapped, after verifying its checksum and its contents.

        All of the file is read once, in pieces: that it is as it was written, and that it holds
        what ``from_tensor`` takes: shapes and dtypes, no infinite value, ids that ascend from 0
        or more, a header in JSON. Whether values are there (no NaN) is seen as they are looked up.

        Raises:
            StoreError: the file is truncated, damaged, or not such a store.
            FileNotFoundError: there is none.
        """
        found = layout.read(path)
        try:
            values, ids = _columns(found.tensors)
            store = cls(values, ids, found.fingerprint, found.header)
        except StoreError as error:
            raise StoreError(
                f"{path} is not a readable store of irreducible losses: {error} Fit it again."
            ) from error
        store._mapped, store._checksum = found.mapped, found.checksum
        return store


def _columns(tensors: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
    """Values and ids of a file; raises StoreError unless they are as ``save`` writes them."""
    if {"offsets", "values"} <= set(tensors):
        raise StoreError("it holds losses of tokens: load it with reducible.TokenLossStore.load.")
    if not {"values"} <= set(tensors) <= {"values", "ids"}:
        raise StoreError(f"it holds {sorted(tensors)}, in place of values and perhaps ids.")
    values, ids = tensors["values"], tensors.get("ids")
    if values.dim() not in (1, 2) or values.numel() == 0 or values.dtype != torch.float32:
        raise StoreError(
            f"its values are {values.dtype} of shape {tuple(values.shape)}, not float32 [N] or "
            "[N, G]."
        )
    if ids is None:
        return values, None
    if ids.dtype != torch.int64 or ids.shape != values.shape[:1]:
        raise StoreError(
            f"its ids are {ids.dtype} of shape {tuple(ids.shape)} for {len(values)} rows of values."
        )
    last = -1
    for piece in ids.split(layout.CHUNK):
        if int(piece[0]) <= last or not bool((piece[1:] > piece[:-1]).all()):
            raise StoreError("its ids do not ascend from 0 or more, as they are saved.")
        last = int(piece[-1])
    return values, ids


def _require_metadata(fingerprint: object, header: object) -> None:
    """Raise StoreError unless they are text, and entries that JSON takes, known ones of their kind.

    Entries that others read are ``seconds``, ``flops`` and ``noise_floor``.
    """
    if not isinstance(fingerprint, str):
        raise StoreError(f"a fingerprint is text, got {type(fingerprint).__name__}.")
    if not isinstance(header, Mapping) or not all(isinstance(key, str) for key in header):
        raise StoreError(f"a header is a mapping by text, got {type(header).__name__}.")
    try:
        json.dumps(dict(header))
    except (TypeError, ValueError) as error:
        raise StoreError(f"a header holds what JSON takes, and this one not ({error}).") from error
    for name in ("seconds", "flops"):
        if name in header and not _is_amount(header[name]):
            raise StoreError(f"{name} in a header must be a number ≥ 0, got {header[name]!r}.")
    floor = header.get("noise_floor") or []
    if not isinstance(floor, list | tuple) or not all(map(_is_amount, floor)):
        raise StoreError(f"noise_floor in a header must be a list of numbers ≥ 0, got {floor!r}.")


def _is_amount(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and value >= 0


def _holds_nan(values: Tensor) -> bool:
    """Whether some of ``values`` is NaN; raises StoreError if one is infinite."""
    if math.isfinite(float(values.sum())):
        return False  # a sum with NaN or an infinity in it is never finite
    _require_no_infinity(values)
    return bool(values.isnan().any())


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
