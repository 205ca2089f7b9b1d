"""Measures what looking up irreducible losses costs, in memory and on disk."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reducible.lab.bench.memory import own_memory_bytes
from reducible.lab.bench.rows import row
from reducible.lab.bench.training import N_CANDIDATES
from reducible.stores import IrreducibleLossStore, write_in_pieces


def lookup_time(rows: int) -> dict[str, Any]:
    """Microseconds per id of a look-up of 320 random ids in a dense store, warm."""
    store = IrreducibleLossStore.from_tensor(torch.zeros(rows))
    return row(f"store look-up, {rows:,} dense ids", _lookups(store), "µs per id")


def _lookups(store: IrreducibleLossStore) -> list[float]:
    """Microseconds per id of each of 50 look-ups that were made once before."""
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(len(store), (N_CANDIDATES,), generator=generator) for _ in range(50)]
    times: list[float] = []
    for ids in batches * 2:
        start = time.perf_counter()
        store.lookup(ids)
        times.append((time.perf_counter() - start) / N_CANDIDATES * 1e6)
    return times[len(batches) :]


def mapped_lookup(rows: int, *, free: int | None = None) -> list[dict[str, Any]]:
    """Measures the same in a store that is opened on disk, and the memory that this takes.

    The memory is what belongs to this process alone; pages of the file that the system keeps are
    given up if memory is short. ``free`` bytes of disk: those of the temporary folder.
    """
    what = f"store look-up, {rows:,} dense ids on disk"
    free = shutil.disk_usage(tempfile.gettempdir()).free if free is None else free
    needed = 4 * rows + 2**30
    if free < needed:
        return [row(f"{what}: left out, needs {needed / 1e9:.1f} GB", [free / 1e9], "GB free")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "store.safetensors")
        write_large_store(path, rows)
        before = own_memory_bytes()
        start = time.perf_counter()
        store = IrreducibleLossStore.load(path)
        opened = time.perf_counter() - start
        times = _lookups(store)
        grown = (own_memory_bytes() - before) / 2**20
    return [
        row(what, times, "µs per id"),
        row(f"{what}: opened, its checksum verified", [opened], "s"),
        row(f"{what}: own memory grown", [grown], "MiB"),
    ]


def write_large_store(path: Path, rows: int, *, piece: int = 1 << 24) -> None:
    """Write a dense store of made-up losses, of which no more than ``piece`` are in memory."""
    values = torch.rand(piece, generator=torch.Generator().manual_seed(0))

    def pieces() -> Iterator[Tensor]:
        for first in range(0, rows, piece):
            yield values[: rows - first]

    write_in_pieces(path, pieces(), rows)
