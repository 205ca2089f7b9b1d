"""Reader of the idx format, in which MNIST and its kin are published."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from reducible.lab.data._files import read_compressed
from reducible.types import DataError

# The third byte of the magic number names the type; numbers are big-endian.
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: str | Path) -> Tensor:
    """The array in an idx file: plain, or compressed if the name ends in .gz or .xz.

    The format is: two zero bytes, a byte for the type, a byte for the number of dimensions D,
    D sizes as big-endian uint32, then the numbers in row-major order.

    Returns:
        A tensor of the sizes and type the file names; uint8 for the published images and labels.

    Raises:
        DataError: not an idx file, or one that is cut short, damaged or too long.
        FileNotFoundError: there is none.
    """
    path = Path(path)
    data = read_compressed(path)
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] not in _TYPES:
        raise DataError(
            f"{path} is no idx file: it starts with {data[:4].hex(' ') or 'nothing'}, not with "
            "00 00, a type and a number of dimensions. An error page saved in its place, or a "
            "compressed file without .gz or .xz in its name? Get the original file again."
        )
    dtype = np.dtype(_TYPES[data[2]])
    start = 4 + 4 * data[3]
    shape = struct.unpack(f">{data[3]}I", data[4:start]) if len(data) >= start else (0,)
    promised = start + math.prod(shape) * dtype.itemsize
    if len(data) != promised:
        raise DataError(
            f"{path} holds {len(data):,} bytes, but its header, for shape {shape}, promises "
            f"{promised:,}. A download that was cut short? Get the original file again."
        )
    array = np.frombuffer(data, dtype, offset=start).reshape(shape)
    return torch.from_numpy(array.astype(dtype.newbyteorder("=")))  # a copy, so it is writable
