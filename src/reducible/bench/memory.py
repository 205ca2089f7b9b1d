"""What memory this process has."""

from __future__ import annotations

import os

from reducible.ledger import peak_memory_bytes


def resident_bytes() -> int:
    """Resident size of this process now; its peak where /proc is not there."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except FileNotFoundError:
        return peak_memory_bytes()


def own_memory_bytes() -> int:
    """Memory of this process that no file backs; all of it where /proc does not tell."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["RssAnon"].split()[0]) * 1024
    except (FileNotFoundError, KeyError):
        return resident_bytes()
