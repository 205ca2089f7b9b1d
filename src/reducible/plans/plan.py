"""Plans: what irreducible losses say once, before training: whom to drop, whom to see often."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import Sampler

from reducible.files import checkpoints
from reducible.loading.labels import as_labels, as_tensor
from reducible.plans.floors import drop_below
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


def noise_floor_filter(
    probability: Tensor, labels: Tensor, floor: Tensor, *, multiple: float
) -> Tensor:
    """Keep i where p_IL(y_i | x_i) ≥ multiple · m_{y_i}; [N] bool.

    m_k is what the model gives class k where it has no reason to, or somewhat more. A label that
    gets no more than a small multiple of that is most likely wrong; no noise rate is needed, and a
    rare class has a low floor of its own.

    Args:
        probability: [N] p_IL(y_i | x_i).
        labels: [N] int64.
        floor: [C] m_k, such as from ``reducible.plans.floors.drop_below``.
        multiple: ≥ 0; 0 keeps everything.
    """
    return probability >= multiple * floor[labels]


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


def wrong_probability(probability: Tensor, labels: Tensor, floor: Tensor) -> Tensor:
    """min(1, m_{y_i} / p_IL(y_i | x_i)): that the label is noise, by Bayes' rule; [N].

    Where the model's p_IL(k | x) is a mixture of a right label and noise of m_k, whatever the
    input. Its mean estimates the share of wrong labels of this kind.

    Args:
        probability: [N] p_IL(y_i | x_i).
        labels: [N] int64.
        floor: [C] m_k.
    """
    return (floor[labels] / probability).clamp(max=1.0)


def noise_floor_loss(loss: Tensor, targets: Tensor, floor: Tensor) -> Tensor:
    """−log((1 − Σ_c m_c)·exp(−L_i) + m_{y_i}): cross-entropy that allows for wrong labels; [K].

    Forward correction (Patrini et al. 2017, Theorem 2) for labels that are drawn from the noise
    floor, whatever the input, in Σ_c m_c of the cases. Its gradient is that of L_i times the
    probability that the label is right, so a label of which the model is sure that it is wrong
    teaches nothing, and no loss exceeds −log m_{y_i}. Where the floor is near 0, as on clean
    data, it is L_i.

    Args:
        loss: [K] cross-entropy of each example, of the model being trained.
        targets: [K] int64.
        floor: [C] m_c with a sum below 1, from ``Plan.noise_floor``; on the device of the loss.

    >>> floor = torch.tensor([0.1, 0.1])
    >>> noise_floor_loss(torch.tensor([0.0, 9.0, 99.0]), torch.tensor([0, 1, 1]), floor)
    tensor([0.1054, 2.3016, 2.3026])
    """
    right = torch.log1p(-floor.sum()) - loss  # [K] log-probability of a right label, and this one
    return -torch.logaddexp(right, floor.log()[targets].to(loss.dtype))


@final
@dataclass(frozen=True, slots=True, eq=False)
class Plan:
    """Which ids to train on and how often, decided once; costs nothing per step.

    Attributes:
        ids: [M] int64, ascending.
        weight: [M] float64 sampling weights with mean one.
        dropped: [N − M] int64 ids left out, the highest irreducible loss first.
        report: what was decided and why; JSON types only.
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

        As it stands, a mild filter, to train with ``noise_floor_loss`` on what it keeps: of the
        plans in batches of 32 the best on the validation data of the equal-time study's MLP, and
        within a tenth of a point of the best on its CNN's.

        Args:
            store: with one loss per example, from a holdout or cross-fitted.
            ids: [N] int64 of the train set; a list, range or NumPy array too.
            labels: [N] whole numbers of the same examples, such as ``train.targets``; the same.
            noise_floor: [C] m_k, the same that labels are dropped below. If None, both come from
                the store's header, where fitting wrote them: a floor for classes of any share, and
                what to drop below, so that 1 % of any label at most is dropped unless the labels
                are noisy. See ``reducible.plans.floors.learned_noise``.
            multiple: of that, under which a label is taken for wrong; 0 keeps all, and 2 drops
                most wrong labels and many hard ones.
            exponent: of the sampling weights, ≥ 0; 0 weighs all alike. Validation data decides.
            offset: of the sampling weights, > 0.

        Warns if little is kept, as it is if the model knows little of the labels; and if a label
        has over half of the rows and the store, not made by fitting, has only medians.

        Raises:
            ConfigurationError: a setting that cannot work, or no noise floor to be had.
            DataError: ids that are not int64, negative or twice, labels that are no classes or of
                another length, or irreducible losses below 0, of which no probability can be had.
            SelectionError, StoreError: as the store's look-up.
        """
        given: Tensor = as_tensor(ids)
        classes: Tensor = as_labels(labels, "A plan takes one class for each id.")
        require_ids(given)
        if classes.shape != given.shape:
            raise DataError(f"{given.numel()} ids but labels of shape {tuple(classes.shape)}.")
        if store.groups:
            raise ConfigurationError("a plan needs a store with one loss per example, not groups.")
        require_between("multiple", multiple, 0.0, open_high=True)
        require_between("exponent", exponent, 0.0, open_high=True)
        require_between("offset", offset, 0.0, open_low=True, open_high=True)
        floor = _floor(store, noise_floor, int(classes.max()) + 1)
        store.check_data(given, classes)
        order = given.argsort()
        given, classes = given[order].cpu(), classes[order].cpu()
        probability = _probability(store, given)  # [N]
        below = floor if noise_floor is not None else _below(store, probability, classes, floor)
        keep = noise_floor_filter(probability, classes, below, multiple=multiple)
        _check_kept(keep, multiple)
        weight = residual_weights(probability[keep], exponent=exponent, offset=offset)
        dropped = given[~keep][probability[~keep].argsort(stable=True)]
        wrong = wrong_probability(probability, classes, floor)  # [N]
        settings = {"multiple": multiple, "exponent": exponent, "offset": offset}
        return cls(
            ids=given[keep],
            weight=weight,
            dropped=dropped,
            report={
                **settings,
                "examples": given.numel(),
                "kept": int(keep.sum()),
                "noise_floor": floor.tolist(),
                "drop_below": (multiple * below).tolist(),
                "wrong_share": float(wrong.mean()),
                "wrong_share_kept": float((weight * wrong[keep]).mean()),
                "by_class": _by_class(classes, keep, probability),
                "highest_irreducible_loss": dropped[:20].tolist(),
                "fingerprint": store.fingerprint,
                "store": {k: store.header.get(k) for k in ("method", "model", "seconds")},
            },
        )

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

        For those that no irreducible loss speaks of: the holdout's own, where it may be trained on.
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
            batch_size: of the candidate batches, to be told here, not mid-run, where one would be
                too large: to fill, or to hold no id twice.

        Raises:
            ConfigurationError: batches of ``batch_size`` that this plan cannot fill.
            DataError: the data set lacks an id of the plan.
        """
        if batch_size is not None:
            self._check_batch(batch_size)
        return PlanSampler(self, ids_of(dataset), generator=generator)

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


@final
class PlanSampler(Sampler[int]):
    """Positions of a plan's ids, each about as often as its weight says.

    An id of weight w comes ⌊w⌋ or ⌈w⌉ times an epoch, w times in the mean (systematic sampling),
    its repeats evenly spaced over the epoch, so that about M/⌈w⌉ draws in a row, for the largest
    w, hold no id twice.

    Args:
        plan: whom to draw, and how often.
        ids: [N] int64 of the data set, by position.
        generator: of the draws and their order.

    Raises:
        DataError: the data set lacks an id of the plan.
    """

    def __init__(self, plan: Plan, ids: Tensor, *, generator: torch.Generator) -> None:
        ascending, order = ids.cpu().sort()
        where = torch.searchsorted(ascending, plan.ids).clamp_(max=ids.numel() - 1)
        missing = ascending[where] != plan.ids
        if bool(missing.any()):
            raise DataError(
                f"the data set lacks {int(missing.sum())} ids of the plan: "
                f"{name_ids(plan.ids[missing])}. The plan is of another data set or split."
            )
        self._positions = order[where]  # [M]
        self._weight = plan.weight
        self.generator = generator
        evenly = bool((plan.weight == plan.weight[0]).all())
        self.each_once = self._positions if evenly else None
        """[M] int64: the positions if an epoch has each of them once; None otherwise."""

    def __len__(self) -> int:
        return self._positions.numel()

    def __iter__(self) -> Iterator[int]:
        count = systematic_counts(self._weight, generator=self.generator)  # [M]
        offset = _even_offsets(count, generator=self.generator)
        copies = torch.repeat_interleave(torch.arange(count.numel()), count)  # [M] draws
        first = count.cumsum(0) - count
        nth = torch.arange(copies.numel()) - first[copies]  # which repeat of its id each draw is
        when = (nth + offset[copies]) / count[copies]  # in [0, 1), repeats evenly spaced
        yield from self._positions[copies[when.argsort()]].tolist()


def systematic_counts(weight: Tensor, *, generator: torch.Generator) -> Tensor:
    """How often each of M examples is drawn: ⌊w⌋ or ⌈w⌉ times, w in the mean, M in all.

    Args:
        weight: [M] float64 with mean one.
        generator: of the draw; the examples are mixed first, so that neighbours are not tied.

    Returns:
        [M] int64.
    """
    size = weight.numel()
    order = torch.randperm(size, generator=generator)
    edges = weight[order].cumsum(0)
    edges = edges / edges[-1] * size
    shift = torch.rand(1, dtype=torch.float64, generator=generator)
    ticks = (edges - shift).ceil().clamp_(min=0).long()  # draws before each edge
    ticks[-1] = size
    count = torch.empty_like(ticks)
    count[order] = torch.diff(ticks, prepend=torch.zeros(1, dtype=torch.int64))
    return count


def _even_offsets(count: Tensor, *, generator: torch.Generator) -> Tensor:
    """[M] float64 in [0, 1), at random, evenly spread among ids with the same ``count`` ([M]).

    So that the epoch is as dense everywhere, and repeats that are evenly spaced in it stay so.
    """
    mixed = torch.randperm(count.numel(), generator=generator)
    order = mixed[count[mixed].argsort(stable=True)]  # by count, at random within one
    values, sizes = torch.unique_consecutive(count[order], return_counts=True)
    first = (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    start = torch.rand(values.numel(), dtype=torch.float64, generator=generator)
    nth = torch.arange(count.numel()) - first
    offset = torch.empty(count.numel(), dtype=torch.float64)
    offset[order] = (nth + start.repeat_interleave(sizes)) / sizes.repeat_interleave(sizes)
    return offset


def _wrong_contents(parts: Mapping[str, Any]) -> str | None:
    """Why these are not the parts of a plan, though the file is as it was written."""
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
    told = isinstance(report, Mapping) and {"noise_floor", "wrong_share"} <= set(report)
    return None if told else "its report lacks what was decided"


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


def _check_kept(keep: Tensor, multiple: float) -> None:
    """Raise where a filter ([N] bool) keeps nothing, warn where it keeps little."""
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
