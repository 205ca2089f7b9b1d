"""The small networks: sizes, shapes, a linear layer last, the same weights from the same seed."""

import pytest
import torch
from torch import nn

from reducible.lab.models import MODELS, RESNETS, lenet, mlp, resnet18, small_mlp
from reducible.types import ConfigurationError


def size(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def seeded(name: str, seed: int, **options) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MODELS[name](**options)


@pytest.mark.parametrize("name", MODELS)
def test_every_model(name: str):
    model = seeded(name, 0, num_classes=7)
    x = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert model.eval()(x).shape == (2, 7)
    last = list(model.modules())[-1]
    assert isinstance(last, nn.Linear)
    assert last.out_features == 7
    same, other = seeded(name, 0, num_classes=7), seeded(name, 1, num_classes=7)
    assert all(map(torch.equal, model.state_dict().values(), same.state_dict().values()))
    assert not torch.equal(last.weight, other.state_dict()[list(other.state_dict())[-2]])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_resnets_alone_take_any_size_and_normalise_batches(name: str):
    model = seeded(name, 0)
    small = torch.rand(2, 1, 14, 14, generator=torch.Generator().manual_seed(0))
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
    assert norms == (name in RESNETS)
    if name in RESNETS:
        assert model.eval()(small).shape == (2, 10)
    else:
        with pytest.raises(RuntimeError, match=r"shape|size"):
            model(small)


def test_the_table_cannot_be_changed_and_names_what_it_holds():
    assert list(MODELS) == [
        "mlp-512",
        "mlp-128",
        "mlp-64",
        "mlp-512-dropout",
        "mlp-64-dropout",
        "lenet",
        "lenet-8",
        "lenet-dropout",
        "resnet-18",
        "resnet-18-16",
    ]
    with pytest.raises(TypeError):
        MODELS["mine"] = mlp  # type: ignore[index]
    assert size(MODELS["mlp-64"]()) == 784 * 64 + 64 + 64 * 64 + 64 + 64 * 10 + 10


def test_sizes_counted_by_hand():
    assert size(mlp()) == 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10
    assert size(small_mlp()) == 784 * 128 + 128 + 128 * 128 + 128 + 128 * 10 + 10
    convolutions = 25 * 16 + 16 + 25 * 16 * 32 + 32
    assert size(lenet()) == convolutions + (32 * 4 * 4) * 128 + 128 + 128 * 10 + 10
    # The ResNet-18 for 32×32 colour images and 10 classes that everybody counts.
    assert size(resnet18(in_channels=3)) == 11_173_962


def test_mlp_options():
    assert sum(isinstance(m, nn.Dropout) for m in mlp(dropout=0.5)) == 2
    assert not any(isinstance(m, nn.Dropout) for m in mlp())
    linear = mlp(in_features=6, num_classes=3, depth=0)
    assert linear(torch.zeros(5, 2, 3)).shape == (5, 3)
    assert size(linear) == 6 * 3 + 3


@pytest.mark.parametrize("image", [16, 17, 28, 32])
def test_lenet_fits_the_image(image: int):
    model = lenet(width=2, in_channels=3, image=image)
    assert model(torch.zeros(1, 3, image, image)).shape == (1, 10)


@pytest.mark.parametrize(("image", "side"), [(28, 4), (32, 4)])
def test_resnet_keeps_full_size_until_the_second_stage(image: int, side: int):
    model = resnet18(width=4).eval()
    shapes = []
    x = torch.zeros(1, 1, image, image)
    for layer in model:
        x = layer(x)
        shapes.append(tuple(x.shape[1:]))
    assert shapes[0] == shapes[4] == (4, image, image)  # stem and first stage: no pooling
    assert shapes[10] == (32, side, side)  # last stage
    assert shapes[-1] == (10,)
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())


def test_a_block_adds_its_input():
    block = resnet18(width=4).eval()[3]
    with torch.no_grad():
        for p in block.parameters():
            p.zero_()
    x = torch.tensor([-1.0, 2.0]).reshape(1, 1, 1, 2).expand(1, 4, 3, 2)
    assert torch.equal(block(x), x.relu())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lenet(image=15), r"image must be a whole number in \[16, inf\], got 15"),
        (lambda: mlp(depth=-1), "depth must be a whole number"),
        (lambda: mlp(dropout=1.0), r"dropout must be a number in \[0.0, 1.0\), got 1.0"),
    ],
)
def test_sizes_that_cannot_be(make, message: str):
    with pytest.raises(ConfigurationError, match=message):
        make()
