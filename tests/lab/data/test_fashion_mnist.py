"""Fashion-MNIST: the embedded split, and the full one from files in the official format."""

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from reducible.lab.data import EMBEDDED, TensorSet, fashion_mnist
from reducible.types import ConfigurationError, DataError


@pytest.fixture(scope="module", autouse=True)
def _no_root() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("REDUCIBLE_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def train() -> TensorSet:
    return fashion_mnist()


@pytest.fixture(scope="module")
def test_set() -> TensorSet:
    return fashion_mnist("test")


def idx(array: torch.Tensor) -> bytes:
    header = bytes([0, 0, 8, array.dim()]) + struct.pack(f">{array.dim()}I", *array.shape)
    return header + array.numpy().tobytes()


def official(root: Path, prefix: str, images: torch.Tensor, labels: torch.Tensor) -> Path:
    """A folder as the data set is published, with the images unpacked and the labels not."""
    folder = root / "fashion-mnist"
    folder.mkdir(exist_ok=True)
    (folder / f"{prefix}-images-idx3-ubyte").write_bytes(idx(images))
    (folder / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    return root


IMAGES = torch.arange(3 * 28 * 28).remainder(251).to(torch.uint8).reshape(3, 28, 28)
LABELS = torch.tensor([9, 0, 4], dtype=torch.uint8)


def test_the_embedded_split_is_the_first_of_the_official_order(
    train: TensorSet, test_set: TensorSet
):
    assert train.inputs.shape == (30_000, 1, 28, 28)
    assert test_set.inputs.shape == (5_000, 1, 28, 28)
    assert train.inputs.dtype == test_set.inputs.dtype == torch.uint8
    assert train.targets[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert test_set.targets[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert torch.equal(train.ids, torch.arange(30_000))
    assert (train.origin, test_set.origin) == ("fashion-mnist/train", "fashion-mnist/test")


def test_the_embedded_split_is_balanced_and_standardised(train: TensorSet):
    assert train.num_classes == 10
    assert train.classes[6] == "shirt"
    assert int(train.targets.bincount().min()) > 2_900
    x = train[list(range(3_000))].batch[0]  # [3000, 1, 28, 28]
    assert abs(float(x.mean())) < 0.02
    assert abs(float(x.std()) - 1) < 0.02


def test_images_and_labels_belong_together(train: TensorSet):
    """Trousers are narrow and boots are not: the mean image of a class tells it from another."""
    means = torch.stack([train.inputs[train.targets == c][:500].float().mean(0) for c in (1, 9)])
    x = train.inputs[-2_000:].float()
    y = train.targets[-2_000:]
    two = (y == 1) | (y == 9)
    nearest = (x[two, None] - means).flatten(2).norm(dim=2).argmin(1)  # [M]
    assert float((nearest == (y[two] == 9)).float().mean()) > 0.97


def test_embedded_files_are_small_and_licensed():
    files = [path for path in EMBEDDED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 16_000_000
    assert "2017 Zalando SE" in (EMBEDDED / "LICENSE.fashion-mnist").read_text()
    assert "2014 C.J. Hutto" in (EMBEDDED / "LICENSE.snippets").read_text()


def test_official_files_from_root_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    official(tmp_path, "train", IMAGES, LABELS)
    by_root = fashion_mnist(root=tmp_path)
    monkeypatch.setenv("REDUCIBLE_DATA", str(tmp_path))
    for data in (by_root, fashion_mnist()):
        assert torch.equal(data.inputs, IMAGES[:, None])
        assert data.targets.tolist() == [9, 0, 4]
        assert data.num_classes == 10
    assert len(fashion_mnist("test", root=EMBEDDED)) == 5_000  # root wins over the environment


def test_a_folder_without_the_files_says_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    official(tmp_path, "train", IMAGES, LABELS)
    message = r"fashion_mnist\('test'\) needs t10k-images-idx3-ubyte .*REDUCIBLE_DATA must name"
    with pytest.raises(DataError, match=message):
        fashion_mnist("test", root=tmp_path)
    monkeypatch.setenv("REDUCIBLE_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match="needs train-images-idx3-ubyte"):
        fashion_mnist()


@pytest.mark.parametrize(
    ("images", "labels"), [(IMAGES, LABELS[:2]), (IMAGES[:, :27], LABELS), (LABELS, LABELS)]
)
def test_files_that_do_not_belong_together(tmp_path: Path, images, labels):
    official(tmp_path, "train", images, labels)
    with pytest.raises(DataError, match="Files of different splits"):
        fashion_mnist(root=tmp_path)


def test_there_are_two_splits():
    with pytest.raises(ConfigurationError, match="split must be one of 'train', 'test'; got 'val'"):
        fashion_mnist("val")  # type: ignore[arg-type]
