"""Run folders and demo folders, read back: finished, stopped half-way, or none at all."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from reducible.lab.records import read_json, read_metrics, read_picks, record_error, summarise
from reducible.lab.report.curves import plot_curves
from reducible.lab.report.tables import summary_markdown, summary_table

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One method's run, as a report needs it."""

    folder: Path
    name: str
    """The recipe, or the demo's name of the method."""
    seed: int | None
    target_accuracy: float | None
    dataset: str | None
    finished: bool
    entry: Mapping[str, Any]
    """As one entry of the demo's ``methods``; of a stopped run what its metrics tell."""

    def picks(self) -> pa.Table:
        """The chosen ids of every step; see ``records.read_picks``."""
        return read_picks(self.folder / "picks.arrow")


def read_runs(paths: Iterable[str | Path]) -> list[Run]:
    """The runs in run folders and demo folders, in the order given.

    Raises ReducibleError for a folder that holds neither.
    """
    return [run for path in paths for run in _read_folder(Path(path))]


def _read_folder(folder: Path) -> list[Run]:
    summary = _sealed(folder / "summary.json")
    if summary is not None and "methods" in summary:
        about = {name: summary.get(name) for name in ("seed", "target_accuracy", "dataset")}
        return [
            Run(folder=folder, name=name, finished=True, entry=entry, **about)
            for name, entry in summary["methods"].items()
        ]
    if not any((folder / name).exists() for name in _RUN_FILES):
        raise record_error(_no_run(folder))
    config = _sealed(folder / "config.json") or {}
    target = config.get("target_accuracy")
    return [
        Run(
            folder=folder,
            name=str(config.get("recipe", folder.resolve().name)),
            seed=config.get("seed"),
            target_accuracy=target,
            dataset=config.get("dataset"),
            finished=summary is not None,
            entry=_from_metrics(folder, target) if summary is None else summary,
        )
    ]


def _sealed(path: Path) -> Any:
    return read_json(path, sealed=True) if path.exists() else None


_RUN_FILES = ("config.json", "metrics.jsonl", "summary.json")


def _no_run(folder: Path) -> str:
    wanted = "no config.json, metrics.jsonl or summary.json"
    if not folder.is_dir():
        return f"{folder} is not a folder. Name the folder that was given as --out of a run."
    inside = [
        child.name
        for child in sorted(folder.iterdir())
        if any((child / name).exists() for name in _RUN_FILES)
    ]
    if inside:
        return f"{folder} holds {wanted}, but its sub-folders do: name {', '.join(inside)}."
    return f"{folder} holds no run: {wanted}. Name the folder that was given as --out of a run."


def _from_metrics(folder: Path, target: float | None) -> dict[str, Any]:
    """Reads a stopped run's evaluations, in the words of a summary."""
    path = folder / "metrics.jsonl"
    lines = read_metrics(path) if path.exists() else []
    curve = [[line["step"], line["seconds"], line["accuracy"]] for line in lines]
    steps, seconds = (None, None) if target is None else summarise(curve, target)
    last = lines[-1] if lines else {}
    return {
        "steps_to_target": steps,
        "seconds_to_target": seconds,
        "final_accuracy": last.get("accuracy"),
        "seconds": last.get("seconds_by_phase", {}),
        "examples_scored": last.get("examples_scored"),
        "examples_trained": last.get("examples_trained"),
        "corrupted_share": _total_share(lines, "corrupted"),
        "already_correct_share": _total_share(lines, "already_correct"),
        "curve": curve,
    }


def _total_share(lines: Sequence[Mapping[str, Any]], name: str) -> float | None:
    """Total over total, so that evaluations after many choices count for more."""
    counted = [line["selected"] for line in lines if line.get("selected")]
    known = [selected for selected in counted if selected[f"{name}_share"] is not None]
    chosen = sum(selected["chosen"] for selected in known)
    return sum(selected[name] for selected in known) / chosen if chosen else None


def as_summary(runs: Sequence[Run]) -> dict[str, Any]:
    """The runs as one demo's summary: ``methods`` by name, and what all runs have in common.

    Runs of the same name are told apart by their seed, and if that is not enough by folder. Runs
    towards different targets have no common one, so none is named.
    """
    methods: dict[str, Any] = {}
    for run in runs:
        methods[_unique_name(run, runs)] = run.entry
    return {
        "target_accuracy": _common([run.target_accuracy for run in runs]),
        "dataset": _common([run.dataset for run in runs]),
        "seed": _common([run.seed for run in runs]),
        "methods": methods,
    }


def _unique_name(run: Run, runs: Sequence[Run]) -> str:
    twins = [other for other in runs if other.name == run.name]
    if len(twins) == 1:
        return run.name
    if len({other.seed for other in twins}) == len(twins):
        return f"{run.name}, seed {run.seed}"
    return f"{run.name}, {run.folder}"


def _common(values: Sequence[Any]) -> Any:
    return values[0] if values and all(value == values[0] for value in values) else None


def report(paths: Iterable[str | Path], out: str | Path) -> Table:
    """Write ``curves.png`` and ``table.md`` of the runs in ``paths`` to ``out``; return the table.

    ``paths`` are run folders and demo folders. A run that was stopped is reported as far as its
    metrics go.
    """
    summary = as_summary(read_runs(paths))
    if not summary["methods"]:
        raise record_error("no folder was given to report on. Name one run folder, or several.")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    plot_curves(summary, out / "curves.png")
    (out / "table.md").write_text(summary_markdown(summary), encoding="utf-8")
    return summary_table(summary)
