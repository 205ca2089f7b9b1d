"""The ledger: what a run cost. Seconds by phase, examples, forwards, FLOPs, peak memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, final, get_args

Phase = Literal["irreducible_loss", "load", "score", "pick", "train", "evaluate"]
PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(slots=True)
class Counts:
    """Counts what was done, apart from how long it took."""

    examples_scored: int = 0
    examples_trained: int = 0
    forwards_scored: int = 0
    updates: int = 0
    flops_irreducible_loss: int = 0
    flops_score: int = 0
    flops_train: int = 0


@final
class Ledger:
    """Charges every second to exactly one phase; a phase inside another suspends the outer one.

    Args:
        clock: seconds, monotonic. On an accelerator the host's clock charges the waiting to the
            phase that waits; totals are right wherever a run ends with a synchronisation.

    >>> ticks = iter([0.0, 1.0, 4.0, 9.0])
    >>> ledger = Ledger(clock=lambda: next(ticks))
    >>> with ledger.phase("train"):
    ...     with ledger.phase("evaluate"):
    ...         pass
    >>> ledger.seconds["train"], ledger.seconds["evaluate"]
    (6.0, 3.0)
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._stack: list[Phase] = []  # phases begun, the one that runs last
        self._mark = 0.0  # seconds up to here are charged
        self._phases = {name: _Phase(self, name) for name in PHASES}
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self.counts = Counts()

    def now(self) -> float:
        """Seconds on the ledger's clock."""
        return self._clock()

    def phase(self, name: Phase) -> _Phase:
        """Charge the time of the body to ``name``; may be kept, and entered again and again."""
        return self._phases[name]

    @property
    def total(self) -> float:
        """Seconds of all phases, evaluation included."""
        return sum(self.seconds.values())

    @property
    def charged(self) -> float:
        """Seconds of all phases but evaluation: what reaching a target costs."""
        return self.total - self.seconds["evaluate"]

    def summary(self) -> dict[str, Any]:
        """Seconds by phase with their total, counts, and the peak memory in bytes if known."""
        return {
            "seconds": {**self.seconds, "total": self.total},
            **asdict(self.counts),
            "peak_memory_bytes": peak_memory_bytes(),
        }

    def state_dict(self) -> dict[str, Any]:
        """Seconds and counts so far."""
        return {"seconds": dict(self.seconds), "counts": asdict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved ledger."""
        self.seconds = dict(state["seconds"])
        self.counts = Counts(**state["counts"])


class _Phase:
    """Time charged to one phase; made once, for it is entered at every step."""

    __slots__ = ("_ledger", "_name")

    def __init__(self, ledger: Ledger, name: Phase) -> None:
        self._ledger = ledger
        self._name: Phase = name

    def __enter__(self) -> None:
        ledger = self._ledger
        now = ledger._clock()
        if ledger._stack:
            ledger.seconds[ledger._stack[-1]] += now - ledger._mark
        ledger._stack.append(self._name)
        ledger._mark = now

    def __exit__(self, *_: object) -> None:
        ledger = self._ledger
        now = ledger._clock()
        ledger.seconds[ledger._stack.pop()] += now - ledger._mark
        ledger._mark = now


def peak_memory_bytes() -> int | None:
    """Largest resident size of this process so far; None on systems that do not tell (Windows)."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
