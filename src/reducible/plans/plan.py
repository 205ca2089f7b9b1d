"""Plans: whom irreducible losses drop, and whom they show often, decided before training."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from reducible.files import checkpoints
from reducible.plans.filtering import filtered
from reducible.plans.sampler import PlanSampler
from reducible.plans.steering import steered
from reducible.stores import (
    IrreducibleLossStore,
    differ,
    fingerprint,
    ids_of,
    labels_of,
    require_ids,
)
from reducible.types import (
    ConfigurationError,
    DataError,
    ReducibleError,
    StoreError,
    name_ids,
)

_FORMAT = "reducible.plan.2"
# What is read again from the report of a plan
_FILTERED = {"noise_floor", "wrong_share", "wrong_share_kept"}
_STEERED = {"keep", "share", "threshold"}


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
        return cls(
            *filtered(
                store, ids, labels,
                noise_floor=noise_floor, multiple=multiple, exponent=exponent, offset=offset,
            )
        )  # fmt: skip

    @classmethod
    def toward(
        cls,
        store: IrreducibleLossStore,
        ids: Tensor | Sequence[int],
        *,
        trusted: Tensor | Sequence[int] | None = None,
        keep: float = 0.2,
        share: float | None = None,
        against: IrreducibleLossStore | None = None,
        by: Tensor | Sequence[int] | None = None,
        copies: Tensor | Sequence[int] | None = None,
        exponent: float = 0.0,
        offset: float = 0.02,
        most_shown: float | None = None,
        draws: int | None = None,
    ) -> Plan:
        """What of a pool comes nearest to a trusted set, and the trusted set in every batch.

        For a small set that looks like what the model will be judged on, and a large pool of which
        much is beside the point, wrong or there twice. Kept is the share of the pool with the
        lowest losses by a model fitted on the trusted set, or, with ``against``, with the lowest
        loss by that model less that by a model of the pool: log p_pool − log p_trusted, as in
        Rho-1 (Lin et al. 2024) and DSIR (Xie et al. 2023).

        Args:
            store: losses of the pool by a model of the trusted set, which never saw the pool.
            ids: [N] int64 of the pool; a list, range or NumPy array too.
            trusted: [T] int64 of the trusted set, in the same data set as the pool; None if it is
                not to be trained on.
            keep: share of the pool, in [0, 1]; 0: the trusted set alone.
            share: of the draws that go to the trusted set, evenly spread over the batches; a
                quarter if there is one.
            against: losses of the pool by a model that was fitted on a part of it, or before.
            by: [N] class or group of each id of the pool; ``keep`` is then of each.
            copies: [N] whole numbers, alike for copies of one example, such as a hash of it; the
                one with the lowest loss stays.
            exponent: of (1 − p_trusted + offset) as sampling weights of what is kept; 0 weighs all
                alike.
            offset: of the sampling weights, > 0.
            most_shown: how often an example of the trusted set is shown at most, in the mean, over
                ``draws``; ``share`` is lowered to that.
            draws: rows trained on in all: updates × batch size.

        Raises:
            ConfigurationError: settings that cannot work.
            DataError: ids that are not int64, negative, twice, or both trusted and in the pool;
                labels or copies of another length.
            SelectionError, StoreError: as the stores' look-up.

        >>> store = IrreducibleLossStore.from_tensor(torch.tensor([2.0, 0.3, 9.0, 0.1]))
        >>> plan = Plan.toward(store, range(4), trusted=[4, 5], keep=0.5)
        >>> plan.ids, plan.weight
        (tensor([1, 3, 4, 5]), tensor([1.5000, 1.5000, 0.5000, 0.5000], dtype=torch.float64))
        """
        return cls(
            *steered(
                store, ids, trusted=trusted, keep=keep, share=share, against=against, by=by,
                copies=copies, exponent=exponent, offset=offset, most_shown=most_shown, draws=draws,
            )
        )  # fmt: skip

    @property
    def noise_floor(self) -> Tensor:
        """[C] float32 for ``noise_floor_loss``: m_k by the share of the noise that is left.

        That is, times the estimated share of wrong labels among the draws over that in all data.
        The noise is that of the labels which the irreducible-loss model was fitted on: one from a
        clean holdout knows nothing of the noise of the train set, and its loss is about the plain.

        Raises:
            ConfigurationError: a plan that is steered by a trusted set.
            DataError: they add up to 1 or more, so the model that they come from knows nothing.
        """
        if "noise_floor" not in self.report:
            raise ConfigurationError(
                "a plan that is steered by a trusted set asks what is to the point, not which "
                "labels are wrong: it has no noise floor. Plan.from_irreducible_loss has one."
            )
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
        report: dict[str, Any] = {**self.report, "included": new}
        if "wrong_share" in report:
            wrong = kept * report["wrong_share_kept"] + new * report["wrong_share"]
            report["wrong_share_kept"] = wrong / (kept + new)
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
            DataError: the data set lacks an id of the plan, or has other labels than it was made
                of.
        """
        if batch_size is not None:
            self._check_batch(batch_size)
        ids = ids_of(dataset)
        self._check_labels(dataset, ids.cpu())
        return PlanSampler(self.ids, self.weight, ids, generator=generator)

    def _check_labels(self, dataset: Any, ids: Tensor) -> None:
        """The labels of a data set, of the rows that this was made of, if both are known."""
        made, labels = self.report.get("fingerprint", ""), labels_of(dataset)
        if not made or labels is None or self.report.get("included") or "share" in self.report:
            return
        judged = torch.isin(ids, torch.cat([self.ids, self.dropped]))
        cause = differ(made, fingerprint(ids[judged], labels[judged]))
        if cause is not None and "labels" in cause:
            raise DataError(
                f"the plan was made of {cause}. Is the data set shuffled, or of another seed? Make "
                "the plan of the data as they are trained on."
            )

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
    told = isinstance(report, Mapping) and (set(report) >= _FILTERED or set(report) >= _STEERED)
    return None if told else "its report lacks what was decided"
