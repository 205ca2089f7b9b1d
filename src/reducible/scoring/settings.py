"""Settings of scoring."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from reducible.batches import map_batch
from reducible.types import require_between, require_one_of

DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_FOR_STATISTICS = 32  # rows that batch normalisation is to take its statistics of


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """Says how candidates are scored; part of every run's record.

    Attributes:
        batchnorm: ``"candidates"``: statistics of the candidate batch, running statistics
            untouched, dropout off (RHO-LOSS, App. B). ``"running"``: eval mode. ``"reference"``:
            train mode with running statistics and dropout moving, as the authors' code does.
            A BatchNorm layer kept in eval mode inside a model in train mode is frozen on
            purpose, and stays so.
        precision: of the forward pass, by autocast; losses are computed in float32.
        channels_last: lay images out with the channels last, which convolutions in low precision
            are fastest on.
        compile: score with ``torch.compile(model)``; the first passes compile. Passes that read
            features run as they are.
        resolution: shrink images [B, C, H, W] to at most so many rows and columns before scoring,
            for networks that take any size.
        max_length: cut token tensors [B, T] to their first so many columns before scoring.
        updates_per_scoring: hand out so many batches of n_b from one scored candidate batch, best
            rows first, which divides the cost of scoring; rows grow stale by as many updates.
        max_age: take a loss from memory if it was seen at most so many steps ago, instead of
            scoring; 0: never. Where batches are normalised by their own statistics, at least 32
            rows are scored together, others drawn at random among them.
        rescore: share of the remembered ones that is scored all the same, at random.

    >>> cheap = Scoring(precision="bfloat16", updates_per_scoring=4)
    >>> cheap.batchnorm, cheap.max_age
    ('candidates', 0)
    """

    batchnorm: Literal["candidates", "running", "reference"] = "candidates"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    resolution: int | None = None
    max_length: int | None = None
    updates_per_scoring: int = 1
    max_age: int = 0
    rescore: float = 0.0

    def __post_init__(self) -> None:
        require_one_of("batchnorm", self.batchnorm, ("candidates", "running", "reference"))
        require_one_of("precision", self.precision, tuple(DTYPES))
        require_one_of("channels_last", self.channels_last, (True, False))
        require_one_of("compile", self.compile, (True, False))
        for name in ("resolution", "max_length"):
            if getattr(self, name) is not None:
                require_between(name, getattr(self, name), 1, whole=True)
        require_between("updates_per_scoring", self.updates_per_scoring, 1, whole=True)
        require_between("max_age", self.max_age, 0, whole=True)
        require_between("rescore", self.rescore, 0.0, 1.0)

    def reduced(self, batch: Any) -> Any:
        """``batch`` as the scoring pass sees it."""
        if self.resolution is None and self.max_length is None and not self.channels_last:
            return batch

        def smaller(tensor: Tensor) -> Tensor:
            if tensor.dim() == 4 and tensor.is_floating_point():
                if self.resolution is not None and self.resolution < max(tensor.shape[2:]):
                    size = [min(side, self.resolution) for side in tensor.shape[2:]]
                    tensor = F.interpolate(tensor, size=size, mode="area")
                if self.channels_last:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
            elif tensor.dim() == 2 and not tensor.is_floating_point():
                tensor = tensor[:, : self.max_length]
            return tensor

        return map_batch(batch, smaller)


def least_rows(model: nn.Module, scoring: Scoring) -> int:
    """Rows that are scored together at least, if losses of the others are remembered."""
    own = scoring.batchnorm != "running" and any(isinstance(m, _BatchNorm) for m in model.modules())
    return _FOR_STATISTICS if own else 0
