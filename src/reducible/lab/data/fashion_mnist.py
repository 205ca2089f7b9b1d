"""Fashion-MNIST: grey 28×28 images of ten kinds of clothing (Xiao et al. 2017)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from reducible.lab.data._files import data_root, find_file
from reducible.lab.data.idx import read_idx
from reducible.lab.data.tensors import TensorSet
from reducible.types import DataError, require_one_of

_PREFIX = {"train": "train", "test": "t10k"}
_CLASSES = (
    "T-shirt/top",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)


def fashion_mnist(
    split: Literal["train", "test"] = "train", *, root: str | Path | None = None
) -> TensorSet:
    """The embedded 30,000 training or 5,000 test images, or the full 60,000 or 10,000.

    The embedded images are the first of the official order, so an id (the place in that order)
    means the same image in both. Images are [N, 1, 28, 28] uint8, standardised by the mean .2860
    and standard deviation .3530 of the 60,000 as they are taken.

    Args:
        split: ``"train"`` or ``"test"``.
        root: a folder with ``fashion-mnist/``, which holds the four original files (``.gz`` or
            unpacked); by default what REDUCIBLE_DATA names, else the embedded data.
            ``root=EMBEDDED`` asks for the embedded data whatever REDUCIBLE_DATA says.

    Raises:
        DataError: a file is missing or damaged, or images and labels do not belong together.
    """
    require_one_of("split", split, ("train", "test"))
    folder = data_root(root) / "fashion-mnist"
    prefix, what = _PREFIX[split], f"fashion_mnist({split!r})"
    images = read_idx(find_file(folder, f"{prefix}-images-idx3-ubyte", what))  # [N, 28, 28]
    labels = read_idx(find_file(folder, f"{prefix}-labels-idx1-ubyte", what))  # [N]
    if images.shape[1:] != (28, 28) or labels.shape != images.shape[:1]:
        raise DataError(
            f"{folder} holds images {tuple(images.shape)} and labels {tuple(labels.shape)}, not "
            "[N, 28, 28] and [N]. Files of different splits? Get the four original files again."
        )
    return TensorSet(
        images.unsqueeze(1),
        labels.long(),
        num_classes=10,
        mean=0.2860,
        std=0.3530,
        classes=_CLASSES,
        origin=f"fashion-mnist/{split}",
    )
