"""Plans: whom irreducible losses drop, and whom they show often, decided before training."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from reducible.files import checkpoints
from reducible.loading.labels import as_labels, as_tensor
from reducible.plans.floors import drop_below
from reducible.plans.noise import noise_floor_filter, wrong_probability
from reducible.plans.sampler import PlanSampler
from reducible.stores import IrreducibleLossStore, ids_of, require_ids
from reducible.types import (
    ConfigurationError,
    DataError,
    ReducibleError,
    StoreError,
    name_ids,
    require_between,
)

_FORMAT = "reducible.plan.2"
_FEW = 0.4  # a plan that keeps a smaller share says so
_DECIDED = {"noise_floor", "wrong_share", "wrong_share_kept"}  # read again from a plan's report


def residual_weights(probability: Tensor, *, exponent: float, offset: float = 0.02) -> Tensor:
    """(1 − p_IL(y_i | x_i) + offset)^exponent, scaled to a mean of one; [N].

    What the holdout model is sure of teaches least; the offset keeps it in.

    Args:
        probability: [N] in [0, 1].
        exponent: ≥ 0; 0 weighs all alike.
        offset: > 0.
    """
    weight = (1.0 - probability + offset) ** exponent
    return weight / weight.mean()


@final
@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Says which ids to train on and how often; decided once, costs nothing per step.

    Attributes:
        ids: [M] int64, ascending.
        weight: [M] float64 sampling weights with mean one.
        dropped: [N − M] int64 ids left out, the highest irreducible loss first.
        report: what was decided and why; JSON types only.

    >>> store = IrreducibleLossStore.from_tensor(torch.tensor([0.1, 0.2, 5.0]))
    >>> floor = torch.tensor([0.1])  # a label of probability exp(−5) is below
    >>> Plan.from_irreducible_loss(store, range(3), [0, 0, 0], noise_floor=floor).dropped
    tensor([2])
    """

    ids: Tensor
    weight: Tensor
    dropped: Tensor
    report: Mapping[str, Any]

    @classmethod
    def from_irreducible_loss(
        cls,
        store: IrreducibleLossStore,
        ids: Tensor | Sequence[int],
        labels: Tensor | Sequence[int],
        *,
        noise_floor: Tensor | None = None,
        multiple: float = 1.0,
        exponent: float = 0.25,
        offset: float = 0.02,
    ) -> Plan:
        """A filter at the noise floor, then fixed weights for what is kept.

        As it stands, a mild filter, to train with ``noise_floor_loss`` on what it keeps: the
        equal-time study's recommendation, by its validation data.

        Args:
            store: with one loss per example, from a holdout or cross-fitted.
            ids: [N] int64 of the train set; a list, range or NumPy array too.
            labels: [N] whole numbers of the same examples, such as ``train.targets``; the same.
            noise_floor: [C] m_k, the same that labels are dropped below. If None, both come from
                the store's header, where fitting wrote them, so that 1 % of any label at most is
                dropped unless labels are noisy. See ``reducible.plans.floors.learned_noise``.
            multiple: of that, under which a label is taken for wrong; 0 keeps all, and 2 drops
                most wrong labels and many hard ones.
            exponent: of the sampling weights, ≥ 0; 0 weighs all alike. Validation data decides.
            offset: of the sampling weights, > 0.

        Warns if little is kept; and if a label has over half of the rows and the store, not made
        by fitting, has only medians.

        Raises:
            ConfigurationError: a setting that cannot work, or no noise floor to be had.
            DataError: ids that are not int64, negative or twice, labels that are no classes or of
                another length, or irreducible losses below 0, of which no probability can be had.
            SelectionError, StoreError: as the store's look-up.
        """
        if store.groups:
            raise ConfigurationError("a plan needs a store with one loss per example, not groups.")
        given, classes = _examples(ids, labels)
        require_between("multiple", multiple, 0.0, open_high=True)
        require_between("exponent", exponent, 0.0, open_high=True)
        require_between("offset", offset, 0.0, open_low=True, open_high=True)
        floor = _floor(store, noise_floor, int(classes.max()) + 1)
        store.check_data(given, classes)
        probability = _probability(store, given)  # [N]
        below = floor if noise_floor is not None else _below(store, probability, classes, floor)
        keep = _kept(noise_floor_filter(probability, classes, below, multiple=multiple), multiple)
        weight = residual_weights(probability[keep], exponent=exponent, offset=offset)
        dropped = given[~keep][probability[~keep].argsort(stable=True)]
        wrong = wrong_probability(probability, classes, floor)  # [N]
        report = {
            "multiple": multiple, "exponent": exponent, "offset": offset,
            "examples": given.numel(), "kept": int(keep.sum()), "noise_floor": floor.tolist(),
            "drop_below": (multiple * below).tolist(), "wrong_share": float(wrong.mean()),
            "wrong_share_kept": float((weight * wrong[keep]).mean()),
            "by_class": _by_class(classes, keep, probability),
            "highest_irreducible_loss": dropped[:20].tolist(),
        }  # fmt: skip
        return cls(given[keep], weight, dropped, report | _origin(store))

    @property
    def noise_floor(self) -> Tensor:
        """[C] float32 for ``noise_floor_loss``: m_k by the share of the noise that is left.

        That is, times the estimated share of wrong labels among the draws over that in all data.
        The noise is that of the labels which the irreducible-loss model was fitted on: one from a
        clean holdout knows nothing of the noise of the train set, and its loss is about the plain.

        Raises:
            DataError: they add up to 1 or more, so the model that they come from knows nothing.
        """
        floor = torch.tensor(self.report["noise_floor"], dtype=torch.float64)
        before = self.report["wrong_share"]
        floor = floor * (self.report["wrong_share_kept"] / before if before > 0 else 1.0)
        if not float(floor.sum()) < 1.0:
            raise DataError(
                f"the noise floors add up to {float(floor.sum()):.3g}: the irreducible-loss model "
                "gives every class as much as it would by chance. Fit it longer, or train with the "
                "plain loss."
            )
        return floor.float()

    def including(self, ids: Tensor) -> Plan:
        """The plan with other examples too, each as often as the mean one.

        For those that no irreducible loss speaks of: the holdout's own, if it may be trained on.
        As many of their labels are taken to be wrong as of all that the plan has judged.

        Args:
            ids: [M] int64, none of which the plan keeps or drops.

        Raises:
            DataError: ids that are not int64, negative or twice, or that the plan has judged.
        """
        require_ids(ids)
        judged = torch.cat([self.ids, self.dropped])
        both = torch.isin(ids.cpu(), judged)
        if bool(both.any()):
            raise DataError(
                f"the plan has judged ids {name_ids(ids.cpu()[both])} already. Examples from "
                "another data set? Give them ids of their own."
            )
        joined = torch.cat([self.ids, ids.cpu()])
        weight = torch.cat([self.weight, self.weight.new_ones(ids.numel())])
        order = joined.argsort()
        kept, new = self.ids.numel(), ids.numel()
        wrong = kept * self.report["wrong_share_kept"] + new * self.report["wrong_share"]
        report = {**self.report, "included": new, "wrong_share_kept": wrong / (kept + new)}
        return Plan(ids=joined[order], weight=weight[order], dropped=self.dropped, report=report)

    def sampler(
        self, dataset: Any, *, generator: torch.Generator, batch_size: int | None = None
    ) -> PlanSampler:
        """Positions in a data set with ids; an epoch is len(plan.ids) draws.

        Args:
            dataset: holds every id of the plan, perhaps more.
            generator: of the draws and their order; a loader resumes with it.
            batch_size: of the candidate batches, to be told here, not mid-run, if one would be
                too large: to fill, or to hold no id twice.

        Raises:
            ConfigurationError: batches of ``batch_size`` that this plan cannot fill.
            DataError: the data set lacks an id of the plan.
        """
        if batch_size is not None:
            self._check_batch(batch_size)
        return PlanSampler(self.ids, self.weight, ids_of(dataset), generator=generator)

    def _check_batch(self, batch_size: int) -> None:
        draws, most = self.ids.numel(), math.ceil(float(self.weight.max()))
        if batch_size > draws:
            raise ConfigurationError(
                f"batches of {batch_size} from the {draws} examples that the plan keeps: not one "
                "comes out. Lower multiple, or take a smaller batch."
            )
        if batch_size * most > draws:
            raise ConfigurationError(
                f"a plan whose largest weight is {float(self.weight.max()):.3g} brings that id "
                f"every {draws // most} draws, so that a batch of {batch_size} would hold it "
                "twice. Lower exponent, raise offset, or take a smaller batch."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as one safetensors file with a checksum; whole or not at all."""
        checkpoints.write(
            Path(path),
            {
                "format": _FORMAT,
                "ids": self.ids,
                "weight": self.weight,
                "dropped": self.dropped,
                "report": dict(self.report),
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Read a saved plan; raises StoreError if the file is not what ``save`` wrote."""
        try:
            parts = checkpoints.load(Path(path))
        except ReducibleError as error:
            raise StoreError(f"{error} Make the plan again.") from error
        if parts.pop("format", None) != _FORMAT:
            raise StoreError(f"{path} is no saved plan. Name the file that Plan.save wrote.")
        wrong = _wrong_contents(parts)
        if wrong is not None:
            raise StoreError(f"{path} holds no plan: {wrong}. Make the plan again.")
        return cls(**parts)


def _wrong_contents(parts: Mapping[str, Any]) -> str | None:
    """Says why these are not the parts of a plan, though the file is as it was written."""
    missing = [name for name in ("ids", "weight", "dropped", "report") if name not in parts]
    if missing:
        return f"no {missing[0]}"
    ids, weight, dropped, report = (parts[n] for n in ("ids", "weight", "dropped", "report"))
    for name, part, dtype in (
        ("ids", ids, torch.int64),
        ("weight", weight, torch.float64),
        ("dropped", dropped, torch.int64),
    ):
        if not isinstance(part, Tensor) or part.dim() != 1 or part.dtype != dtype:
            return f"{name} is no vector of {dtype}"
    if ids.numel() == 0 or int(ids[0]) < 0 or bool((ids.diff() <= 0).any()):
        return "its ids do not ascend from 0 or more"
    if weight.shape != ids.shape or not bool((weight > 0).all() & weight.isfinite().all()):
        return "not every id has a weight above 0"
    if abs(float(weight.mean()) - 1.0) > 1e-6:
        return f"the mean weight is {float(weight.mean())}, not 1"
    if bool(torch.isin(dropped, ids).any()):
        return "an id is both kept and dropped"
    told = isinstance(report, Mapping) and set(report) >= _DECIDED
    return None if told else "its report lacks what was decided"


def _examples(ids: Tensor | Sequence[int], labels: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
    """Ids, ascending, and the class of each; both [N] int64 on the CPU."""
    given: Tensor = as_tensor(ids)
    classes: Tensor = as_labels(labels, "A plan takes one class for each id.")
    require_ids(given)
    if classes.shape != given.shape:
        raise DataError(f"{given.numel()} ids but labels of shape {tuple(classes.shape)}.")
    order = given.argsort()
    return given[order].cpu(), classes[order].cpu()


def _floor(store: IrreducibleLossStore, given: Tensor | None, classes: int) -> Tensor:
    """[C] float64 m_k: as given, as learned, or the header's medians."""
    header: dict[str, Any] = {"floor": store.header.get("noise_floor")}
    floor = (header | store.header.get("learned_noise", {}))["floor"] if given is None else given
    if floor is None:
        raise ConfigurationError(
            "the store's header has no noise floor (it was not made by fitting): pass "
            "noise_floor=[C], per class the median of p(k | x) over rows of other classes."
        )
    floor = torch.as_tensor(floor, dtype=torch.float64)
    if floor.dim() != 1 or floor.numel() < classes:
        raise ConfigurationError(f"a noise floor of shape {tuple(floor.shape)}, {classes} classes.")
    return floor


def _below(
    store: IrreducibleLossStore, probability: Tensor, labels: Tensor, floor: Tensor
) -> Tensor:
    """[C] float64: what fitting learned to drop below; the floor if it learned nothing."""
    learned = store.header.get("learned_noise")
    if learned is not None:
        cut, share = (torch.tensor(learned[name], dtype=torch.float64) for name in ("cut", "share"))
        return drop_below(probability, labels, cut, share)
    count = torch.bincount(labels)
    if 2 * int(count.max()) > labels.numel():
        warnings.warn(
            f"class {int(count.argmax())} has {int(count.max())} of {labels.numel()} labels, and "
            "the store's header has medians of p(k | x) alone, which is no noise floor for a class "
            "of more than half of the rows: right labels are dropped. Fit the irreducible losses "
            "again, or pass noise_floor=.",
            stacklevel=3,
        )
    return floor


def _probability(store: IrreducibleLossStore, ids: Tensor) -> Tensor:
    """[N] float64 p_IL(y_i | x_i)."""
    loss = store.lookup(ids).double()  # [N]
    if bool((loss < 0).any()):
        raise DataError(
            f"irreducible losses below 0, ids {name_ids(ids[loss < 0])}: a plan reads "
            "p(y | x) = exp(−loss), so they must be cross-entropies."
        )
    return loss.neg().exp()


def _kept(keep: Tensor, multiple: float) -> Tensor:
    """A filter ([N] bool) as it is; raises if it keeps nothing, warns if it keeps little."""
    kept, examples = int(keep.sum()), keep.numel()
    if kept == 0:
        raise ConfigurationError(
            f"multiple={multiple} of the noise floor drops all {examples} examples: the "
            "irreducible-loss model knows nothing of these labels. Fit it longer, or lower "
            "multiple."
        )
    if kept < _FEW * examples:
        warnings.warn(
            f"the plan keeps {kept} of {examples} examples. Where fewer labels than that are "
            "wrong, the irreducible-loss model knows too little: fit it longer, or lower multiple.",
            stacklevel=3,
        )
    return keep


def _origin(store: IrreducibleLossStore) -> dict[str, Any]:
    """Names the store, for a report."""
    made = {name: store.header.get(name) for name in ("method", "model", "seconds")}
    return {"fingerprint": store.fingerprint, "store": made}


def _by_class(labels: Tensor, keep: Tensor, probability: Tensor) -> list[dict[str, Any]]:
    """Per class: examples, kept, and the median p_IL of its labels."""
    rows: list[dict[str, Any]] = []
    for c in range(int(labels.max()) + 1):
        own = labels == c
        rows.append(
            {
                "class": c,
                "examples": int(own.sum()),
                "kept": int((own & keep).sum()),
                "median_probability": float(probability[own].median()) if bool(own.any()) else None,
            }
        )
    return rows
