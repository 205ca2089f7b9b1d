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
import copy
import difflib
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

OTHER_OPERATOR: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mod,
    ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.And: ast.Or,
    ast.Or: ast.And,
}
OPPOSITE = {ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt}
OTHER_NAME = {
    "max": "min",
    "min": "max",
    "amax": "amin",
    "argmax": "argmin",
    "maximum": "minimum",
    "minimum": "maximum",
    "floor": "ceil",
    "log": "exp",
    "exp": "log",
    "sum": "mean",
    "mean": "sum",
    "new_ones": "new_zeros",
    "new_zeros": "new_ones",
    "ones": "zeros",
    "zeros": "ones",
    "ones_like": "zeros_like",
    "zeros_like": "ones_like",
    "sqrt": "square",
    "rsqrt": "sqrt",
    "square": "sqrt",
    "randperm": "arange",
}
DROPPED_CALLS = ("abs", "neg_", "log_", "sqrt", "double", "clone", "nan_to_num_", "sort", "clamp")
CHECKS = ("check_scores", "check_k", "require_finite", "require_between", "require_one_of")

Mutant = tuple[str, ast.Module, int]  # what was changed, the module, the line


def _variants(node: ast.AST) -> Iterator[tuple[str, ast.AST | None]]:
    """Replacements for one node (None: the statement is left out), each with its name."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp):
        if type(node.op) in OTHER_OPERATOR and not _is_type(node):
            changed = copy.deepcopy(node)
            changed.op = OTHER_OPERATOR[type(node.op)]()  # pyright: ignore[reportAttributeAccessIssue]
            yield "operator", changed
    elif isinstance(node, ast.Compare):
        for table, name in ((OTHER_OPERATOR, "comparison"), (OPPOSITE, "opposite")):
            for position, op in enumerate(node.ops):
                if type(op) in table:
                    changed = copy.deepcopy(node)
                    changed.ops[position] = table[type(op)]()  # pyright: ignore
                    yield name, changed
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        yield "sign", copy.deepcopy(node.operand)
    elif isinstance(node, ast.IfExp):
        yield "branches swapped", ast.IfExp(node.test, node.orelse, node.body)
    elif isinstance(node, ast.If):
        changed = copy.deepcopy(node)
        changed.test = ast.UnaryOp(ast.Not(), changed.test)
        yield "condition", changed
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, bool):
            yield "constant", ast.Constant(not node.value)
        elif isinstance(node.value, int | float):
            yield "constant", ast.Constant(node.value + 1)
            if node.value not in (0, 1):
                yield "constant", ast.Constant(node.value * 0.5)
    elif isinstance(node, ast.Call):
        yield from _calls(node)
    elif isinstance(node, ast.Name | ast.Attribute):
        name = node.id if isinstance(node, ast.Name) else node.attr
        if name in OTHER_NAME and isinstance(node.ctx, ast.Load):
            changed = copy.deepcopy(node)
            setattr(changed, "id" if isinstance(node, ast.Name) else "attr", OTHER_NAME[name])
            yield name, changed
    elif isinstance(node, ast.Assign | ast.AugAssign) and _is_state(node):
        yield "state left out", None
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        yield "statement left out", None


def _calls(node: ast.Call) -> Iterator[tuple[str, ast.AST | None]]:
    name = getattr(node.func, "attr", getattr(node.func, "id", ""))
    if isinstance(node.func, ast.Attribute) and name in DROPPED_CALLS:
        yield f"{name} left out", copy.deepcopy(node.func.value)
    for position, keyword in enumerate(node.keywords):
        if keyword.arg in ("generator", "dtype", "device", "strict"):
            continue
        if name == "Row":
            continue
        changed = copy.deepcopy(node)
        del changed.keywords[position]
        yield f"{keyword.arg}= left out", changed


def _is_state(node: ast.Assign | ast.AugAssign) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    inner = [t.value if isinstance(t, ast.Subscript) else t for t in targets]
    return any(isinstance(t, ast.Attribute) for t in inner)


def _is_type(node: ast.AST) -> bool:
    """``Tensor | None`` and the like, where | is no arithmetic."""
    return isinstance(node, ast.BinOp) and "None" in ast.unparse(node)


def _skipped(node: ast.AST) -> bool:
    """Docstrings, types, imports and the text of rows and errors are not arithmetic."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise | ast.JoinedStr | ast.AnnAssign):
        return not (isinstance(node, ast.AnnAssign) and node.value is not None)
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True
    if isinstance(node, ast.keyword) and node.arg == "strict":  # zip's, an assertion
        return True
    return isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("Literal", "TypeVar")


def mutants(path: Path) -> Iterator[Mutant]:
    """Every way of breaking the file at ``path`` once."""
    tree = ast.parse(path.read_text())
    for node, parent, field, position in list(_walk(tree)):
        for name, variant in _variants(node):
            replacement = variant if variant is not None else ast.Pass()
            _put(parent, field, position, replacement)
            changed = copy.deepcopy(tree)
            _put(parent, field, position, node)
            ast.fix_missing_locations(changed)
            yield name, changed, getattr(node, "lineno", 0)


def _walk(node: ast.AST) -> Iterator[tuple[ast.AST, ast.AST, str, int | None]]:
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        children = value if isinstance(value, list) else [value]
        for position, child in enumerate(children):
            if isinstance(child, ast.AST) and not _skipped(child):
                yield child, node, field, position if isinstance(value, list) else None
                yield from _walk(child)


def _put(parent: ast.AST, field: str, position: int | None, value: ast.AST) -> None:
    if position is None:
        setattr(parent, field, value)
    else:
        getattr(parent, field)[position] = value


def difference(path: Path, tree: ast.Module) -> str:
    """The changed lines, as Python writes them."""
    before = ast.unparse(ast.parse(path.read_text())).splitlines()
    lines = difflib.unified_diff(before, ast.unparse(tree).splitlines(), n=0, lineterm="")
    return "\n".join(f"      {line}" for line in list(lines)[3:])


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
