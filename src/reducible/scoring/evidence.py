"""(model, candidates, needs, settings) → evidence. Nothing else runs a model to score."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final
from weakref import WeakSet

import torch
from torch import Tensor, nn

from reducible.batches import beside, gather
from reducible.scoring.forward import Pass, compiled
from reducible.scoring.settings import Scoring
from reducible.stores import IrreducibleLossStore
from reducible.tasks import Classification, Task, per_example
from reducible.types import Candidates, DataError, Evidence

_ROWS_PER_PASS = 4096  # of repeated candidates in one batched pass with dropout on
_LABELLED = frozenset({"targets", "loss", "groups"})
ONE_PASS = frozenset({"loss", "logits", "features"})
RUNS_THE_MODEL = ONE_PASS | {"mc_logits"}
_has_dropout: WeakSet[nn.Module] = WeakSet()


def measure(
    model: nn.Module,
    candidates: Candidates,
    needs: frozenset[str],
    scoring: Scoring | None = None,
    *,
    task: Task | None = None,
    store: IrreducibleLossStore | None = None,
    groups: Tensor | None = None,
    context: Mapping[str, Tensor] | None = None,
    samples: int = 0,
    seed: int = 0,
) -> Evidence:
    """Measure what ``needs`` names of ``candidates``, and nothing else.

    Leaves every parameter, buffer (but in ``"reference"``), module mode and global random stream
    as it found them; builds no graph and moves nothing off the device. What the model caches or
    makes in the pass is fit for training: the pass is not under inference mode.

    Args:
        model: on the device of the batch.
        candidates: ids [B] int64, on the CPU if a store is looked up; the batch anywhere.
        needs: names of Evidence fields and context keys.
        scoring: how; the default is the paper's.
        task: what the batch means; ``Classification()`` by default.
        store: of irreducible losses, one column for ``irreducible_loss``, G for groups.
        groups: [B] int64; the targets if None.
        context: what is known of the run (step, epoch, …).
        samples: dropout passes for ``mc_logits``.
        seed: of the dropout passes.

    Raises:
        StoreError: an id without irreducible loss.
        DataError: a batch that the task cannot read, or a loss that is already reduced.

    >>> here = Candidates(torch.arange(3), (torch.randn(3, 4), torch.tensor([0, 1, 1])))
    >>> evidence = measure(nn.Linear(4, 2), here, frozenset({"loss", "logits"}))
    >>> evidence.require("loss").shape, evidence.require("logits").shape
    (torch.Size([3]), torch.Size([3, 2]))
    """
    request = Request(needs, context or {}, groups, samples, seed)
    return Measurement(model, scoring, task=task, store=store).measure(candidates, request)


class Request(NamedTuple):
    """Names what to measure of candidates; see ``measure``."""

    needs: frozenset[str]
    context: Mapping[str, Tensor]
    groups: Tensor | None = None  # [B] int64
    samples: int = 0
    seed: int = 0
    live: Measurement | None = None
    """Gives the irreducible losses in the store's stead: its losses."""


_LOSS_ALONE = Request(frozenset({"loss"}), {})


@final
class Measurement:
    """``measure`` for one model, scoring, task and store; made once if every step measures."""

    def __init__(
        self,
        model: nn.Module,
        scoring: Scoring | None = None,
        *,
        task: Task | None = None,
        store: IrreducibleLossStore | None = None,
    ) -> None:
        self._model = model
        self._scoring = scoring or Scoring()
        self._task = task or Classification()
        self._store = store
        self._pass = Pass(model, self._scoring)
        self._no_grad = torch.no_grad()

    def measure(self, candidates: Candidates, request: Request) -> Evidence:
        """Evidence of the candidates; see the function ``measure``."""
        needs, context, groups, samples, seed, live = request
        ids, batch = candidates
        model, scoring, task, store = self._model, self._scoring, self._task, self._store
        found: dict[str, Any] = {"context": context}
        like = ids  # what the evidence is put beside

        with self._no_grad:
            if not needs.isdisjoint(_LABELLED):
                found["targets"] = targets = task.targets(batch)
                if "groups" in needs:
                    found["groups"] = targets if groups is None else groups
            if not needs.isdisjoint(ONE_PASS):
                wants_features = "features" in needs
                # Layers inside a compiled model cannot be watched.
                runs = compiled(model) if scoring.compile and not wants_features else model
                with self._pass:
                    seen = scoring.reduced(batch)
                    logits, features = task.forward(runs, seen, features=wants_features)
                if logits.dim() == 2:
                    logits = logits.float()  # [B, C]
                like = logits
                if "logits" in needs:
                    found["logits"] = logits
                if features is not None:
                    found["features"] = features.float()  # [B, D]
                if "loss" in needs and (found["targets"] is not None or not task.needs_targets):
                    loss = task.loss(logits, found["targets"])  # pyright: ignore[reportArgumentType]
                    found["loss"] = per_example(loss, ids.numel())  # [B]
            if "mc_logits" in needs and samples > 0:
                like = found["mc_logits"] = self._dropout_passes(candidates, samples, seed)
            if live is not None and "irreducible_loss" in needs:
                found["irreducible_loss"] = live.measure(candidates, _LOSS_ALONE).loss
            elif store is not None:
                name = "group_irreducible_loss" if store.groups else "irreducible_loss"
                if name in needs:
                    found[name] = beside(store.lookup(ids), like)
        return Evidence(ids=beside(ids, like), **found)

    def _dropout_passes(self, candidates: Candidates, samples: int, seed: int) -> Tensor:
        """[S, B, C] logits of S passes with dropout on, several passes batched into one."""
        model = self._model
        ids, batch = candidates
        size = ids.numel()
        batch = self._scoring.reduced(batch)
        at_once = min(samples, max(1, _ROWS_PER_PASS // size))
        parts: list[Tensor] = []
        with Pass(model, self._scoring, dropout=True, seed=seed):
            for first in range(0, samples, at_once):
                repeats = min(at_once, samples - first)
                repeated = gather(batch, torch.arange(size).repeat(repeats), size)
                logits = self._task.forward(model, repeated).logits.float()  # [s·B, C]
                parts.append(logits.view(repeats, size, -1))
        passes = torch.cat(parts)  # [S, B, C]
        if samples > 1 and model not in _has_dropout:
            if torch.equal(passes[0], passes[1]):
                raise DataError(
                    "two passes with dropout on gave the same logits: the model has no dropout, so "
                    "its passes tell nothing of uncertainty. Use a network with dropout, or "
                    "another rule."
                )
            _has_dropout.add(model)
        return passes


def group_losses(
    model: nn.Module,
    batch: Any,
    ids: Tensor | None,
    task: Task,
    num_groups: int,
    groups_of: Callable[[Tensor | None, Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of losses and number of examples of each group in a batch, in eval mode.

    Returns:
        [G], [G] float64 on the CPU.
    """
    with torch.no_grad(), Pass(model, Scoring(batchnorm="running")):
        targets = task.targets(batch)
        if targets is None:
            raise DataError("the task has no targets, so there is no holdout loss.")
        loss = task.loss(task.forward(model, batch).logits.float(), targets)
        groups = targets if groups_of is None else groups_of(ids, targets).to(loss.device)
        if int(groups.max()) >= num_groups or int(groups.min()) < 0:
            raise DataError(
                f"the holdout has group {int(groups.max())}, the store of irreducible losses "
                f"{num_groups} groups. Fit it with the same groups."
            )
        count = torch.zeros(num_groups, dtype=torch.float64, device=loss.device)
        total = torch.zeros_like(count).index_add_(0, groups, loss.double())
        count.index_add_(0, groups, torch.ones_like(loss, dtype=torch.float64))
    return total.cpu(), count.cpu()
