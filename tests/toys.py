"""What several tests need: runs that are killed at a step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from reducible.lab.training import Trainer


class Killed(Exception):
    """Ends a run as a signal would that nobody can handle."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Any run in the body is killed in the ``step``-th update, before its optimizer steps."""
    inner = Trainer._counted

    def counted(self: Trainer, update: Callable[[], Tensor], rows: int) -> Tensor:
        if self.step == step:
            raise Killed
        return inner(self, update, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_counted", counted)
        with pytest.raises(Killed):
            yield
