"""Break the files of runs, and kill runs, many times: nothing may go wrong without a word.

Damage: one bit of a file is flipped, or its end cut off; then the file is read as users read it.
It must be refused, or its loss be told, by a message of ours. Kills: a run in a process of its own,
with loader workers and a checkpoint every 25 updates, gets SIGKILL or SIGTERM at random moments and
is resumed until it ends; picks, metrics and weights must be those of a run that was left alone.

    .venv/bin/python scripts/soak.py [--damages 300] [--kills 40] [--terms 20] [--seed 0]

Prints one line for each kind, and ends with status 1 if anything failed.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from reducible.files import checkpoints
from reducible.lab.info_records import read_info
from reducible.lab.recipe import Recipe
from reducible.lab.recipes import recipe
from reducible.lab.records import read_json, read_metrics, read_picks
from reducible.lab.run import Run, newest_sound
from reducible.plans.plan import Plan
from reducible.stores import IrreducibleLossStore
from reducible.types import ReducibleError

STEPS, EVERY = 300, 25
SETTINGS = {
    "train_examples": "4000",
    "holdout_examples": "1000",
    "steps": str(STEPS),
    "evaluate_every": "50",
    "irreducible_epochs": "1",
    "workers": "2",
    "plan": "filter",
}
Read = Callable[[Path], object]


def soaked() -> Recipe:
    return recipe("demo/rho").with_settings(SETTINGS)


# Damage


def stopped_run(out: Path) -> Path:
    """The folder of a run that ended, with its last checkpoints still there."""
    with mock.patch.object(checkpoints, "remove"):
        Run(soaked(), out, progress=False, checkpoint_every=EVERY).start()
    return out


def readers(out: Path) -> dict[str, tuple[Path, Read]]:
    def sealed(path: Path) -> object:
        return read_json(path, sealed=True)

    def resumed(path: Path) -> object:
        found = newest_sound(path.parent)
        assert found is not None
        return found["loader"]["step"]

    newest = checkpoints.saved(out)[0]
    return {
        "checkpoint, loaded": (newest, checkpoints.load),
        "checkpoint, resumed from": (newest, resumed),
        "picks": (out / "picks.arrow", read_picks),
        "info": (out / "info.arrow", read_info),
        "metrics": (out / "metrics.jsonl", read_metrics),
        "config": (out / "config.json", sealed),
        "summary": (out / "summary.json", sealed),
        "store": (out / "irreducible_loss.safetensors", IrreducibleLossStore.load),
        "plan": (out / "plan.safetensors", Plan.load),
        "weights": (out / "model.safetensors", checkpoints.load_weights),
    }


def damage(times: int, chance: random.Random, folder: Path) -> list[str]:
    """Damages every kind of file; returns what went wrong."""
    out = stopped_run(folder / "damaged")
    wrong: list[str] = []
    for kind, (path, read) in readers(out).items():
        if not path.exists():
            continue
        whole, ends = path.read_bytes(), Counter[str]()
        for _ in range(times):
            broken = bytearray(whole)
            if chance.random() < 0.5:
                bit = chance.randrange(8 * len(whole))
                broken[bit // 8] ^= 1 << bit % 8
                how = f"bit {bit}"
            else:
                broken = broken[: chance.randrange(len(whole))]
                how = f"cut to {len(broken)}"
            path.write_bytes(broken)
            end = outcome(read, path)
            ends[end] += 1
            if end not in ("refused", "told"):
                wrong.append(f"{kind}, {how} of {len(whole)} bytes: {end}")
        path.write_bytes(whole)
        print(f"{kind}: {times} flips and cuts: {dict(ends)}", flush=True)
    return wrong


def outcome(read: Read, path: Path) -> str:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            read(path)
        except ReducibleError:
            return "refused"
        except Exception as error:
            return f"a traceback: {error!r}"
    return "told" if told else "silent"


# Kills


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "reducible", *arguments]


def start(out: Path) -> list[str]:
    pairs = [text for key, value in SETTINGS.items() for text in ("--set", f"{key}={value}")]
    return command("run", "demo/rho", "--out", str(out), "--checkpoint-every", str(EVERY), *pairs)


def contents(out: Path) -> dict[str, Any]:
    """Returns what must not depend on kills: all but times and memory."""
    timed = ("seconds", "seconds_by_phase", "peak_memory_bytes")
    lines = read_metrics(out / "metrics.jsonl")
    return {
        "picks": repr(read_picks(out / "picks.arrow").to_pydict()),
        "metrics": [{k: v for k, v in line.items() if k not in timed} for line in lines],
        "weights": {
            name: (str(w.dtype), tuple(w.shape), w.contiguous().view(torch.uint8).tolist())
            for name, w in checkpoints.load_weights(out / "model.safetensors").items()
        },
    }


def kills(times: int, number: signal.Signals, chance: random.Random, folder: Path) -> list[str]:
    """Kills runs at random moments until ``times`` have come; returns what went wrong."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    alone = folder / f"alone-{number.name}"
    began = time.monotonic()
    subprocess.run(start(alone), env=environment, check=True, capture_output=True)
    lasts, expected = time.monotonic() - began, contents(alone)
    wrong: list[str] = []
    done = runs = 0
    codes = Counter[int]()
    while done < times:
        out = folder / f"{number.name}-{runs}"
        arguments = start(out)
        while True:
            child = subprocess.Popen(
                arguments, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )
            killed = False
            if done < times:
                try:
                    child.wait(chance.uniform(0.2, 1.0) * lasts)
                except subprocess.TimeoutExpired:
                    killed = True
                    done += 1
                    child.send_signal(number)
            _, said = child.communicate()
            codes[child.returncode] += 1
            if b"Traceback" in said and child.returncode != -signal.SIGKILL:  # else: orphans' own
                wrong.append(f"{out.name}: a traceback: {said.decode()[-2000:]}")
            if not killed:
                break
            if (out / "config.json").exists():
                arguments = command("resume", str(out))
        runs += 1
        if child.returncode != 0:
            wrong.append(f"{out.name}: ended with {child.returncode}: {said.decode()[-500:]}")
        else:
            found = contents(out)
            for what, value in expected.items():
                if found[what] != value:
                    wrong.append(f"{out.name}: {what} differ from those of the run left alone")
    print(f"{number.name}: {times} in {runs} runs, exit codes {dict(codes)}", flush=True)
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Plain)
    parser.add_argument("--damages", type=int, default=300, help="flips and cuts of each kind")
    parser.add_argument("--kills", type=int, default=40, help="SIGKILLs")
    parser.add_argument("--terms", type=int, default=20, help="SIGTERMs")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    chance = random.Random(options.seed)
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as name:
        if options.damages:
            wrong += damage(options.damages, chance, Path(name))
        for times, number in ((options.kills, signal.SIGKILL), (options.terms, signal.SIGTERM)):
            if times:
                wrong += kills(times, number, chance, Path(name))
    print("\n".join([f"{len(wrong)} things went wrong", *wrong]))
    sys.exit(1 if wrong else 0)


class _Plain(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    pass


if __name__ == "__main__":
    main()
