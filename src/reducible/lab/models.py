"""The small networks of the papers' experiments. The last layer of each is an nn.Linear."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from types import MappingProxyType
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from reducible.types import require_between


def mlp(
    in_features: int = 784,
    num_classes: int = 10,
    hidden: int = 512,
    depth: int = 2,
    dropout: float = 0.0,
) -> nn.Sequential:
    """``depth`` × (Linear, ReLU, Dropout if any), then Linear; inputs [B, …] are flattened.

    As it is, the QMNIST network of Mindermann et al. 2022, Appendix B; with ``dropout=0.5`` that of
    its Appendix G.
    """
    require_between("depth", depth, 0, whole=True)
    require_between("dropout", dropout, 0.0, 1.0, open_high=True)
    layers: list[nn.Module] = [nn.Flatten()]  # [B, in_features]
    width = in_features
    for _ in range(depth):
        layers += [nn.Linear(width, hidden), nn.ReLU()]  # [B, hidden]
        if dropout:
            layers.append(nn.Dropout(dropout))
        width = hidden
    return nn.Sequential(*layers, nn.Linear(width, num_classes))  # [B, C]


def small_mlp(
    in_features: int = 784, num_classes: int = 10, hidden: int = 128, depth: int = 2
) -> nn.Sequential:
    """An ``mlp`` of 128 units, small enough to be cheap as irreducible-loss model."""
    return mlp(in_features, num_classes, hidden, depth)


def lenet(
    num_classes: int = 10,
    width: int = 16,
    in_channels: int = 1,
    image: int = 28,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Two 5×5 convolutions with max-pooling, then two linear layers, after LeCun et al. 1989.

    ``dropout``, if any, follows each pooling and the hidden layer.

    ``width`` and 2·``width`` filters, 8·``width`` hidden units; ``image`` is the side of the
    square images, ≥ 16. The small irreducible-loss model of Mindermann et al. 2022, Section 4.2,
    is "similar to LeNet"; its exact sizes are not published. Nor are those of the "small-scale CNN
    with dropout probability 0.05" of its Appendix G, which ``dropout=0.05`` stands for.
    """
    require_between("image", image, 16, whole=True)
    require_between("dropout", dropout, 0.0, 1.0, open_high=True)
    side = ((image - 4) // 2 - 4) // 2

    def dropped() -> list[nn.Module]:
        return [nn.Dropout(dropout)] if dropout else []

    return nn.Sequential(
        nn.Conv2d(in_channels, width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *dropped(),
        nn.Conv2d(width, 2 * width, 5),
        nn.ReLU(),
        nn.MaxPool2d(2),
        *dropped(),
        nn.Flatten(),  # [B, 2·width·side²]
        nn.Linear(2 * width * side * side, 8 * width),
        nn.ReLU(),
        *dropped(),
        nn.Linear(8 * width, num_classes),  # [B, C]
    )


def resnet18(num_classes: int = 10, in_channels: int = 1, width: int = 64) -> nn.Sequential:
    """ResNet-18 (He et al. 2016) for images of 28×28 or 32×32.

    The stem is one 3×3 convolution of ``width`` filters, stride 1, without max-pooling; four stages
    of two blocks follow, of ``width`` · 1, 2, 4, 8 filters, the last three halving the sides:
    Mindermann et al. 2022, Appendix B. That paper also removes the average pooling at the end;
    here a global one stays, so that the classifier fits any image size.
    """
    stages: list[nn.Module] = []
    channels = width
    for i in range(4):
        filters = width * 2**i
        stages += [
            _Block(channels, filters, stride=1 if i == 0 else 2),
            _Block(filters, filters, stride=1),
        ]
        channels = filters
    return nn.Sequential(
        nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        *stages,  # [B, 8·width, H / 8, W / 8]
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),  # [B, 8·width]
        nn.Linear(channels, num_classes),  # [B, C]
    )


@final
class _Block(nn.Module):
    """relu(F(x) + shortcut(x)), F two 3×3 convolutions, each with batch normalisation."""

    def __init__(self, channels: int, filters: int, *, stride: int) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, padding=1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels != filters:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )

    def forward(self, x: Tensor) -> Tensor:
        return (self.residual(x) + self.shortcut(x)).relu()


MODELS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "mlp-512": mlp,
        "mlp-128": small_mlp,
        "mlp-64": partial(mlp, hidden=64),
        "mlp-512-dropout": partial(mlp, dropout=0.5),
        "mlp-64-dropout": partial(mlp, hidden=64, dropout=0.5),
        "lenet": lenet,
        "lenet-8": partial(lenet, width=8),
        "lenet-dropout": partial(lenet, dropout=0.05),
        "resnet-18": resnet18,
        "resnet-18-16": partial(resnet18, width=16),
    }
)
"""Name → constructor; all take ``num_classes=``, none needs an argument for 28×28 grey images."""

RESNETS = frozenset({"resnet-18", "resnet-18-16"})
"""Those that take images of any size, and normalise batches; the others do neither."""


def has_dropout(model: nn.Module) -> bool:
    """Whether two passes of ``model`` in train mode differ, because a part of it drops units.

    >>> has_dropout(mlp()), has_dropout(mlp(dropout=0.5))
    (False, True)
    """
    return any(
        (isinstance(part, _DropoutNd) and part.p > 0)
        or (isinstance(part, nn.MultiheadAttention | nn.RNNBase) and part.dropout > 0)
        for part in model.modules()
    )


@lru_cache
def evidence_of(make_model: Callable[[], nn.Module], *, meta: bool = True) -> frozenset[str]:
    """Names of the Evidence that a pass of such a model can give, told from its layers.

    ``mc_logits`` need dropout, ``features`` a linear layer.

    Args:
        make_model: is called once; if random streams move, they are put back.
        meta: make it without memory for its weights; not for models that load some.
    """
    with torch.random.fork_rng([]), torch.device("meta" if meta else "cpu"):
        model = make_model()
    given = {"loss", "logits"}
    if has_dropout(model):
        given.add("mc_logits")
    if any(isinstance(part, nn.Linear) for part in model.modules()):
        given.add("features")
    return frozenset(given)
