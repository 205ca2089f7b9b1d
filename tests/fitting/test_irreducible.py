"""Fitting irreducible losses: who is scored by whom, when, in which mode, at what cost."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.progress import Progress
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

import reducible as rd
from reducible.fitting.irreducible import assign_folds
from reducible.lab.data import TensorSet
from reducible.plans.floors import learned_noise
from reducible.stores import fingerprint
from reducible.tasks import Outputs, Task

QUIET: dict[str, Any] = {"progress": False}


class Numbered(Dataset[tuple[Tensor, int]]):
    """Example i is ([i, features …], label): what a model sees says which example it was."""

    def __init__(self, n: int = 60, classes: int = 3) -> None:
        g = torch.Generator().manual_seed(0)
        self.targets = torch.randint(classes, (n,), generator=g)
        noise = torch.randn(n, 3, generator=g)
        marks = F.one_hot(self.targets, classes)[:, :3]
        self.x = torch.cat([torch.arange(n)[:, None], noise + marks], dim=1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index], int(self.targets[index])


class Spy(nn.Module):
    """Remembers which examples it saw in train mode and which in eval mode."""

    def __init__(self, classes: int = 3, dropout: float = 0.5) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm1d(3), nn.Linear(3, 8), nn.Dropout(dropout), nn.Linear(8, classes)
        )
        self.trained: list[int] = []
        self.scored: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        (self.trained if self.training else self.scored).extend(x[:, 0].long().tolist())
        return self.net(x[:, 1:])


def _makes(models: list[Spy], **options: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        models.append(Spy(**options))
        return models[-1]

    return make


def _cut(data: Numbered | None = None, holdout: int = 20) -> tuple[Any, Any]:
    """Holdout and train set of one data set."""
    everything = rd.WithIds(data or Numbered())
    n = len(everything)
    return Subset(everything, range(holdout)), Subset(everything, range(holdout, n))


def _sgd(lr: float) -> Any:
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


# -- who is scored by whom ------------------------------------------------------------------------


def test_the_holdout_is_trained_on_and_only_the_train_set_scored() -> None:
    models: list[Spy] = []
    holdout, train = _cut()
    store = rd.fit_irreducible_loss(_makes(models), holdout, train, epochs=2, **QUIET)
    (model,) = models
    assert sorted(model.trained) == sorted([*range(20)] * 2)
    assert sorted(model.scored) == sorted([*range(20, 60)] * 2)  # once per check
    assert store.ids.tolist() == list(range(20, 60))


@pytest.mark.parametrize("folds", [2, 3, 7, 60])
@pytest.mark.parametrize("shape", ["all", "subset outside", "subset inside", "tensors"])
def test_no_example_is_scored_by_a_model_that_trained_on_it(folds: int, shape: str) -> None:
    data = Numbered()
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    train = {
        "all": lambda: rd.WithIds(data),
        "subset outside": lambda: Subset(rd.WithIds(data), shuffled.tolist()),
        "subset inside": lambda: rd.WithIds(Subset(data, shuffled.tolist())),
        "tensors": lambda: TensorSet(data.x[shuffled], data.targets[shuffled], ids=shuffled),
    }[shape]()
    models: list[Spy] = []
    store = rd.cross_fit_irreducible_loss(
        _makes(models), train, folds=folds, epochs=1, batch_size=59, **QUIET
    )
    assert len(models) == folds
    by_both = [set(m.trained) & set(m.scored) for m in models]
    assert by_both == [set()] * folds  # exactly 0 %
    assert sorted(i for m in models for i in m.scored) == list(range(60))
    assert all(set(m.trained) | set(m.scored) == set(range(60)) for m in models)
    sizes = [len(m.scored) for m in models]
    assert max(sizes) - min(sizes) <= 1
    # and what the store says of an id is what the model that scored it says
    for model in models:
        ids = torch.tensor(sorted(model.scored))
        model.eval()
        with torch.no_grad():
            loss = F.cross_entropy(model(data.x[ids]), data.targets[ids], reduction="none")
        torch.testing.assert_close(store.lookup(ids), loss)


@settings(max_examples=50)
@given(n=st.integers(2, 200), seed=st.integers(0, 2**31), data=st.data())
def test_folds_are_even_and_cover_everything(n: int, seed: int, data: st.DataObject) -> None:
    folds = data.draw(st.integers(2, n))
    counts = assign_folds(n, folds, seed=seed).bincount(minlength=folds)
    assert counts.numel() == folds
    assert int(counts.sum()) == n
    assert int(counts.max() - counts.min()) <= 1


def test_folds_are_drawn_by_seed() -> None:
    assert assign_folds(40, 2, seed=0).tolist() != assign_folds(40, 2, seed=1).tolist()
    assert assign_folds(40, 2, seed=0).tolist() != [i % 2 for i in range(40)]


# -- how it scores --------------------------------------------------------------------------------


def test_scores_are_those_of_eval_mode_on_plain_inputs() -> None:
    data, models = Numbered(), list[Spy]()
    holdout, train = _cut(data)
    augmented: list[int] = []

    def augment(batch: Any) -> Any:
        x, y = batch
        augmented.extend(x[:, 0].long().tolist())
        return torch.cat([x[:, :1], x[:, 1:] + 50], dim=1), y

    store = rd.fit_irreducible_loss(
        _makes(models), holdout, train, epochs=1, batch_size=5, augment=augment, **QUIET
    )
    (model,) = models
    assert sorted(augmented) == list(range(20))  # updates only
    model.eval()
    with torch.no_grad():
        loss = F.cross_entropy(model(data.x[20:]), data.targets[20:], reduction="none")
    torch.testing.assert_close(store.values, loss)
    mean = model.net[0].running_mean
    assert isinstance(mean, Tensor)
    assert bool((mean > 10).all())  # the augmentation did reach training


class Slides(nn.Module):
    """Logits (b, −b): training on label 0 alone pushes b up without end."""

    def __init__(self, start: float = -2.0) -> None:
        super().__init__()
        self.b = nn.Parameter(torch.tensor([start]))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.b, -self.b], dim=1).expand(len(x), 2)


def _slide_sets() -> tuple[TensorSet, TensorSet]:
    """A holdout of label 0 and a train set of both labels, whose best b is 0."""
    x = torch.zeros(40, 1)
    holdout = TensorSet(x[:8], torch.zeros(8).long(), num_classes=2)
    return holdout, TensorSet(x, torch.arange(40) % 2)


def test_the_checkpoint_of_lowest_loss_on_the_train_set_is_kept(tmp_path: Path) -> None:
    """On the way from −2 upwards, b passes the best value; the epochs after it are worse."""
    holdout, train = _slide_sets()
    path = tmp_path / "kept.safetensors"
    options: dict[str, Any] = {"make_optimizer": _sgd(0.2), "batch_size": 8, **QUIET}
    store = rd.fit_irreducible_loss(Slides, holdout, train, epochs=30, save_model=path, **options)
    curve = store.header["mean_losses"][0]
    kept = int(store.header["kept_epoch"][0])
    assert len(curve) == 30
    assert 1 < kept < 30
    assert curve[kept - 1] == min(curve) < curve[-1] - 0.5
    assert store.values.mean().item() == pytest.approx(min(curve), abs=1e-6)
    b = load_file(path)["b"].item()
    expected = [math.log1p(math.exp(-2 * b)), math.log1p(math.exp(2 * b))]
    assert store.values[:2].tolist() == pytest.approx(expected, abs=1e-6)
    # the holdout's own loss falls to the end, so it was not what decided
    assert abs(b) < 0.5


def test_checks_within_an_epoch() -> None:
    models: list[Spy] = []
    holdout, train = _cut()
    store = rd.fit_irreducible_loss(
        _makes(models), holdout, train, epochs=2, batch_size=5, checks_per_epoch=4, **QUIET
    )
    assert len(store.header["mean_losses"][0]) == 8
    assert len(models[0].scored) == 8 * 40
    assert len(models[0].trained) == 2 * 20


def test_label_smoothing_is_of_updates_alone() -> None:
    """With all labels 0, smoothing ε has its optimum at p_0 = 1 − ε/2, not at 1."""
    holdout, train = _slide_sets()
    train = train.relabelled(torch.zeros(40).long())
    options: dict[str, Any] = {"make_optimizer": _sgd(1.0), "batch_size": 8, **QUIET}
    store = rd.fit_irreducible_loss(
        Slides, holdout, train, epochs=200, label_smoothing=0.2, **options
    )
    assert store.values[0].item() == pytest.approx(-math.log(0.9), abs=1e-3)


def test_an_irreducible_loss_model_never_moves_while_the_target_trains() -> None:
    data, models = Numbered(), list[Spy]()
    holdout, train = _cut(data)
    store = rd.fit_irreducible_loss(_makes(models), holdout, train, epochs=2, **QUIET)
    (model,) = models
    before = {k: v.clone() for k, v in model.state_dict().items()}
    seen, values = len(model.trained) + len(model.scored), store.values.clone()

    torch.manual_seed(0)
    target = Spy().train()
    moving = {k: v.clone() for k, v in target.state_dict().items()}
    optimizer = torch.optim.SGD(target.parameters(), lr=0.1)
    loader = torch.utils.data.DataLoader(train, batch_size=20)
    for chosen in rd.SelectingLoader(loader, target, rd.selector("rho"), keep=5, store=store):
        x, y = chosen.batch
        loss = F.cross_entropy(target(x), y, reduction="none")
        optimizer.zero_grad()
        rd.weighted_mean(loss, chosen.weights).backward()
        optimizer.step()
    assert not torch.equal(target.state_dict()["net.0.running_mean"], moving["net.0.running_mean"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)
    assert len(model.trained) + len(model.scored) == seen
    assert torch.equal(store.values, values)


# -- copies ---------------------------------------------------------------------------------------


class Copied(Numbered):
    """Examples 3i, 3i + 1 and 3i + 2 are one input, each with a label of its own."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.x[index // 3], int(self.targets[index])


def test_no_example_is_scored_by_a_model_that_trained_on_its_copy() -> None:
    models: list[Spy] = []
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(5))
    train = Subset(rd.WithIds(Copied()), shuffled.tolist())
    store = rd.cross_fit_irreducible_loss(
        _makes(models), train, folds=3, groups=torch.arange(60) // 3, epochs=1, **QUIET
    )
    assert [set(m.trained) & set(m.scored) for m in models] == [set()] * 3  # exactly 0 %
    assert sorted(i for m in models for i in m.scored) == sorted([*range(20)] * 3)
    assert store.header["kept_together"] == 20
    assert store.ids.tolist() == list(range(60))


def test_copies_in_different_folds_are_named() -> None:
    models: list[Spy] = []
    with pytest.warns(UserWarning, match="have an exact copy in another fold, ids") as caught:
        rd.cross_fit_irreducible_loss(_makes(models), rd.WithIds(Copied()), epochs=1, **QUIET)
    inputs = [set(m.scored) for m in models]
    fold_of = assign_folds(60, 2, seed=0)
    apart = [i for i in range(60) if (i // 3) in inputs[0] & inputs[1]]
    said = str(caught[0].message)
    assert said.startswith(f"{len(apart)} of 60 examples have")
    assert 0 < len(apart) < 60
    assert all(int(i) in apart for i in said.split("ids ")[1].split(" and")[0].split(", "))
    assert fold_of.sum() == 30


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (torch.arange(59), r"groups of shape \(59,\) .* but there is an id 59.*by_id\[ids\]"),
        (torch.zeros(60), "as whole numbers"),
        (torch.zeros(60, dtype=torch.int64), "2 folds of 1 groups, which stay together"),
    ],
)
def test_groups_that_cannot_be(groups: Tensor, message: str) -> None:
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.cross_fit_irreducible_loss(Spy, rd.WithIds(Numbered()), groups=groups, **QUIET)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 9), min_size=5, max_size=40),
    folds=st.integers(2, 5),
    seed=st.integers(0, 2**31),
)
def test_groups_stay_together_and_folds_even(sizes: list[int], folds: int, seed: int) -> None:
    groups = torch.repeat_interleave(torch.arange(len(sizes)) * 7, torch.tensor(sizes))
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
    fold_of = assign_folds(len(groups), folds, seed=seed, groups=groups)
    assert all(fold_of[groups == g].unique().numel() == 1 for g in groups.unique())
    counts = torch.bincount(fold_of, minlength=folds)
    assert int(counts.min()) > 0
    assert int(counts.max() - counts.min()) <= max(sizes)
    assert assign_folds(len(groups), folds, seed=seed, groups=groups).equal(fold_of)


def test_groups_of_one_fill_up_what_large_ones_leave() -> None:
    groups = torch.tensor([0] * 10 + [1] * 5 + [*range(2, 12)])
    assert torch.bincount(assign_folds(25, 3, seed=1, groups=groups)).tolist() == [10, 8, 7]
    drawn = [assign_folds(60, 2, seed=s, groups=torch.arange(60)).tolist() for s in (0, 1)]
    assert drawn[0] != drawn[1]


# -- rows that tell checkpoints apart --------------------------------------------------------------


def test_checkpoints_are_told_apart_by_a_few_rows_and_the_kept_one_scores_all() -> None:
    models: list[Spy] = []
    holdout, train = _cut()
    store = rd.fit_irreducible_loss(
        _makes(models), holdout, train, epochs=3, check_rows=7, seed=4, **QUIET
    )
    (model,) = models
    checks, last = model.scored[:-40], model.scored[-40:]
    few = sorted(set(checks))
    assert len(few) == 7
    assert checks == few * 3
    assert last == list(range(20, 60))
    assert store.ids.tolist() == list(range(20, 60))
    assert store.header["check_rows"] == 7
    kept = rd.fit_irreducible_loss(
        _makes(models), holdout, train, epochs=3, check_rows=None, seed=4, **QUIET
    )
    assert sorted(models[1].scored) == sorted([*range(20, 60)] * 3)
    by_all, by_few = (s.header["mean_losses"][0] for s in (kept, store))
    assert by_all != by_few
    if by_all.index(min(by_all)) == by_few.index(min(by_few)):
        assert torch.equal(store.values, kept.values)  # the same updates, the same checkpoint


def test_the_checkpoint_kept_is_that_of_the_lowest_loss_on_the_few() -> None:
    """b walks to 0.5, past and back: what the few say decides, what all say does not."""
    holdout, train = _slide_sets()
    store = rd.fit_irreducible_loss(
        Slides, holdout, train, epochs=5, check_rows=3, make_optimizer=_sgd(0.5), **QUIET
    )
    curve = store.header["mean_losses"][0]
    assert len(curve) == 5
    assert store.header["kept_epoch"] == [1.0 + curve.index(min(curve))]
    assert len(store) == 40


def test_one_row_may_have_several_labels() -> None:
    class Several(Task):
        def targets(self, batch: Any) -> Tensor:
            return batch[1]

        def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Any:
            return Outputs(model(batch[0]), None)

        def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
            every = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
            return every.mean(dim=1)

    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(30, 4, generator=g), torch.randint(2, (30, 3), generator=g)
    data = rd.WithIds(TensorDataset(x, y))
    model = nn.Linear(4, 3)
    store = rd.fit_irreducible_loss(
        lambda: model, Subset(data, range(10)), Subset(data, range(10, 30)),
        task=Several(), epochs=2, **QUIET,
    )  # fmt: skip
    ids = torch.arange(10, 30)
    assert store.fingerprint == fingerprint(ids, y[10:])
    updates = 2 * 1
    assert store.header["updates"] == updates
    assert store.values.shape == (20,)


# -- seeds and streams ----------------------------------------------------------------------------


def test_same_seed_same_store_and_streams_left_alone(global_streams: Callable[[], Any]) -> None:
    holdout, train = _cut()
    stores = []
    for seed, global_seed in ((0, 1), (0, 2), (1, 1)):
        torch.manual_seed(global_seed)
        streams = global_streams()
        for fit in (
            lambda s=seed: rd.fit_irreducible_loss(Spy, holdout, train, epochs=2, seed=s, **QUIET),
            lambda s=seed: rd.cross_fit_irreducible_loss(Spy, train, epochs=2, seed=s, **QUIET),
        ):
            stores.append(fit().values)
            assert global_streams() == streams
    assert torch.equal(stores[0], stores[2])
    assert torch.equal(stores[1], stores[3])
    assert not torch.equal(stores[0], stores[4])
    assert not torch.equal(stores[1], stores[5])


def test_the_folds_models_start_differently() -> None:
    models: list[Spy] = []
    rd.cross_fit_irreducible_loss(
        _makes(models), rd.WithIds(Numbered()), epochs=1, make_optimizer=_sgd(0.0), **QUIET
    )
    assert not torch.equal(models[0].net[1].weight, models[1].net[1].weight)  # pyright: ignore[reportArgumentType]


def test_workers_give_the_same_losses() -> None:
    holdout, train = _cut()
    one, two = (
        rd.fit_irreducible_loss(Spy, holdout, train, epochs=1, num_workers=w, **QUIET)
        for w in (0, 1)
    )
    assert torch.equal(one.values, two.values)


# -- what the store says --------------------------------------------------------------------------


def test_the_header_says_how_it_was_made() -> None:
    holdout, train = _cut()
    ledger = rd.Ledger()
    store = rd.fit_irreducible_loss(
        Spy, holdout, train, epochs=2, batch_size=8, seed=3, ledger=ledger, **QUIET
    )
    header = store.header
    assert json.loads(json.dumps(header)) == header
    expected = {
        "method": "holdout",
        "holdout_examples": 20,
        "model": "Spy",
        "checkpoint": "lowest mean loss on the scored set",
        "augmentation": "none in scoring",
        "mode": "eval",
        "epochs": 2,
        "batch_size": 8,
        "seed": 3,
        "updates": 2 * 3,
    }
    assert {k: header[k] for k in expected} == expected
    assert header["seconds"] == ledger.seconds["irreducible_loss"] > 0
    assert header["flops"] == ledger.counts.flops_irreducible_loss > 0
    crossed = rd.cross_fit_irreducible_loss(Spy, train, folds=4, epochs=1, **QUIET).header
    assert (crossed["method"], crossed["folds"], crossed["model"]) == ("cross-fit", 4, "Spy")
    assert len(crossed["kept_epoch"]) == len(crossed["mean_losses"]) == 4


def test_the_fingerprint_is_that_of_the_train_set() -> None:
    data = Numbered()
    holdout, train = _cut(data)
    ids = torch.arange(20, 60)
    for store in (
        rd.fit_irreducible_loss(Spy, holdout, train, epochs=1, **QUIET),
        rd.cross_fit_irreducible_loss(Spy, train, epochs=1, **QUIET),
    ):
        assert store.fingerprint == fingerprint(ids, data.targets[20:])
        store.check_data(ids, data.targets[20:])
        with pytest.raises(rd.StoreError, match="other labels"):
            store.check_data(ids, data.targets[20:].flip(0))


def test_the_noise_floor_is_the_median_probability_of_each_class() -> None:
    data, models = Numbered(), list[Spy]()
    holdout, train = _cut(data)
    store = rd.fit_irreducible_loss(_makes(models), holdout, train, epochs=1, **QUIET)
    with torch.no_grad():
        p = models[0].eval()(data.x[20:]).softmax(1)
    assert store.header["noise_floor"] == pytest.approx(p.median(0).values.tolist(), abs=1e-6)


def test_what_plans_need_is_learned_of_the_rows_that_no_model_trained_on() -> None:
    data, models = Numbered(), list[Spy]()
    store = rd.cross_fit_irreducible_loss(_makes(models), rd.WithIds(data), epochs=1, **QUIET)
    folds = [torch.tensor(sorted(set(model.scored))) for model in models]
    with torch.no_grad():
        p = torch.cat([m.eval()(data.x[f]).softmax(1) for m, f in zip(models, folds, strict=True)])
    learned = learned_noise(p, data.targets[torch.cat(folds)])
    for name, expected in learned._asdict().items():
        assert store.header["learned_noise"][name] == pytest.approx(expected.tolist(), abs=1e-6)


class _Several(Task):
    """Targets of a column each: squared errors, summed over the columns."""

    def targets(self, batch: Any) -> Tensor:
        return batch[1]

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        return Outputs(model(batch[0]), None)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return (logits - targets.view(len(targets), -1)).square().sum(1)


@pytest.mark.parametrize("columns", [None, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_of_targets_that_are_no_classes_no_noise_is_learned(
    columns: int | None, dtype: torch.dtype
) -> None:
    shape = (60,) if columns is None else (60, columns)
    targets = torch.arange(60 * (columns or 1)).view(shape).to(dtype)
    data = TensorDataset(torch.randn(60, 4, generator=torch.Generator().manual_seed(0)), targets)
    everything = rd.WithIds(data)
    parts = Subset(everything, range(20)), Subset(everything, range(20, 60))
    store = rd.fit_irreducible_loss(
        lambda: nn.Linear(4, columns or 1), *parts, task=_Several(), epochs=1, **QUIET
    )
    assert "learned_noise" not in store.header
    assert len(store.header["noise_floor"]) == (columns or 1)


def test_only_fitting_is_charged() -> None:
    class Clock:
        now = 0.0

        def __call__(self) -> float:
            return self.now

    clock = Clock()

    class Slow(Spy):
        def forward(self, x: Tensor) -> Tensor:
            clock.now += 1
            return super().forward(x)

    holdout, train = _cut()
    ledger = rd.Ledger(clock=clock)
    for total in (5, 10):  # a second store is charged on top, its own header says its own cost
        store = rd.fit_irreducible_loss(
            Slow, holdout, train, epochs=1, batch_size=5, ledger=ledger, **QUIET
        )
        assert ledger.seconds["irreducible_loss"] == ledger.total == total
        assert store.header["seconds"] == 5  # four updates, one pass over the train set


def test_flops_by_hand() -> None:
    """Linear(4, 2): 2·4·2 = 16 a row forward, as many again for its weight's gradient."""
    x, y = torch.randn(30, 4), torch.arange(30) % 2
    data = TensorSet(x, y)
    holdout, train = data.subset(torch.arange(10)), data.subset(torch.arange(10, 30))
    ledger = rd.Ledger()
    rd.fit_irreducible_loss(
        lambda: nn.Linear(4, 2), holdout, train, epochs=3, batch_size=5, ledger=ledger, **QUIET
    )
    updates = 3 * 2 * (32 * 5)
    scoring = 3 * 16 * 20
    # scoring is estimated as a third of an update's FLOPs a row, here 32/3 and not 16
    assert updates + scoring * 0.6 <= ledger.counts.flops_irreducible_loss <= updates + scoring


# -- going on -------------------------------------------------------------------------------------


def test_a_saved_model_goes_on_where_it_was(tmp_path: Path) -> None:
    holdout, train = _cut()
    path = tmp_path / "il.safetensors"
    first = rd.fit_irreducible_loss(Spy, holdout, train, epochs=3, save_model=path, **QUIET)
    for source in (path, str(path), load_file(path)):
        again = rd.fit_irreducible_loss(Spy, holdout, train, epochs=0, start_from=source, **QUIET)
        assert torch.equal(again.values, first.values)
        assert again.header["kept_epoch"] == [0.0]
    further = rd.fit_irreducible_loss(Spy, holdout, train, epochs=2, start_from=path, **QUIET)
    curve = further.header["mean_losses"][0]
    assert len(curve) == 3
    assert curve[0] == pytest.approx(min(first.header["mean_losses"][0]), abs=1e-6)


def test_a_start_that_only_gets_worse_is_kept() -> None:
    holdout, train = _slide_sets()
    store = rd.fit_irreducible_loss(
        Slides, holdout, train, epochs=3, start_from={"b": torch.zeros(1)},
        make_optimizer=_sgd(0.5), **QUIET,
    )  # fmt: skip
    assert store.header["kept_epoch"] == [0.0]
    assert store.values.tolist() == pytest.approx([math.log(2)] * 40)


def test_progress_is_shown_in_the_bar_given() -> None:
    holdout, train = _cut()
    bar = Progress(disable=True)
    rd.fit_irreducible_loss(Spy, holdout, train, epochs=2, batch_size=5, progress=bar)
    (task,) = bar.tasks
    assert task.total == task.completed == 8
    rd.cross_fit_irreducible_loss(Spy, train, folds=2, epochs=2, batch_size=5, progress=bar)
    assert bar.tasks[1].total == bar.tasks[1].completed == 16


# -- what cannot work -----------------------------------------------------------------------------


def test_holdout_and_train_set_must_not_overlap() -> None:
    data = Numbered()
    everything = rd.WithIds(data)
    with pytest.raises(rd.DataError, match="share 10 examples of one data set, ids 20, 21"):
        rd.fit_irreducible_loss(
            Spy, Subset(everything, range(30)), rd.WithIds(Subset(data, range(20, 60))), **QUIET
        )


@pytest.mark.parametrize("which", ["holdout", "train"])
def test_an_empty_set(which: str) -> None:
    holdout, train = _cut()
    empty = Subset(rd.WithIds(Numbered()), [])
    sets = {"holdout": holdout, "train": train} | {which: empty}
    with pytest.raises(rd.DataError, match=f"the {which} set is empty"):
        rd.fit_irreducible_loss(Spy, sets["holdout"], sets["train"], **QUIET)
    with pytest.raises(rd.DataError, match="the train set is empty"):
        rd.cross_fit_irreducible_loss(Spy, empty, **QUIET)


@pytest.mark.parametrize("which", ["holdout", "train"])
def test_a_data_set_without_ids(which: str) -> None:
    holdout, train = _cut()
    sets = {"holdout": holdout, "train": train} | {which: Numbered()}
    with pytest.raises(rd.DataError, match=r"WithIds\("):
        rd.fit_irreducible_loss(Spy, sets["holdout"], sets["train"], epochs=1, **QUIET)
    with pytest.raises(rd.DataError, match=r"WithIds\("):
        rd.cross_fit_irreducible_loss(Spy, Numbered(), epochs=1, **QUIET)


def test_a_data_set_may_yield_candidates_itself() -> None:
    class Own(Numbered):
        def __getitem__(self, index: int) -> Any:
            return rd.Candidates(torch.tensor(500 + index), super().__getitem__(index))

    store = rd.cross_fit_irreducible_loss(Spy, Own(), epochs=1, **QUIET)
    assert store.ids.tolist() == list(range(500, 560))


@pytest.mark.parametrize("folds", [0, 1, 61, 2.5])
def test_folds_out_of_range(folds: Any) -> None:
    with pytest.raises(rd.ConfigurationError, match=r"folds must be a whole number in \[2, 60\]"):
        rd.cross_fit_irreducible_loss(Spy, rd.WithIds(Numbered()), folds=folds, **QUIET)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"epoch": 3}, r"no such options of fitting: \['epoch'\]"),
        ({"epochs": -1}, "epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"checks_per_epoch": 0}, "checks_per_epoch must be"),
        ({"label_smoothing": 1.0}, "label_smoothing must be"),
    ],
)
def test_options_that_cannot_work(option: dict[str, Any], message: str) -> None:
    holdout, train = _cut()
    with pytest.raises(rd.ConfigurationError, match=message):
        rd.fit_irreducible_loss(Spy, holdout, train, **option, **QUIET)


@pytest.mark.parametrize("option", ["start_from", "save_model"])
def test_cross_fitting_has_no_single_model(option: str) -> None:
    given: dict[str, Any] = {option: "il.safetensors"}
    with pytest.raises(rd.ConfigurationError, match=f"{option} is of one model"):
        rd.cross_fit_irreducible_loss(Spy, rd.WithIds(Numbered()), **given, **QUIET)


def test_a_fit_that_diverges_is_said() -> None:
    holdout, train = _cut()
    with pytest.raises(rd.StoreError, match=r"no checkpoint .* has a finite loss .*diverged"):
        rd.fit_irreducible_loss(
            Spy, holdout, train, epochs=2, make_optimizer=_sgd(math.inf), **QUIET
        )


def test_inputs_that_are_not_numbers_are_said() -> None:
    data = Numbered()
    data.x[30, 2] = math.nan
    with pytest.raises(rd.StoreError, match="check the inputs for NaN"):
        rd.fit_irreducible_loss(Spy, *_cut(data), epochs=1, **QUIET)


class CachesAScale(nn.Module):
    """Makes a table and its last layer in its first forward, which may be one that scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 8), nn.LazyLinear(3)
        self.tables: dict[int, Tensor] = {}  # for even and odd batches

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)  # [B, 8]
        table = self.tables.setdefault(len(x) % 2, torch.ones(8))
        return self.last(hidden * table)


@pytest.mark.parametrize("checked_first", [False, True])
def test_a_check_leaves_a_model_that_can_be_trained_on(checked_first: bool) -> None:
    holdout, train = _cut(holdout=21)  # updates on 10, 10 and 1 rows, scores of 39
    model, made = CachesAScale(), CachesAScale()
    made(torch.zeros(2, 4))
    start: dict[str, Any] = {"start_from": made.state_dict()} if checked_first else {}
    store = rd.fit_irreducible_loss(
        lambda: model, holdout, train, epochs=2, batch_size=10, checks_per_epoch=2, **start, **QUIET
    )
    assert [len(curve) for curve in store.header["mean_losses"]] == [4 + checked_first]
