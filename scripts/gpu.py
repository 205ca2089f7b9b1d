"""Checks and measures the library on a CUDA device, in under eight minutes, fetching nothing.

Runs the tests marked ``gpu``, then times a step of RHO-LOSS on a ResNet-18 beside the same
arithmetic by hand and beside a plain update. Prints the figures and writes them as JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

SIZES = ((32, 320), (128, 1024))  # n_b of n_B


def main() -> int:
    """Returns 0 if the tests passed, or if there is no device to run them on."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    parser.add_argument("--device", default="cuda", help="cpu for a trial of the benchmark alone")
    parser.add_argument("--width", type=int, default=64, help="of the network")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=20, help="of a block")
    options = parser.parse_args()
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("No CUDA device here, so nothing was run. The other tests cover the same code paths")
        print("on a stand-in device that counts what waits for it.")
        return 0
    failed = _tests() if device.type == "cuda" else 0
    figures = _figures(device, options.width, options.rounds, options.steps)
    if options.out is not None:
        options.out.write_text(json.dumps(figures, indent=2) + "\n")
    return failed


def _tests() -> int:
    try:
        import pytest
    except ImportError:
        print("pytest is not installed: tests are left out, the benchmark runs.")
        return 0
    began = time.perf_counter()
    said = pytest.main(["-q", "-m", "gpu", "-p", "no:cacheprovider", "tests/device"])
    print(f"tests: {time.perf_counter() - began:.0f} s")
    return int(said)


def _figures(device: torch.device, width: int, rounds: int, steps: int) -> dict[str, object]:
    from reducible.lab.bench.accelerator import accelerator_steps

    rows = [
        row
        for keep, candidates in SIZES
        for row in accelerator_steps(
            device, keep=keep, candidates=candidates, rounds=rounds, steps=steps, width=width
        )
    ]
    for row in rows:
        print(f"{row['median']:>9.4f} {row['unit']:<6} {row['min']}-{row['max']}  {row['what']}")
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    return {"card": card, "torch": torch.__version__, "rows": rows}


if __name__ == "__main__":
    sys.exit(main())
