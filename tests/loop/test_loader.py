"""The loop: candidates in, chosen rows out; the same after a stop as without one."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    default_collate,
)

import reducible as rd
from reducible.lab.data import TensorSet
from reducible.loading.order import never_repeats
from reducible.loop.keep import rows_to_keep
from reducible.loop.seeds import stream_seed
from reducible.selectors.base import Choice, Look, check_state_keys
from reducible.stores import has_distinct_ids

N, N_B, K = 130, 20, 5  # 130 is six full candidate batches and one short one
FULL = N // N_B
STORE = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=torch.Generator()))


class Examples(Dataset[tuple[Tensor, int]]):
    """(x, y) pairs that remember which of them were loaded, in this process."""

    def __init__(self, n: int = N) -> None:
        self.x = torch.randn(n, 4, generator=torch.Generator().manual_seed(1))
        self.targets = (self.x.sum(1) > 0).long() + (self.x[:, 0] > 1).long()
        self.loaded: list[int] = []

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        self.loaded.append(index)
        return self.x[index], int(self.targets[index])

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


class Opaque(DataLoader[Any]):
    """A subclass may do anything, so its order is not read ahead."""


def _loader(kind: str = "own", *, workers: int = 0, dataset: Any = None) -> Any:
    data = rd.WithIds(Examples()) if dataset is None else dataset
    own = torch.Generator().manual_seed(3)
    if kind == "tensors":
        examples = Examples()
        return TensorSet(examples.x, examples.targets).loader(
            N_B, drop_last=False, generator=own if dataset is None else None
        )
    if kind == "list":
        return list(DataLoader(data, batch_size=N_B))
    generator = None if kind.endswith("global") else own
    make = Opaque if kind.startswith("opaque") else DataLoader
    return make(data, batch_size=N_B, shuffle=True, generator=generator, num_workers=workers)


def _model(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))


def _batches(rule: str | rd.Selector = "rho", loader: Any = None, **options: Any) -> Any:
    selector = rd.selector(rule) if isinstance(rule, str) else rule
    options = {"keep": K} | options
    if "irreducible_loss" in selector.needs:
        options.setdefault("store", STORE)
    model = options.pop("model", None) or _model()
    return rd.SelectingLoader(_loader() if loader is None else loader, model, selector, **options)


def _ids(batches: Any, epochs: int = 1) -> list[list[int]]:
    return [chosen.ids.tolist() for _ in range(epochs) for chosen in batches]


class Spy(rd.Selector):
    """Passes on another rule's choices; remembers the candidates."""

    def __init__(self, inner: rd.Selector) -> None:
        self.inner, self.needs = inner, inner.needs
        self.candidates: list[list[int]] = []

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        self.candidates.append(evidence.ids.tolist())
        return self.inner.select(evidence, k, generator=generator)


class Rotating(rd.Selector):
    """Chooses another window of the candidates after every observation."""

    needs = frozenset({"targets"})

    def __init__(self) -> None:
        self.seen = 0

    def select(self, evidence: rd.Evidence, k: int, *, generator: torch.Generator) -> rd.Selection:
        index = (torch.arange(k) + self.seen) % len(evidence.ids)
        return rd.Selection(index, torch.full((k,), 1.0 + self.seen))

    def observe(self, evidence: rd.Evidence, selection: rd.Selection) -> None:
        self.seen += int(evidence.require("targets")[selection.index].sum())

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_state_keys(self, state, {"seen"})
        self.seen = state["seen"]


# -- what is handed out ---------------------------------------------------------------------------


def test_the_rows_of_largest_score_are_handed_out() -> None:
    model, spy = _model(), Spy(rd.selector("rho"))
    data = Examples()
    steps = 0
    for chosen in _batches(spy, model=model):
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
    batches = _batches(rule, _loader(kind))
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
    batches = _batches(rule, _loader(kind), scoring=scoring)
    assert len(batches) == len(list(batches)) == FULL * updates


def test_the_length_where_all_rows_make_one_short_batch() -> None:
    few = rd.WithIds(Examples(12))
    batches = _batches("train_loss", DataLoader(few, batch_size=N_B))
    assert len(batches) == len(list(batches)) == 1
    none = _batches("train_loss", DataLoader(few, batch_size=N_B, drop_last=True))
    assert len(none) == 0
    with pytest.raises(
        rd.DataError, match=r"hands out nothing: the loader gave no batch.*drop_last"
    ):
        list(none)


@pytest.mark.parametrize(("keep", "rows"), [(1, 1), (N_B, N_B), (0.25, 5), (1.0, N_B), (0.13, 3)])
def test_keep_is_rows_or_a_share(keep: float, rows: int) -> None:
    for rule in ("train_loss", "uniform"):
        assert {len(ids) for ids in _ids(_batches(rule, keep=keep))} == {rows}


def test_dict_batches_with_a_key_of_ids() -> None:
    data = Examples()
    rows: Any = [
        {"x": x, "labels": y, "id": 1000 + i, "text": f"t{i}"} for i, (x, y) in enumerate(data)
    ]
    store = rd.IrreducibleLossStore.from_tensor(STORE.values, ids=torch.arange(1000, 1000 + N))
    for rule in ("uniform", "rho"):
        loader = DataLoader(rows, batch_size=N_B, shuffle=True, generator=torch.Generator())
        options = {"store": store} if rule == "rho" else {}
        for chosen in _batches(rule, loader, ids="id", **options):
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
    loader = _loader(dataset=rd.WithIds(data), workers=workers)
    for chosen in _batches(rule, loader, task=task):
        first, rest = chosen.batch["views"]
        assert torch.equal(first, data.x[chosen.ids])
        assert torch.equal(rest[0], data.x[chosen.ids] + 1)
        assert torch.equal(chosen.batch["deep"]["y"], data.targets[chosen.ids])


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_subsets_keep_the_ids_of_their_base(rule: str) -> None:
    data, positions = Examples(), list(range(100, 40, -1))
    for dataset in (Subset(rd.WithIds(data), positions), rd.WithIds(Subset(data, positions))):
        for chosen in _batches(rule, _loader(dataset=dataset)):
            assert set(chosen.ids.tolist()) <= set(positions)
            assert torch.equal(chosen.batch[0], data.x[chosen.ids])


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_workers_change_nothing(rule: str) -> None:
    alone = _ids(_batches(rule), epochs=2)
    assert _ids(_batches(rule, _loader(workers=2)), epochs=2) == alone


def test_a_short_batch_is_dropped_unseen() -> None:
    """Padded to repeat rows, as some samplers do, it is no error: nothing is chosen from it."""
    rows = {"x": torch.randn(N_B, 4), "y": torch.zeros(N_B).long(), "id": torch.arange(N_B)}
    padded = {name: values[[0, 0, 1]] for name, values in rows.items()}
    assert len(_ids(_batches("train_loss", [rows, padded], ids="id"))) == 1


def test_an_iterable_data_set_of_candidates() -> None:
    class Stream(IterableDataset[rd.Candidates]):
        def __len__(self) -> int:
            return FULL * N_B

        def __iter__(self) -> Iterator[rd.Candidates]:
            for i, item in enumerate(Examples(len(self))):
                yield rd.Candidates(torch.tensor(i), item)

    for rule in ("uniform", "rho"):
        batches = _batches(rule, DataLoader(Stream(), batch_size=N_B))
        assert len(batches) == FULL
        ids = _ids(batches)
        assert [len(i) for i in ids] == [K] * FULL
        assert all(N_B * b <= i < N_B * (b + 1) for b, row in enumerate(ids) for i in row)


def test_chosen_rows_can_be_trained_on() -> None:
    """Nothing handed out was made under inference mode: it could not be saved for backward."""
    model = _model()
    for rule in ("rho", "uniform", "grad_norm"):
        chosen = next(iter(_batches(rule, model=model)))
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
    chosen = next(iter(_batches("grad_norm", data, keep=2)))
    assert not chosen.batch[1].is_inference()
    assert chosen.batch[1].dtype == torch.int32  # the loader's own


# -- uniform costs nothing ------------------------------------------------------------------------


class NoForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("a forward pass was run")


@pytest.mark.parametrize("kind", ["own", "global"])
def test_uniform_loads_only_what_it_hands_out_and_runs_no_forward(kind: str) -> None:
    data = Examples()
    batches = _batches("uniform", _loader(kind, dataset=rd.WithIds(data)), model=NoForward())
    handed_out = _ids(batches, epochs=2)
    assert len(handed_out) == 2 * FULL
    assert data.loaded == [i for row in handed_out for i in row]
    assert batches.ledger.counts.examples_scored == 0
    assert batches.ledger.counts.forwards_scored == 0
    assert batches.ledger.counts.flops_score == 0
    assert batches.ledger.counts.examples_trained == 2 * FULL * K


def test_a_rule_that_scores_loads_all_candidates() -> None:
    data = Examples()
    _ids(_batches("rho", _loader(dataset=rd.WithIds(data))))
    assert sorted(data.loaded) == list(range(N))


@pytest.mark.parametrize("kind", ["own", "global", "tensors"])
@pytest.mark.parametrize("workers", [0, 2])
def test_uniform_draws_from_the_candidates_that_other_rules_see(kind: str, workers: int) -> None:
    """Paired runs: the same order of candidates, whatever the rule."""
    spy = Spy(rd.selector("rho"))
    torch.manual_seed(11)
    _ids(_batches(spy, _loader(kind, workers=workers)), epochs=3)
    torch.manual_seed(11)
    uniform = _ids(_batches("uniform", _loader(kind, workers=workers)), epochs=3)
    assert len(uniform) == len(spy.candidates) == 3 * FULL
    for chosen, candidates in zip(uniform, spy.candidates, strict=True):
        assert set(chosen) < set(candidates)
    assert uniform[0] != spy.candidates[0][:K]  # drawn, not the first ones


def test_uniform_chooses_the_same_where_it_cannot_read_ahead() -> None:
    ahead = _ids(_batches("uniform", _loader("own")), epochs=2)
    assert _ids(_batches("uniform", _loader("opaque")), epochs=2) == ahead


# -- a rule that rests ----------------------------------------------------------------------------

RESTS = pytest.mark.parametrize(
    ("schedule", "asked"),
    [
        ({"end": 2}, [0, 1]),
        ({"start": 4}, [4, 5]),
        ({"every": 3, "mix": 0.5}, [0, 3]),
        ({"end": 4, "anneal": 4}, [0, 1, 2, 3]),  # of five rows 5, 3.75, 2.5 and 1.25
    ],
    ids=str,
)


def _scheduled(kind: str = "own", **options: Any) -> tuple[Examples, Any]:
    data = Examples()
    schedule = options.pop("schedule")
    rule = rd.Scheduled(rd.selector("rho"), **schedule)
    return data, _batches(rule, _loader(kind, dataset=rd.WithIds(data)), **options)


@RESTS
def test_a_scheduled_rule_loads_and_scores_candidates_only_where_it_is_asked(
    schedule: dict[str, Any], asked: list[int]
) -> None:
    data, batches = _scheduled(schedule=schedule)
    spy = Spy(rd.selector("rho"))
    _ids(_batches(spy))
    expected: list[int] = []
    for step, row in enumerate(_ids(batches)):
        expected += spy.candidates[step] if step in asked else row
        assert len(set(row)) == K
        assert set(row) < set(spy.candidates[step])  # paired with every other rule
    assert data.loaded == expected
    assert batches.ledger.counts.examples_scored == len(asked) * N_B
    assert batches.ledger.counts.examples_trained == FULL * K


@RESTS
@pytest.mark.parametrize("updates", [1, 2])
def test_a_scheduled_rule_chooses_the_same_where_it_cannot_read_ahead(
    schedule: dict[str, Any], asked: list[int], updates: int
) -> None:
    scoring = rd.Scoring(updates_per_scoring=updates)
    _, ahead = _scheduled(schedule=schedule, scoring=scoring)
    data, behind = _scheduled("opaque", schedule=schedule, scoring=scoring)
    assert _ids(ahead, epochs=2) == _ids(behind, epochs=2)
    assert sorted(data.loaded) == sorted([*range(N)] * 2)
    assert ahead.ledger.counts.examples_scored == behind.ledger.counts.examples_scored


def test_with_a_shadow_every_candidate_is_seen_though_the_rule_rests() -> None:
    _, alone = _scheduled(schedule={"end": 2})
    shadows = {"hard": rd.selector("train_loss")}
    data, watched = _scheduled(schedule={"end": 2}, shadows=shadows)
    assert _ids(watched) == _ids(alone)
    assert sorted(data.loaded) == list(range(N))


# -- seeds and streams ----------------------------------------------------------------------------


@pytest.mark.parametrize("rule", ["uniform", "rho", "irreducible_loss"])
def test_same_seed_same_picks(rule: str) -> None:
    torch.manual_seed(1)
    first = _ids(_batches(rule, seed=4), epochs=2)
    torch.manual_seed(2)
    assert _ids(_batches(rule, seed=4), epochs=2) == first


def test_another_seed_another_choice() -> None:
    assert _ids(_batches("uniform", seed=4)) != _ids(_batches("uniform", seed=5))
    flat = rd.IrreducibleLossStore.from_tensor(torch.zeros(N))  # every score ties
    tied = [_ids(_batches("irreducible_loss", store=flat, seed=s)) for s in (4, 5, 4)]
    assert tied[0] == tied[2] != tied[1]


def test_every_step_has_a_seed_of_its_own() -> None:
    seeds = {stream_seed(seed, step) for seed in range(20) for step in range(200)}
    assert len(seeds) == 4000
    assert all(0 <= s < 2**63 for s in seeds)


@pytest.mark.parametrize("rule", ["uniform", "rho"])
@pytest.mark.parametrize("kind", ["own", "global", "opaque-global", "tensors"])
@pytest.mark.parametrize("workers", [0, 2])
def test_global_streams_move_only_as_the_loader_moves_them(
    rule: str, kind: str, workers: int, global_streams: Callable[[], Any]
) -> None:
    plain, batches = _loader(kind, workers=workers), None
    wrapped = _batches(rule, _loader(kind, workers=workers))
    after = []
    for batches in (plain, wrapped):
        torch.manual_seed(9)
        for _ in range(2):
            for _ in batches:
                pass
        after.append(global_streams())
    assert after[0] == after[1]


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(), nn.Linear(8, 3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    _ids(_batches("rho", model=model))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(m.training for m in model.modules())


# -- stopping and resuming ------------------------------------------------------------------------


def _setup(rule: str, kind: str, workers: int) -> tuple[nn.Module, Any, Any]:
    own = {"rotating": Rotating(), "resting": rd.Scheduled(rd.selector("rho"), every=3)}
    selector = own[rule] if rule in own else rd.selector(rule)
    model = _model()
    batches = _batches(selector, _loader(kind, workers=workers), model=model, seed=2)
    return model, torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9), batches


def _train(
    model: nn.Module, optimizer: Any, batches: Any, until: int, save_at: int = -1
) -> tuple[list[list[int]], bytes]:
    """Ids chosen up to step ``until``; updates draw from the global stream, as dropout does."""
    ids, saved = [], io.BytesIO()
    while batches.step < until:
        for chosen in batches:
            x, y = chosen.batch
            noise = 1 + 0.1 * torch.randn(len(y))
            loss = rd.weighted_mean(
                F.cross_entropy(model(x), y, reduction="none") * noise, chosen.weights
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            ids.append(chosen.ids.tolist())
            if batches.step == save_at:
                state = {
                    "loader": batches.state_dict(),
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "stream": torch.get_rng_state(),
                }
                torch.save(state, saved)
            if batches.step == until:
                break
    return ids, saved.getvalue()


CASES = [
    ("uniform", "own", 0),
    ("uniform", "own", 2),
    ("uniform", "global", 0),
    ("uniform", "global", 2),
    ("uniform", "tensors", 0),
    ("uniform", "opaque", 0),
    ("uniform", "opaque-global", 0),
    ("uniform", "list", 0),
    ("rho", "own", 0),
    ("rho", "own", 2),
    ("rho", "global", 0),
    ("rho", "global", 2),
    ("rho", "tensors", 0),
    ("rho", "opaque", 0),
    ("rho", "opaque-global", 0),
    ("rho", "opaque-global", 2),
    ("rho", "list", 0),
    ("rotating", "own", 0),
    ("resting", "own", 0),
    ("resting", "own", 2),
    ("resting", "global", 0),
]


@pytest.mark.parametrize(("rule", "kind", "workers"), CASES)
@pytest.mark.parametrize("stop", [FULL + 2, 2 * FULL], ids=["inside an epoch", "at its end"])
def test_resuming_equals_never_having_stopped(
    rule: str, kind: str, workers: int, stop: int
) -> None:
    until = 3 * FULL - 1
    torch.manual_seed(21)
    model, optimizer, batches = _setup(rule, kind, workers)
    expected, saved = _train(model, optimizer, batches, until, save_at=stop)
    end = torch.get_rng_state()

    torch.manual_seed(99)  # a new process
    state = torch.load(io.BytesIO(saved), weights_only=True)
    again, optimizer, batches = _setup(rule, kind, workers)
    batches.load_state_dict(state["loader"])
    again.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["stream"])
    assert batches.step == stop
    chosen, _ = _train(again, optimizer, batches, until)
    assert chosen == expected[stop:]
    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), end)


@pytest.mark.parametrize("rule", ["uniform", "rho"])
@pytest.mark.parametrize("kind", ["own", "global"])
def test_resuming_between_epochs(rule: str, kind: str) -> None:
    torch.manual_seed(3)
    batches = _batches(rule, _loader(kind))
    _ids(batches)
    state, stream = batches.state_dict(), torch.get_rng_state()
    expected = _ids(batches, epochs=2)
    torch.manual_seed(4)
    again = _batches(rule, _loader(kind))
    again.load_state_dict(state)
    torch.set_rng_state(stream)
    assert _ids(again, epochs=2) == expected
    assert again.epoch == 2


def test_a_state_does_not_move_with_the_loop() -> None:
    batches = _batches(Rotating())
    walk = iter(batches)
    next(walk)
    state = batches.state_dict()
    position, seconds = state["passes"]["position"], dict(state["ledger"]["seconds"])
    for _ in walk:
        pass
    assert state["passes"]["position"] == position == 1
    assert state["ledger"]["seconds"] == seconds


def test_breaking_off_an_epoch_begins_a_new_one() -> None:
    batches = _batches("rho")
    for _ in batches:
        break
    assert len(_ids(batches)) == FULL
    assert batches.epoch == 1
    assert batches.step == FULL + 1


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
    _ids(_batches(rule, total_steps=50), epochs=2)
    assert rule.seen == [(s, s // FULL, 50) for s in range(2 * FULL)]
    with pytest.raises(rd.ConfigurationError, match="the selector needs total_steps="):
        _batches(Asks())


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
    batches = _batches(rule)
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

    model, data = _model(), Examples()
    batches = _batches(TwoStages(), model=model, loader=_loader(dataset=rd.WithIds(data)))
    expected = _ids(_batches("train_loss", model=model))
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
        _batches("uniform", _loader(kind), keep=keep)


def test_a_keep_larger_than_batches_of_unknown_size_fails_at_the_first() -> None:
    for rule in ("uniform", "train_loss"):
        with pytest.raises(rd.DataError, match="but the candidate batch has 20"):
            _ids(_batches(rule, _loader("list"), keep=N_B + 1))


def test_rows_to_keep_rounds_half_up() -> None:
    assert [rows_to_keep(0.1, n) for n in (320, 14, 15, 16)] == [32, 1, 2, 2]


def test_arguments_of_the_wrong_kind() -> None:
    rule, model = rd.selector("uniform"), _model()
    with pytest.raises(rd.ConfigurationError, match=r"selector is a str; pass reducible.selector"):
        rd.SelectingLoader(_loader(), model, "rho", keep=K)  # pyright: ignore[reportArgumentType]
    with pytest.raises(rd.ConfigurationError, match="model is a function, not a Module"):
        rd.SelectingLoader(_loader(), _model, rule, keep=K)  # pyright: ignore[reportArgumentType]
    with pytest.raises(rd.ConfigurationError, match="loader is a int, not iterable"):
        rd.SelectingLoader(3, model, rule, keep=K)
    empty: Any = []
    with pytest.raises(rd.DataError, match="the loader's data set is empty"):
        rd.SelectingLoader(DataLoader(empty, batch_size=N_B), model, rule, keep=K)


def test_a_rule_whose_store_is_missing_or_of_another_kind() -> None:
    with pytest.raises(
        rd.ConfigurationError, match=r"needs 'irreducible_loss', got no store\. Fit"
    ):
        _batches("rho", store=None)
    grouped = rd.IrreducibleLossStore.from_tensor(torch.zeros(N, 3))
    with pytest.raises(rd.ConfigurationError, match="got a store with 3 groups"):
        _batches("rho", store=grouped)


def test_a_rule_that_needs_what_is_no_evidence() -> None:
    class Wants(Rotating):
        needs = frozenset({"gradient"})

    with pytest.raises(rd.ConfigurationError, match=r"needs \['gradient'\], which is no evidence"):
        _batches(Wants())


def test_a_store_of_other_data_fails_at_construction() -> None:
    from reducible.stores import fingerprint

    data = Examples()
    mine = fingerprint(torch.arange(N), data.targets)
    _batches("rho", store=rd.IrreducibleLossStore.from_tensor(torch.zeros(N), fingerprint=mine))
    for other, message in (
        (fingerprint(torch.arange(N), data.targets.flip(0)), "the same ids with other labels"),
        (fingerprint(torch.arange(60), data.targets[:60]), "other examples"),
    ):
        store = rd.IrreducibleLossStore.from_tensor(torch.zeros(N), fingerprint=other)
        with pytest.raises(rd.StoreError, match=message):
            _batches("rho", store=store)


def test_a_store_that_lacks_an_id_names_it() -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(N - 1))
    with pytest.raises(rd.StoreError, match=f"1 ids without irreducible loss: {N - 1}"):
        _ids(_batches("rho", store=store))


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_batches_without_ids(rule: str) -> None:
    with pytest.raises(rd.DataError, match=r"carry no ids: got list\. Wrap the data set"):
        _ids(_batches(rule, _loader(dataset=Examples())))
    rows = [{"x": x, "y": y} for x, y in Examples()]
    with pytest.raises(rd.DataError, match=r"carry no ids: got dict with keys \['x', 'y'\]"):
        _ids(_batches(rule, _loader(dataset=rows), ids="id"))


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
        _ids(_batches(rule, [batch], ids="id"))


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
        _ids(_batches("train_loss", loader))


@pytest.mark.parametrize("kind", ["own", "global", "tensors"])
def test_the_usual_loaders_repeat_nothing(kind: str) -> None:
    loader = _loader(kind)
    assert never_repeats(loader)
    assert has_distinct_ids(loader.dataset)
    in_order = DataLoader(rd.WithIds(Examples()), batch_size=N_B)
    assert never_repeats(in_order)
    assert not never_repeats(_loader("opaque"))
    assert not never_repeats(_loader("list"))


def test_nan_logits_name_their_ids_and_nothing_is_trained() -> None:
    model, data = _model(), Examples()
    data.x[[17, 90]] = math.nan
    before = {k: v.clone() for k, v in model.state_dict().items()}
    loader = DataLoader(rd.WithIds(data), batch_size=N)
    for rule in ("rho", "train_loss", "grad_norm"):
        with pytest.raises(rd.SelectionError, match=rf"2 of {N} candidates, ids 17, 90"):
            _ids(_batches(rule, loader, model=model))
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("rule", ["uniform", "rs2", "infobatch"])
@pytest.mark.parametrize("told", ["mean", "remember"])
def test_a_diverged_model_is_noticed_by_rules_that_do_not_look(rule: str, told: str) -> None:
    model, data = _model(), rd.WithIds(Examples())
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
            for batch in _loader("list")[:FULL]:
                clock.now += 1
                yield batch

    class Log:
        def write(self, step: int, ids: Any, scores: Any, weights: Any) -> None:
            clock.now += 10

    batches = _batches("rho", Feed(), model=Slow(clock), ledger=ledger, record=Log())
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
    batches = _batches("rho", model=nn.Linear(4, 3))
    _ids(batches, epochs=2)
    counts = batches.ledger.counts
    assert counts.updates == 2 * FULL
    assert counts.examples_scored == 2 * FULL * N_B
    assert counts.examples_trained == 2 * FULL * K
    assert counts.forwards_scored == 2 * FULL
    assert counts.flops_score == 24 * 2 * FULL * N_B
    assert counts.flops_train == 3 * 24 * 2 * FULL * K


def test_training_flops_that_were_measured_are_used() -> None:
    batches = _batches("uniform")
    batches.train_flops_per_example = 1000.0
    _ids(batches)
    assert batches.ledger.counts.flops_train == 1000 * FULL * K


@pytest.mark.parametrize("rule", ["uniform", "rho"])
def test_the_record_gets_every_step(rule: str) -> None:
    written: list[tuple[Any, ...]] = []

    class Log:
        def write(self, *row: Any) -> None:
            written.append(row)

    handed_out = [(c.ids, c.weights, c.info) for b in [_batches(rule, record=Log())] for c in b]
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
