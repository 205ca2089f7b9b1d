"""Tells a rule of the rows that it drew blindly: what their training pass shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, final

import torch
from torch import Tensor

from reducible.ledger import Ledger
from reducible.loop.evidence import CONTEXT, EVAL, EvidenceSource, Moment
from reducible.scoring import CapturedPredictions, Measurement, Request
from reducible.selectors import Selector
from reducible.types import Candidates, Evidence, MissingEvidence, Selection


class _Listening(NamedTuple):
    """Rows that were drawn blindly, whose training pass is waited for."""

    step: int  # at which they were handed out
    seen: Callable[[], Evidence | None]  # their evidence, once there was a pass


@final
class Hindsight:
    """Tells a rule of the rows that it drew blindly, once the model was trained on them.

    Args:
        selector: is told by ``observe``; nothing happens if its ``hindsight`` is empty.
        source: of the evidence, whose model is listened to.
        ledger: charged for picking.
    """

    def __init__(self, selector: Selector, source: EvidenceSource, ledger: Ledger) -> None:
        self.wanted = bool(selector.hindsight)
        """Whether the rule learns so."""
        self._selector, self._source = selector, source
        self._picking = ledger.phase("pick")
        self._listening: _Listening | None = None  # to the rows handed out last
        self._told = False  # since the loop was made

    def listen(self, rows: Candidates, drawn: Moment, step: int) -> None:
        """Capture the training pass of ``rows``, which are handed out at ``step``.

        Costs no pass of its own.
        """
        needs = self._selector.hindsight | (self._selector.needs & CONTEXT)
        request = Request(needs, self._source.context(needs, drawn))
        model, task = self._source.model, self._source.task
        layers = "features" in needs
        # The rows are trained on anyway: their logits are read as that pass makes them.
        captured = CapturedPredictions(model, task, rows.ids.numel(), layers=layers)

        def seen() -> Evidence | None:
            if captured.replay is None:
                return None
            return Measurement(captured.replay, EVAL, task=task).measure(rows, request)

        self._listening = _Listening(step, seen)

    def tell(self) -> None:
        """Let the rule observe the rows, if their training pass was seen; once."""
        # Nothing yet is no error here: a state may be taken before the update.
        evidence = None if self._listening is None else self._listening.seen()
        if evidence is not None:
            self._listening, self._told = None, True
            with self._picking:
                self._selector.observe(evidence, all_rows(evidence.ids))

    def finish(self) -> None:
        """Tell it when the next batch is asked for.

        Raises:
            MissingEvidence: no training pass was seen, now or before.
        """
        self.tell()
        missed, self._listening = self._listening, None
        if missed is not None and not self._told:
            raise MissingEvidence(
                f"the selector drew the rows of step {missed.step} blindly, and learns when to "
                f"score from their training pass ({', '.join(sorted(self._selector.hindsight))}), "
                "but no pass with gradients over all of them was seen. Train the model that was "
                "given to the loop on chosen.batch in one piece. Where that cannot be (smaller "
                "parts, a model compiled inside, a task of one's own), take a rule that always "
                "scores, such as grad_norm_is with tau_gate=False."
            )

    def forget(self) -> None:
        """Listen no longer."""
        self._listening = None

    @property
    def listens(self) -> bool:
        """Whether the training pass of rows is waited for."""
        return self._listening is not None


def would_be_told(shadow: Selector, rows: Tensor) -> tuple[frozenset[str], Selection]:
    """Returns what a shadow is shown of the rows ([K]) that it drew blindly, and all of them."""
    return shadow.hindsight | (shadow.needs & CONTEXT), all_rows(rows)


def all_rows(like: Tensor) -> Selection:
    """A plain selection of as many rows as ``like`` has, on its device."""
    rows = torch.arange(like.numel(), device=like.device)
    return Selection(rows, torch.ones(like.numel(), device=like.device))
