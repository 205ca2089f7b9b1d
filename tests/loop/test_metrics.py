"""Figures of what is chosen: by hand, in a plain loop, reported now and then."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd


def test_figures_by_hand() -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.tensor([0.0, 1.0, 2.0, 3.0]))
    metrics = rd.SelectionMetrics(store=store, corrupted=torch.tensor([1, 3]))
    metrics.write(0, torch.tensor([0, 1]), torch.tensor([4.0, 2.0]), None)
    metrics.write_info(0, {}, {"chance": torch.tensor([1, 2])})
    metrics.write(1, torch.tensor([1, 3]), torch.tensor([1.0, 1.0]), None)
    metrics.write_info(1, {}, {"chance": torch.tensor([0, 2])})
    assert metrics.take() == {
        "selection/score": 2.0,
        "selection/irreducible_loss": 1.25,
        "selection/overlap_with_chance": 0.25,
        "selection/corrupted": 0.75,
    }
    assert metrics.take() == {}


def test_one_argument_switches_it_on_in_a_plain_loop() -> None:
    x = torch.randn(64, 3)
    loader = DataLoader(rd.WithIds(TensorDataset(x, (x[:, 0] > 0).long())), batch_size=8)
    ledger = rd.Ledger()
    said: list[tuple[int, dict[str, float]]] = []

    def report(figures: dict[str, float], step: int) -> None:
        said.append((step, figures))

    metrics = rd.SelectionMetrics(report, every=4, ledger=ledger)
    batches = rd.SelectingLoader(
        loader, nn.Linear(3, 2), rd.selector("train_loss"), keep=2, record=metrics, ledger=ledger,
        shadows={"chance": rd.selector("uniform")},
    )  # fmt: skip
    for _ in range(2):
        for _ in batches:
            pass
    assert [step for step, _ in said] == [4, 8, 12]
    for _, figures in said:
        assert 0 <= figures["selection/overlap_with_chance"] <= 1
        assert 0 < figures["selection/scoring_share"] < 1
        assert figures["selection/score"] > 0


def test_figures_go_to_a_local_mlflow_store(tmp_path: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow", reason="mlflow-skinny is not installed")
    client = mlflow.MlflowClient(tracking_uri=tmp_path.as_uri())
    run = client.create_run(client.create_experiment("selection")).info.run_id

    def report(figures: dict[str, float], step: int) -> None:
        for name, value in figures.items():
            client.log_metric(run, name, value, step=step)

    metrics = rd.SelectionMetrics(report, every=1)
    for step in range(3):
        metrics.write(step, torch.tensor([step]), torch.tensor([float(step)]), None)
    history = client.get_metric_history(run, "selection/score")
    assert [(entry.step, entry.value) for entry in history] == [(1, 0.0), (2, 1.0)]


def test_every_must_be_a_number_of_steps() -> None:
    with pytest.raises(rd.ConfigurationError, match="every"):
        rd.SelectionMetrics(every=0)
