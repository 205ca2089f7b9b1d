"""A scorer made of the first blocks of the model being trained and a head of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reducible.scoring.co_trained import CoTrained, ModeOf
from reducible.types import ConfigurationError, require_between


def early_exit(
    model: nn.Module,
    at: str,
    *,
    num_classes: int,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
    width: int | None = None,
    grid: int = 1,
) -> CoTrained:
    """A scorer made of the first blocks of the model being trained and a linear head of its own.

    A pass runs the model up to the module ``at`` and no further. Its output, [B, D], [B, D, H, W]
    or [B, T, D], is averaged over places and positions, and a linear layer that is zero at the
    start makes logits of it. The loop steps the head on every chosen batch; the blocks are the
    model's, and learn with it alone.

    Args:
        model: the model being trained, on its device; what torch.compile or
            DistributedDataParallel put around it is left out.
        at: name of the last module that is run, as in ``model.named_modules()``.
        num_classes: C.
        make_optimizer: parameters of the head → optimizer.
        width: D; if None, that of the last layer with a known one that is defined up to ``at``.
        grid: of images, average the places of each of so many rows and columns apart: a head on
            D · grid² features, which knows where things are. Early blocks say little without.

    Raises:
        ConfigurationError: no such module, or nothing says how wide its output is.

    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> scorer = early_exit(
    ...     model, "1", num_classes=2, make_optimizer=lambda p: torch.optim.SGD(p, lr=0.1)
    ... )
    >>> type(scorer).__name__
    'CoTrained'
    """
    require_between("num_classes", num_classes, 1, whole=True)
    model = _plain(model)
    trunk = _Truncated(model, at, width, grid)
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    # Skipping the initialisation draws nothing; zero is a fair start if the problem is convex.
    head = nn.utils.skip_init(nn.Linear, trunk.width * grid**2, num_classes, device=device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return CoTrained(head, make_optimizer(head.parameters()), trunk=trunk)


def _plain(model: nn.Module) -> nn.Module:
    """The model itself, out of its wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if isinstance(model, DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _width(model: nn.Module, at: str) -> int:
    """Width of the last layer that has one among those defined up to the end of ``at``."""
    found = None
    inside = False
    for name, module in model.named_modules():
        inside |= name == at
        if inside and name != at and not name.startswith(f"{at}."):
            break
        for attribute in _WIDTHS:
            size = getattr(module, attribute, None)
            size = size[-1] if isinstance(size, tuple) else size
            found = size if isinstance(size, int) else found
    if found is None:
        raise ConfigurationError(
            f"no layer up to {at!r} says how wide its output is: pass width=<its channels>."
        )
    return found


_WIDTHS = ("out_features", "out_channels", "num_features", "normalized_shape", "embedding_dim")


@final
class _Truncated(ModeOf):
    """The first part of a model: the pooled output of one of its modules, float32.

    [B, D], or [B, D · grid²] if that is of images.
    """

    def __init__(self, model: nn.Module, at: str, width: int | None, grid: int) -> None:
        super().__init__(model)
        names = [name for name, _ in model.named_modules() if name]
        if at not in names:
            raise ConfigurationError(
                f"at={at!r} is no module of the model: name one of {', '.join(names)}."
            )
        self._at = at
        self.width = _width(model, at) if width is None else width
        require_between("width", self.width, 1, whole=True)
        require_between("grid", grid, 1, whole=True)
        self._grid = grid

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hook = self.inner.get_submodule(self._at).register_forward_hook(_stop)
        try:
            self.inner(*args, **kwargs)
        except _Reached as reached:
            return self._checked(_pooled(reached.output, self._at, self._grid))
        finally:
            hook.remove()
        raise ConfigurationError(
            f"the model's forward pass never came to {self._at!r}: name a module that it calls."
        )

    def _checked(self, pooled: Tensor) -> Tensor:
        width = pooled.shape[1] // self._grid**2
        if width != self.width:
            raise ConfigurationError(
                f"the output of {self._at!r} is {width} wide, the head was made for "
                f"{self.width}: early_exit(…, width={width})."
            )
        return pooled


class _Reached(Exception):
    """Carries the output of the module that a pass was to stop at."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stop(_module: nn.Module, _args: Any, output: Any) -> None:
    raise _Reached(output)


def _pooled(output: Any, at: str, grid: int) -> Tensor:
    """[B, D] float32 of [B, D] or [B, T, D], [B, D · grid²] of [B, D, H, W]; or of a tuple's first.

    Raises:
        ConfigurationError: an output of another kind, or without rows and columns for a grid.
    """
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigurationError(
            f"the output of {at!r} is {got}; [B, D], [B, D, H, W] or [B, T, D] was expected. Name "
            "another module."
        )
    output = output.detach().float()
    if output.dim() == 4:
        return F.adaptive_avg_pool2d(output, grid).flatten(1)
    if grid > 1:
        raise ConfigurationError(
            f"the output of {at!r} is {tuple(output.shape)}, without rows and columns for "
            f"grid={grid}: leave grid=1."
        )
    return output.mean(1) if output.dim() == 3 else output
