"""Irreducible losses of tokens: of ragged rows, by the id of their sequence."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor

from reducible.stores import layout
from reducible.stores.ids import require_ids
from reducible.types import StoreError, name_ids

_COLUMNS = {"values", "offsets", "ids"}


@final
class TokenLossStore:
    """Irreducible losses of the tokens of sequences, by sequence id.

    A sequence has one loss for each token that is predicted, in their order, so that it does not
    matter on which side a batch is padded. A loaded store is memory-mapped.

    Attributes:
        fingerprint: which data it is of; empty: unchecked.
        header: what scoring recorded; JSON types only.

    >>> store = TokenLossStore.from_rows([torch.tensor([0.5, 2.0]), torch.tensor([1.0])])
    >>> predicted = torch.tensor([[False, True, False], [False, True, True]])
    >>> store.lookup(torch.tensor([1, 0]), predicted)
    tensor([[0.0000, 1.0000, 0.0000],
            [0.0000, 0.5000, 2.0000]])
    """

    def __init__(
        self,
        values: Tensor,
        offsets: Tensor,
        ids: Tensor,
        fingerprint: str,
        header: Mapping[str, Any],
    ) -> None:
        self._values = values  # [M] float32
        self._offsets = offsets  # [N + 1] int64: where each sequence begins; the last: M
        self._ids = ids  # [N] int64 ascending
        self.fingerprint, self.header = fingerprint, dict(header)
        self._mapped: layout.Mapped | None = None

    @classmethod
    def from_rows(
        cls,
        rows: Sequence[Tensor],
        *,
        ids: Tensor | None = None,
        fingerprint: str = "",
        header: Mapping[str, Any] | None = None,
    ) -> TokenLossStore:
        """A store of N sequences.

        Args:
            rows: N times [T_i] floating, the losses of a sequence's predicted tokens.
            ids: [N] int64, any order; None: 0 … N−1.
            fingerprint: from ``reducible.stores.fingerprint``; empty: unchecked.
            header: anything JSON takes.

        Raises:
            StoreError: no rows, rows that are not [T] floating, or values that are not finite.
            DataError: ids that are not int64, negative, or twice.
        """
        if not rows:
            raise StoreError("there are no sequences.")
        bad = next((r for r in rows if r.dim() != 1 or not r.is_floating_point()), None)
        if bad is not None:
            raise StoreError(
                f"the losses of a sequence's tokens must be floating, [T]; got {bad.dtype} of "
                f"shape {tuple(bad.shape)}."
            )
        ids = torch.arange(len(rows)) if ids is None else ids.detach().cpu()
        require_ids(ids)
        if len(ids) != len(rows):
            raise StoreError(f"{len(rows)} sequences but {len(ids)} ids.")
        ids, order = ids.sort()
        ordered = [rows[i].detach().to("cpu", torch.float32) for i in order.tolist()]
        lengths = torch.tensor([0, *(len(row) for row in ordered)])
        values = torch.cat(ordered)
        if not bool(values.isfinite().all()):
            raise StoreError(
                "irreducible losses of tokens hold values that are not finite: the model that "
                "scored them diverged, or reads in a precision that overflows."
            )
        return cls(values, lengths.cumsum(0), ids, fingerprint, header or {})

    def __len__(self) -> int:
        """Returns how many sequences there are."""
        return len(self._ids)

    @property
    def ids(self) -> Tensor:
        """[N] int64, ascending."""
        return self._ids

    @property
    def tokens(self) -> int:
        """Returns how many tokens there are."""
        return len(self._values)

    def lookup(self, ids: Tensor, predicted: Tensor) -> Tensor:
        """Irreducible losses where ``predicted`` is true, 0 elsewhere: [B, T] float32.

        Args:
            ids: [B] int64 of the sequences.
            predicted: [B, T] bool: which tokens are predicted; on its device is the result.

        Raises:
            StoreError: a sequence that the store does not hold, or one of another length.
        """
        if self._mapped is not None:
            self._mapped.require_unchanged()
        where, at = ids.cpu(), predicted.cpu()
        rows = torch.searchsorted(self._ids, where).clamp_(max=len(self) - 1)
        known = self._ids[rows] == where
        if not bool(known.all()):
            raise StoreError(
                f"sequences without irreducible losses of their tokens: "
                f"{name_ids(where[~known])}. The store holds {len(self)}: it is of other data."
            )
        begin, end = self._offsets[rows], self._offsets[rows + 1]
        there, here = end - begin, at.sum(1)
        if not torch.equal(there, here):
            i = int((there != here).nonzero()[0])
            raise StoreError(
                f"sequence {int(where[i])} has {int(here[i])} tokens to predict here, and losses "
                f"of {int(there[i])} in the store. Was it cut, tokenised otherwise, or its prompt "
                "masked since? Score the irreducible losses on the tokens as they are trained on."
            )
        before = here.cumsum(0) - here
        inside = torch.arange(int(here.sum())) - before.repeat_interleave(here)
        found = torch.zeros(at.shape)
        found[at] = self._values[begin.repeat_interleave(here) + inside]
        return found.to(predicted.device)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the store as one safetensors file; whole or not at all."""
        columns = {name: layout.Column.of(tensor) for name, tensor in self._tensors.items()}
        layout.write(path, columns, fingerprint=self.fingerprint, header=self.header)

    @property
    def _tensors(self) -> dict[str, Tensor]:
        return {"values": self._values, "offsets": self._offsets, "ids": self._ids}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenLossStore:
        """Open a saved store, memory-mapped, after verifying its checksum.

        Raises:
            StoreError: the file is truncated, damaged, or not such a store.
            FileNotFoundError: there is none.
        """
        found = layout.read(path)
        if set(found.tensors) != _COLUMNS:
            raise StoreError(
                f"{path} holds no irreducible losses of tokens but {sorted(found.tensors)}: is it "
                "a store of one loss per example? reducible.IrreducibleLossStore.load reads that."
            )
        made = cls(found.tensors["values"], found.tensors["offsets"], found.tensors["ids"],
                   found.fingerprint, found.header)  # fmt: skip
        made._mapped = found.mapped
        return made

    @classmethod
    def merged(cls, stores: Iterable[TokenLossStore]) -> TokenLossStore:
        """One store of the sequences of several, such as shards that processes made.

        Raises:
            StoreError: there are none.
            DataError: one sequence is in two of them.
        """
        parts = list(stores)
        rows = [row for part in parts for row in part._values.split(part._offsets.diff().tolist())]
        if not rows:
            raise StoreError("there are no stores to merge.")
        ids = torch.cat([part._ids for part in parts])
        return cls.from_rows(rows, ids=ids, header={"merged": [part.header for part in parts]})
