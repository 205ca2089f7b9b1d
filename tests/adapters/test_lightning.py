"""Lightning: an unchanged module, the plain loop's picks, checkpoints, precision, logging."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from hf_toys import Ids

pl = pytest.importorskip("pytorch_lightning", reason="reducible[lightning] is not installed")
from pytorch_lightning.callbacks import ModelCheckpoint  # noqa: E402
from pytorch_lightning.loggers import TensorBoardLogger  # noqa: E402

from reducible.adapters.lightning import SelectionCallback, SelectionLoader  # noqa: E402

# Of Lightning's own warnings those that concern selection would say so.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning_utilities"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning_fabric"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def _data() -> TensorDataset:
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, 6, generator=g)
    return TensorDataset(x, (x[:, 0] + 0.3 * torch.randn(256, generator=g) > 0).long())


DATA = _data()


class Module(pl.LightningModule):
    """As a user has it; knows nothing of selection."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
        self.rows: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.rows.append(len(y))
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", F.cross_entropy(self(x), y))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return [optimizer], [
            {"scheduler": torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, 200),
             "interval": "step"}
        ]  # fmt: skip


def _trainer(folder: Path, **changes: Any) -> Any:
    settings: dict[str, Any] = {
        "max_steps": 200, "accelerator": "cpu", "devices": 1, "logger": False,
        "enable_checkpointing": False, "enable_progress_bar": False,
        "enable_model_summary": False, "default_root_dir": str(folder),
    }  # fmt: skip
    return pl.Trainer(**(settings | changes))


def _loader(module: Module, rule: str = "train_loss", *, n_b: int = 8, **options: Any) -> Any:
    log = Ids()
    plain = DataLoader(DATA, batch_size=n_b, shuffle=True)
    options.setdefault("keep", 0.25)
    return SelectionLoader(module, plain, rule, seed=3, record=log, **options), log


def _by_hand(rule: str, steps: int) -> tuple[Ids, Module]:
    model, log = Module(), Ids()
    ((optimizer,), (schedule,)) = model.configure_optimizers()
    loader = DataLoader(
        rd.WithIds(DATA), batch_size=32, shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    batches = rd.SelectingLoader(
        loader, model, rd.selector(rule), keep=8, seed=3, record=log,
        scoring=rd.Scoring(batchnorm="running"),
    )  # fmt: skip
    while batches.step < steps:
        for chosen in batches:
            x, y = chosen.batch
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule["scheduler"].step()
            optimizer.zero_grad()
            if batches.step == steps:
                break
    return log, model


@pytest.mark.parametrize("rule", ["train_loss", "uniform", "grad_norm"])
def test_the_picks_of_the_plain_loop_over_200_steps(rule: str, tmp_path: Path) -> None:
    module = Module()
    loader, log = _loader(module, rule)
    trainer = _trainer(tmp_path)
    trainer.fit(module, loader)
    by_hand, model = _by_hand(rule, 200)
    assert log.ids == by_hand.ids
    assert trainer.global_step == 200
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)
    for mine, theirs in zip(module.net.parameters(), model.net.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_epochs_updates_and_rows_are_as_without_selection(
    accumulation: int, tmp_path: Path
) -> None:
    settings = {"max_steps": -1, "max_epochs": 2, "accumulate_grad_batches": accumulation}
    plain, module = Module(), Module()
    without = _trainer(tmp_path, **settings)
    without.fit(plain, DataLoader(DATA, batch_size=8, shuffle=True))
    loader, log = _loader(module)
    trainer = _trainer(tmp_path, **settings)
    trainer.fit(module, loader)
    assert trainer.global_step == without.global_step == 64 // accumulation
    assert module.rows == plain.rows == [8] * 64
    assert [len(ids) for ids in log.ids] == [8 * accumulation] * (64 // accumulation)


@pytest.mark.parametrize("rule", ["train_loss", "selective_backprop"])
def test_a_run_stopped_inside_an_epoch_goes_on_with_the_same_ids(rule: str, tmp_path: Path) -> None:
    whole = Module()
    loader, all_ids = _loader(whole, rule)
    keep = ModelCheckpoint(tmp_path, every_n_train_steps=45, save_top_k=-1, filename="{step}")
    _trainer(tmp_path, max_steps=100, callbacks=[keep], enable_checkpointing=True).fit(
        whole, loader
    )
    again = Module()
    loader, ids = _loader(again, rule)
    trainer = _trainer(tmp_path, max_steps=100)
    trainer.fit(again, loader, ckpt_path=str(tmp_path / "step=45.ckpt"))
    assert ids.ids == all_ids.ids[45:]
    assert trainer.global_step == 100
    for mine, theirs in zip(again.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_validation_is_left_alone_and_not_charged_to_training(tmp_path: Path) -> None:
    module = Module()
    loader, _ = _loader(module)
    trainer = _trainer(tmp_path, max_steps=64, callbacks=[SelectionCallback(loader)])
    trainer.fit(module, loader, DataLoader(DATA, batch_size=64))
    whole = F.cross_entropy(module(DATA.tensors[0]), DATA.tensors[1]).detach()
    (found,) = trainer.validate(module, DataLoader(DATA, batch_size=64), verbose=False)
    assert found["val_loss"] == pytest.approx(float(whole), abs=1e-6)
    assert loader.batches.ledger.seconds["evaluate"] > 0


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed"])
def test_candidates_are_scored_in_the_precision_of_training(precision: Any, tmp_path: Path) -> None:
    module, seen = Module(), set[torch.dtype]()
    module.net[0].register_forward_hook(lambda *args: seen.add(args[2].dtype))
    loader, log = _loader(module)
    _trainer(tmp_path, max_steps=3, precision=precision).fit(module, loader)
    assert seen == {torch.bfloat16}
    assert [len(ids) for ids in log.ids] == [8] * 3


@pytest.mark.parametrize("how", ["clipped", "compiled", "frozen norm"])
def test_selection_goes_with_what_trainers_do(how: str, tmp_path: Path) -> None:
    def fitted(changed: bool) -> Ids:
        module = Module()
        settings: dict[str, Any] = {"max_steps": 12}
        if changed and how == "compiled":
            module.net.compile(backend="eager")
        elif changed and how == "clipped":
            settings["gradient_clip_val"] = 1e-4
        elif how == "frozen norm":
            module.net = nn.Sequential(nn.BatchNorm1d(6).eval(), module.net)
        loader, log = _loader(module)
        _trainer(tmp_path, **settings).fit(module, loader)
        return log

    plain, changed = fitted(False), fitted(True)
    assert [len(ids) for ids in changed.ids] == [8] * 12
    if how == "clipped":
        assert changed.ids[0] == plain.ids[0]
        assert changed.ids != plain.ids  # smaller steps, other losses
    else:
        assert changed.ids == plain.ids


def test_rules_that_weigh_rows_need_a_module_that_hears_of_it(tmp_path: Path) -> None:
    module = Module()
    loader, _ = _loader(module, "grad_norm_is")
    with pytest.raises(rd.ConfigurationError, match=r"hands_out='chosen'.*weighted_mean"):
        _trainer(tmp_path).fit(module, loader)

    class Weighing(Module):
        def training_step(self, batch: rd.Chosen, batch_idx: int) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            x, y = batch.batch
            self.rows.append(len(batch.ids))
            return rd.weighted_mean(F.cross_entropy(self(x), y, reduction="none"), batch.weights)

    module = Weighing()
    loader, log = _loader(module, "grad_norm_is", hands_out="chosen")
    _trainer(tmp_path, max_steps=20).fit(module, loader)
    assert module.rows == [8] * 20
    assert len({w for row in log.weights for w in row}) > 20


def test_figures_go_into_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    module = Module()
    store = rd.IrreducibleLossStore.from_tensor(torch.full((256,), 0.25))
    plain = DataLoader(DATA, batch_size=8, shuffle=True)
    loader = SelectionLoader(module, plain, "rho", keep=0.25, store=store,
                             shadows={"chance": rd.selector("uniform")})  # fmt: skip
    logger = TensorBoardLogger(str(tmp_path))
    _trainer(
        tmp_path, max_steps=40, logger=logger, log_every_n_steps=10,
        callbacks=[SelectionCallback(loader)],
    ).fit(module, loader)  # fmt: skip
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    tags = events.Tags()["scalars"]
    names = {"score", "irreducible_loss", "overlap_with_chance", "scoring_share"}
    assert {f"selection/{name}" for name in names} <= set(tags)
    found = events.Scalars("selection/irreducible_loss")
    assert [event.step for event in found] == [10, 20, 30, 40]
    assert {event.value for event in found} == {0.25}


def test_labels_that_are_known_to_be_wrong_are_logged(tmp_path: Path) -> None:
    module, told = Module(), list[dict[str, float]]()

    class Logger(TensorBoardLogger):
        def log_metrics(self, metrics: Any, step: int | None = None) -> None:
            told.append(metrics)

    plain = DataLoader(DATA, batch_size=8, shuffle=True)
    figures = rd.SelectionMetrics(corrupted=torch.arange(0, 256, 3))
    loader = SelectionLoader(module, plain, "train_loss", keep=0.25, seed=3, record=figures)
    settings = {"max_steps": 12, "log_every_n_steps": 4, "logger": Logger(str(tmp_path))}
    _trainer(tmp_path, callbacks=[SelectionCallback(loader)], **settings).fit(module, loader)
    by_hand, _ = _by_hand("train_loss", 12)
    wrong = [sum(i % 3 == 0 for i in ids) / 8 for ids in by_hand.ids]
    found = [line["selection/corrupted"] for line in told if "selection/score" in line]
    assert found == pytest.approx([sum(wrong[n : n + 4]) / 4 for n in (0, 4, 8)])


def test_a_plan_in_two_lines(tmp_path: Path) -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.linspace(0.1, 5.0, 256))
    data, floor = rd.WithIds(DATA), torch.tensor([0.05, 0.05])
    plan = rd.Plan.from_irreducible_loss(store, data.ids, DATA.tensors[1], noise_floor=floor)
    module = Module()
    sampler = plan.sampler(data, generator=torch.Generator().manual_seed(0))
    loader = SelectionLoader(module, DataLoader(data, 8, sampler=sampler), "uniform", keep=1.0)
    seen: set[int] = set()
    loader._options["record"] = log = Ids()
    _trainer(tmp_path, max_steps=30).fit(module, loader)
    seen = {i for ids in log.ids for i in ids}
    assert seen <= set(plan.ids.tolist())
    assert len(seen) > 100


def test_what_cannot_work_is_told_at_construction() -> None:
    module = Module()
    with pytest.raises(rd.ConfigurationError, match="a candidate batch has 800 rows"):
        _loader(module, keep=0.01)
    sampler = torch.utils.data.BatchSampler(range(256), 8, drop_last=False)
    with pytest.raises(rd.ConfigurationError, match="batch_sampler of its own"):
        SelectionLoader(module, DataLoader(DATA, batch_sampler=sampler), "uniform", keep=0.5)
    with pytest.raises(rd.ConfigurationError, match="a DataLoader over a map-style data set"):
        SelectionLoader(module, [1, 2], "uniform", keep=0.5)  # pyright: ignore[reportArgumentType]
