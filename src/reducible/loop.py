"""The loop: a loader that hands out chosen rows, and the loss that goes with them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Protocol, final

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reducible.ledger import Ledger
from reducible.loaders import (
    Indices,
    Reordered,
    index_batches,
    order_state,
    rebuilt,
    set_order_state,
)
from reducible.measure import RUNS_THE_MODEL, Scoring, measure
from reducible.selectors import Choice, Look, Selector
from reducible.stores import IrreducibleLossStore, ids_of, labels_of, require_ids
from reducible.structure import gather, to_device
from reducible.tasks import Classification, Task, per_example
from reducible.types import (
    CONTEXT_KEYS,
    EVIDENCE_FIELDS,
    Candidates,
    ConfigurationError,
    DataError,
    Evidence,
)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The rows to train on."""

    batch: Any  # the loader's own structure, K rows, on the model's device
    ids: Tensor  # [K] int64
    weights: Tensor  # [K] for weighted_mean
    info: Mapping[str, Tensor]  # what the rule says of its choice, for the log


class PickLog(Protocol):
    """Where chosen ids are written; ``reducible.records.PickWriter`` is one."""

    def write(self, step: int, ids: Tensor, scores: Tensor | None, weights: Tensor | None) -> None:
        """One step's choice: [K] each."""
        ...


def weighted_mean(per_example_loss: Tensor, weight: Tensor) -> Tensor:
    """Σ w_i·L_i / K over the K rows given; never divided by Σ w, which would bias it.

    Args:
        per_example_loss: [K].
        weight: [K].

    Returns:
        [] of the loss's dtype.

    Raises:
        DataError: the loss is already reduced, or the shapes differ.

    >>> weighted_mean(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.5]))
    tensor(1.2500)
    """
    loss = per_example(per_example_loss, weight.shape[0])
    return (loss * weight.to(loss.dtype)).sum() / weight.shape[0]


@final
class SelectingLoader:
    """Wraps a loader of candidate batches; iterating yields the rows chosen from each.

    At every step the selector's evidence is measured on the n_B candidates, n_b of them are
    gathered on the model's device and handed out as ``Chosen``. The model's parameters, buffers,
    mode and the global random streams are as they were. A last, shorter candidate batch is
    dropped: it would shrink n_b.

    A rule that needs no evidence (``uniform``) over a plain DataLoader of a map-style data set
    draws its rows before they are loaded: the same candidates as every other rule sees, at the
    cost of the chosen ones alone.

    Args:
        loader: yields Candidates (``WithIds``), or mappings with ids under the key ``ids``.
        model: the model being trained.
        selector: ``reducible.selector(name)``.
        keep: n_b: rows per candidate batch (int), or a share of them (float).
        store: of irreducible losses, where the selector needs them.
        task: what batches mean; ``Classification()`` by default.
        ids: key of the ids, where batches are mappings.
        scoring: how candidates are scored; the paper's way by default.
        seed: of every choice; the same seed gives the same choices.
        ledger: charged for loading, scoring, picking and training (the time between handing out
            a batch and being asked for the next); one of its own by default.
        record: gets step, ids, scores and weights of every choice.
        total_steps: planned updates, for rules that need to know.

    Raises:
        ConfigurationError: a setting that cannot work.
        StoreError: the store is of other data.
    """

    def __init__(
        self,
        loader: Any,
        model: nn.Module,
        selector: Selector,
        *,
        keep: float,
        store: IrreducibleLossStore | None = None,
        task: Task | None = None,
        ids: str | None = None,
        scoring: Scoring | None = None,
        seed: int = 0,
        ledger: Ledger | None = None,
        record: PickLog | None = None,
        total_steps: int | None = None,
    ) -> None:
        self._loader = loader
        self._model = model
        self._selector = selector
        self._keep = keep
        self._store = store
        self._task = task or Classification()
        self._ids_key = ids
        self._scoring = scoring or Scoring()
        self._seed = seed
        self._record = record
        self._total_steps = total_steps
        self.ledger = ledger or Ledger()
        self._check_settings()

        self._n_candidates: int | None = None  # n_B: the first batch's size
        self._epoch = -1  # passes begun, from 0
        self._position = 0  # candidate batches of this pass that are done with
        self._step = 0  # batches handed out, over all passes
        self._order: dict[str, Any] | None = None  # where this pass's order began
        self._resuming = False
        self._forward_flops: dict[tuple[frozenset[str], int], float] = {}  # per candidate
        self.train_flops_per_example: float | None = None
        """Set it where measured; otherwise three times the scoring forward is counted."""

    # -- settings ------------------------------------------------------------------------------

    def _check_settings(self) -> None:
        if not isinstance(self._selector, Selector):
            raise ConfigurationError(
                f"selector is a {type(self._selector).__name__}; pass reducible.selector('rho')."
            )
        if not isinstance(self._model, nn.Module):
            raise ConfigurationError(f"model is a {type(self._model).__name__}, not a Module.")
        if not hasattr(self._loader, "__iter__"):
            raise ConfigurationError(f"loader is a {type(self._loader).__name__}, not iterable.")
        _check_keep(self._keep)
        size = getattr(self._loader, "batch_size", None)
        if isinstance(size, int):
            rows_to_keep(self._keep, size)
        dataset = getattr(self._loader, "dataset", None)
        if dataset is not None and hasattr(dataset, "__len__") and len(dataset) == 0:
            raise DataError("the loader's data set is empty.")
        self._check_needs()
        if self._store is not None and self._store.fingerprint and hasattr(dataset, "__len__"):
            try:
                here = ids_of(dataset)
            except DataError:
                return  # ids come from inside the batches: known only as they are loaded
            self._store.check_data(here, labels_of(dataset))

    def _check_needs(self) -> None:
        needs, store = self._selector.needs, self._store
        unknown = needs - set(EVIDENCE_FIELDS) - set(CONTEXT_KEYS)
        if unknown:
            raise ConfigurationError(f"the selector needs {sorted(unknown)}, which is no evidence.")
        for name, groups in (("irreducible_loss", False), ("group_irreducible_loss", True)):
            if name in needs and (store is None or (store.groups > 0) != groups):
                got = "no store" if store is None else f"a store with {store.groups} groups"
                fit = "fit_group_irreducible_loss" if groups else "fit_irreducible_loss"
                raise ConfigurationError(
                    f"the selector needs {name!r}, got {got}. Fit one with reducible.{fit}(…), or "
                    "load it, and pass store=…."
                )
        if "total_steps" in needs and self._total_steps is None:
            raise ConfigurationError("the selector needs total_steps=<planned updates>.")

    # -- iteration -----------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The pass over the candidates that runs, from 0; −1 before the first."""
        return self._epoch

    @property
    def step(self) -> int:
        """Batches handed out so far, over all passes."""
        return self._step

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Chosen]:
        device = next(self._model.parameters(), torch.empty(0)).device
        generator = torch.Generator(device=device)
        for candidates, drawn in self._candidate_batches():
            with self.ledger.phase("load"):
                require_ids(candidates.ids)
                here = Candidates(candidates.ids, to_device(candidates.batch, device))
            with self.ledger.phase("pick"):
                chosen = (
                    Chosen(here.batch, here.ids.to(device), _ones(here.ids, device), {})
                    if drawn
                    else self._choose(here, generator)
                )
                self._hand_out(chosen)
            self.ledger.enter("train")
            try:
                yield chosen
            finally:
                self.ledger.leave()

    def _choose(self, candidates: Candidates, generator: torch.Generator) -> Chosen:
        size = candidates.ids.numel()
        k = rows_to_keep(self._keep, size)
        generator.manual_seed(stream_seed(self._seed, self._step))
        choice: Choice = self._selector.choose(self._look(candidates), k, generator=generator)
        self._selector.observe(choice.evidence, choice.selection)
        index, weight = choice.selection.index, choice.selection.weight
        return Chosen(
            batch=gather(candidates.batch, choice.positions, size),
            ids=choice.evidence.ids[index],
            weights=weight,
            info=choice.selection.info,
        )

    def _hand_out(self, chosen: Chosen) -> None:
        if self._record is not None:
            score = chosen.info.get("score")
            self._record.write(self._step, chosen.ids, score, chosen.weights)
        rows = chosen.ids.numel()
        counts = self.ledger.counts
        counts.updates += 1
        counts.examples_trained += rows
        if self.train_flops_per_example is not None:
            counts.flops_train += int(rows * self.train_flops_per_example)
        elif self._forward_flops:
            counts.flops_train += int(rows * 3 * min(self._forward_flops.values()))
        self._position += 1
        self._step += 1

    def _look(self, candidates: Candidates) -> Look:
        """What a selector measures this candidate batch with."""

        def look(
            needs: frozenset[str], rows: Tensor | None = None, *, samples: int = 0
        ) -> Evidence:
            with self.ledger.phase("score"):
                ids, batch = candidates
                if rows is not None:
                    batch = gather(batch, rows, ids.numel())
                    ids = ids[rows.to(ids.device)]
                return self._measure(Candidates(ids, batch), needs, samples)

        return look

    def _measure(self, candidates: Candidates, needs: frozenset[str], samples: int) -> Evidence:
        def run() -> Evidence:
            return measure(
                self._model,
                candidates,
                needs,
                self._scoring,
                task=self._task,
                store=self._store,
                context=self._context(needs),
                samples=samples,
                seed=stream_seed(self._seed, self._step),
            )

        if not needs & RUNS_THE_MODEL:
            return run()
        size, kind = candidates.ids.numel(), (needs, samples)
        if kind in self._forward_flops:
            evidence = run()
        else:
            with FlopCounterMode(display=False) as counter:
                evidence = run()
            self._forward_flops[kind] = counter.get_total_flops() / size
        passes = max(samples, 1) if "mc_logits" in needs else 1
        counts = self.ledger.counts
        counts.forwards_scored += passes
        counts.examples_scored += size * passes
        counts.flops_score += int(size * self._forward_flops[kind])
        return evidence

    def _context(self, needs: frozenset[str]) -> dict[str, Tensor]:
        known = {"step": self._step, "epoch": self._epoch, "total_steps": self._total_steps}
        return {
            name: torch.tensor(value, dtype=torch.int64)
            for name, value in known.items()
            if name in needs and value is not None
        }

    # -- candidates ----------------------------------------------------------------------------

    def _candidate_batches(self) -> Iterator[tuple[Candidates, bool]]:
        """Full candidate batches of one pass, and whether their rows were drawn already."""
        order = index_batches(self._loader)
        draws = order is not None and not self._selector.needs
        with self.ledger.phase("load"):
            iterator, skip = self._open(order, draws)
        while True:
            with self.ledger.phase("load"):
                try:
                    candidates = self._unpack(next(iterator))
                except StopIteration:
                    break
            if skip > 0:
                skip -= 1
                continue
            size = candidates.ids.numel()
            if not draws:
                if self._n_candidates is None:
                    rows_to_keep(self._keep, size)
                    self._n_candidates = size
                if size < self._n_candidates:
                    continue
            yield candidates, draws
        self._order, self._position = None, 0

    def _open(self, order: Any, draws: bool) -> tuple[Iterator[Any], int]:
        """An iterator over the loader, at the saved position where a pass is resumed.

        Also says how many batches to load and pass over, where the order cannot be read ahead.
        """
        resuming, self._resuming = self._resuming, False
        mine = torch.get_rng_state()
        if resuming and self._order is not None:
            set_order_state(self._loader, self._order)
            torch.set_rng_state(self._order["global"])
        else:
            self._epoch += 1
            self._position = 0
            self._order = order_state(self._loader)
        try:
            if order is None:
                return iter(self._loader), self._position
            if not resuming and not draws:
                return iter(self._loader), 0
            ahead = Reordered(order, self._position, self._draw_rows if draws else _as_it_is)
            iterator = iter(rebuilt(self._loader, ahead))
            if resuming:
                ahead.prime()
            return iterator, 0
        finally:
            if resuming:
                torch.set_rng_state(mine)

    def _draw_rows(self, position: int, indices: Indices) -> Indices | None:
        """Rows of one candidate batch by a rule that needs no evidence; None drops the batch."""
        size = len(indices)
        if self._n_candidates is None:
            self._n_candidates = size
        if size < self._n_candidates:
            return None
        k = rows_to_keep(self._keep, size)
        # The step this batch will have: workers read ahead of the one that is trained on.
        step = self._step + position - self._position
        generator = torch.Generator().manual_seed(stream_seed(self._seed, step))
        evidence = Evidence(ids=torch.arange(size))
        selection = self._selector.select(evidence, k, generator=generator)
        return [indices[i] for i in selection.index.tolist()]

    def _unpack(self, batch: Any) -> Candidates:
        if isinstance(batch, Candidates):
            return batch
        if self._ids_key is not None and isinstance(batch, Mapping) and self._ids_key in batch:
            return Candidates(batch[self._ids_key], batch)
        what = type(batch).__name__
        if isinstance(batch, Mapping):
            what += f" with keys {sorted(map(str, batch))}"
        raise DataError(
            f"the loader's batches carry no ids: got {what}. Wrap the data set as "
            "reducible.WithIds(dataset), or name the key that holds them with ids=…."
        )

    # -- state ---------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """All that is needed to go on as if never stopped.

        Take it after the update on the batch handed out last. The model, the optimizer and the
        global random streams are the caller's to save.
        """
        return {
            "epoch": self._epoch,
            "position": self._position,
            "step": self._step,
            "n_candidates": self._n_candidates,
            "order": self._order or order_state(self._loader),
            "inside": self._order is not None,
            "selector": self._selector.state_dict(),
            "ledger": self.ledger.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from ``state``: the next iteration continues the pass it was taken in."""
        self._epoch = state["epoch"]
        self._position = state["position"]
        self._step = state["step"]
        self._n_candidates = state["n_candidates"]
        self._order = state["order"] if state["inside"] else None
        self._resuming = state["inside"]
        if not state["inside"]:
            set_order_state(self._loader, state["order"])
        self._selector.load_state_dict(state["selector"])
        self.ledger.load_state_dict(state["ledger"])


def rows_to_keep(keep: float, candidates: int) -> int:
    """n_b for a candidate batch of ``candidates`` rows.

    >>> rows_to_keep(0.1, 320), rows_to_keep(16, 320)
    (32, 16)
    """
    k = int(keep) if isinstance(keep, Integral) else math.floor(keep * candidates + 0.5)
    if k < 1:
        raise ConfigurationError(
            f"keep={keep} of {candidates} candidates rounds to no row at all. Raise keep, or the "
            "loader's batch size."
        )
    if k > candidates:
        raise ConfigurationError(
            f"keep={keep} rows, but the candidate batch has {candidates}. Give the loader the "
            "larger batch size n_B; keep is what is trained on."
        )
    return k


def _check_keep(keep: float) -> None:
    whole = isinstance(keep, Integral) and not isinstance(keep, bool)
    if not whole and (not isinstance(keep, Real) or isinstance(keep, bool)):
        raise ConfigurationError(f"keep must be a number of rows or a share, got {keep!r}.")
    if (whole and keep < 1) or (not whole and not 0 < keep <= 1):
        raise ConfigurationError(
            f"keep must be at least 1 row (int) or a share in (0, 1] (float), got {keep!r}."
        )


def stream_seed(seed: int, step: int) -> int:
    """A seed of its own for every step, so that a choice depends on (seed, step) alone."""
    x = (seed * 0x9E3779B97F4A7C15 + step + 1) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
    return (x ^ (x >> 31)) & 0x7FFFFFFFFFFFFFFF


def _as_it_is(position: int, indices: Indices) -> Indices:
    return indices


def _ones(ids: Tensor, device: torch.device) -> Tensor:
    return torch.ones(ids.numel(), device=device)
