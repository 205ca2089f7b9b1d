"""Whether the files of a run folder are what was written."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from reducible.files import checkpoints
from reducible.lab.info_records import INFO, PICKS, read_info
from reducible.lab.logs import is_whole
from reducible.lab.recipe import Recipe
from reducible.lab.records import read_json, read_metrics, read_picks
from reducible.lab.setup import CONFIG, MODEL, PLAN, STORE
from reducible.lab.training import METRICS, WEIGHTS
from reducible.plans import Plan
from reducible.stores import IrreducibleLossStore
from reducible.types import ConfigurationError, ReducibleError

SUMMARY = "summary.json"


class Finding(NamedTuple):
    """One file of a run folder, and what is wrong with it."""

    path: Path
    problem: str | None


def check_folder(out: Path) -> list[Finding]:
    """Every file of the run in ``out``, or of the runs in a demo's or sweep's folder.

    Checksums, and whether the files belong together: that no step is missing from the picks, and
    that the logs begin as they did when each checkpoint was written. A log of a run that is not
    finished may have lost its end since the last checkpoint; ``reducible resume`` makes that anew.

    Raises:
        ConfigurationError: there is no run in the folder.
    """
    configs = sorted(out.rglob(CONFIG)) if out.is_dir() else []
    folders = [path.parent for path in configs] or [out][: int((out / SUMMARY).is_file())]
    if not folders:
        raise ConfigurationError(
            f"{out} holds no run: there is no {CONFIG} in it or below. Name the folder that was "
            "given as --out of a run, of the demo, or as --work of a sweep."
        )
    found = [finding for folder in folders for finding in _check_run(folder)]
    if out not in folders and (out / SUMMARY).is_file():
        found.append(_checked(out / SUMMARY, _sealed))
    return found


def _check_run(out: Path) -> Iterator[Finding]:
    yield _checked(out / CONFIG, _check_config)
    marks: dict[str, Any] = {}
    if (out / SUMMARY).exists():
        yield _checked(out / SUMMARY, lambda path: marks.update(_sealed(path)["files"]))
    for name in sorted(_READERS.keys() | marks.keys()):
        path = out / name
        if name in marks and not is_whole(path, marks[name]):
            yield Finding(path, "is not as it was when the run finished.")
        elif path.exists():
            yield _checked(path, _READERS.get(name, Path.stat))
    for path in checkpoints.saved(out):
        yield _checked(path, _check_checkpoint)


def _checked(path: Path, read: Callable[[Path], object]) -> Finding:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(path)
    except (ReducibleError, OSError, UserWarning) as error:
        return Finding(path, str(error))
    except (KeyError, TypeError, ValueError, AttributeError) as error:  # JSON of another shape
        return Finding(path, f"is of another shape than was written ({error!r}).")
    return Finding(path, None)


def _sealed(path: Path) -> Any:
    return read_json(path, sealed=True)


def _check_config(path: Path) -> None:
    Recipe.from_settings(_sealed(path)["settings"])


def _check_picks(path: Path) -> None:
    steps = read_picks(path)["step"].to_pylist()
    if steps != list(range(len(steps))):
        missing = next(i for i, step in enumerate(steps) if i != step)
        raise ReducibleError(f"the picks of step {missing} are missing or come twice.")


def _check_checkpoint(path: Path) -> None:
    logs = checkpoints.load(path)["logs"]
    changed = [name for name in logs if not is_whole(path.parent / name, logs[name], up_to=True)]
    if changed:
        raise ReducibleError(f"{', '.join(changed)} changed since it was written.")


_READERS: dict[str, Callable[[Path], object]] = {
    PICKS: _check_picks,
    INFO: read_info,
    METRICS: read_metrics,
    STORE: IrreducibleLossStore.load,
    PLAN: Plan.load,
    MODEL: checkpoints.load_weights,
    WEIGHTS: checkpoints.load_weights,
}
