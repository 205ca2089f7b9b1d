"""Crops and flips: every result is one of those allowed, all of them come, by the generator."""

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from reducible.lab.data import TensorSet, random_crop_flip
from reducible.types import ConfigurationError, DataError


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def views(image: Tensor, padding: int, fill: float, *, flip: bool) -> list[Tensor]:
    """Every crop of a padded image [C, H, W], and their mirror images: a slow, literal loop."""
    _, h, w = image.shape
    padded = pad(image, (padding,) * 4, value=fill)
    crops = [
        padded[:, i : i + h, j : j + w]
        for i in range(2 * padding + 1)
        for j in range(2 * padding + 1)
    ]
    return crops + [crop.flip(-1) for crop in crops] if flip else crops


@pytest.mark.parametrize("flip", [True, False])
def test_every_view_comes_equally_often_and_no_other(flip: bool, generator: torch.Generator):
    image = torch.arange(1.0, 13.0).reshape(2, 3, 2)  # [C, H, W], no view like another
    n = 9_000
    x = image.expand(n, 2, 3, 2)
    out = random_crop_flip(x, padding=1, flip=flip, fill=-1.0, generator=generator)
    assert out.shape == x.shape
    counts = [
        int((out == view).flatten(1).all(1).sum()) for view in views(image, 1, -1.0, flip=flip)
    ]
    assert sum(counts) == n
    expected = n / len(counts)
    assert all(abs(count - expected) < 5 * expected**0.5 for count in counts)


def test_images_keep_their_places_and_channels():
    x = torch.rand(5, 3, 4, 6, generator=seeded(0))
    out = random_crop_flip(x, padding=2, generator=seeded(1))
    for one, image in zip(out, x, strict=True):
        assert any(torch.equal(one, view) for view in views(image, 2, 0.0, flip=True))


def test_without_padding_and_flip_nothing_changes():
    x = torch.rand(4, 1, 3, 3, generator=seeded(0))
    out = random_crop_flip(x, padding=0, flip=False, generator=seeded(1))
    assert torch.equal(out, x)
    assert out.data_ptr() != x.data_ptr()


@pytest.mark.usefixtures("streams_untouched")
def test_only_the_generator_moves():
    x = torch.rand(6, 1, 8, 8, generator=seeded(0))
    before = x.clone()
    one, same, other = (random_crop_flip(x, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(x, before)
    assert one.dtype == x.dtype


def test_serves_as_a_transform(generator: torch.Generator):
    data = TensorSet(
        torch.full((4, 1, 8, 8), 255, dtype=torch.uint8),
        torch.tensor([0, 1, 0, 1]),
        transform=lambda x: random_crop_flip(x, generator=generator),
    )
    x = data[[0, 1, 2, 3]].batch[0]
    assert x.shape == (4, 1, 8, 8)
    assert set(x.unique().tolist()) == {0.0, 1.0}


def test_what_is_no_batch_of_images(generator: torch.Generator):
    with pytest.raises(DataError, match=r"\[B, C, H, W\]; got shape \(3, 8, 8\)"):
        random_crop_flip(torch.zeros(3, 8, 8), generator=generator)
    with pytest.raises(ConfigurationError, match="padding must be a whole number"):
        random_crop_flip(torch.zeros(1, 1, 8, 8), padding=-1, generator=generator)
