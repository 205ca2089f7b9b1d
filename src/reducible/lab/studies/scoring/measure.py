"""Measures how faithful cheap scoring is and what it costs; writes results/fidelity.

Costs are times: run it on a quiet machine, best on one thread (OMP_NUM_THREADS=1);
then `make docs`.
"""

import argparse
import platform
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import nn

import reducible as rd
from reducible.costs.fidelity import Fidelity, ScoringMethod, fidelity
from reducible.lab.models import MODELS
from reducible.lab.provenance import current_commit, versions
from reducible.lab.recipe import Recipe
from reducible.lab.records import write_json
from reducible.lab.splits import Splits, make_splits
from reducible.lab.studies.demo.recipes import PAPER
from reducible.loop.seeds import stream_seed

RESULTS = Path("results") / "fidelity"
DEMO = PAPER["RHO-LOSS, clean holdout"]
EXITS = {"lenet": ("2", "5"), "resnet-18-16": ("4", "6")}
"""Network → the modules that early exits stand behind: after its first and its second stage."""
SEEDS = {"lenet": 5, "resnet-18-16": 2}
STEPS = {"lenet": 300, "resnet-18-16": 186}  # three passes and more
"""Network → how much is run where nothing else is asked for; about ten minutes on one thread."""


def new_model(name: str, seed: int) -> nn.Module:
    """A network with weights of its own seed; the global generator stays as it was."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return MODELS[name]()


def adamw(parameters: Any, rate: float = 1e-3) -> torch.optim.Optimizer:
    """The optimizer of everything that learns here."""
    return torch.optim.AdamW(parameters, lr=rate, fused=True)


def fit_store(made: Recipe, splits: Splits, seed: int) -> rd.IrreducibleLossStore:
    """The irreducible losses of D, as the recipe has them fitted."""
    return rd.fit_irreducible_loss(
        MODELS[made.irreducible_model],
        splits.holdout,
        splits.train,
        epochs=made.irreducible_epochs,
        batch_size=made.irreducible_batch,
        label_smoothing=made.irreducible_smoothing,
        seed=seed,
        progress=False,
    )


def ways_of(network: str, model: nn.Module, made: Recipe, seed: int, compiled: bool) -> Any:
    """Name → how, for every way that goes with the network."""
    resnet = network.startswith("resnet")
    half = rd.Scoring(precision="bfloat16")
    ways: dict[str, Any] = {
        "bfloat16": half,
        "bfloat16, channels last": replace(half, channels_last=True),
    }
    if compiled:
        ways["compiled"] = rd.Scoring(compile=True)
    if resnet:
        ways["14 × 14"] = rd.Scoring(resolution=14)
        ways["14 × 14, bfloat16, channels last"] = replace(half, channels_last=True, resolution=14)
    ways["half of the candidates"] = ScoringMethod(share=0.5)
    for updates in (2, 4):
        name = f"{updates} updates per scoring, at the last"
        ways[name] = rd.Scoring(updates_per_scoring=updates)
    epoch = made.train_examples // made.n_candidates
    for passes in (1,) if resnet else (1, 2):  # every step scores what is not remembered
        name = f"losses remembered for {passes * epoch} steps"
        ways[name] = rd.Scoring(max_age=passes * epoch)
    seldom = rd.Scoring(
        precision="bfloat16", channels_last=True, max_age=100 * epoch, rescore=1 / 8
    )
    ways["bfloat16, channels last, losses remembered, one in eight scored anew"] = seldom
    for distil, name in ((False, "labels"), (True, "the model's predictions")):
        scorer = new_model("mlp-64", stream_seed(seed, 3))
        learner = rd.CoTrained(scorer, adamw(scorer.parameters()), distil=distil)
        ways[f"mlp-64 that learns {name} along"] = learner
    for at, name in zip(EXITS[network], ("first", "second"), strict=True):
        ways[f"early exit behind the {name} stage"] = rd.early_exit(
            model, at, num_classes=10, grid=4, make_optimizer=lambda p: adamw(p, 3e-3)
        )
    return ways


def compare(
    network: str,
    seed: int,
    *,
    made: Recipe = DEMO,
    steps: int = 300,
    compared: int = 12,
    repeats: int = 7,
    compiled: bool = True,
) -> list[Fidelity]:
    """One run, compared at about ``compared`` of the steps in its last half."""
    splits = make_splits(made, seed)
    store = fit_store(made, splits, seed)
    model = new_model(network, stream_seed(seed, 1))
    loader = splits.train.loader(
        made.n_candidates, generator=torch.Generator().manual_seed(stream_seed(seed, 2))
    )
    skip = steps // 2
    batches = (batch for _ in range(steps // len(loader) + 1) for batch in loader)
    return fidelity(
        model,
        (batch for batch, _ in zip(batches, range(steps), strict=False)),
        store,
        ways_of(network, model, made, seed, compiled),
        k=made.n_b,
        optimizer=adamw(model.parameters(), made.learning_rate),
        skip=skip,
        every=max(1, (steps - skip) // compared),
        repeats=repeats,
    )


def write(network: str, seeds: list[list[Fidelity]], steps: int, repeats: int) -> Path:
    """The results file of a network; returns its path."""
    path = RESULTS / network / f"{current_commit()}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "network": network,
            "n_b": DEMO.n_b,
            "n_candidates": DEMO.n_candidates,
            "steps": steps,
            "repeats": repeats,
            "versions": versions(),
            "machine": {
                "processor": platform.machine(),
                "threads": torch.get_num_threads(),
                "finished": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            "seeds": [[asdict(row) for row in rows] for rows in seeds],
        },
    )
    return path


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(EXITS), choices=list(EXITS))
    parser.add_argument("--seeds", type=int, help=f"by default {SEEDS}")
    parser.add_argument("--steps", type=int, help=f"by default {STEPS}")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--no-compile", action="store_true", help="where there is no C++ compiler")
    arguments = parser.parse_args()
    for network in arguments.networks:
        seeds = []
        steps = arguments.steps or STEPS[network]
        for seed in range(arguments.seeds or SEEDS[network]):
            options = {"steps": steps, "repeats": arguments.repeats}
            seeds.append(compare(network, seed, compiled=not arguments.no_compile, **options))
            print(f"{network}, seed {seed}: done", flush=True)
        print(write(network, seeds, steps, arguments.repeats), flush=True)
