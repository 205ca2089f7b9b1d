"""Rules that decide by epoch: which examples an epoch trains on, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from reducible.batches import device_of, to_device
from reducible.loading.order import index_batches
from reducible.scoring import Scoring, measure
from reducible.selectors import Selector
from reducible.stores import LossMemory, ids_of, require_ids
from reducible.tasks import Task
from reducible.types import Candidates, ConfigurationError, Evidence, Selection, SelectionError

_CHUNK = 1024  # rows that a proxy scores at once


@final
class EpochPlanner:
    """Asks a rule with horizon ``"epoch"`` or ``"run"`` which examples the next epoch holds.

    It plans over the rows that the loader's own sampler yields, see ``planned_positions``.

    Args:
        selector: the rule.
        loader: a plain DataLoader over a map-style data set with ids.
        n_b: rows per update.
        share: of those rows that an epoch trains on, n_b / n_B.
        proxy: scores all of them once, for rules that read logits (``svp``).
        task: what batches mean.

    Raises:
        ConfigurationError: a sampler that cannot be planned over, or too few rows for an update.
        DataError: the data set has no ids, or an id twice.
    """

    def __init__(
        self,
        selector: Selector,
        loader: DataLoader[Any],
        *,
        n_b: int,
        share: float,
        proxy: nn.Module | None,
        task: Task,
    ) -> None:
        self._selector = selector
        self._loader = loader
        ids = ids_of(loader.dataset)
        self._positions = planned_positions(loader)  # [N] in the data set
        self._ids = ids[self._positions]  # [N]
        require_ids(self._ids)
        self._n_b = n_b
        # Rounded half up, as `keep` is; never more than there are.
        self._k = min(len(self._ids), max(1, int(share * len(self._ids) + 0.5)))
        if self._k < n_b:
            raise ConfigurationError(
                f"an epoch would train on {self._k} of {len(self._ids)} rows, which fill no update "
                f"of {n_b}. Give the loader a smaller batch size, or more rows."
            )
        self._proxy, self._task = proxy, task
        if "logits" in selector.needs and proxy is None:
            raise ConfigurationError(
                "the selector scores the whole data set with a proxy model: pass proxy=<model "
                "trained on the train set>, e.g. from reducible.fit_proxy(…)."
            )
        self._memory = LossMemory(self._ids) if "loss" in selector.needs else None
        self._index = torch.empty(0, dtype=torch.int64)  # [M] of the N rows, in this epoch's order
        self._weights = torch.empty(0)  # [M]
        self._updates = 0  # of this epoch
        self._evidence: Evidence | None = None  # of this epoch, until the rule has observed it
        self._once: Selection | None = None  # the choice of a rule that decides once a run

    def remember(self, ids: Tensor, loss: Tensor, step: int) -> None:
        """Keep the losses of rows that were trained on."""
        if self._memory is not None:
            self._memory.remember(ids, loss, step)

    def plan(
        self, *, epoch: int, step: int, total_steps: int | None, generator: torch.Generator
    ) -> None:
        """Decide the next epoch and its order."""
        chosen, ends = self._once, None
        if chosen is None:
            evidence = self._measured(epoch, step, total_steps)
            chosen = self._selector.select(evidence, self._k, generator=generator)
            ends = self._selector.ends_at(evidence, chosen)
            # It has seen all that it ever will, and its evidence is as large as the data.
            if self._selector.horizon == "run":
                self._selector.observe(evidence, chosen)
                self._once = Selection(chosen.index, chosen.weight)
            else:
                self._evidence = evidence
        self._index, self._weights = chosen.index, chosen.weight
        # A rule chooses a set; an order by score would make batches of a kind.
        if not self._selector.keeps_order:
            order = torch.randperm(self._index.numel(), generator=generator)
            self._index, self._weights = self._index[order], self._weights[order]
        self._updates = self._index.numel() // self._n_b
        if self._updates == 0:
            raise SelectionError(
                f"the selector leaves {self._index.numel()} of {len(self._ids)} rows for this "
                f"epoch, which fill no update of {self._n_b}. Give the loader a smaller batch size."
            )
        if ends is not None:
            self._updates = min(self._updates, ends - step)

    def end_epoch(self, updates: int) -> None:
        """Let the rule observe the rows of the epoch's first ``updates`` updates.

        They are what was handed out; the others were planned, but nobody trained on them. Does
        nothing if no epoch has begun.
        """
        # Taken away first, so that a second end changes nothing.
        evidence, self._evidence = self._evidence, None
        if evidence is not None and updates > 0:
            rows = updates * self._n_b
            self._selector.observe(evidence, Selection(self._index[:rows], self._weights[:rows]))

    def _measured(self, epoch: int, step: int, total_steps: int | None) -> Evidence:
        known = {"step": step, "epoch": epoch, "total_steps": total_steps}
        context = {n: torch.tensor(v) for n, v in known.items() if v is not None}
        loss = None
        if self._memory is not None:
            if epoch > 0 and self._memory.empty:
                raise SelectionError(
                    "the rule reads remembered losses, and an epoch has passed without any. After "
                    "each forward call batches.remember(chosen.ids, per_example_loss)."
                )
            loss = self._memory.in_data_order
        logits = self._proxy_logits() if "logits" in self._selector.needs else None
        return Evidence(ids=self._ids, loss=loss, logits=logits, context=context)

    def _proxy_logits(self) -> Tensor:
        """[N, C] of the proxy in eval mode."""
        assert self._proxy is not None
        device = device_of(self._proxy)
        parts: list[Tensor] = []
        for ids, batch in _in_order(self._loader, self._positions):
            here = Candidates(ids, to_device(batch, device))
            needs, scoring = frozenset({"logits"}), Scoring(batchnorm="running")
            evidence = measure(self._proxy, here, needs, scoring, task=self._task)
            parts.append(evidence.require("logits").cpu())
        return torch.cat(parts)

    def __len__(self) -> int:
        """Updates of the epoch planned last; before that, of the rows that will be asked for."""
        return self._updates or self._k // self._n_b

    def batches(self) -> list[list[int]]:
        """Positions in the data set of each update of this epoch; a last short one is dropped."""
        rows = self._index[: self._updates * self._n_b]
        return self._positions[rows].view(-1, self._n_b).tolist()

    def weights(self, batch: int) -> Tensor:
        """[K] of the batch-th update of this epoch."""
        return self._weights[batch * self._n_b : (batch + 1) * self._n_b]

    def state_dict(self) -> dict[str, Any]:
        """The epoch's plan and what the rule has yet to observe, losses, a choice made once."""
        evidence, once = self._evidence, self._once
        return {
            "index": self._index,
            "weights": self._weights,
            "updates": self._updates,
            "evidence": None
            if evidence is None
            else {
                "loss": evidence.loss,
                "logits": evidence.logits,
                "context": dict(evidence.context),
            },
            "memory": self._memory.state_dict() if self._memory else None,
            "once": None if once is None else {"index": once.index, "weight": once.weight},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over plan, losses and choice."""
        self._index, self._weights = state["index"], state["weights"]
        self._updates = state["updates"]
        seen, once = state["evidence"], state["once"]
        self._evidence = None if seen is None else Evidence(ids=self._ids, **seen)
        if self._memory is not None:
            self._memory.load_state_dict(state["memory"])
        self._once = None if once is None else Selection(**once)


def planned_positions(loader: DataLoader[Any]) -> Tensor:
    """[N] int64: positions in the data set that the loader's sampler yields, each once an epoch.

    Known of torch's samplers that walk over data or over given positions, of plain sequences of
    positions, and of samplers that say it themselves by an attribute ``each_once`` ([N] int64).

    Raises:
        ConfigurationError: any other sampler, by name, or positions outside the data set.
    """
    batches = index_batches(loader)
    order: Any = batches.sampler if type(batches) is BatchSampler else batches
    positions = _each_once(order)
    if positions is None:
        raise ConfigurationError(
            f"the selector decides by epoch, so it plans the order of the rows that the loader's "
            f"sampler yields once an epoch, but {_why_not(order)}. Take the rows to train on as "
            "Subset(dataset, positions), with shuffle=True in place of the sampler; or a selector "
            "that decides by candidate batch."
        )
    size = len(loader.dataset)  # pyright: ignore[reportArgumentType]
    outside = positions[(positions < 0) | (positions >= size)]
    if outside.numel():
        raise ConfigurationError(
            f"the loader's {type(order).__name__} yields position {int(outside[0])} of a data set "
            f"of {size} rows. Was it made for another data set, or from ids?"
        )
    return positions


def _each_once(order: Any) -> Tensor | None:
    """[N] int64; None if ``order`` is not known to yield some positions once each."""
    if type(order) is SequentialSampler:
        return torch.arange(len(order.data_source))
    if type(order) is RandomSampler:
        rows = len(order.data_source)  # pyright: ignore[reportArgumentType]
        return None if order.replacement or order.num_samples != rows else torch.arange(rows)
    if type(order) is SubsetRandomSampler:
        return torch.as_tensor(order.indices, dtype=torch.int64)
    if isinstance(order, list | tuple | range | Tensor):
        return torch.as_tensor(order, dtype=torch.int64)
    return getattr(order, "each_once", None)


def _why_not(order: Any) -> str:
    name = type(order).__name__
    if isinstance(order, DistributedSampler):
        return f"{name} gives each rank other rows every epoch (a Subset per rank stays the same)"
    if isinstance(order, WeightedRandomSampler) or getattr(order, "replacement", False):
        return f"{name} draws with replacement"
    if type(order) is RandomSampler:
        return f"{name} draws num_samples={order.num_samples} rows, others every epoch"
    if hasattr(order, "each_once"):
        return f"this {name} draws some rows more often than others"
    return f"of {name} it does not know which those are"


def _in_order(loader: DataLoader[Any], positions: Tensor) -> Iterator[Any]:
    """Batches of the rows at ``positions``, collated as the loader does."""
    chunks = [chunk.tolist() for chunk in positions.split(_CHUNK)]
    batching: dict[str, Any] = (
        {"batch_sampler": chunks}
        if loader.batch_sampler is not None
        else {"batch_size": None, "sampler": chunks}
    )
    generator = torch.Generator()  # a DataLoader draws a seed even if nothing is random
    return iter(
        DataLoader(loader.dataset, **batching, collate_fn=loader.collate_fn, generator=generator)
    )
