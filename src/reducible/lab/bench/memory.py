"""Reads how much memory this process has."""

from __future__ import annotations

import os

from reducible.ledger import peak_memory_bytes
from reducible.types import ReducibleError


def resident_bytes() -> int:
    """Resident size of this process now; its peak if /proc is not there."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        peak = peak_memory_bytes()
        if peak is None:
            raise ReducibleError(
                "this system tells neither the resident nor the peak memory of a process, so what "
                "a store takes cannot be measured on it. Measure on Linux or macOS."
            ) from None
        return peak


def own_memory_bytes() -> int:
    """Memory of this process that no file backs; all of it if /proc does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["RssAnon"].split()[0]) * 1024
    except (FileNotFoundError, KeyError):
        return resident_bytes()
