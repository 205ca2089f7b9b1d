"""When rows are loaded, and which parts of a choice are handed out."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

import reducible as rd
from reducible.loop.seeds import stream_seed

N, N_B, K = 60, 20, 5


class Counted(Dataset[tuple[Tensor, int]]):
    """Examples that count, over all processes, how often each was loaded."""

    def __init__(self) -> None:
        self.x = torch.randn(N, 4, generator=torch.Generator().manual_seed(1))
        self.targets = (self.x.sum(1) > 0).long()
        self.loaded = torch.zeros(N, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return N

    def __getitem__(self, index: int) -> Any:
        self.loaded[index] += 1
        return self.x[index], int(self.targets[index])


def _batches(
    rule: str, *, workers: int = 0, data: Any = None, keep: int = K, **options: Any
) -> Any:
    loader = DataLoader(rd.WithIds(data or Counted()), batch_size=N_B, num_workers=workers)
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return rd.SelectingLoader(loader, model, rd.selector(rule), keep=keep, **options)


def test_workers_load_only_the_rows_that_a_blind_rule_drew() -> None:
    data = Counted()
    handed = torch.cat([chosen.ids for chosen in _batches("uniform", workers=2, data=data)])
    assert handed.numel() == 3 * K
    expected = torch.zeros(N, dtype=torch.int64)
    expected[handed] = 1
    assert torch.equal(data.loaded, expected)


def test_parts_that_are_left_of_a_broken_pass_are_not_handed_out_in_the_next() -> None:
    batches = _batches("train_loss", scoring=rd.Scoring(updates_per_scoring=2))
    first = next(iter(batches))
    again = iter(batches)
    assert next(again).ids.tolist() == first.ids.tolist()  # of the same model: the same choice
    second = next(again).ids.tolist()
    assert not set(second) & set(first.ids.tolist())
    assert batches.step == 3


def test_an_epoch_is_planned_from_a_stream_that_no_step_uses() -> None:
    batches = _batches("rs2", seed=7)
    planner = batches._planner
    seeds: list[int] = []
    plan = planner.plan

    def spied(*, generator: torch.Generator, **more: Any) -> None:
        seeds.append(generator.initial_seed())
        plan(generator=generator, **more)

    planner.plan = spied
    for _ in range(3):
        list(batches)
    assert seeds == [stream_seed(7, -1 - epoch) for epoch in range(3)]


def test_between_passes_a_state_stands_at_none_of_their_batches() -> None:
    batches = _batches("train_loss")
    assert batches.state_dict()["passes"]["position"] == 0
    for chosen in batches:
        assert chosen.ids.numel() == K
        assert batches.state_dict()["passes"]["position"] == batches.step
    assert batches.state_dict()["passes"]["position"] == 0


def test_a_pass_after_a_broken_one_is_counted_from_its_own_beginning() -> None:
    batches = _batches("train_loss")
    for _, _chosen in zip(range(2), batches, strict=False):
        pass
    assert batches.state_dict()["passes"]["position"] == 2
    next(iter(batches))
    assert batches.state_dict()["passes"]["position"] == 1
    assert batches.epoch == 1


@pytest.mark.parametrize("rule", ["uniform", "train_loss"])
def test_the_short_rest_may_be_the_second_batch(rule: str) -> None:
    batches = _batches(rule, data=Subset(Counted(), range(N_B + K)))
    assert [chosen.ids.numel() for chosen in batches] == [K]
    assert len(batches) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("epoch", 0.5), ("epoch", -2), ("position", 1.5), ("position", -1), ("n_candidates", 0.5)],
)
def test_counts_in_a_state_that_are_none(name: str, value: float) -> None:
    batches = _batches("train_loss")
    next(iter(batches))
    state = batches.state_dict()
    state["passes"] = state["passes"] | {name: value}
    state["step"] = 2
    with pytest.raises(rd.ConfigurationError, match=f"{name} in the state must be a whole number"):
        batches.load_state_dict(state)
    assert batches.step == 1


def test_a_loss_that_is_reported_belongs_to_the_step_that_was_handed_out() -> None:
    batches = _batches("train_loss", scoring=rd.Scoring(max_age=9))
    memory = batches._evidence._memory
    for step, chosen in enumerate(batches):
        if step == 0:
            continue
        batches.remember(chosen.ids, torch.ones(K))
        assert memory.age(chosen.ids, step).tolist() == [0] * K
        assert memory.lookup(chosen.ids).tolist() == [1.0] * K
    before = _batches("train_loss", scoring=rd.Scoring(max_age=9))
    before.remember(torch.arange(2), torch.ones(2))  # before any step: as of the first
    assert before._evidence._memory.age(torch.arange(2), 0).tolist() == [0, 0]


def test_where_all_rows_are_chosen_each_comes_with_its_own_id() -> None:
    data = Counted()
    for chosen in _batches("train_loss", data=data, keep=N_B):
        assert chosen.ids.numel() == N_B
        x, y = chosen.batch
        assert torch.equal(x, data.x[chosen.ids])
        assert torch.equal(y, data.targets[chosen.ids])


def test_a_record_of_picks_alone_is_told_nothing_else() -> None:
    class Picks:
        steps: ClassVar[list[int]] = []

        def write(self, step: int, ids: Tensor, score: Tensor | None, weight: Tensor) -> None:
            self.steps.append(step)

    store = rd.IrreducibleLossStore.from_tensor(torch.zeros(N, 2))
    loader = DataLoader(rd.WithIds(Counted()), batch_size=N_B)
    options: dict[str, Any] = {"store": store, "group_holdout": loader, "record": Picks()}
    for chosen in _batches("reducr", **options):
        assert "group_weights" in chosen.info  # which a record of picks has no place for
    assert Picks.steps == [0, 1, 2]


def test_ids_that_are_no_numbers_in_a_list_of_batches_are_told_of() -> None:
    rows = [{"ids": ["a", "b"], "x": torch.randn(2, 4)}]
    batches = rd.SelectingLoader(rows, nn.Linear(4, 2), rd.selector("uniform"), keep=1, ids="ids")
    assert len(batches) == 1
    with pytest.raises(rd.DataError, match=r"got strings such as 'a'\. Hash them once"):
        list(batches)


# -- a pass after one that ended in another way ---------------------------------------------------

VARYING = [list(range(20)), list(range(20, 30)), list(range(30, 50)), list(range(50, 60))]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_drawn_ahead_in_a_broken_pass_is_not_taken_for_the_next(workers: int) -> None:
    data: Any = rd.WithIds(Counted())
    loader = DataLoader(data, batch_sampler=VARYING, num_workers=workers)
    batches = rd.SelectingLoader(loader, nn.Linear(4, 2), rd.selector("uniform"), keep=0.5)
    next(iter(batches))
    assert [chosen.ids.numel() for chosen in batches] == [10, 5, 10, 5]


def test_a_last_batch_that_was_too_short_says_nothing_of_the_next_pass() -> None:
    data: Any = rd.WithIds(Counted())
    loader = DataLoader(data, batch_sampler=[list(range(20)), [20, 21]])
    batches = rd.SelectingLoader(loader, nn.Linear(4, 2), rd.selector("uniform"), keep=5)
    for _ in range(3):
        assert [chosen.ids.numel() for chosen in batches] == [5]


def test_the_rest_after_a_stop_is_left_out_too() -> None:
    def loop() -> Any:
        return _batches("uniform", data=Subset(Counted(), range(N_B + 2 * K)))

    batches, again = loop(), loop()
    next(iter(batches))
    again.load_state_dict(batches.state_dict())
    assert list(again) == []
    assert [chosen.ids.numel() for chosen in again] == [K]


def test_candidate_batches_of_one_row() -> None:
    def loop() -> Any:
        loader = DataLoader(rd.WithIds(Counted()), batch_size=1)
        return rd.SelectingLoader(loader, nn.Linear(4, 2), rd.selector("train_loss"), keep=1)

    batches, again = loop(), loop()
    next(iter(batches))
    again.load_state_dict(batches.state_dict())
    assert next(iter(again)).ids.tolist() == [1]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's own
@pytest.mark.parametrize(("updates", "kept"), [(1, 1), (2, 2), (3, 2)])
def test_a_loaders_own_state_is_kept_of_the_batch_before_if_a_batch_has_parts(
    updates: int, kept: int
) -> None:
    loader = StatefulDataLoader(rd.WithIds(Counted()), batch_size=N_B)
    scoring = rd.Scoring(updates_per_scoring=updates)
    batches = rd.SelectingLoader(
        loader, nn.Linear(4, 2), rd.selector("train_loss"), keep=K, scoring=scoring
    )
    next(iter(batches))
    states = batches._passes._reader._states
    assert (1 if states is None else len(states)) == kept
