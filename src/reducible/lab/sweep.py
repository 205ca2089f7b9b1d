"""Many runs: recipes × seeds, side by side in single-threaded processes, into results files."""

from __future__ import annotations

import multiprocessing
import os
import platform
import signal
import tempfile
import threading
import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from reducible.lab.locks import locked
from reducible.lab.provenance import current_commit, versions
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, write_json
from reducible.lab.run import Run, require_settings
from reducible.lab.stopping import Stopped, stopping
from reducible.types import ConfigurationError

_SUMMARY = (
    "final_accuracy",
    "worst_class_accuracy",
    "corrupted_share",
    "already_correct_share",
    "examples_scored",
    "examples_trained",
    "seconds",
)


def run_sweep(
    recipes: Sequence[Recipe],
    seeds: Sequence[int],
    *,
    work: Path,
    results: Path,
    processes: int = 2,
    checkpoint_every: int = 500,
    progress: bool = True,
) -> list[Path]:
    """Run every recipe with every seed; returns the results files, one per recipe.

    A run that is finished under ``work`` is not run again, one that was stopped goes on from its
    checkpoint, so a sweep can be killed and started again. A recipe's results file is written anew
    whenever one of its runs finishes.

    SIGTERM and SIGINT have the runs write checkpoints, and raise ``stopping.Stopped``.

    Args:
        recipes: what to run.
        seeds: of each.
        work: folder of the run folders.
        results: folder of the results files, ``<recipe>/<commit>.json``.
        processes: runs at a time, each with one thread.
        checkpoint_every: of each, see Run.
        progress: say beforehand how long it takes, and show a bar.
    """
    if not seeds or not recipes:
        raise ConfigurationError("a sweep needs at least one recipe and one seed.")
    seeds, recipes = sorted(set(seeds)), list({recipe.name: recipe for recipe in recipes}.values())
    for recipe in recipes:  # before hours of work, so that an error costs none
        (results / recipe.name).mkdir(parents=True, exist_ok=True)
    with locked(work), stopping():
        jobs = [(recipe, seed) for seed in seeds for recipe in recipes]
        todo = [_Job(r, s, _folder(work, r, s), checkpoint_every) for r, s in jobs]
        todo = [job for job in todo if not _finished(work, job.recipe, job.seed)]
        commit = current_commit()
        if progress:
            seconds = sum(_costs([job[:2] for job in todo], jobs, work=work)) / processes
            Console(stderr=True).print(
                f"{len(todo)} of {len(jobs)} runs to do, about {seconds / 60:.0f} minutes."
            )
        with closing(_run_all(todo, len(jobs), processes=processes, progress=progress)) as running:
            for recipe in running:
                collect(recipe, seeds, work=work, results=results, commit=commit)
        return [_up_to_date(r, seeds, work=work, results=results, commit=commit) for r in recipes]


class _Job(NamedTuple):
    recipe: Recipe
    seed: int
    folder: Path
    checkpoint_every: int


def _up_to_date(
    recipe: Recipe, seeds: Sequence[int], *, work: Path, results: Path, commit: str
) -> Path:
    """The newest results file, written anew if a kill kept a finished run out of it."""
    files = sorted((results / recipe.name).glob("*.json"), key=lambda path: path.stat().st_mtime)
    if files:
        held = {run["seed"] for run in read_json(files[-1])["seeds"]}
        if all(s in held or not _finished(work, recipe, s) for s in seeds):
            return files[-1]
    return collect(recipe, seeds, work=work, results=results, commit=commit)


def _run_all(
    todo: Sequence[_Job], jobs: int, *, processes: int, progress: bool
) -> Generator[Recipe]:
    """Run what is to do of ``jobs`` runs, side by side; yields the recipe of each as it ends."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    with (
        Progress(*columns, disable=not progress) as bar,
        _one_thread_each(),
        _workers(processes) as pool,
    ):
        shown = bar.add_task("sweep", total=jobs, completed=jobs - len(todo))
        running: dict[Future[None], Recipe] = {pool.submit(_run, job): job.recipe for job in todo}
        for future in as_completed(running):
            future.result()
            bar.advance(shown)
            yield running[future]


def collect(
    recipe: Recipe, seeds: Iterable[int], *, work: Path, results: Path, commit: str
) -> Path:
    """Write the results file of the finished runs of a recipe; returns its path."""
    runs: list[dict[str, Any]] = []
    last = 0.0
    for seed in sorted(seeds):
        path = _folder(work, recipe, seed) / "summary.json"
        if path.exists():
            summary = read_json(path, sealed=True)
            last = max(last, path.stat().st_mtime)
            short = {key: summary[key] for key in _SUMMARY} | {"selected": summary["selected"]}
            if "gate" in summary:
                short["gate"] = {k: v for k, v in summary["gate"].items() if k != "trials"}
            runs.append(
                {
                    "seed": seed,
                    "commit": require_settings(path.parent, recipe, seed)["commit"],
                    "curve": summary["curve"],
                    "ledger": summary["ledger"],
                    "summary": short,
                }
            )
    path = results / recipe.name / f"{commit}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "recipe": recipe.settings(),
            "command": f"reducible sweep {recipe.name} --seeds {_as_ranges(sorted(seeds))}",
            "versions": versions(),
            "machine": {
                "processor": platform.machine(),
                "cores": os.cpu_count(),
                "threads_per_run": 1,
                "finished": datetime.fromtimestamp(last, UTC).isoformat(timespec="seconds"),
            },
            "seeds": runs,
        },
    )
    return path


def parse_seeds(text: str) -> list[int]:
    """Seeds as ``"0-9"``, ``"3"`` or ``"0-4,7"``.

    >>> parse_seeds("0-2,7")
    [0, 1, 2, 7]
    """
    seeds: list[int] = []
    try:
        for part in text.split(","):
            first, dash, last = part.partition("-")
            run = range(int(first), int(last if dash else first) + 1)
            if not run:
                raise ValueError(part)
            seeds.extend(run)
    except ValueError as error:
        raise ConfigurationError(f"seeds are like 0-9 or 0-4,7; got {text!r}.") from error
    return sorted(set(seeds))


def _as_ranges(seeds: Sequence[int]) -> str:
    """The inverse of ``parse_seeds``.

    >>> _as_ranges([0, 1, 2, 7])
    '0-2,7'
    """
    parts: list[list[int]] = []
    for seed in seeds:
        if parts and seed == parts[-1][-1] + 1:
            parts[-1][-1] = seed
        else:
            parts.append([seed, seed])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


def _folder(work: Path, recipe: Recipe, seed: int) -> Path:
    return work / recipe.name / str(seed)


def _finished(work: Path, recipe: Recipe, seed: int) -> bool:
    return (_folder(work, recipe, seed) / "summary.json").exists()


@contextmanager
def _workers(processes: int) -> Iterator[ProcessPoolExecutor]:
    """Processes for the runs; if the body fails, they write checkpoints and start no other."""
    context = multiprocessing.get_context("spawn")
    heard, told = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(
        processes, mp_context=context, initializer=_begin_worker, initargs=(heard,)
    )
    try:
        yield pool
    except BaseException:
        told.send_bytes(b"stop")
        raise
    finally:
        pool.shutdown(cancel_futures=True)
        heard.close()
        told.close()


_told_to_stop = threading.Event()  # in a worker: start no other run


def _run(job: _Job) -> None:
    if _told_to_stop.is_set():
        raise Stopped(signal.SIGTERM)
    run = Run(
        job.recipe,
        job.folder,
        seed=job.seed,
        progress=False,
        checkpoint_every=job.checkpoint_every,
    )
    if (job.folder / "config.json").exists():
        run.resume()
    else:
        run.start()


def _begin_worker(heard: Connection) -> None:
    """Has this process end with the sweep, also if that is killed, and use one thread."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's goes to all; the sweep tells
    threading.Thread(target=_end_with_parent, args=(heard,), daemon=True).start()


def _end_with_parent(heard: Connection) -> None:
    """Send this process SIGTERM when the sweep says so, and end it when the sweep is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    if parent.sentinel not in wait([parent.sentinel, heard]):
        _told_to_stop.set()
        signal.raise_signal(signal.SIGTERM)
        wait([parent.sentinel])
    os._exit(1)


@contextmanager
def _one_thread_each() -> Iterator[None]:
    """Processes started in the body get one OpenMP thread: more than cores is ten times slower."""
    was = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        if was is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = was


def _costs(
    todo: Sequence[tuple[Recipe, int]], jobs: Sequence[tuple[Recipe, int]], *, work: Path
) -> list[float]:
    """Seconds of each run to do: from finished runs that cost alike, else from a short trial."""
    known: dict[str, tuple[float, float]] = {}  # seconds before training, and of a step
    for recipe, seed in jobs:
        path = _folder(work, recipe, seed) / "summary.json"
        if _kind(recipe) not in known and path.exists():
            seconds = read_json(path, sealed=True)["seconds"]
            fit = seconds["irreducible_loss"]
            known[_kind(recipe)] = fit, (seconds["total"] - fit) / recipe.steps
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for recipe, seed in todo:
            if _kind(recipe) not in known:
                known[_kind(recipe)] = _trial(recipe, seed)
    finally:
        torch.set_num_threads(threads)
    return [fit + step * r.steps for r, _ in todo for fit, step in [known[_kind(r)]]]


def _kind(recipe: Recipe) -> str:
    """Returns a key that recipes share whose runs cost alike, step by step."""
    alike = replace(
        recipe,
        name="",
        steps=1,
        evaluate_every=1,
        learning_rate=1.0,
        noise="flip",
        label_noise=0.0,
        holdout_noise=0.0,
    )
    return repr(alike)


def _trial(recipe: Recipe, seed: int, steps: int = 30) -> tuple[float, float]:
    """Seconds before training, and of a step."""
    with tempfile.TemporaryDirectory() as folder:
        run = Run(recipe, Path(folder) / "trial", seed=seed, max_steps=steps, progress=False)
        began = time.perf_counter()
        run.start()
        took, fit = time.perf_counter() - began, run.ledger.seconds["irreducible_loss"]
        stepping = run.ledger.charged - fit
        return took - stepping, stepping / steps
