"""What rules are given, and what cannot work."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

import reducible as rd
from reducible.loading.order import never_repeats
from reducible.loop.keep import rows_to_keep
from reducible.selectors.base import Choice, Look
from reducible.stores import has_distinct_ids
from toys import (
    FULL,
    N_B,
    Examples,
    K,
    N,
    Rotating,
    batches_of,
    ids_over,
    loader_of,
    small_model,
)

# -- what rules are given -------------------------------------------------------------------------


def test_step_epoch_and_total_steps_reach_the_rule() -> None:
    class Asks(rd.Selector):
        needs = frozenset({"step", "epoch", "total_steps"})
        seen: list[tuple[int, ...]]

        def __init__(self) -> None:
            self.seen = []

        def select(
            self, evidence: rd.Evidence, k: int, *, generator: torch.Generator
        ) -> rd.Selection:
            names = ("step", "epoch", "total_steps")
            self.seen.append(tuple(int(evidence.require(n)) for n in names))
            return rd.Selection(torch.arange(k), torch.ones(k))

    rule = Asks()
    ids_over(batches_of(rule, total_steps=50), epochs=2)
    assert rule.seen == [(s, s // FULL, 50) for s in range(2 * FULL)]
    with pytest.raises(rd.ConfigurationError, match="the selector needs total_steps="):
        batches_of(Asks())


def test_observe_gets_the_evidence_and_the_selection_of_select() -> None:
    class Watches(Rotating):
        pairs: list[tuple[Any, Any]]

        def __init__(self) -> None:
            super().__init__()
            self.pairs = []

        def select(
            self, evidence: rd.Evidence, k: int, *, generator: torch.Generator
        ) -> rd.Selection:
            selection = super().select(evidence, k, generator=generator)
            self.pairs.append((evidence, selection))
            return selection

        def observe(self, evidence: rd.Evidence, selection: rd.Selection) -> None:
            super().observe(evidence, selection)
            assert self.pairs[-1][0] is evidence
            assert self.pairs[-1][1] is selection

    rule = Watches()
    batches = batches_of(rule)
    offset = 0
    for chosen in batches:
        assert chosen.weights.tolist() == [1.0 + offset] * K  # chosen before it was observed
        offset = rule.seen
    assert rule.seen > 0
    assert len(rule.pairs) == FULL


def test_a_rule_of_two_stages_looks_again_at_what_survived() -> None:
    class TwoStages(rd.Selector):
        needs = frozenset({"loss"})

        def select(
            self, evidence: rd.Evidence, k: int, *, generator: torch.Generator
        ) -> rd.Selection:
            best = evidence.require("loss").topk(k)
            return rd.Selection(best.indices, torch.ones(k))

        def choose(self, look: Look, k: int, *, generator: torch.Generator) -> Choice:
            rows = self.select(look(self.needs), 2 * k, generator=generator).index
            last = look(frozenset({"logits", "targets"}), rows)
            assert last.require("logits").shape == (2 * k, 3)
            return Choice(last, rd.Selection(torch.arange(k), torch.ones(k)), rows)

    model, data = small_model(), Examples()
    batches = batches_of(TwoStages(), model=model, loader=loader_of(dataset=rd.WithIds(data)))
    expected = ids_over(batches_of("train_loss", model=model))
    for chosen, ids in zip(batches, expected, strict=True):
        assert chosen.ids.tolist() == ids
        assert torch.equal(chosen.batch[0], data.x[chosen.ids])
    assert batches.ledger.counts.examples_scored == FULL * (N_B + 2 * K)


# -- what cannot work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        (0, "at least 1 row"),
        (-3, "at least 1 row"),
        (0.0, r"a share in \(0, 1\]"),
        (-0.5, r"a share in \(0, 1\]"),
        (1.5, r"a share in \(0, 1\]"),
        (math.nan, "got nan"),
        (math.inf, "got inf"),
        (True, "a number of rows or a share, got True"),
        ("0.1", "a number of rows or a share"),
        (N_B + 1, "keep=21 rows, but the candidate batch has 20"),
        (0.01, "keep=0.01 of 20 candidates rounds to no row at all"),
    ],
)
@pytest.mark.parametrize("kind", ["own", "tensors", "opaque"])
def test_a_keep_that_cannot_work_fails_at_construction(keep: Any, message: str, kind: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        batches_of("uniform", loader_of(kind), keep=keep)


def test_a_keep_larger_than_batches_of_unknown_size_fails_at_the_first() -> None:
    for rule in ("uniform", "train_loss"):
        with pytest.raises(rd.DataError, match="but the candidate batch has 20"):
            ids_over(batches_of(rule, loader_of("list"), keep=N_B + 1))


def test_rows_to_keep_rounds_half_up() -> None:
    assert [rows_to_keep(0.1, n) for n in (320, 14, 15, 16)] == [32, 1, 2, 2]


def test_arguments_of_the_wrong_kind() -> None:
    rule, model = rd.selector("uniform"), small_model()
    with pytest.raises(rd.ConfigurationError, match=r"selector is a str; pass reducible.selector"):
        rd.SelectingLoader(loader_of(), model, "rho", keep=K)  # pyright: ignore[reportArgumentType]
    with pytest.raises(rd.ConfigurationError, match="model is a function, not a Module"):
        rd.SelectingLoader(loader_of(), small_model, rule, keep=K)  # pyright: ignore[reportArgumentType]
    with pytest.raises(rd.ConfigurationError, match="loader is a int, not iterable"):
        rd.SelectingLoader(3, model, rule, keep=K)
    empty: Any = []
    with pytest.raises(rd.DataError, match="the loader's data set is empty"):
        rd.SelectingLoader(DataLoader(empty, batch_size=N_B), model, rule, keep=K)


def test_a_rule_whose_store_is_missing_or_of_another_kind() -> None:
    with pytest.raises(
        rd.ConfigurationError, match=r"needs 'irreducible_loss', got no store\. Fit"
    ):
        batches_of("rho", store=None)
    grouped = rd.IrreducibleLossStore.from_tensor(torch.zeros(N, 3))
    with pytest.raises(rd.ConfigurationError, match="got a store with 3 groups"):
        batches_of("rho", store=grouped)


def test_a_rule_that_needs_what_is_no_evidence() -> None:
    class Wants(Rotating):
        needs = frozenset({"gradient"})

    with pytest.raises(rd.ConfigurationError, match=r"needs \['gradient'\], which is no evidence"):
        batches_of(Wants())


def test_a_store_of_other_data_fails_at_construction() -> None:
    from reducible.stores import fingerprint

    data = Examples()
    mine = fingerprint(torch.arange(N), data.targets)
    batches_of("rho", store=rd.IrreducibleLossStore.from_tensor(torch.zeros(N), fingerprint=mine))
    for other, message in (
        (fingerprint(torch.arange(N), data.targets.flip(0)), "the same ids with other labels"),
        (fingerprint(torch.arange(60), data.targets[:60]), "other examples"),
    ):
        store = rd.IrreducibleLossStore.from_tensor(torch.zeros(N), fingerprint=other)
        with pytest.raises(rd.StoreError, match=message):
            batches_of("rho", store=store)


def test_a_store_that_lacks_an_id_names_it() -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(N - 1))
    with pytest.raises(rd.StoreError, match=f"1 ids without irreducible loss: {N - 1}"):
        ids_over(batches_of("rho", store=store))


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_batches_without_ids(rule: str) -> None:
    with pytest.raises(rd.DataError, match=r"carry no ids: got list\. Wrap the data set"):
        ids_over(batches_of(rule, loader_of(dataset=Examples())))
    rows = [{"x": x, "y": y} for x, y in Examples()]
    with pytest.raises(rd.DataError, match=r"carry no ids: got dict with keys \['x', 'y'\]"):
        ids_over(batches_of(rule, loader_of(dataset=rows), ids="id"))


@pytest.mark.parametrize("rule", ["uniform", "rho"])
@pytest.mark.parametrize(
    ("ids", "message"),
    [
        (torch.arange(20.0), "got torch.float32"),
        (torch.arange(20, dtype=torch.int32), "got torch.int32"),
        (torch.arange(20) - 1, "must not be negative, got -1"),
        (torch.arange(20) // 2, "ids 0, 1, 2, 3, 4 and 5 more occur more than once"),
        (torch.arange(20).view(20, 1), r"of shape \(20, 1\)"),
    ],
)
def test_ids_that_are_no_ids(rule: str, ids: Tensor, message: str) -> None:
    batch = {"x": torch.randn(20, 4), "y": torch.zeros(20).long(), "id": ids}
    with pytest.raises(rd.DataError, match=message):
        ids_over(batches_of(rule, [batch], ids="id"))


def _twice(rows: list[rd.Candidates]) -> Any:
    half = rows[: len(rows) // 2]
    return default_collate(half + half)


class Doubled(BatchSampler):
    """Hands out the first half of every batch twice."""

    def __iter__(self) -> Iterator[list[int]]:
        return (batch[: N_B // 2] * 2 for batch in super().__iter__())


REPEATS = {
    "replacement": "RandomSampler draws with replacement.*Pass replacement=False",
    "many": f"RandomSampler draws num_samples={30 * N} of {N} rows.*Leave num_samples out",
    "subset": "more than once.*a Subset that names a row twice",
    "ids": "more than once.*a Subset that names a row twice",
    "collate": "more than once.*collate function repeats rows",
    "batches": "more than once.*Doubled",
}


@pytest.mark.parametrize("how", sorted(REPEATS))
def test_a_loader_that_repeats_examples(how: str) -> None:
    data: Any = rd.WithIds(Examples())
    own = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"batch_size": N_B}
    if how == "replacement":
        options["sampler"] = RandomSampler(data, replacement=True, generator=own)
    elif how == "many":  # a batch may hold the end of one walk and the beginning of the next
        options["sampler"] = RandomSampler(data, num_samples=30 * N, generator=own)
    elif how == "subset":
        data = Subset(data, [0, 1, 2, *range(N_B)])
    elif how == "ids":
        data.ids[7] = 3
    elif how == "collate":
        options["collate_fn"] = _twice
    else:
        options = {"batch_sampler": Doubled(SequentialSampler(data), N_B, False)}
    loader = DataLoader(data, **options)
    assert not (never_repeats(loader) and has_distinct_ids(data))
    with pytest.raises(rd.DataError, match=REPEATS[how]):
        ids_over(batches_of("train_loss", loader))


@pytest.mark.parametrize("kind", ["own", "global", "tensors"])
def test_the_usual_loaders_repeat_nothing(kind: str) -> None:
    loader = loader_of(kind)
    assert never_repeats(loader)
    assert has_distinct_ids(loader.dataset)
    in_order = DataLoader(rd.WithIds(Examples()), batch_size=N_B)
    assert never_repeats(in_order)
    assert not never_repeats(loader_of("opaque"))
    assert not never_repeats(loader_of("list"))


def test_nan_logits_name_their_ids_and_nothing_is_trained() -> None:
    model, data = small_model(), Examples()
    data.x[[17, 90]] = math.nan
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loader = DataLoader(rd.WithIds(data), batch_size=N)
    for rule in ("rho", "train_loss", "grad_norm"):
        with pytest.raises(rd.SelectionError, match=rf"2 of {N} candidates, ids 17, 90"):
            ids_over(batches_of(rule, loader, model=model))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("rule", ["uniform", "rs2", "infobatch"])
@pytest.mark.parametrize("told", ["mean", "remember"])
def test_a_diverged_model_is_noticed_by_rules_that_do_not_look(rule: str, told: str) -> None:
    model, data = small_model(), rd.WithIds(Examples())
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    loader = DataLoader(data, batch_size=K if rule == "infobatch" else N_B, shuffle=True)
    keep = 1.0 if rule == "infobatch" else K
    batches = rd.SelectingLoader(loader, model, rd.selector(rule), keep=keep, total_steps=50)
    chosen = next(iter(batches))
    loss = F.cross_entropy(model(chosen.batch[0]), chosen.batch[1], reduction="none")
    named = ", ".join(str(i) for i in chosen.ids.tolist())
    tell: dict[str, Callable[[], Any]] = {
        "mean": lambda: rd.weighted_mean(loss, chosen.weights, ids=chosen.ids),
        "remember": lambda: batches.remember(chosen.ids, loss),
    }
    with pytest.raises(rd.SelectionError, match=rf"{K} of {K} rows, ids {named}: the model has"):
        tell[told]()


@pytest.mark.parametrize("weight", [1.0, 0.0])
def test_one_loss_that_is_not_finite_is_named_by_its_row(weight: float) -> None:
    loss, weights = torch.tensor([1.0, math.inf, 2.0]), torch.tensor([1.0, weight, 1.0])
    with pytest.raises(rd.SelectionError, match=r"the training loss .* 1 of 3 rows, rows 1: "):
        rd.weighted_mean(loss, weights)
    with pytest.raises(rd.SelectionError, match=r"the weight .* 1 of 3 rows, rows 1: "):
        rd.weighted_mean(weights, loss)


def test_a_mean_too_large_for_its_type_is_not_refused() -> None:
    """Losses are finite; their sum is not, and that is for the user to see."""
    assert math.isinf(rd.weighted_mean(torch.full((4,), 3e38), torch.ones(4)))
