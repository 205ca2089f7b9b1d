"""The main job: uniform selection beside RHO-LOSS on real images, with a table and a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import Progress

from reducible.lab.locks import locked
from reducible.lab.provenance import versions
from reducible.lab.recipes import recipe
from reducible.lab.records import write_json
from reducible.lab.report.curves import plot_curves
from reducible.lab.run import Run, refuse_used_folder
from reducible.lab.stopping import stopping
from reducible.lab.training import with_target

DATASET = "Fashion-MNIST, embedded split"


def run_demo(
    out: Path,
    *,
    seed: int = 0,
    rho: str = "demo/rho",
    max_steps: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train once with uniform selection and once with RHO-LOSS; returns the summary.

    The target is uniform's final accuracy, the mean of its last five evaluations. Seconds charge
    everything but evaluation: fitting the irreducible-loss model, loading, scoring, picking and
    training. Writes ``summary.json``, ``curves.png`` and a run folder per method into ``out``.

    Args:
        out: an empty or new folder.
        seed: of everything.
        rho: the recipe that is held against uniform.
        max_steps: stop both runs earlier than their recipes do.
        progress: show bars.
    """
    with locked(out), stopping():
        refuse_used_folder(out)
        return _run_both(out, seed, rho, max_steps, progress)


def _run_both(
    out: Path, seed: int, rho: str, max_steps: int | None, progress: bool
) -> dict[str, Any]:
    runs: dict[str, dict[str, Any]] = {}
    with Progress(disable=not progress) as bar:
        for name, recipe_name in (("uniform", "demo/uniform"), ("rho", rho)):
            run = Run(recipe(recipe_name), out / name, seed=seed, max_steps=max_steps, progress=bar)
            runs[name] = run.start()
    target = runs["uniform"]["final_accuracy"]
    methods = {name: with_target(summary, target) for name, summary in runs.items()}
    for name, summary in methods.items():
        write_json(out / name / "summary.json", summary, sealed=True)
    summary = {
        "target_accuracy": target,
        "dataset": DATASET,
        "seed": seed,
        "versions": versions(),
        "methods": methods,
    }
    write_json(out / "summary.json", summary, sealed=True)
    plot_curves(summary, out / "curves.png")
    return summary
