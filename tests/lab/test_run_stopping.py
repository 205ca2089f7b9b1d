"""Runs that are stopped and go on: the same as never stopped; what is damaged is passed over."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import reducible as rd
from reducible.files import checkpoints
from reducible.lab.logs import mark_of
from reducible.lab.records import read_picks
from reducible.lab.training import WEIGHTS
from run_toys import DEMO, contents_of, short_run
from toys import killed_at


@pytest.mark.parametrize("name", DEMO)
@pytest.mark.parametrize("at", [9, 17, 30], ids=["after one", "after two", "at the last step"])
def test_killed_and_resumed_equals_never_stopped(
    name: str, at: int, finished_demos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with killed_at(at):
        short_run(name, out, checkpoint_every=8).start()
    assert checkpoints.saved(out)
    torch.manual_seed(5)
    summary = short_run(name, out, checkpoint_every=8).resume()
    whole, expected = finished_demos[name]
    mine, other = contents_of(out), contents_of(whole)
    for contents in (mine, other):
        contents["config"].pop("checkpoint_every")
        contents.pop("picks")  # flushed at other steps, so compared by content
    assert mine == other
    picks = [read_picks(folder / "picks.arrow").to_pydict() for folder in (out, whole)]
    torch.testing.assert_close(picks[0], picks[1], rtol=0, atol=0, equal_nan=True)
    for key in ("final_accuracy", "examples_scored", "examples_trained", "selected"):
        assert summary[key] == expected[key]
    assert summary["ledger"]["flops_score"] == expected["ledger"]["flops_score"]
    assert summary["ledger"]["flops_train"] == expected["ledger"]["flops_train"]
    assert not checkpoints.saved(out)


@pytest.mark.parametrize("name", DEMO)
def test_killed_before_the_first_checkpoint_starts_again_and_charges_the_fit_once(
    name: str, finished_demos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with killed_at(5):
        short_run(name, out).start()
    assert not checkpoints.saved(out)
    summary = short_run(name, out).resume()
    assert contents_of(out) == contents_of(finished_demos[name][0])
    seconds = summary["seconds"]["irreducible_loss"]
    if name == "demo/rho":
        store = rd.IrreducibleLossStore.load(out / "irreducible_loss.safetensors")
        assert seconds == pytest.approx(store.header["seconds"])
        assert summary["ledger"]["flops_irreducible_loss"] == store.header["flops"]
    else:
        assert seconds == 0


def test_the_fit_is_charged_once_after_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with killed_at(9):
        short_run("demo/rho", out, checkpoint_every=8).start()
    store = rd.IrreducibleLossStore.load(out / "irreducible_loss.safetensors")
    summary = short_run("demo/rho", out, checkpoint_every=8).resume()
    assert summary["seconds"]["irreducible_loss"] == pytest.approx(store.header["seconds"])
    assert summary["ledger"]["flops_irreducible_loss"] == store.header["flops"]


def _flip(path: Path, place: float, bit: int = 1) -> None:
    """Change one bit of a file, at a share of its length."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= bit
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ({"checkpoint-24.safetensors": 0.7}, ["checkpoint-24.safetensors is not as"]),
        (
            {"checkpoint-24.safetensors": 0.3, "checkpoint-16.safetensors": 0.5},
            ["checkpoint-24.safetensors is not", "checkpoint-16.safetensors is not"],
        ),
        ({"picks.arrow": 0.4}, [r"picks.arrow in .* changed since checkpoint-24", "checkpoint-16"]),
        ({"metrics.jsonl": 0.1}, ["metrics.jsonl in .* changed since checkpoint-24", "point-16"]),
    ],
)
def test_what_is_damaged_is_passed_over_with_a_word_and_the_run_is_the_same(
    damage: dict[str, float],
    said: list[str],
    finished_demos: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "run"
    with killed_at(27):
        short_run("demo/rho", out, checkpoint_every=8).start()
    for name, place in damage.items():
        _flip(out / name, place)
    with pytest.warns(UserWarning, match="goes on from before it") as warned:
        short_run("demo/rho", out, checkpoint_every=8).resume()
    assert len(warned) == len(said)
    for warning, words in zip(warned, said, strict=True):
        assert re.search(words, str(warning.message))
    mine, other = contents_of(out), contents_of(finished_demos["demo/rho"][0])
    mine["config"].pop("checkpoint_every")
    other["config"].pop("checkpoint_every")
    mine.pop("picks")
    other.pop("picks")
    assert mine == other
    picks = [
        read_picks(folder / "picks.arrow").to_pydict()
        for folder in (out, finished_demos["demo/rho"][0])
    ]
    torch.testing.assert_close(picks[0], picks[1], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("plan", ["none", "filter"])
def test_workers_load_the_same_rows(plan: str, tmp_path: Path) -> None:
    found = []
    for workers in ("0", "2"):
        out = tmp_path / workers
        short_run("demo/rho", out, workers=workers, plan=plan, steps="12").start()
        picks = read_picks(out / "picks.arrow").to_pydict()
        found.append((picks["ids"], picks["scores"], checkpoints.load_weights(out / WEIGHTS)))
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


def test_a_finished_run_says_what_its_files_were(finished_demos: Any) -> None:
    for out, summary in finished_demos.values():
        assert {"picks.arrow", "metrics.jsonl", "model.safetensors"} <= summary["files"].keys()
        for name, mark in summary["files"].items():
            assert mark == mark_of(out / name)
