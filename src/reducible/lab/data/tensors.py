"""A data set in memory, with stable ids, that hands over whole batches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from reducible.lab.data._memory import InMemory, check_positions
from reducible.types import Candidates, ConfigurationError, DataError, require_between


@final
class TensorSet(InMemory):
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
        super().__init__(targets, ids=ids, num_classes=num_classes, classes=classes, origin=origin)
        if inputs.dim() == 0 or len(inputs) != len(self):
            raise DataError(
                f"inputs, targets and ids must lead with the same N; got {tuple(inputs.shape)}, "
                f"{tuple(targets.shape)} and {tuple(self.ids.shape)}. Were they cut from one data "
                "set with one index?"
            )
        require_between("std", std, 0.0, open_low=True)
        scaled = inputs.dtype == torch.uint8 or inputs.is_floating_point()
        if not scaled and (mean, std) != (0.0, 1.0):
            raise ConfigurationError(
                f"inputs of {inputs.dtype} are handed over as they are, so mean={mean} and "
                f"std={std} would do nothing. Images? Store them as uint8 or float32."
            )
        self.inputs = inputs  # [N, …]
        self.mean, self.std = mean, std
        self.transform = transform

    def fetch(self, indices: Tensor) -> Candidates:
        """The examples at positions ``indices`` ([B] int64): one gather per tensor.

        Returns:
            ``Candidates(ids [B], (x [B, …], y [B]))``; x is float32, but for token ids.

        Raises:
            DataError: positions that are not [B] int64 in [0, N), such as a mask, or ids.
        """
        at = check_positions(indices, len(self)).to(self.ids.device)  # [B]
        x = self.inputs.index_select(0, at)  # [B, …]
        if x.dtype == torch.uint8:
            x = x.float().div_(255).sub_(self.mean).div_(self.std)
        elif x.is_floating_point():
            x = x.float().sub(self.mean).div_(self.std)
        if self.transform is not None:
            x = self.transform(x)
        return Candidates(self.ids.index_select(0, at), (x, self.targets.index_select(0, at)))

    def with_transform(self, transform: Callable[[Tensor], Tensor] | None) -> TensorSet:
        """Returns the same examples, augmented by ``transform``; None for the plain inputs."""
        return self._with(transform=transform)

    def _single(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        x, y = batch
        return x[0], y[0]

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
