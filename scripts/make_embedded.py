"""Builds the data embedded in the package from the original files.

    python scripts/make_embedded.py FOLDER

FOLDER holds ``fashion-mnist/`` with the four original ``.gz`` files, and ``snippets.tsv``. The
first 30,000 training and 5,000 test images and labels, in official order, stay in the idx format;
of the texts, the film sentences stay in theirs; all are xz-compressed. The output depends on the
input and the version of liblzma alone.
"""

from __future__ import annotations

import lzma
import struct
import sys
from pathlib import Path

from reducible.lab.data import EMBEDDED, read_idx

KEPT = {"train": 30_000, "t10k": 5_000}
LIMIT = 15_500_000  # bytes of all embedded data, so that the package stays small
FEWER_SENTENCES = 4_000


def compressed(data: bytes) -> bytes:
    return lzma.compress(data, preset=9 | lzma.PRESET_EXTREME)


def first_of_idx(path: Path, count: int) -> bytes:
    """The first ``count`` entries of a uint8 idx file, as an idx file."""
    array = read_idx(path)[:count].numpy()  # [count, …] uint8
    header = struct.pack(f">HBB{array.ndim}I", 0, 0x08, array.ndim, *array.shape)
    return header + array.tobytes()


def film_lines(path: Path) -> list[bytes]:
    """The header and the film sentences, which must come first: an id is a row of the full file."""
    header, *rows = path.read_bytes().splitlines(keepends=True)
    is_film = [row.startswith(b"movie\t") for row in rows]
    if not all(is_film[: sum(is_film)]):
        sys.exit(f"{path}: the film sentences are not its first rows, so ids would differ.")
    return [header, *rows[: sum(is_film)]]


def main(folder: Path) -> None:
    files = {}
    for split, count in KEPT.items():
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
            name = f"fashion-mnist/{split}-{kind}"
            files[f"{name}.xz"] = compressed(first_of_idx(folder / f"{name}.gz", count))
    lines = film_lines(folder / "snippets.tsv")
    texts = compressed(b"".join(lines))
    if sum(map(len, files.values())) + len(texts) > LIMIT:
        texts = compressed(b"".join(lines[: FEWER_SENTENCES + 1]))
    files["snippets.tsv.xz"] = texts

    for name, data in files.items():
        path = EMBEDDED / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        print(f"{len(data):>12,}  {name}")
    print(f"{sum(map(len, files.values())):>12,}  in all")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
