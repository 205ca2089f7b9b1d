"""Measures how much of clean and of flipped labels plans drop, whatever share a class has.

Writes results/noise-floor of the folder it is started in. Every fit is one of defaults; the same
irreducible losses are judged by what fitting learns and by medians over all rows. About ten
minutes on one thread; then ``make docs``.
"""

import argparse
import random
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import reducible as rd
from reducible.lab.data import EMBEDDED, TensorSet, fashion_mnist, flip_labels
from reducible.lab.provenance import current_commit, versions
from reducible.lab.records import write_json

RESULTS = Path("results") / "noise-floor"
FLIPS = (0.0, 0.1, 0.2, 0.4)
APART = (2.0, 3.0, 5.0)
"""Distances of Gaussians from the origin: how much classes overlap."""
LARGEST = {
    2: (0.5, 0.6, 0.75, 0.9, 0.97, 0.99),
    3: (0.0, 0.5, 0.9),
    4: (0.0, 0.6, 0.9),
    10: (0.0, 0.5, 0.9),
    30: (0.0, 0.5),
    100: (0.0, 0.5),
}
"""Classes → shares of the largest; 0: all alike. Where there are ten or more, a tail as well."""
PAIRS = {"0-6": (0, 6), "5-9": (5, 9), "0-2-4-6": (0, 2, 4, 6), "all": tuple(range(10))}
"""Classes of the images: two that are confused, two that hardly are, four alike, all."""
SHARES = {2: (0.5, 0.9, 0.99), 4: (0.0, 0.6), 10: (0.0, 0.5)}
ROWS = 11_000  # three in eleven of which are the holdout
MANY = 100  # rows from which the share that a class loses is looked at


@dataclass(frozen=True)
class Case:
    """One data set and one fit; ``largest`` −1 is a tail of classes ever rarer."""

    data: str
    classes: int
    largest: float
    apart: float
    flips: float
    seed: int


def cases(seeds: int) -> Iterator[Case]:
    """Every combination, seed by seed."""
    for seed in range(seeds):
        for flips in FLIPS:
            for classes, largest in LARGEST.items():
                for share in (*largest, *([-1.0] if classes >= 10 else [])):
                    if classes <= 10:
                        yield Case("few", classes, share, APART[1], flips, seed)
                    for apart in APART:
                        yield Case("gaussians", classes, share, apart, flips, seed)
            for name, chosen in PAIRS.items():
                for share in SHARES[len(chosen)]:
                    yield Case(f"images {name}", len(chosen), share, 0.0, flips, seed)


def prior(case: Case) -> Tensor:
    """[C] shares of the classes."""
    if case.largest < 0:
        return torch.linspace(0, -3, case.classes).exp()  # multinomial takes weights of any sum
    large = case.largest or 1 / case.classes
    return torch.tensor([large] + [(1 - large) / (case.classes - 1)] * (case.classes - 1))


def gaussians(case: Case, generator: torch.Generator) -> TensorSet:
    """11,000 rows around means at a distance, each its own way; or an eighth of that."""
    rows = ROWS // 8 if case.data == "few" else ROWS
    width = 10 if case.classes <= 10 else 30
    means = torch.randn(case.classes, width, generator=generator)
    means *= case.apart / means.norm(dim=1, keepdim=True)
    labels = torch.multinomial(prior(case), rows, replacement=True, generator=generator)
    return TensorSet(means[labels] + torch.randn(rows, width, generator=generator), labels)


@lru_cache(maxsize=1)
def _embedded() -> TensorSet:
    return fashion_mnist("train", root=EMBEDDED)


def images(case: Case, generator: torch.Generator) -> TensorSet:
    """Embedded images of some classes, thinned to their shares, of every second pixel."""
    whole = _embedded()
    chosen = PAIRS[case.data.removeprefix("images ")]
    rows = [(whole.targets == k).nonzero().squeeze(1) for k in chosen]
    rows = [r[torch.randperm(r.numel(), generator=generator)] for r in rows]
    share = prior(case)
    size = min(min(r.numel() / float(p) for r, p in zip(rows, share, strict=True)), ROWS)
    taken = [r[: int(size * float(p))] for r, p in zip(rows, share, strict=True)]
    positions = torch.cat(taken)
    labels = torch.arange(len(chosen)).repeat_interleave(torch.tensor([t.numel() for t in taken]))
    order = torch.randperm(positions.numel(), generator=generator)
    inputs = whole.subset(positions[order]).inputs[..., ::2, ::2].flatten(1).float()
    return TensorSet((inputs - inputs.mean()) / inputs.std(), labels[order])


def judged(case: Case) -> dict[str, Any]:
    """The case, and what both plans drop."""
    generator = torch.Generator().manual_seed(case.seed)
    data = (images if case.data.startswith("images") else gaussians)(case, generator)
    truth, inputs = data.targets, data.inputs
    noisy = flip_labels(truth, case.flips, num_classes=case.classes, generator=generator)
    cut = len(truth) * 3 // 11
    rows = torch.arange(len(truth))
    holdout, scored = (data.relabelled(noisy.targets).subset(r) for r in (rows[:cut], rows[cut:]))
    truth, wrong = truth[cut:], noisy.corrupted[cut:]

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(inputs.shape[1], 64), nn.ReLU(), nn.Linear(64, case.classes))

    store = rd.fit_irreducible_loss(model, holdout, scored, seed=case.seed, progress=False)
    medians = torch.tensor(store.header["noise_floor"])
    found: dict[str, Any] = {"examples": len(scored), "wrong": int(wrong.sum())}
    for name, floor in {"learned": None, "medians": medians}.items():
        with warnings.catch_warnings(action="ignore"):  # medians may keep little
            plan = rd.Plan.from_irreducible_loss(
                store, scored.ids, scored.targets, noise_floor=floor
            )
        dropped = torch.isin(scored.ids, plan.dropped)
        lost = torch.bincount(truth[dropped & ~wrong], minlength=case.classes)
        count = torch.bincount(truth, minlength=case.classes)
        found[name] = {
            "found": int((dropped & wrong).sum()),
            "right_lost": int(lost.sum()),
            "most_of_a_class": max((lost / count)[count > MANY].tolist(), default=0.0),
        }
    return asdict(case) | found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--fits", type=int, help="a random few, for a trial; all")
    arguments = parser.parse_args()
    every = list(cases(arguments.seeds))
    if arguments.fits:
        every = random.Random(0).sample(every, arguments.fits)
    began = datetime.now(UTC)
    fits: list[dict[str, Any]] = []
    for done, case in enumerate(every, start=1):
        fits.append(judged(case))
        if done % 50 == 0:
            print(f"{done} of {len(every)}", flush=True)
    ended = datetime.now(UTC)
    commit = current_commit()
    machine = {
        "finished": ended.isoformat(timespec="seconds"),
        "seconds": (ended - began).total_seconds(),
        "versions": versions(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    write_json(RESULTS / f"{commit[:7]}.json", {"commit": commit, "machine": machine, "fits": fits})
