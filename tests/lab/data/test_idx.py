"""The idx format: plain and compressed, every type, and what a damaged file says."""

import gzip
import lzma
import struct
from pathlib import Path

import pytest
import torch

from reducible.lab.data import read_idx
from reducible.types import DataError

IMAGES = bytes([0, 0, 8, 3]) + struct.pack(">3I", 2, 1, 3) + bytes([0, 1, 2, 253, 254, 255])


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_reads_by_suffix(tmp_path: Path, suffix: str, compress):
    path = tmp_path / f"images-idx3-ubyte{suffix}"
    path.write_bytes(compress(IMAGES))
    array = read_idx(path)
    assert array.dtype == torch.uint8
    assert array.tolist() == [[[0, 1, 2]], [[253, 254, 255]]]
    array[0, 0, 0] = 9  # writable


@pytest.mark.parametrize(
    ("code", "letter", "dtype", "values"),
    [
        (0x09, "b", torch.int8, [-1, 2]),
        (0x0B, "h", torch.int16, [-300, 2]),
        (0x0C, "i", torch.int32, [-70_000, 2]),
        (0x0D, "f", torch.float32, [0.5, -2.0]),
        (0x0E, "d", torch.float64, [0.1, -2.0]),
    ],
)
def test_reads_every_type(tmp_path: Path, code: int, letter: str, dtype, values):
    path = tmp_path / "numbers"
    path.write_bytes(bytes([0, 0, code, 1]) + struct.pack(f">I2{letter}", 2, *values))
    array = read_idx(path)
    assert array.dtype == dtype
    assert array.tolist() == values


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no idx file: it starts with nothing"),
        (b"<htm", "no idx file: it starts with 3c 68 74 6d.*error page"),
        (bytes([0, 0, 7, 1]) + bytes(4), "no idx file: it starts with 00 00 07 01"),
        (gzip.compress(IMAGES, mtime=0), "no idx file: it starts with 1f 8b.*without .gz"),
        (IMAGES[:9], "holds 9 bytes, but its header"),
        (IMAGES[:-1], r"holds 21 bytes, but its header, for shape \(2, 1, 3\), promises 22"),
        (IMAGES + b"\0", "holds 23 bytes, .* promises 22"),
    ],
)
def test_a_file_that_is_none_says_so(tmp_path: Path, data: bytes, message: str):
    path = tmp_path / "images"
    path.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(path)


@pytest.mark.parametrize(("suffix", "compress"), [(".gz", gzip.compress), (".xz", lzma.compress)])
def test_a_damaged_compressed_file_says_so(tmp_path: Path, suffix: str, compress):
    path = tmp_path / f"images{suffix}"
    whole = compress(IMAGES * 50)
    for data in (whole[:-10], IMAGES, whole[:30] + bytes([whole[30] ^ 0xFF]) + whole[31:]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"cannot be decompressed.*the original file again"):
            read_idx(path)


def test_a_missing_file_is_missing(tmp_path: Path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "nothing.gz")
