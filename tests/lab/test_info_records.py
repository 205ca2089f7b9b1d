"""What rules say of their choices, and what shadows would have chosen, in a file of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from reducible.lab.info_records import INFO, PICKS, InfoWriter, StepWriter, read_info
from reducible.lab.records import read_picks

N, N_B, K = 96, 24, 6
G = torch.Generator().manual_seed(0)
GROUPED = rd.IrreducibleLossStore.from_tensor(torch.rand(N, 3, generator=G))
PLAIN = rd.IrreducibleLossStore.from_tensor(torch.rand(N, generator=G))


def _data() -> TensorDataset:
    g = torch.Generator().manual_seed(1)
    return TensorDataset(torch.randn(N, 4, generator=g), torch.arange(N) % 3)


def _batches(rule: str, record: Any, **options: Any) -> rd.SelectingLoader:
    with torch.random.fork_rng([]):
        torch.manual_seed(2)
        model = nn.Linear(4, 3)
    loader = DataLoader(rd.WithIds(_data()), N_B)
    if rule == "reducr":
        options |= {"store": GROUPED, "group_holdout": DataLoader(rd.WithIds(_data()), 32)}
    elif rule == "rho_class_balanced":
        options |= {"store": PLAIN}
    return rd.SelectingLoader(loader, model, rd.selector(rule), keep=K, record=record, **options)


def _rows(folder: Path) -> list[dict[str, Any]]:
    return read_info(folder / INFO).to_pylist()


@pytest.mark.parametrize(
    ("rule", "name"), [("reducr", "group_weights"), ("rho_class_balanced", "quotas")]
)
def test_what_a_rule_says_beside_its_scores_is_in_the_file(
    rule: str, name: str, tmp_path: Path
) -> None:
    with StepWriter(tmp_path) as record:
        said = [chosen.info[name].tolist() for chosen in _batches(rule, record)]
    rows = _rows(tmp_path)
    assert [row["step"] for row in rows] == list(range(N // N_B))
    assert {row["name"] for row in rows} == {name}
    assert [row["values"] for row in rows] == said
    assert all(row["ids"] is None for row in rows)


def test_what_shadows_would_have_chosen_is_in_the_file(tmp_path: Path) -> None:
    shadows = {"watch": rd.selector("grad_norm")}
    with StepWriter(tmp_path) as record:
        would = [
            c.shadows["watch"].tolist() for c in _batches("train_loss", record, shadows=shadows)
        ]
    rows = _rows(tmp_path)
    assert [row["ids"] for row in rows] == would
    assert [(row["step"], row["name"], row["values"]) for row in rows] == [
        (step, "watch", None) for step in range(N // N_B)
    ]
    picks = read_picks(tmp_path / PICKS)["ids"].to_pylist()
    assert picks != would


def test_a_rule_that_says_nothing_makes_no_file(tmp_path: Path) -> None:
    with StepWriter(tmp_path) as record:
        assert len(list(_batches("train_loss", record))) == N // N_B
    assert not (tmp_path / INFO).exists()
    assert len(read_picks(tmp_path / PICKS)) == N // N_B


def test_in_parts_every_update_says_what_belongs_to_it(tmp_path: Path) -> None:
    scoring = rd.Scoring(updates_per_scoring=2)
    shadows = {"watch": rd.selector("grad_norm")}
    with StepWriter(tmp_path) as record:
        batches = _batches("train_loss", record, shadows=shadows, scoring=scoring)
        parts = [chosen.shadows["watch"].tolist() for chosen in batches]
    assert [len(part) for part in parts] == [K] * (2 * N // N_B)
    assert [row["ids"] for row in _rows(tmp_path)] == parts


@pytest.fixture
def half_written(tmp_path: Path) -> Path:
    with InfoWriter(tmp_path / INFO, flush_every=2) as log:
        for step in range(5):
            log.write(step, {"w": torch.tensor([step, 0.5])}, {})
    return tmp_path / INFO


def test_resume_keeps_what_the_checkpoint_had_seen(half_written: Path) -> None:
    with InfoWriter.resume(half_written, 3) as log:
        log.write(3, {"w": torch.tensor([9.0])}, {})
    rows = read_info(half_written).to_pylist()
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert rows[2]["values"] == [2.0, 0.5]
    assert rows[3]["values"] == [9.0]


def test_an_existing_file_or_another_is_refused(half_written: Path, tmp_path: Path) -> None:
    with pytest.raises(rd.ReducibleError, match="the log of an earlier run"):
        InfoWriter(half_written)
    other = tmp_path / "other.arrow"
    other.write_bytes(pa.schema([("x", pa.int64())]).serialize().to_pybytes())
    with pytest.raises(rd.ReducibleError, match="an Arrow stream of x, not of step, name"):
        read_info(other)
    other.write_bytes(b"no arrow at all")
    with pytest.raises(rd.ReducibleError, match="no complete header"):
        read_info(other)


def test_ids_of_shadows_stay_whole_numbers(tmp_path: Path) -> None:
    with InfoWriter(tmp_path / INFO) as log:
        with pytest.raises(rd.ReducibleError, match="ids that pass through floats"):
            log.write(0, {}, {"watch": torch.tensor([1.0])})
        log.write(0, {}, {"watch": torch.tensor([2**53 + 1])})
    assert read_info(tmp_path / INFO)["ids"].to_pylist() == [[2**53 + 1]]
