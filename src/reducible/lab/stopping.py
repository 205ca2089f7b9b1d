"""Signals that ask a run to end: it writes a checkpoint first, and says by what it was ended."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import final

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


@final
class Stopped(SystemExit):
    """The process was asked to end; its exit status is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.number = number
        self.folder: Path | None = None
        """Of a run that wrote a checkpoint."""


@final
class Stopping:
    """Whether the process was asked to end by SIGTERM or SIGINT.

    The first signal raises ``Stopped`` at once, or, inside ``later``, is kept until asked for with
    ``raise_if_asked``. A second one always raises at once.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._waits = False
        self._process = os.getpid()

    @property
    def asked(self) -> bool:
        """Whether a signal has come that was kept."""
        return self._number is not None

    def raise_if_asked(self, folder: Path) -> None:
        """Raise the ``Stopped`` of a signal that was kept, for a run in ``folder``."""
        if self._number is not None:
            stopped = Stopped(self._number)
            stopped.folder = folder
            raise stopped

    @contextmanager
    def later(self) -> Iterator[None]:
        """Keeps a signal that comes in the body."""
        self._waits = True
        try:
            yield
        finally:
            self._waits = False

    def _handle(self, number: int, _: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked and got the handler with it
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        if self.asked or not self._waits:
            raise Stopped(number)
        self._number = number


@contextmanager
def stopping() -> Iterator[Stopping]:
    """Notices signals in the body; only in the main thread, as others get none.

    A signal that is ignored stays so.
    """
    noticed = Stopping()
    if threading.current_thread() is not threading.main_thread():
        yield noticed
        return
    heard = [n for n in _SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, noticed._handle) for number in heard}
    try:
        yield noticed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
