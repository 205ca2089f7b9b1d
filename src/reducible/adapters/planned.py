"""A loader whose epochs are as long as without selection; what trainers' loaders have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.utils.data import DataLoader

from reducible.adapters.candidates import (
    candidates_like,
    here,
    state_of_all_ranks,
    state_of_this_rank,
)
from reducible.adapters.micro_batches import endless, micro_batches, planned_batches
from reducible.loop import Chosen, SelectingLoader, SelectionMetrics
from reducible.scoring import Scoring
from reducible.selectors import Selector, selector
from reducible.stores import IrreducibleLossStore
from reducible.tasks import Classification, Task
from reducible.types import require_between


class PlannedLoader:
    """Hands out chosen rows in batches of the size, and as many an epoch, as without selection.

    The candidates are passed over 1/``keep`` times an epoch. Where gradients accumulate, the rows
    of an update are chosen together. Under several processes each chooses from candidates of its
    own, and its state is saved with all others'.

    Args:
        model: is trained, and scores.
        loader: a DataLoader as it is without selection.
        rule: a rule, or its name.
        keep: share of the candidates to train on, in (0, 1].
        store: irreducible losses, for rules that read them.
        task: what batches mean; ``Classification()``.
        seed: of the order and of every choice.
        options: of SelectingLoader: ``scoring``, ``gate``, ``held_out``, ``shadows``, ….

    Raises:
        ConfigurationError: settings that do not go together.

    Attributes:
        batches: the SelectingLoader, once training has begun: its ledger and gate.
        metrics: figures of what is chosen; those passed as ``record=``, if they are such.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: DataLoader[Any],
        rule: Selector | str,
        *,
        keep: float,
        store: IrreducibleLossStore | None = None,
        task: Task | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        require_between("keep", keep, 0.0, 1.0, open_low=True)
        self._model, self._loader, self._keep, self._seed = model, loader, keep, seed
        self._rule = selector(rule) if isinstance(rule, str) else rule
        self._store, self._options = store, options
        self.task = task or Classification()
        record = options.get("record")
        given = isinstance(record, SelectionMetrics)
        self.metrics = record if given else SelectionMetrics(store=store)
        self.batches: SelectingLoader | None = None
        self._chosen: Iterator[Chosen] | None = None
        self._state: Mapping[str, Any] | None = None  # to go on from
        self._done = 0  # batches of this epoch
        self._resuming = False
        candidates_like(loader, keep, seed=seed)  # what cannot work is told now

    @property
    def accumulated(self) -> int:
        """Batches that an update is made of."""
        return 1

    def _late_options(self) -> dict[str, Any]:
        """Options of SelectingLoader that are known once training begins."""
        return {}

    def __len__(self) -> int:
        """Batches of an epoch: as many as the loader has, of whole updates."""
        rows = len(self._loader.sampler)  # pyright: ignore[reportArgumentType]
        each = (self._loader.batch_size or 1) * here()[1]
        return planned_batches(rows, each, self.accumulated, drop_last=self._loader.drop_last)

    def __iter__(self) -> Iterator[Any]:
        chosen, parts, batches = self._stream(), self.accumulated, len(self)
        if not self._resuming:
            self._done = 0  # an epoch may have been broken off
        self._resuming = False
        for _ in range((batches - self._done) // parts):
            for part in self._parts(next(chosen), parts):
                # Counted before it is handed out: a checkpoint in between is past it.
                self._done = (self._done + 1) % batches
                yield self._handed_out(part)

    def _handed_out(self, part: Chosen) -> Any:
        """Returns what the trainer gets of a micro-batch."""
        return part

    def _parts(self, chosen: Chosen, parts: int) -> Iterator[Chosen]:
        rows = chosen.ids.numel()
        done = 0
        for part in micro_batches(chosen, parts, self.task):
            where = slice(done, done + len(part.ids))
            done += len(part.ids)
            info = {n: v[where] if v.shape[:1] == (rows,) else v for n, v in chosen.info.items()}
            yield Chosen(part.batch, part.ids, part.weights, info, chosen.shadows)

    def _stream(self) -> Iterator[Chosen]:
        """Yields what is chosen, pass after pass; made when the model is where it trains."""
        if self._chosen is not None:
            return self._chosen
        parts = self.accumulated
        options: dict[str, Any] = {
            "scoring": Scoring(batchnorm="running"),
            "record": self.metrics,
            "task": self.task,
            **self._late_options(),
            **self._options,
        }
        self.batches = SelectingLoader(
            candidates_like(self._loader, self._keep, seed=self._seed, updates=parts),
            self._model,
            self._rule,
            keep=(self._loader.batch_size or 1) * parts,
            store=self._store,
            seed=self._seed,
            **options,
        )
        self.metrics.ledger = self.batches.ledger
        if self._state is not None:
            self.batches.load_state_dict(state_of_this_rank(self._state))
            self._state = None
        self._chosen = endless(self.batches)
        return self._chosen

    def remember(self, ids: Any, per_example_loss: Any) -> None:
        """Report the losses ([K]) of rows that are trained on, for rules that remember them."""
        assert self.batches is not None
        self.batches.remember(ids, per_example_loss)

    def state_dict(self) -> dict[str, Any]:
        """Saves where the candidates are, and all that the rule has seen; of every process."""
        state = None if self.batches is None else self.batches.state_dict()
        made = {} if state is None else state_of_all_ranks(state)
        return {"done": self._done, "selection": made}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state with the next iteration."""
        self._done, self._resuming = state["done"], True
        self._state = state["selection"] or None
        self._chosen = None
