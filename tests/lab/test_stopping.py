"""Signals: a run writes a checkpoint, ends with a status of its own, and goes on as if never."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from reducible.files import checkpoints
from reducible.lab.records import read_picks
from reducible.lab.stopping import Stopped, stopping
from reducible.lab.training import METRICS

SETTINGS = ("train_examples=2000", "holdout_examples=500", "irreducible_epochs=1", "steps=400")


def _command(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "reducible", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def _run(out: Path) -> subprocess.Popen[str]:
    pairs = [text for pair in SETTINGS for text in ("--set", pair)]
    return _command("run", "demo/rho", "--out", str(out), "--checkpoint-every", "0", *pairs)


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can catch")
def test_a_run_that_is_terminated_goes_on_as_if_never(tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    running = _run(out)
    give_up = time.monotonic() + 60
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").stat().st_size:
        assert running.poll() is None
        assert time.monotonic() < give_up
        time.sleep(0.01)
    running.send_signal(signal.SIGTERM)
    _, said = running.communicate(timeout=60)
    assert running.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in said
    assert f"stopped by signal 15; go on with: reducible resume {out}" in said
    assert len(checkpoints.saved(out)) == 1
    for process in (_command("resume", str(out)), _run(whole)):
        _, said = process.communicate(timeout=60)
        assert process.returncode == 0, said
    mine, other = (read_picks(folder / "picks.arrow").to_pydict() for folder in (out, whole))
    assert repr(mine) == repr(other)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (out, whole)]
    assert weights[0] == weights[1]


def _lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


SWEEPER = """
import signal, sys
from pathlib import Path
from reducible.lab.recipes import recipe
from reducible.lab.sweep import run_sweep

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where tests run behind
    settings = dict(pair.split("=") for pair in sys.argv[2:])
    chosen, root = recipe("demo/uniform").with_settings(settings), Path(sys.argv[1])
    run_sweep([chosen], [0, 1, 2, 3], work=root / "work", results=root / "out", progress=False)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGTERM that a process can catch")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_sweep_that_is_stopped_leaves_checkpoints_and_no_process(
    number: signal.Signals, tmp_path: Path
) -> None:
    script = tmp_path / "sweeper.py"
    script.write_text(SWEEPER)
    long = ("train_examples=600", "holdout_examples=100", "steps=100000", "evaluate_every=20")
    sweep = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), *long, "model=mlp-64"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # a signal goes to all of it, as from a terminal
    )
    folders = [tmp_path / "work" / "demo/uniform" / str(seed) for seed in range(4)]
    try:
        give_up = time.monotonic() + 90
        while not all(f.exists() and f.stat().st_size for f in (p / METRICS for p in folders[:2])):
            assert sweep.poll() is None
            assert time.monotonic() < give_up
            time.sleep(0.01)
        if number == signal.SIGINT:
            os.killpg(sweep.pid, number)
        else:
            sweep.send_signal(number)
        assert sweep.wait(60) == 128 + number
        give_up = time.monotonic() + 30
        while _lives(sweep.pid):
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert [len(checkpoints.saved(f)) if f.exists() else 0 for f in folders] == [1, 1, 0, 0]
    finally:
        with suppress(ProcessLookupError):
            os.killpg(sweep.pid, signal.SIGKILL)
        sweep.wait()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_raised_at_once_or_kept(number: signal.Signals) -> None:
    was = signal.signal(number, signal.SIG_DFL)  # SIGINT is ignored where tests run behind
    with stopping() as stop:
        with pytest.raises(Stopped) as raised:
            signal.raise_signal(number)
        assert raised.value.code == 128 + number
        with stop.later():
            assert not stop.asked
            stop.raise_if_asked(Path())
            signal.raise_signal(number)
            assert stop.asked
            with pytest.raises(Stopped):
                stop.raise_if_asked(Path())
            with pytest.raises(Stopped):
                signal.raise_signal(number)  # the second does not wait
    assert signal.getsignal(number) == signal.SIG_DFL
    signal.signal(number, signal.SIG_IGN)
    with stopping() as stop, stop.later():
        signal.raise_signal(number)
        assert not stop.asked
    signal.signal(number, was)


def test_another_thread_gets_no_signals() -> None:
    asked: list[bool] = []

    def body() -> None:
        with stopping() as stop:
            asked.append(stop.asked)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert asked == [False]
