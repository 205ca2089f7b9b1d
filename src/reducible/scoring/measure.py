"""Measuring: (model, candidates, needs, scoring) → evidence. Nothing else runs a model to score."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, final
from weakref import WeakKeyDictionary, WeakSet

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from reducible.batches import beside, gather, map_batch
from reducible.stores import IrreducibleLossStore
from reducible.tasks import Classification, Task, per_example
from reducible.types import Candidates, DataError, Evidence, require_between, require_one_of

_DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
_CPU = torch.device("cpu")
_KEPT_AS = "_reducible_compiled"  # attribute of a model that is scored compiled
_FOR_STATISTICS = 32  # rows that batch normalisation is to take its statistics of
_ROWS_PER_PASS = 4096  # of repeated candidates in one batched pass with dropout on


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Scoring:
    """How candidates are scored; part of every run's record.

    Attributes:
        batchnorm: ``"candidates"``: statistics of the candidate batch, running statistics
            untouched, dropout off (RHO-LOSS, App. B). ``"running"``: eval mode. ``"reference"``:
            train mode with running statistics and dropout moving, as the authors' code does.
            A BatchNorm layer kept in eval mode inside a model in train mode is frozen on
            purpose, and stays so.
        precision: of the forward pass, by autocast; losses are computed in float32.
        channels_last: lay images out with the channels last, which convolutions in low precision
            are fastest on.
        compile: score with ``torch.compile(model)``; the first passes compile. Passes that read
            features run as they are.
        resolution: shrink images [B, C, H, W] to at most so many rows and columns before scoring,
            for networks that take any size.
        max_length: cut token tensors [B, T] to their first so many columns before scoring.
        updates_per_scoring: hand out so many batches of n_b from one scored candidate batch, best
            rows first, which divides the cost of scoring; rows grow stale by as many updates.
        max_age: take a loss from memory where it was seen at most so many steps ago, instead of
            scoring; 0: never. Where batches are normalised by their own statistics, at least 32
            rows are scored together, others drawn at random among them.
        rescore: share of the remembered ones that is scored all the same, at random.
    """

    batchnorm: Literal["candidates", "running", "reference"] = "candidates"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    resolution: int | None = None
    max_length: int | None = None
    updates_per_scoring: int = 1
    max_age: int = 0
    rescore: float = 0.0

    def __post_init__(self) -> None:
        require_one_of("batchnorm", self.batchnorm, ("candidates", "running", "reference"))
        require_one_of("precision", self.precision, tuple(_DTYPES))
        require_one_of("channels_last", self.channels_last, (True, False))
        require_one_of("compile", self.compile, (True, False))
        for name in ("resolution", "max_length"):
            if getattr(self, name) is not None:
                require_between(name, getattr(self, name), 1, whole=True)
        require_between("updates_per_scoring", self.updates_per_scoring, 1, whole=True)
        require_between("max_age", self.max_age, 0, whole=True)
        require_between("rescore", self.rescore, 0.0, 1.0)

    def reduced(self, batch: Any) -> Any:
        """``batch`` as the scoring pass sees it."""
        if self.resolution is None and self.max_length is None and not self.channels_last:
            return batch

        def smaller(tensor: Tensor) -> Tensor:
            if tensor.dim() == 4 and tensor.is_floating_point():
                if self.resolution is not None and self.resolution < max(tensor.shape[2:]):
                    size = [min(side, self.resolution) for side in tensor.shape[2:]]
                    tensor = F.interpolate(tensor, size=size, mode="area")
                if self.channels_last:
                    tensor = tensor.contiguous(memory_format=torch.channels_last)
            elif tensor.dim() == 2 and not tensor.is_floating_point():
                tensor = tensor[:, : self.max_length]
            return tensor

        return map_batch(batch, smaller)


def least_rows(model: nn.Module, scoring: Scoring) -> int:
    """Rows that are scored together at least, where losses of the others are remembered."""
    own = scoring.batchnorm != "running" and any(isinstance(m, _BatchNorm) for m in model.modules())
    return _FOR_STATISTICS if own else 0


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
        candidates: ids [B] int64, on the CPU where a store is looked up; the batch anywhere.
        needs: names of Evidence fields and context keys.
        scoring: how; the default is the paper's.
        task: what the batch means; ``Classification()`` by default.
        store: of irreducible losses, one column for ``irreducible_loss``, G for groups.
        groups: [B] int64; the targets where None.
        context: what is known of the run (step, epoch, …).
        samples: dropout passes for ``mc_logits``.
        seed: of the dropout passes.

    Raises:
        StoreError: an id without irreducible loss.
        DataError: a batch that the task cannot read, or a loss that is already reduced.
    """
    asked = Asked(needs, context or {}, groups, samples, seed)
    return Meter(model, scoring, task=task, store=store).measure(candidates, asked)


class Asked(NamedTuple):
    """What is asked of candidates; see ``measure``."""

    needs: frozenset[str]
    context: Mapping[str, Tensor]
    groups: Tensor | None = None  # [B] int64
    samples: int = 0
    seed: int = 0
    live: Meter | None = None
    """Gives the irreducible losses in the store's stead: its losses."""


@final
class Meter:
    """``measure`` for one model, scoring, task and store; made once where every step measures."""

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
        self._pass = _Pass(model, self._scoring)
        self._no_grad = torch.no_grad()

    def measure(self, candidates: Candidates, asked: Asked) -> Evidence:
        """Evidence of the candidates; see the function ``measure``."""
        needs, context, groups, samples, seed, live = asked
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
                runs = _compiled(model) if scoring.compile and not wants_features else model
                with self._pass:
                    seen = scoring.reduced(batch)
                    logits, features = task.forward(runs, seen, features=wants_features)
                like = logits = logits.float()  # [B, C]
                if "logits" in needs:
                    found["logits"] = logits
                if features is not None:
                    found["features"] = features.float()  # [B, D]
                if "loss" in needs and found["targets"] is not None:
                    loss = task.loss(logits, found["targets"])
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
        with _Pass(model, self._scoring, dropout=True, seed=seed):
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
    with torch.no_grad(), _Pass(model, Scoring(batchnorm="running")):
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


@contextmanager
def without_graph() -> Iterator[None]:
    """Runs a model in the body so that it can be trained afterwards, whatever it keeps of the pass.

    Inference mode would leave tensors in the model that cannot be saved for backward. Under an
    autocast of the caller's, weights that are cast here would be found in its cache without their
    gradients.
    """
    cache = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(cache)


_LABELLED = frozenset({"targets", "loss", "groups"})
ONE_PASS = frozenset({"loss", "logits", "features"})
_LOSS_ALONE = Asked(frozenset({"loss"}), {})
RUNS_THE_MODEL = ONE_PASS | {"mc_logits"}


_has_dropout: WeakSet[nn.Module] = WeakSet()


class _Compiled:
    """A model compiled for scoring; kept with the model, so that it lives no longer than that."""

    def __init__(self, model: nn.Module) -> None:
        self.runs: Any = torch.compile(model, dynamic=False)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, ()  # copies of the model and files of it hold none


def _compiled(model: nn.Module) -> Any:
    """The model compiled for scoring; made once."""
    kept = model.__dict__.get(_KEPT_AS)
    if not isinstance(kept, _Compiled):
        kept = model.__dict__[_KEPT_AS] = _Compiled(model)
    return kept.runs


class _Pass:
    """A forward pass of ``model`` in its scoring mode that leaves no trace; may be entered again.

    Plain loops in the place of generators and of ``modules()``, for every step passes through it.
    """

    def __init__(
        self, model: nn.Module, scoring: Scoring, *, dropout: bool = False, seed: int = 0
    ) -> None:
        self._model = model
        self._batchnorm, self._dtype = scoring.batchnorm, _DTYPES[scoring.precision]
        self._dropout, self._seed = dropout, seed
        self._chance = dropout or scoring.batchnorm == "reference"
        self._draws_from_python = _draws_from_python.get(model, True)
        self._switched: list[nn.Module] = []
        self._untracked: list[_BatchNorm] = []

    def __enter__(self) -> None:
        modules: list[nn.Module | None] = [self._model]
        parameter: Tensor | None = None
        for module in modules:
            if module is not None:
                modules += module._modules.values()
                if parameter is None:
                    for parameter in module._parameters.values():
                        if parameter is not None:
                            break
        # What can fail comes first, while nothing has been changed.
        device = _CPU if parameter is None or parameter.is_cpu else parameter.device
        dtype = self._dtype
        self._autocast = (
            None if dtype is None else torch.autocast(device.type, dtype=dtype, cache_enabled=False)
        )
        self._accelerator = None if device is _CPU else _Accelerator(device)
        self._others = _others() if self._chance or self._draws_from_python else None
        self._stream = torch.default_generator.get_state()
        self._cache = torch.is_autocast_cache_enabled()
        self._set_modes(modules)
        if self._dropout:
            torch.manual_seed(self._seed)
        torch.set_autocast_cache_enabled(False)  # see without_graph
        if self._autocast is not None:
            self._autocast.__enter__()

    def __exit__(self, *error: Any) -> None:
        if self._autocast is not None:
            self._autocast.__exit__(*error)
        torch.set_autocast_cache_enabled(self._cache)
        for norm in self._untracked:
            norm.track_running_stats = True
        for module in self._switched:
            module.__dict__["training"] = not module.training
        self._untracked.clear()
        self._switched.clear()
        torch.default_generator.set_state(self._stream)
        if self._accelerator is not None:
            self._accelerator.restore()
        if self._others is not None:
            self._draws_from_python = _draws_from_python[self._model] = _restore(self._others)

    def _set_modes(self, modules: list[nn.Module | None]) -> None:
        """Put every module, the model first, into its scoring mode; notes what to put back."""
        trains, chance, batchnorm = self._model.training, self._chance, self._batchnorm
        for module in modules:
            if module is None:
                continue
            was = module.training
            mode = chance
            if trains and not was:  # frozen on purpose, and stays so
                mode = False
            elif isinstance(module, _NormBase):
                mode = chance and batchnorm == "reference"
                if batchnorm == "candidates" and isinstance(module, _BatchNorm):
                    # Train mode without tracking: the batch's statistics, running ones kept.
                    mode = True
                    if module.track_running_stats:
                        self._untracked.append(module)
                        module.track_running_stats = False
            if mode != was:
                self._switched.append(module)
                module.__dict__["training"] = mode  # without nn.Module's search on every set


_draws_from_python: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()
"""Whether passes of a model move NumPy's or Python's stream, as its first one showed.

Torch's stream costs a microsecond to keep and is kept always. These cost fifty times that, so they
are kept where chance is on, or where the model draws from them.
"""


class _Accelerator:
    """The stream of a device other than the CPU, as it was found."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._module = device, torch.get_device_module(device)
        self._state = self._module.get_rng_state(device)

    def restore(self) -> None:
        """Give it back."""
        self._module.set_rng_state(self._state, self._device)


def _others() -> tuple[Any, tuple[Any, ...]]:
    """NumPy's and Python's streams."""
    return np.random.get_state(), random.getstate()  # noqa: NPY002


def _restore(found: tuple[Any, tuple[Any, ...]]) -> bool:
    """Give them back; whether they had moved."""
    numpy_state, python_state = found
    here: Any = np.random.get_state()  # noqa: NPY002
    numpy_moved = here[2:] != numpy_state[2:] or not np.array_equal(here[1], numpy_state[1])
    moved = numpy_moved or random.getstate() != python_state
    if moved:
        np.random.set_state(numpy_state)  # noqa: NPY002
        random.setstate(python_state)
    return moved
