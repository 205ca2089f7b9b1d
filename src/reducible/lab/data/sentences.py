"""Short texts with the mean of twenty people's sentiment ratings (Hutto and Gilbert 2014)."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from reducible.lab.data._files import data_root, find_file, read_compressed
from reducible.types import DataError

_COLUMNS = ["source", "id", "rating", "text"]


@dataclass(frozen=True, slots=True, eq=False)
class Sentences:
    """N texts with ratings from −4 (very negative) to +4 (very positive)."""

    texts: list[str]
    ratings: Tensor  # [N] float32
    ids: Tensor  # [N] int64, the row in the full file, header not counted
    sources: list[str]  # where each text comes from: "movie", "amazon", "nyt" or "tweet"

    @property
    def targets(self) -> Tensor:
        """[N] int64: 1 if the rating is positive, else 0. Near 0, people disagree."""
        return (self.ratings > 0).long()

    def __len__(self) -> int:
        return len(self.texts)


def sentences(*, root: str | Path | None = None, sources: Sequence[str] = ("movie",)) -> Sentences:
    """The embedded sentences of film reviews, or those of any source from the full file.

    An id is the row in the full file; film sentences come first in it, so an id means the same
    sentence in both.

    Args:
        root: a folder with ``snippets.tsv``; by default what REDUCIBLE_DATA names, else the
            embedded data, which holds ``"movie"`` only.
        sources: any of ``"movie"``, ``"amazon"``, ``"nyt"``, ``"tweet"``.

    Raises:
        DataError: the file is missing or damaged, or has no text from one of ``sources``.
    """
    path = find_file(data_root(root), "snippets.tsv", "sentences()")
    rows = _read_rows(path)
    there = list(dict.fromkeys(source for source, *_ in rows))
    wanted = (sources,) if isinstance(sources, str) else tuple(sources)
    missing = [source for source in wanted if source not in there]
    if missing or not wanted:
        raise DataError(
            f"no text from {', '.join(missing) or 'no source'} in {path}; it has: "
            f"{', '.join(there)}. The embedded file has film sentences only: for the others give "
            "root= or REDUCIBLE_DATA, the folder of the full snippets.tsv."
        )
    kept = [(i, row) for i, row in enumerate(rows) if row[0] in wanted]
    return Sentences(
        texts=[row[3] for _, row in kept],
        ratings=torch.tensor([float(row[2]) for _, row in kept]),
        ids=torch.tensor([i for i, _ in kept]),
        sources=[row[0] for _, row in kept],
    )


def _read_rows(path: Path) -> list[list[str]]:
    """The rows below the header: four fields each, the third a finite number."""
    try:
        text = io.StringIO(read_compressed(path).decode("utf-8"), newline="")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8: {error}. Saved again by a spreadsheet? Get the original file "
            "again."
        ) from error
    # Fields hold quotation marks of their own, none of which quotes.
    lines = csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE)
    header = next(lines, [])
    if header != _COLUMNS:
        raise DataError(
            f"{path} has the columns {header}, not {_COLUMNS}. Another file of that name, or one "
            "without its header? Get the original file again."
        )
    rows = list(lines)
    for number, row in enumerate(rows, 2):
        if len(row) != len(_COLUMNS) or not _is_finite(row[2]):
            raise DataError(
                f"line {number} of {path} is not source, id, rating, text, parted by tabs: {row}. "
                "Saved again by a spreadsheet, or cut short? Get the original file again."
            )
    return rows


def _is_finite(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
