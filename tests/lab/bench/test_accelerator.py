"""Steps on an accelerator and by hand: the same arithmetic. On the CPU, with a thin network."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from reducible.lab.bench import accelerator
from reducible.lab.records import PickWriter

CPU = torch.device("cpu")


def test_the_loop_and_its_floor_do_the_same_arithmetic(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models: list[torch.nn.Module] = []
    network = accelerator._Data.network

    def kept(self: accelerator._Data) -> torch.nn.Module:
        models.append(network(self))
        return models[-1]

    monkeypatch.setattr(accelerator._Data, "network", kept)
    data = accelerator._Data(CPU, keep=4, candidates=16, width=2)
    with PickWriter(tmp_path / "picks.arrow") as record:
        for step in (accelerator._by_loop(data, record), accelerator._by_hand(data)):
            for _ in range(4):
                step()
    ours, by_hand = (model.state_dict() for model in models)
    # The loop's last update is made before its next batch is asked for, as by hand.
    torch.testing.assert_close(ours, by_hand)
    fresh = network(data).state_dict()
    assert not torch.equal(ours["0.weight"], fresh["0.weight"])


def test_rows_say_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of these seconds, whatever the machine's.
    blocks = {"_by_loop": 8.0, "_by_hand": 4.0, "_plain": 2.0}
    real = {name: getattr(accelerator, name) for name in blocks}
    lasts: dict[accelerator.Step, float] = {}
    stepped: list[float] = []

    def made(name: str, *args: object) -> accelerator.Step:
        step = real[name](*args)
        lasts[step] = blocks[name]
        return step

    def seconds(step: accelerator.Step, steps: int, device: torch.device) -> float:
        assert device == CPU
        step()
        stepped.append(lasts[step])
        return lasts[step]

    for name in blocks:
        monkeypatch.setattr(accelerator, name, partial(made, name))
    monkeypatch.setattr(accelerator, "_seconds", seconds)
    rows = accelerator.accelerator_steps(CPU, keep=4, candidates=16, rounds=2, steps=2, width=2)
    assert [row["unit"] for row in rows] == ["ratio", "ratio", "ratio", "ms"]
    assert all("4 of 16, cpu" in row["what"] for row in rows)
    assert [row["median"] for row in rows] == [2.0, 4.0, 2.0, 1000.0]
    assert rows[0]["what"].startswith("step, loop over the same by hand")
    # Warmed up in turn, then measured there and back.
    assert stepped == [8.0, 4.0, 2.0, 8.0, 4.0, 2.0, 2.0, 4.0, 8.0]
