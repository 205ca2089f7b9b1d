"""Chance for picks: drawn where the generator is, used where the scores are."""

import torch
from torch import Tensor


def shuffled(size: int, *, generator: torch.Generator, like: Tensor) -> Tensor:
    """[size] int64: 0 … size − 1 in random order, on the device of ``like``.

    A generator on the CPU gives the same order for scores on any device, because it draws on its
    own; moving the order to an accelerator waits for nothing.
    """
    order = torch.randperm(size, generator=generator, device=generator.device)
    return _beside(order, like)


def exponential(*shape: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """Exponential draws of ``shape`` in float64 with mean one, on the device of ``like``."""
    noise = torch.empty(shape, dtype=torch.float64, device=generator.device)
    return _beside(noise.exponential_(generator=generator), like)


def _beside(drawn: Tensor, like: Tensor) -> Tensor:
    return drawn.to(like.device, non_blocking=not like.is_cpu)  # or the CPU reads it too early
