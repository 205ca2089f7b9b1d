"""A row of the benchmark: what was measured, its median and its spread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any


def row(what: str, values: list[float], unit: str) -> dict[str, Any]:
    """``values`` as their median, least and most, to four places."""
    return {
        "what": what,
        "median": round(statistics.median(values), 4),
        "unit": unit,
        "min": round(min(values), 4),
        "max": round(max(values), 4),
        "runs": len(values),
    }


def milliseconds(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes once."""
    began = time.perf_counter()
    work()
    return (time.perf_counter() - began) * 1e3
