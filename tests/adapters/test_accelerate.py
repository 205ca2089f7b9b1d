"""Accelerate: the plain loop's picks, accumulation, checkpoints."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from hf_toys import Ids

accelerate = pytest.importorskip("accelerate", reason="reducible[accelerate] is not installed")
from accelerate import Accelerator  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from reducible.adapters.accelerate import SelectionLoader  # noqa: E402

G = torch.Generator().manual_seed(0)
X = torch.randn(256, 6, generator=G)
DATA = TensorDataset(X, (X[:, 0] + 0.3 * torch.randn(256, generator=G) > 0).long())


def _model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))


class Run:
    """A training script of Accelerate's."""

    def __init__(
        self, rule: str = "train_loss", *, accumulation: int = 1, keep: float = 0.25, **options: Any
    ) -> None:
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation)
        model = _model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.log, self.rows, self.updates = Ids(), list[int](), 0
        loader = DataLoader(DATA, batch_size=8, shuffle=True)
        self.loader = SelectionLoader(
            self.accelerator,
            self.model,
            loader,
            rule,
            keep=keep,
            seed=3,
            record=self.log,
            **options,
        )

    def train(self, updates: int) -> None:
        while True:
            for chosen in self.loader:
                with self.accelerator.accumulate(self.model):
                    x, y = chosen.batch
                    losses = F.cross_entropy(self.model(x), y, reduction="none")
                    self.loader.remember(chosen.ids, losses)
                    self.accelerator.backward(rd.weighted_mean(losses, chosen.weights))
                    self.optimizer.step()
                    self.optimizer.zero_grad()
                self.rows.append(len(y))
                self.updates += self.accelerator.sync_gradients
                if self.updates == updates:
                    return


def _by_hand(
    rule: str, steps: int, n_b: int = 8, *, keep: float = 0.25, **options: Any
) -> tuple[Ids, nn.Module]:
    model, log = _model(), Ids()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    loader = DataLoader(
        rd.WithIds(DATA), batch_size=int(n_b / keep), shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    batches = rd.SelectingLoader(
        loader, model, rd.selector(rule), keep=n_b, seed=3, record=log,
        scoring=rd.Scoring(batchnorm="running"), **options,
    )  # fmt: skip
    while batches.step < steps:
        for chosen in batches:
            x, y = chosen.batch
            losses = F.cross_entropy(model(x), y, reduction="none")
            batches.remember(chosen.ids, losses)
            rd.weighted_mean(losses, chosen.weights).backward()
            optimizer.step()
            optimizer.zero_grad()
            if batches.step == steps:
                break
    return log, model


@pytest.mark.parametrize("rule", ["train_loss", "uniform", "grad_norm_is", "infobatch"])
def test_the_picks_of_the_plain_loop_over_200_steps(rule: str) -> None:
    options: dict[str, Any] = {"keep": 1.0, "total_steps": 200} if rule == "infobatch" else {}
    run = Run(rule, **options)
    run.train(200)
    log, model = _by_hand(rule, 200, **options)
    assert run.log.ids == log.ids
    assert run.log.weights == log.weights
    for mine, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_the_rows_of_an_update_are_shared_over_its_micro_batches() -> None:
    run = Run(accumulation=4)
    run.train(50)
    log, model = _by_hand("train_loss", 50, n_b=32)
    assert run.rows == [8] * 200
    assert run.log.ids == log.ids
    for mine, theirs in zip(run.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rule", ["train_loss", "selective_backprop"])
def test_a_run_stopped_inside_an_epoch_goes_on_with_the_same_ids(rule: str, tmp_path: Path) -> None:
    whole = Run(rule)
    whole.train(45)
    whole.accelerator.save_state(str(tmp_path))
    whole.train(100)
    again = Run(rule)
    again.accelerator.load_state(str(tmp_path))
    again.train(55)
    assert again.log.ids == whole.log.ids[45:]
    for mine, theirs in zip(again.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.fixture
def new_accelerators() -> Iterator[None]:
    """Settings of an Accelerator stand for the whole process: begin anew, and leave nothing."""
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()


def test_candidates_are_scored_in_the_precision_of_training(new_accelerators: None) -> None:
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    seen = set[torch.dtype]()
    model = _model()
    model[0].register_forward_hook(lambda *args: seen.add(args[2].dtype))  # pyright: ignore[reportIndexIssue]
    model = accelerator.prepare(model)
    loader = SelectionLoader(accelerator, model, DataLoader(DATA, 8), "train_loss", keep=0.25)
    assert len(next(iter(loader)).ids) == 8  # scored, and not trained on yet
    assert seen == {torch.bfloat16}


def test_what_is_handed_out_can_be_sent_to_a_device() -> None:
    from accelerate.utils import send_to_device

    run = Run()
    chosen = next(iter(run.loader))
    sent: Any = send_to_device(chosen, "cpu")
    assert isinstance(sent, rd.Chosen)
    assert torch.equal(sent.ids, chosen.ids)
