"""Break the rules, the loop, the gate and the plans one small way at a time; tests must notice.

Each mutant is one changed operator, constant, comparison, keyword or statement. It lives in the
memory of a forked process only: torch and pytest are imported once, no file is written. A mutant is
given the tests that enter its function: those of its module's own test file first, then the others,
the fastest first, as many as take ``--within`` seconds together. It is caught if one fails, or does
not end. ``--again`` tries what survived in an earlier output, known by its changed lines.

    .venv/bin/python scripts/mutate.py [--part loop] [--only class_balanced] [--every 1]
        [--within 30] [--again OUTPUT] [--jobs 2]
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib.util
import io
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from itertools import accumulate
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest
from mutants import Mutant, difference, mutants

os.environ["OMP_NUM_THREADS"] = "1"
ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src"
# What is broken, below src/reducible, and the tests that are to notice.
PARTS = {
    "rules": (
        ("scores/*.py", "picks/*.py", "selectors/*.py"),
        ("tests/scores", "tests/picks", "tests/selectors", "tests/contract"),
    ),
    "loop": (
        (
            "loop/loader.py",
            "loop/passes.py",
            "loading/order.py",
            "loop/epochs.py",
            "loop/keep.py",
            "loop/states.py",
            "loop/inspection.py",
            "loop/evidence.py",
            "loop/learners.py",
            "loop/hindsight.py",
            "loop/chosen.py",
        ),
        (
            *("tests/loop", "tests/loading", "tests/golden"),
            *("tests/scoring/test_scoring_options.py", "tests/scoring/test_remembered_losses.py"),
            *("tests/scoring/test_other_scorers.py", "tests/scoring/test_compiled_scoring.py"),
            "tests/lab/test_info_records.py",
        ),
    ),
    "gate": (
        ("loop/gate.py", "loop/trials.py"),
        (
            "tests/loop/test_gate.py",
            "tests/loop/test_gate_decisions.py",
            "tests/loop/test_gate_in_a_loop.py",
            "tests/loop/test_trials.py",
            "tests/loop/test_trials_seconds.py",
        ),
    ),
    "plans": (("plans/*.py",), ("tests/plans",)),
    "files": (
        ("files/seals.py", "lab/logs.py", "lab/arrow_logs.py", "files/checkpoints.py"),
        (
            "tests/lab/test_records.py",
            "tests/lab/test_records_metrics.py",
            "tests/lab/test_info_records.py",
            "tests/files/test_checkpoints.py",
        ),
    ),
}
PATIENCE = 10  # seconds, and times what a test takes; a mutant that loops for ever is caught, too


class _Mutated(MetaPathFinder, SourceFileLoader):
    """Gives one module of another tree than its file's."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        super().__init__(name, str(path))
        self.module, self.tree = name, tree

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        if fullname != self.module:
            return None
        inside = [str(Path(self.path).parent)] if self.path.endswith("__init__.py") else None
        return importlib.util.spec_from_file_location(
            fullname, self.path, loader=self, submodule_search_locations=inside
        )

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.tree, self.path, "exec")


class Watch:
    """pytest plugin: which lines of ours each test enters a function at, and its seconds."""

    def __init__(self) -> None:
        self.entered: dict[str, set[tuple[str, int]]] = {}
        self.seconds: dict[str, float] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        seen: set[CodeType] = set()

        def enter(frame: FrameType, event: str, _: Any) -> None:
            if event == "call":
                seen.add(frame.f_code)

        began = time.perf_counter()
        sys.setprofile(enter)
        yield
        sys.setprofile(None)
        self.seconds[item.nodeid] = time.perf_counter() - began
        self.entered[item.nodeid] = {(c.co_filename, c.co_firstlineno) for c in seen}


class Choose:
    """pytest plugin: only the tests given, in their order, each within its time."""

    def __init__(self, tests: list[str], watch: Watch) -> None:
        self.place = {test: place for place, test in enumerate(tests)}
        self.seconds = watch.seconds

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        signal.alarm(int(PATIENCE + PATIENCE * self.seconds[item.nodeid]))

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = sorted(
            (i for i in items if i.nodeid in self.place), key=lambda i: self.place[i.nodeid]
        )


def _run(plugin: object, files: list[str], arguments: list[str]) -> int:
    options = ["-x", "-q", "--no-header", "-p", "no:cacheprovider", "-p", "no:xdist"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", *arguments]
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        return int(pytest.main([*options, *files], plugins=[plugin]))


def watched(tests: tuple[str, ...], arguments: list[str]) -> Watch | None:
    """What every test enters, found in a fork so that this process imports nothing of ours."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read)
        watch = Watch()
        code = _run(watch, list(tests), arguments)
        with os.fdopen(write, "wb") as pipe:
            pickle.dump((watch.entered, watch.seconds), pipe)
        os._exit(code)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        found = pickle.load(pipe)
    watch = Watch()
    watch.entered, watch.seconds = found
    _, status = os.waitpid(pid, 0)
    return watch if os.waitstatus_to_exitcode(status) == 0 else None


def tests_for(path: Path, line: int, watch: Watch, within: float) -> list[str]:
    """Tests that enter the function around ``line`` (all, outside of one), the likeliest first."""
    functions = [
        n
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.FunctionDef) and n.body[0].lineno <= line <= (n.end_lineno or 0)
    ]
    starts = {n.lineno - len(n.decorator_list) for n in functions[-1:]}
    tests = [
        test
        for test, entered in watch.entered.items()
        if not starts or any(f == str(path) and at in starts for f, at in entered)
    ]
    order = sorted(
        tests or watch.entered,  # all of them, for what runs when the module is imported
        key=lambda test: (not _is_about(test, path), watch.seconds[test]),
    )
    took = accumulate(watch.seconds[test] for test in order)
    return [test for test, seconds in zip(order, took, strict=True) if seconds <= within]


def _is_about(test: str, path: Path) -> bool:
    """The test lies in a file named after the module."""
    return path.stem.strip("_") in test.partition("::")[0]


def _pass(tests: list[str], watch: Watch, arguments: list[str]) -> bool:
    files = sorted({test.partition("::")[0] for test in tests})  # few files are collected faster
    return _run(Choose(tests, watch), files, arguments) == 0


def start(path: Path, mutant: Mutant, watch: Watch, arguments: list[str], within: float) -> int:
    """Process id of a fork that exits with 1 where the mutant survives."""
    pid = os.fork()
    if pid:
        return pid
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        name = ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
        sys.meta_path.insert(0, _Mutated(name, path, mutant[1]))
        tests = tests_for(path, mutant[2], watch, within)
        about = [t for t in tests if _is_about(t, path)]
        others = [t for t in tests if t not in about]
        code = int(all(_pass(some, watch, arguments) for some in (about, others) if some))
    except BaseException:  # a module that no longer imports is caught
        code = 0
    os._exit(code)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="", choices=["", *PARTS], help="all where empty")
    parser.add_argument("--only", default="", help="files whose path holds one of these, by commas")
    parser.add_argument("--every", type=int, default=1, help="one mutant in so many")
    parser.add_argument("--within", type=float, default=30.0, help="seconds of tests for each")
    parser.add_argument("--again", type=Path, help="earlier output: what survived in it alone")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--deselect", action="append", default=[], help="tests to leave out")
    chosen = parser.parse_args()
    arguments = [f"--deselect={name}" for name in chosen.deselect]
    os.chdir(ROOT)
    import hypothesis  # noqa: F401 (imported once, before the forks)
    import numpy.testing  # noqa: F401
    import torch.testing

    torch.set_num_threads(1)

    scores = [_broken(name, chosen, arguments) for name in PARTS if chosen.part in ("", name)]
    if None in scores:
        return 2
    caught, made = (sum(counts) for counts in zip(*filter(None, scores), strict=True))
    print(f"{caught} of {made} caught, {caught / max(1, made):.1%}, in all")
    return 0


def _broken(part: str, chosen: argparse.Namespace, arguments: list[str]) -> tuple[int, int] | None:
    """Mutants caught, and made, of one part; None if its tests fail beforehand."""
    globs, tests = PARTS[part]
    only, every = chosen.only.split(","), chosen.every
    paths = [p for glob in globs for p in sorted((SOURCE / "reducible").glob(glob))]
    work = [(p, m) for p in paths if any(o in str(p) for o in only) for m in mutants(p)][::every]
    if chosen.again is not None:
        survived = chosen.again.read_text()
        work = [(p, m) for p, m in work if difference(p, m[1]) in survived]
    watch = watched(tests, arguments) if work else Watch()
    if watch is None:
        print(f"The tests of {part} fail before anything is changed.")
        return None
    gc.freeze()  # what is here already need not be searched in every fork
    alive, began = 0, time.monotonic()
    running: dict[int, tuple[Path, Mutant]] = {}
    done, queue = 0, list(reversed(work))
    while queue or running:
        while queue and len(running) < chosen.jobs:
            path, mutant = queue.pop()
            pid = start(path, mutant, watch, arguments, chosen.within)
            running[pid] = (path, mutant)
        pid, status = os.wait()
        path, mutant = running.pop(pid)
        done += 1
        if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
            alive += 1
            print(f"{path.relative_to(ROOT)}:{mutant[2]}: {mutant[0]}")
            print(difference(path, mutant[1]), flush=True)
        if done % 50 == 0:
            print(f"… {done} of {len(work)}", flush=True)
    caught, seconds = len(work) - alive, time.monotonic() - began
    print(f"{part}: {caught} of {len(work)} caught in {seconds:.0f} s", flush=True)
    return caught, len(work)


if __name__ == "__main__":
    sys.exit(main())
