"""The main job: does selection pay in the same seconds, and what the paper compares, in steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.progress import Progress

from reducible.lab.locks import locked
from reducible.lab.provenance import versions
from reducible.lab.race import run_race
from reducible.lab.records import write_json
from reducible.lab.report.curves import plot_curves
from reducible.lab.run import Run, refuse_used_folder
from reducible.lab.stopping import stopping
from reducible.lab.studies.demo.recipes import PAPER, RACE
from reducible.lab.training import with_target

DATASET = "Fashion-MNIST, one label in ten wrong"
SECONDS, STEPS = "in-seconds", "in-steps"  # sub-folders
_PAPER = {"uniform": PAPER["uniform"], "rho": PAPER["RHO-LOSS, clean holdout"]}


def run_demo(
    out: Path, *, seed: int = 0, max_steps: int | None = None, progress: bool = True
) -> dict[str, dict[str, Any]]:
    """Train three recipes in the same seconds, then two in as many steps.

    First every row in turn, RHO-LOSS and the recommended plan, at a decaying rate, advanced in
    turns (see ``run_race``). Then the paper's own comparison, at a constant rate: uniform choices
    from candidate batches beside RHO-LOSS, to uniform's final accuracy. Both write a summary, a
    picture and a folder for each run into sub-folders of ``out``.

    Args:
        out: an empty or new folder.
        seed: of everything.
        max_steps: stop earlier than the recipes do.
        progress: show bars.

    Returns:
        Both summaries, by the names of their sub-folders.
    """
    with locked(out), stopping():
        for folder in (out, out / SECONDS, out / STEPS):
            refuse_used_folder(folder)
        with Progress(disable=not progress) as bar:
            race = run_race(
                out / SECONDS, RACE, seed=seed, steps=max_steps, progress=bar, dataset=DATASET
            )
            paper = _run_paper(out / STEPS, seed, max_steps, bar)
    plot_curves(race, out / SECONDS / "curves.png", headline=race["verdict"])
    plot_curves(paper, out / STEPS / "curves.png")
    return {SECONDS: race, STEPS: paper}


def _run_paper(out: Path, seed: int, max_steps: int | None, bar: Progress) -> dict[str, Any]:
    runs = {
        name: Run(made, out / name, seed=seed, max_steps=max_steps, progress=bar).start()
        for name, made in _PAPER.items()
    }
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
    return summary
