"""Augmentation of a whole batch at once, random by its generator alone."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from reducible.types import DataError, require_between


def random_crop_flip(
    x: Tensor,
    *,
    padding: int = 4,
    flip: bool = True,
    fill: float = 0.0,
    generator: torch.Generator,
) -> Tensor:
    """Each image shifted by up to ``padding`` pixels a side, and mirrored half of the time.

    The image is padded with ``fill`` on all four sides and cropped back to H×W at a place uniform
    over the (2·padding + 1)² there are; then, with probability ½, left and right change places.
    Every image has its own draws.

    Args:
        x: [B, C, H, W].
        padding: in pixels, ≥ 0.
        flip: False to never mirror.
        fill: what the border holds; −mean / std is black, once images are standardised.
        generator: on x's device.

    Returns:
        [B, C, H, W], a new tensor of x's dtype.

    Raises:
        ConfigurationError: a padding that is no whole number ≥ 0.
        DataError: x is not [B, C, H, W].
    """
    require_between("padding", padding, 0, whole=True)
    if x.dim() != 4:
        raise DataError(
            f"images must be [B, C, H, W]; got shape {tuple(x.shape)}. A single image, or one "
            "without channels? Use x.unsqueeze(…)."
        )
    b, c, h, w = x.shape
    place = (b, 1)
    top = torch.randint(2 * padding + 1, place, generator=generator, device=x.device)  # [B, 1]
    left = torch.randint(2 * padding + 1, place, generator=generator, device=x.device)  # [B, 1]
    rows = top + torch.arange(h, device=x.device)  # [B, H]
    columns = left + torch.arange(w, device=x.device)  # [B, W]
    if flip:
        mirrored = torch.randint(2, place, generator=generator, device=x.device) == 1  # [B, 1]
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = pad(x, (padding,) * 4, value=fill)  # [B, C, H + 2·padding, W + 2·padding]
    image = torch.arange(b, device=x.device)[:, None, None, None]
    channel = torch.arange(c, device=x.device)[:, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
