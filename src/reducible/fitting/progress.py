"""The bar that a fit is shown in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

if TYPE_CHECKING:
    from rich.progress import Progress


@final
class FitProgress:
    """Shows one task of one bar for several fits; nothing if rich is not installed.

    Args:
        progress: whether to show a new bar, or the rich Progress to show it in.
        fits: how many there will be.
        title: of the task.
    """

    def __init__(
        self, progress: bool | Progress, fits: int, title: str = "fitting irreducible losses"
    ) -> None:
        own = isinstance(progress, bool)
        self._bar: Progress | None = _new_bar(shown=bool(progress)) if own else progress
        self._own, self._fits, self._title = own, fits, title
        self._task: Any = None

    def __enter__(self) -> None:
        if self._own and self._bar is not None:
            self._bar.start()

    def __exit__(self, *_: object) -> None:
        if self._own and self._bar is not None:
            self._bar.stop()

    def begin(self, updates: int) -> None:
        """Begins a fit of so many updates; each fit has as many as the first."""
        if self._bar is not None and self._task is None:
            total = self._fits * updates
            self._task = self._bar.add_task(self._title, total=total)

    def advance(self) -> None:
        """One update is done."""
        if self._bar is not None:
            self._bar.advance(self._task)


def _new_bar(*, shown: bool) -> Progress | None:
    if not shown:
        return None
    try:
        from rich.progress import Progress
    except ImportError:
        return None
    return Progress()
