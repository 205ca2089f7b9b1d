"""Irreducible losses by a model as it stands: nothing is fitted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reducible.batches import device_of, to_device
from reducible.fitting.fit import candidate_batches
from reducible.fitting.irreducible import require_rows
from reducible.fitting.progress import FitProgress
from reducible.ledger import Ledger
from reducible.loading.order import batches_of
from reducible.scoring import Measurement, Request, Scoring
from reducible.stores import (
    LABEL_SAMPLE,
    IrreducibleLossStore,
    TokenLossStore,
    fingerprint,
    label_sample,
    refuse_keys,
)
from reducible.tasks import CausalLM, Classification, Task, is_predicted, token_losses
from reducible.types import Candidates, DataError, Evidence

if TYPE_CHECKING:
    from rich.progress import Progress

Collate = Callable[[list[Any]], Any]
Precision = Literal["float32", "bfloat16", "float16"]


def score_irreducible_loss(
    model: nn.Module,
    train: Any,
    *,
    task: Task | None = None,
    batch_size: int = 256,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    precision: Precision = "float32",
    ledger: Ledger | None = None,
    progress: bool | Progress = True,
) -> IrreducibleLossStore:
    """Score a train set with a model as it stands, such as a pretrained one.

    The model must not have been trained on these examples, or their losses say nothing. Eval mode;
    the model stays as it is.

    Args:
        model: gives the losses; on its device.
        train: map-style data set of Candidates (``WithIds``), without augmentation.
        task: what batches mean; ``Classification()``.
        batch_size: rows scored at once.
        collate_fn: of the loader, see ``collate_with_ids``; torch's default.
        num_workers: of the loader.
        precision: of the passes, by autocast.
        ledger: charged with the cost, as the irreducible loss.
        progress: see ``fit_irreducible_loss``.

    Raises:
        DataError: an empty set, or bad ids.
        StoreError: an infinite loss.

    >>> from torch.utils.data import TensorDataset
    >>> from reducible import WithIds
    >>> train = WithIds(TensorDataset(torch.randn(40, 4), torch.arange(40) % 2))
    >>> store = score_irreducible_loss(nn.Linear(4, 2), train, progress=False)
    >>> len(store), store.header["method"]
    (40, 'model as it stands')
    """
    task = task or Classification()
    ids: list[Tensor] = []
    losses: list[Tensor] = []
    labels: list[Tensor] = []
    header: dict[str, Any] = {}
    scoring = Scoring(batchnorm="running", precision=precision)
    passes = _passes(model, train, task, scoring, frozenset({"loss"}), ledger, header,
                     batch_size=batch_size, collate_fn=collate_fn, num_workers=num_workers,
                     progress=progress)  # fmt: skip
    for here, evidence in passes:
        ids.append(here.ids.cpu())
        losses.append(evidence.require("loss").cpu())
        if evidence.targets is not None:
            labels.append(task.labels(evidence.targets).cpu())
    all_ids = torch.cat(ids)
    known = torch.cat(labels) if labels else None
    if known is not None:
        header[LABEL_SAMPLE] = label_sample(all_ids, known)
    return IrreducibleLossStore.from_tensor(
        torch.cat(losses), ids=all_ids, fingerprint=fingerprint(all_ids, known), header=header
    )


def score_token_irreducible_loss(
    model: nn.Module,
    train: Any,
    *,
    task: CausalLM | None = None,
    batch_size: int = 16,
    collate_fn: Collate | None = None,
    num_workers: int = 0,
    precision: Precision = "float32",
    ledger: Ledger | None = None,
    progress: bool | Progress = True,
) -> TokenLossStore:
    """Score the tokens of a train set with a causal language model as it stands.

    Args:
        model: the reference model (Rho-1's), of the same tokenizer as the one to be trained.
        train: map-style data set of Candidates (``WithIds``) of tokens.
        task: how the model is called, and which tokens are predicted.
        batch_size: sequences scored at once.
        collate_fn: of the loader, see ``collate_with_ids``; the same as in training.
        num_workers: of the loader.
        precision: of the passes, by autocast.
        ledger: charged with the cost, as the irreducible loss.
        progress: see ``fit_irreducible_loss``.

    Raises:
        DataError: an empty set, bad ids, or batches that are not of tokens.
        StoreError: a loss that is not finite.
    """
    task = task or CausalLM()
    ids: list[Tensor] = []
    rows: list[Tensor] = []
    hashes: list[Tensor] = []
    header: dict[str, Any] = {}
    scoring = Scoring(batchnorm="running", precision=precision)
    passes = _passes(model, train, task, scoring, frozenset({"logits", "targets"}), ledger, header,
                     batch_size=batch_size, collate_fn=collate_fn, num_workers=num_workers,
                     progress=progress)  # fmt: skip
    for here, evidence in passes:
        labels = evidence.require("targets")
        predicted = is_predicted(labels)
        losses = token_losses(evidence.require("logits"), labels)[predicted].cpu()
        ids.append(here.ids.cpu())
        rows += losses.split(predicted.sum(1).tolist())
        hashes.append(task.labels(labels).cpu())
    all_ids = torch.cat(ids)
    of = fingerprint(all_ids, torch.cat(hashes))
    return TokenLossStore.from_rows(rows, ids=all_ids, fingerprint=of, header=header)


def _passes(
    model: nn.Module,
    train: Any,
    task: Task,
    scoring: Scoring,
    needs: frozenset[str],
    ledger: Ledger | None,
    header: dict[str, Any],
    *,
    progress: bool | Progress,
    **loading: Any,
) -> Iterator[tuple[Candidates, Evidence]]:
    """Batches of ``train`` with their evidence; at the end ``header`` says what they cost."""
    require_rows(train, "train")
    ledger = ledger or Ledger()
    began = ledger.seconds["irreducible_loss"]
    bar = FitProgress(progress, fits=1, title="scoring irreducible losses")
    size = loading.pop("batch_size")
    generator = torch.Generator()  # a DataLoader draws a seed even if nothing is random
    loader = candidate_batches(train, size, shuffle=False, generator=generator, **loading)
    bar.begin(len(loader))
    measurement, request = Measurement(model, scoring, task=task), Request(needs, {})
    device, per_row, rows = device_of(model), 0.0, 0
    with bar, ledger.phase("irreducible_loss"):
        for found in batches_of(loader):
            if not isinstance(found, Candidates):
                raise DataError(
                    f"the batches are {type(found).__name__}, without ids: wrap the data set as "
                    "reducible.WithIds(dataset), and its collate function as "
                    "reducible.collate_with_ids(collate_fn)."
                )
            refuse_keys(found.ids)
            here = Candidates(found.ids, to_device(found.batch, device))
            with FlopCounterMode(display=False) if not rows else nullcontext() as counter:
                evidence = measurement.measure(here, request)
            if counter is not None:
                per_row = counter.get_total_flops() / here.ids.numel()
            rows += here.ids.numel()
            yield here, evidence
            bar.advance()
    flops = int(per_row * rows)
    ledger.counts.flops_irreducible_loss += flops
    header |= {
        "method": "model as it stands",
        "model": type(model).__name__,
        "mode": "eval",
        "augmentation": "none in scoring",
        "flops": flops,
        "seconds": ledger.seconds["irreducible_loss"] - began,
    }


class LossColumn:
    """Adds a column of irreducible losses to a Hugging Face data set: ``dataset.map(…)``.

    The column makes a store: ``IrreducibleLossStore.from_tensor(torch.tensor(d["…"]))``.

    Args:
        model: gives the losses, as it stands.
        collate_fn: rows (a list of dicts) → batch, such as a collator of transformers.
        task: what batches mean; ``Classification()``.
        name: of the column.

    >>> column = LossColumn(nn.Linear(2, 2), task=Classification())
    >>> rows = {"inputs": [[0.0, 0.0], [1.0, 1.0]], "labels": [0, 1]}
    >>> sorted(column({k: [torch.tensor(v) for v in values] for k, values in rows.items()}))
    ['irreducible_loss']
    """

    def __init__(
        self,
        model: nn.Module,
        collate_fn: Collate = torch.utils.data.default_collate,
        *,
        task: Task | None = None,
        name: str = "irreducible_loss",
    ) -> None:
        scoring = Scoring(batchnorm="running")
        self._measurement = Measurement(model, scoring, task=task or Classification())
        self._device, self._collate, self._name = device_of(model), collate_fn, name

    def __call__(self, columns: dict[str, list[Any]]) -> dict[str, list[float]]:
        """The losses of a batch of rows; with ``batched=True``."""
        names = list(columns)
        rows = [dict(zip(names, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        batch = to_device(self._collate(rows), self._device)
        here = Candidates(torch.arange(len(rows)), batch)
        evidence = self._measurement.measure(here, Request(frozenset({"loss"}), {}))
        return {self._name: evidence.require("loss").tolist()}
