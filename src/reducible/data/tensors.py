"""A data set in memory, with stable ids, that hands over whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, RandomSampler, SequentialSampler

from reducible.data._checks import check_targets
from reducible.types import Candidates, ConfigurationError, DataError, name_ids, require_between


@final
class TensorSet(Dataset[Candidates]):
    """N examples in memory. Items are ``Candidates(ids, (x, y))``, one or a batch of them.

    uint8 inputs stay bytes until they are asked for; only the rows taken become
    x = (bytes / 255 − mean) / std in float32. Floating inputs become (x − mean) / std in float32.
    Other whole numbers (token ids) pass as they are.

    Args:
        inputs: [N, …].
        targets: [N] int64, in [0, C).
        ids: [N] int64, unique, not negative; 0 … N−1 by default.
        num_classes: C; the largest target plus one by default.
        mean: subtracted from every input, after bytes are divided by 255.
        std: divides every input, > 0.
        classes: the names of the C classes, or nothing.
        origin: what the ids belong to, e.g. ``"fashion-mnist/train"``. Two sets of equal origin
            share their ids, so that overlap between them can be checked. By default an object
            that equals nothing else.
        transform: from x [B, …] to x [B, …], applied to the rows taken, as one batch.

    Raises:
        DataError: no examples, lengths that differ, labels or ids as above not kept to.
        ConfigurationError: std not positive, mean or std for whole numbers other than uint8,
            or as many names as there are not classes.

    >>> data = TensorSet(torch.tensor([[0], [255]], dtype=torch.uint8), torch.tensor([1, 0]))
    >>> data[1]
    Candidates(ids=tensor(1), batch=(tensor([1.]), tensor(0)))
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        ids: Tensor | None = None,
        num_classes: int | None = None,
        mean: float = 0.0,
        std: float = 1.0,
        classes: tuple[str, ...] = (),
        origin: object | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if num_classes is None:
            num_classes = int(targets.max()) + 1 if targets.numel() else 0
        check_targets(targets, num_classes)
        n = targets.numel()
        ids = torch.arange(n, device=targets.device) if ids is None else ids
        if inputs.dim() == 0 or len(inputs) != n or ids.shape != targets.shape:
            raise DataError(
                f"inputs, targets and ids must lead with the same N; got {tuple(inputs.shape)}, "
                f"{tuple(targets.shape)} and {tuple(ids.shape)}. Were they cut from one data set "
                "with one index?"
            )
        _check_ids(ids)
        if classes and len(classes) != num_classes:
            raise ConfigurationError(
                f"{len(classes)} names for {num_classes} classes: name every class, or none."
            )
        require_between("std", std, 0.0, open_low=True)
        scaled = inputs.dtype == torch.uint8 or inputs.is_floating_point()
        if not scaled and (mean, std) != (0.0, 1.0):
            raise ConfigurationError(
                f"inputs of {inputs.dtype} are handed over as they are, so mean={mean} and "
                f"std={std} would do nothing. Images? Store them as uint8 or float32."
            )
        self.inputs = inputs  # [N, …]
        self.targets = targets  # [N]
        self.ids = ids  # [N]
        self.num_classes = num_classes
        self.mean, self.std = mean, std
        self.classes = classes
        self.origin = object() if origin is None else origin
        self.transform = transform

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
        ids, (x, y) = self.fetch(torch.tensor([at % len(self)]))
        return Candidates(ids[0], (x[0], y[0]))

    def fetch(self, indices: Tensor) -> Candidates:
        """The examples at positions ``indices`` ([B] int64): one gather per tensor.

        Returns:
            ``Candidates(ids [B], (x [B, …], y [B]))``; x is float32, but for token ids.

        Raises:
            DataError: positions that are not [B] int64 in [0, N), such as a mask, or ids.
        """
        at = _check_positions(indices, len(self)).to(self.ids.device)  # [B]
        x = self.inputs.index_select(0, at)  # [B, …]
        if x.dtype == torch.uint8:
            x = x.float().div_(255).sub_(self.mean).div_(self.std)
        elif x.is_floating_point():
            x = x.float().sub(self.mean).div_(self.std)
        if self.transform is not None:
            x = self.transform(x)
        return Candidates(self.ids.index_select(0, at), (x, self.targets.index_select(0, at)))

    def subset(self, positions: Tensor) -> TensorSet:
        """The examples at ``positions`` ([M] int64, none twice), with the ids they have here.

        Raises:
            DataError: a position comes twice (two examples would share an id; see ``resampled``),
                or there are none.
        """
        at = _check_positions(positions, len(self))
        if at.unique().numel() < at.numel():
            raise DataError(
                f"{at.numel() - at.unique().numel()} of {at.numel()} positions repeat one before "
                "them, and an id must be unique. Rows duplicated on purpose? Use resampled()."
            )
        return self._rows(at, ids=self.ids[at], origin=self.origin)

    def resampled(self, positions: Tensor, *, origin: object | None = None) -> TensorSet:
        """The rows at ``positions`` ([M] int64, repeats allowed) as a data set of its own.

        Every row counts as an example: ids are 0 … M−1, and they belong to ``origin``.
        """
        return self._rows(_check_positions(positions, len(self)), ids=None, origin=origin)

    def relabelled(self, targets: Tensor) -> TensorSet:
        """The same examples and ids, labelled ``targets`` ([N] int64)."""
        return self._with(targets=targets)

    def with_transform(self, transform: Callable[[Tensor], Tensor] | None) -> TensorSet:
        """The same examples, augmented by ``transform``; None for the plain inputs."""
        return self._with(transform=transform)

    def loader(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        drop_last: bool = True,
        generator: torch.Generator | None = None,
    ) -> DataLoader[Candidates]:
        """Batches of ``batch_size``, each fetched at once; in order where not ``shuffle``.

        ``generator`` draws the order, so that the global random stream stays as it was; without
        one, a shuffling loader draws from that stream, as torch's own do.

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
            generator = torch.Generator()  # a DataLoader draws a seed even where nothing is random
        return DataLoader(
            self,
            batch_size=None,
            sampler=BatchSampler(order, batch_size, drop_last),
            collate_fn=_as_it_is,
            generator=generator,
        )

    def _rows(self, at: Tensor, *, ids: Tensor | None, origin: object | None) -> TensorSet:
        return self._with(inputs=self.inputs[at], targets=self.targets[at], ids=ids, origin=origin)

    def _with(self, **changes: Any) -> TensorSet:
        same = {
            "inputs": self.inputs,
            "targets": self.targets,
            "ids": self.ids,
            "num_classes": self.num_classes,
            "mean": self.mean,
            "std": self.std,
            "classes": self.classes,
            "origin": self.origin,
            "transform": self.transform,
        }
        return TensorSet(**(same | changes))


def _as_it_is(batch: Any) -> Any:
    # DataLoader's own conversion would turn the (x, y) tuple into a list.
    return batch


def _check_positions(positions: Tensor, n: int) -> Tensor:
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
