"""The loop: candidates in, chosen rows out; every second and every step accounted for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    Subset,
)

import reducible as rd
from toys import (
    FULL,
    N_B,
    STORE,
    Examples,
    K,
    N,
    Spy,
    batches_of,
    ids_over,
    loader_of,
    small_model,
)

# -- what is handed out ---------------------------------------------------------------------------


def test_the_rows_of_largest_score_are_handed_out() -> None:
    model, spy = small_model(), Spy(rd.selector("rho"))
    data = Examples()
    steps = 0
    for chosen in batches_of(spy, model=model):
        candidates = torch.tensor(spy.candidates[-1])
        with torch.no_grad():
            losses = F.cross_entropy(
                model(data.x[candidates]), data.targets[candidates], reduction="none"
            )
        rho = losses - STORE.values[candidates]
        best = candidates[rho.argsort(descending=True)[:K]]
        assert chosen.ids.tolist() == best.tolist()
        x, y = chosen.batch
        assert torch.equal(x, data.x[chosen.ids])
        assert y.tolist() == data.targets[chosen.ids].tolist()
        torch.testing.assert_close(chosen.info["score"], rho.sort(descending=True).values[:K])
        steps += 1
    assert steps == FULL


@pytest.mark.parametrize("rule", ["rho", "uniform", "train_loss", "irreducible_loss"])
@pytest.mark.parametrize("kind", ["own", "tensors", "opaque"])
def test_n_b_stays_n_b_and_the_short_batch_is_dropped(rule: str, kind: str) -> None:
    batches = batches_of(rule, loader_of(kind))
    for _ in range(2):
        epoch = list(batches)
        assert [len(c.ids) for c in epoch] == [K] * FULL
        for chosen in epoch:
            assert chosen.ids.unique().numel() == K
            assert [len(part) for part in chosen.batch] == [K, K]
            assert chosen.weights.tolist() == [1.0] * K
    assert batches.step == 2 * FULL


@pytest.mark.parametrize("rule", ["rho", "uniform"])
@pytest.mark.parametrize("kind", ["own", "tensors", "opaque"])
@pytest.mark.parametrize("updates", [1, 3])
def test_the_length_is_the_number_of_batches_handed_out(rule: str, kind: str, updates: int) -> None:
    scoring = rd.Scoring(updates_per_scoring=updates)
    batches = batches_of(rule, loader_of(kind), scoring=scoring)
    assert len(batches) == len(list(batches)) == FULL * updates


def test_the_length_where_all_rows_make_one_short_batch() -> None:
    few = rd.WithIds(Examples(12))
    batches = batches_of("train_loss", DataLoader(few, batch_size=N_B))
    assert len(batches) == len(list(batches)) == 1
    none = batches_of("train_loss", DataLoader(few, batch_size=N_B, drop_last=True))
    assert len(none) == 0
    with pytest.raises(
        rd.DataError, match=r"hands out nothing: the loader gave no batch.*drop_last"
    ):
        list(none)


@pytest.mark.parametrize(("keep", "rows"), [(1, 1), (N_B, N_B), (0.25, 5), (1.0, N_B), (0.13, 3)])
def test_keep_is_rows_or_a_share(keep: float, rows: int) -> None:
    for rule in ("train_loss", "uniform"):
        assert {len(ids) for ids in ids_over(batches_of(rule, keep=keep))} == {rows}


def test_dict_batches_with_a_key_of_ids() -> None:
    data = Examples()
    rows: Any = [
        {"x": x, "labels": y, "id": 1000 + i, "text": f"t{i}"} for i, (x, y) in enumerate(data)
    ]
    store = rd.IrreducibleLossStore.from_tensor(STORE.values, ids=torch.arange(1000, 1000 + N))
    for rule in ("uniform", "rho"):
        loader = DataLoader(rows, batch_size=N_B, shuffle=True, generator=torch.Generator())
        options = {"store": store} if rule == "rho" else {}
        for chosen in batches_of(rule, loader, ids="id", **options):
            assert list(chosen.batch) == ["x", "labels", "id", "text"]
            assert len(chosen.ids) == K  # not the number of keys
            at = chosen.ids - 1000
            assert torch.equal(chosen.batch["id"], chosen.ids)
            assert torch.equal(chosen.batch["x"], data.x[at])
            assert chosen.batch["text"] == [f"t{i}" for i in at.tolist()]


class Nested(Examples):
    def __getitem__(self, index: int) -> Any:
        return {"views": (self.x[index], [self.x[index] + 1]), "deep": {"y": self.targets[index]}}


@pytest.mark.parametrize("rule", ["uniform", "rho"])
@pytest.mark.parametrize("workers", [0, 2])
def test_nested_batches_keep_their_structure(rule: str, workers: int) -> None:
    data = Nested()
    task = rd.Classification(inputs=lambda b: b["views"][0], targets=lambda b: b["deep"]["y"])
    loader = loader_of(dataset=rd.WithIds(data), workers=workers)
    for chosen in batches_of(rule, loader, task=task):
        first, rest = chosen.batch["views"]
        assert torch.equal(first, data.x[chosen.ids])
        assert torch.equal(rest[0], data.x[chosen.ids] + 1)
        assert torch.equal(chosen.batch["deep"]["y"], data.targets[chosen.ids])


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_subsets_keep_the_ids_of_their_base(rule: str) -> None:
    data, positions = Examples(), list(range(100, 40, -1))
    for dataset in (Subset(rd.WithIds(data), positions), rd.WithIds(Subset(data, positions))):
        for chosen in batches_of(rule, loader_of(dataset=dataset)):
            assert set(chosen.ids.tolist()) <= set(positions)
            assert torch.equal(chosen.batch[0], data.x[chosen.ids])


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_workers_change_nothing(rule: str) -> None:
    alone = ids_over(batches_of(rule), epochs=2)
    assert ids_over(batches_of(rule, loader_of(workers=2)), epochs=2) == alone


def test_a_short_batch_is_dropped_unseen() -> None:
    """Padded to repeat rows, as some samplers do, it is no error: nothing is chosen from it."""
    rows = {"x": torch.randn(N_B, 4), "y": torch.zeros(N_B).long(), "id": torch.arange(N_B)}
    padded = {name: values[[0, 0, 1]] for name, values in rows.items()}
    assert len(ids_over(batches_of("train_loss", [rows, padded], ids="id"))) == 1


def test_an_iterable_data_set_of_candidates() -> None:
    class Stream(IterableDataset[rd.Candidates]):
        def __len__(self) -> int:
            return FULL * N_B

        def __iter__(self) -> Iterator[rd.Candidates]:
            for i, item in enumerate(Examples(len(self))):
                yield rd.Candidates(torch.tensor(i), item)

    for rule in ("uniform", "rho"):
        batches = batches_of(rule, DataLoader(Stream(), batch_size=N_B))
        assert len(batches) == FULL
        ids = ids_over(batches)
        assert [len(i) for i in ids] == [K] * FULL
        assert all(N_B * b <= i < N_B * (b + 1) for b, row in enumerate(ids) for i in row)


def test_chosen_rows_can_be_trained_on() -> None:
    """Nothing handed out was made under inference mode: it could not be saved for backward."""
    model = small_model()
    for rule in ("rho", "uniform", "grad_norm"):
        chosen = next(iter(batches_of(rule, model=model)))
        x, y = chosen.batch
        for tensor in (x, y, chosen.ids, chosen.weights, *chosen.info.values()):
            assert not tensor.is_inference()
        weights = chosen.weights.clone().requires_grad_()
        rd.weighted_mean(F.cross_entropy(model(x), y, reduction="none"), weights).backward()
        assert weights.grad is not None
        gradients = [p.grad for p in model.parameters()]
        assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients)


def test_labels_of_another_width_do_not_become_inference_tensors() -> None:
    data = [rd.Candidates(torch.arange(4), (torch.randn(4, 4), torch.tensor([0, 1, 2, 0]).int()))]
    chosen = next(iter(batches_of("grad_norm", data, keep=2)))
    assert not chosen.batch[1].is_inference()
    assert chosen.batch[1].dtype == torch.int32  # the loader's own


# -- accounting -----------------------------------------------------------------------------------


class Clock:
    """Stands still but where something takes time on purpose."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(nn.Module):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.clock.now += 100
        return self.head(x)


def test_every_second_is_charged_to_what_took_it() -> None:
    clock = Clock()
    ledger = rd.Ledger(clock=clock)

    class Feed:
        def __iter__(self) -> Iterator[Any]:
            for batch in loader_of("list")[:FULL]:
                clock.now += 1
                yield batch

    class Log:
        def write(self, step: int, ids: Any, scores: Any, weights: Any) -> None:
            clock.now += 10

    batches = batches_of("rho", Feed(), model=Slow(clock), ledger=ledger, record=Log())
    for _ in batches:
        clock.now += 1000
        with ledger.phase("evaluate"):
            clock.now += 10_000
        clock.now += 1000
    assert ledger.seconds == {
        "irreducible_loss": 0,
        "load": FULL,
        "score": 100 * FULL,
        "pick": 10 * FULL,
        "train": 2000 * FULL,
        "evaluate": 10_000 * FULL,
    }


def test_counts_by_hand() -> None:
    # Linear(4, 3): 2·4·3 = 24 FLOPs a row forward; training is counted as three forwards.
    batches = batches_of("rho", model=nn.Linear(4, 3))
    ids_over(batches, epochs=2)
    counts = batches.ledger.counts
    assert counts.updates == 2 * FULL
    assert counts.examples_scored == 2 * FULL * N_B
    assert counts.examples_trained == 2 * FULL * K
    assert counts.forwards_scored == 2 * FULL
    assert counts.flops_score == 24 * 2 * FULL * N_B
    assert counts.flops_train == 3 * 24 * 2 * FULL * K


def test_training_flops_that_were_measured_are_used() -> None:
    batches = batches_of("uniform")
    batches.train_flops_per_example = 1000.0
    ids_over(batches)
    assert batches.ledger.counts.flops_train == 1000 * FULL * K


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_the_record_gets_every_step(rule: str) -> None:
    written: list[tuple[Any, ...]] = []

    class Log:
        def write(self, *row: Any) -> None:
            written.append(row)

    handed_out = [(c.ids, c.weights, c.info) for b in [batches_of(rule, record=Log())] for c in b]
    assert [row[0] for row in written] == list(range(FULL))
    for (_, ids, scores, weights), (chosen, given, info) in zip(written, handed_out, strict=True):
        assert torch.equal(ids, chosen)
        assert torch.equal(weights, given)
        assert (scores is None) == (rule == "uniform")
        if scores is not None:
            assert torch.equal(scores, info["score"])


# -- weighted_mean --------------------------------------------------------------------------------


def test_weighted_mean_divides_by_rows() -> None:
    loss, weight = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0.5, 0.25, 2.0])
    assert rd.weighted_mean(loss, weight).item() == pytest.approx((0.5 + 0.5 + 12) / 3)
    assert rd.weighted_mean(loss.double(), weight).dtype == torch.float64


def test_weighted_mean_is_unbiased_where_weights_correct_the_draw() -> None:
    """Draws with p_i, weights 1/(n·p_i): the mean over draws is the mean loss. Not so for Σw."""
    generator = torch.Generator().manual_seed(0)
    loss = torch.tensor([1.0, 2.0, 10.0, 3.0], dtype=torch.float64)
    p = torch.tensor([0.1, 0.2, 0.5, 0.2], dtype=torch.float64)
    draws = torch.multinomial(p, 20_000, replacement=True, generator=generator).view(-1, 2)
    estimates = torch.stack([rd.weighted_mean(loss[i], 1 / (4 * p[i])) for i in draws])
    error = estimates.std() / len(draws) ** 0.5
    assert abs(estimates.mean() - loss.mean()) < 4 * error


def test_weighted_mean_of_a_reduced_loss() -> None:
    with pytest.raises(rd.DataError, match=r"a loss of shape \(\) for 3 rows: it is already"):
        rd.weighted_mean(torch.tensor(1.0), torch.ones(3))
    with pytest.raises(rd.DataError, match=r"a loss of shape \(2,\) for 3 rows"):
        rd.weighted_mean(torch.ones(2), torch.ones(3))
