"""Results that a study keeps a file each, by seed, and what they say of a pair of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from reducible.lab.records import read_json, record_error
from reducible.lab.report.statistics import paired_bootstrap


def by_seed(folder: Path, made_by: str) -> list[dict[str, Any]]:
    """Reads ``folder/SEED/NAME.json``: of each seed, in order, what is known by name.

    Args:
        folder: of a study.
        made_by: the command that writes them, for the error if there is nothing.
    """
    seeds = sorted((p for p in folder.glob("*") if p.name.isdigit()), key=lambda p: int(p.name))
    if not seeds:
        raise record_error(f"no runs in {folder}. Make them first: {made_by}.")
    return [
        {"seed": int(seed.name)} | {p.stem: read_json(p) for p in sorted(seed.glob("*.json"))}
        for seed in seeds
    ]


def paired_cell(
    seeds: Sequence[Mapping[str, Any]],
    mine: str,
    other: str,
    key: str,
    *,
    show: Callable[[float], str],
    less_is_better: bool = False,
) -> str:
    """Markdown: the mean difference of ``key``, with its 95 % interval over the seeds of both.

    Bold: better, the interval excludes zero; italic: worse.

    >>> seeds = [{"a": {"hits": 3.0}, "b": {"hits": 1.0}}] * 2
    >>> paired_cell(seeds, "a", "b", "hits", show="{:+.0f}".format)
    '**+2 (+2 to +2)**'
    """
    both = [seed for seed in seeds if mine in seed and other in seed]
    if len(both) < 2:
        return "not run"
    mean, low, high = paired_bootstrap(
        [seed[mine][key] for seed in both], [seed[other][key] for seed in both]
    )
    text = f"{show(mean)} ({show(low)} to {show(high)})"
    above, below = ("*", "**") if less_is_better else ("**", "*")
    mark = above if low > 0 else below if high < 0 else ""
    return f"{mark}{text}{mark}"
