"""Compares a model per class with one shared network; writes docs/groups.md.

Started in the project's root, after ``reducible sweep groups/uniform groups/rho groups/models
groups/shared --seeds 0-4``: it fits both kinds of store again for each seed and counts the rows
that REDUCR picks alike.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

import reducible as rd
from reducible.costs.updates import plain_update
from reducible.lab.models import MODELS
from reducible.lab.report.tables import percent
from reducible.lab.splits import make_splits
from reducible.lab.studies.groups.recipes import REDUCR
from reducible.lab.studies.groups.tables import table
from reducible.loop.seeds import stream_seed
from reducible.scoring.group_holdout import GroupHoldoutLoss


def fit(shared: bool, seed: int, *, again: bool = False) -> tuple[rd.IrreducibleLossStore, float]:
    """A store of one kind, and the seconds it took; ``again``: of other random weights."""
    made = REDUCR
    splits = make_splits(made, seed)
    began = time.perf_counter()
    store = rd.fit_group_irreducible_loss(
        MODELS[made.irreducible_model],
        splits.holdout,
        splits.train,
        shared=shared,
        epochs=made.irreducible_epochs,
        batch_size=made.irreducible_batch,
        label_smoothing=made.irreducible_smoothing,
        make_optimizer=lambda p: torch.optim.AdamW(p, fused=True),
        seed=seed + 1000 * again,
        progress=False,
    )
    return store, time.perf_counter() - began


def overlap(stores: list[rd.IrreducibleLossStore], seed: int, steps: int) -> float:
    """Share of the rows picked with the first store that the second picks too, in one run."""
    made = REDUCR
    splits = make_splits(made, seed)
    assert splits.holdout is not None
    with torch.random.fork_rng([]):
        torch.manual_seed(stream_seed(seed, 1))
        model = MODELS[made.model]()
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rules = [made.make_rule(), made.make_rule()]
    batches = splits.train.loader(
        made.n_candidates, generator=torch.Generator().manual_seed(stream_seed(seed, 2))
    )
    held = GroupHoldoutLoss(
        splits.holdout.loader(1000, shuffle=False, drop_last=False), splits.train.num_classes
    )
    needs, same = frozenset({"loss", "group_irreducible_loss"}), 0
    done = 0
    while done < steps:
        for candidates in batches:
            epoch = done * made.n_candidates // len(splits.train)
            now = held.value(model, rd.Classification(), epoch=epoch, step=done)
            picked: list[Tensor] = []
            evidence = rd.measure(model, candidates, needs, store=stores[0])
            evidence = replace(evidence, context={"group_holdout_loss": now})
            for rule, store in zip(rules, stores, strict=True):
                seen = replace(evidence, group_irreducible_loss=store.lookup(candidates.ids))
                generator = torch.Generator().manual_seed(stream_seed(seed, done))
                chosen = rule.select(seen, made.n_b, generator=generator)
                rule.observe(seen, chosen)
                picked.append(chosen.index)
            same += int(torch.isin(*picked).sum())
            rows = tuple(part[picked[0]] for part in candidates.batch)
            plain_update(model, optimizer, rd.Classification(), rows)
            done += 1
            if done == steps:
                break
    return same / (steps * made.n_b)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=500)
    arguments = parser.parse_args()
    shares, ceilings, ratios = [], [], []
    for seed in range(arguments.seeds):
        (models, slow), (shared, fast) = fit(False, seed), fit(True, seed)
        others, _ = fit(False, seed, again=True)
        shares.append(overlap([models, shared], seed, arguments.steps))
        ceilings.append(overlap([models, others], seed, arguments.steps))
        ratios.append(fast / slow)
        print(f"seed {seed}: overlap {shares[-1]:.3f}, of models {ceilings[-1]:.3f}", flush=True)
    ceiling = percent(statistics.median(ceilings))
    middle, low, high = (percent(f(shares)) for f in (statistics.median, min, max))
    lines = [
        "# Irreducible losses per class: ten models, or one network with adapters",
        "",
        table(Path("results")),
        "",
        "Medians (quartiles) over seeds; Fashion-MNIST with one wrong label in ten, 2,000 steps, "
        "32 of 320. The worst class is the mean over the last five evaluations of the class that "
        "is worst in each.",
        "",
        f"In one run, REDUCR with the shared network's irreducible losses picks {middle} of the "
        f"rows that it picks with a model per class (median of {len(shares)} seeds, {low} to "
        f"{high}; {arguments.steps} steps). Ten models fitted again from other weights agree "
        f"with the first ten on {ceiling}; chance would be 10 %. Fitting the shared network took "
        f"{statistics.median(ratios):.2f} of the time of ten models.",
        "",
        "Made by `python -m reducible.lab.studies.groups.measure "
        f"--seeds {arguments.seeds} --steps {arguments.steps}`.",
        "",
    ]
    text = "\n".join(lines)
    Path("docs", "groups.md").write_text(text, encoding="utf-8")
