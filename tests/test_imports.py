"""Which module may import which, and that importing the library stays light."""

from __future__ import annotations

import ast
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import reducible

SOURCE = Path(reducible.__file__).parent
TESTS = Path(__file__).parent

_LIBRARY = (
    "types schedules ledger files batches loading tasks scores picks selectors stores scoring "
    "plans fitting loop costs"
)
_RUNS = f"{_LIBRARY} lab.records lab.recipe lab.splits lab.setup lab.data lab.models lab.encoders"
_SWEEPS = f"{_RUNS} lab.training lab.run lab.locks lab.stopping lab.provenance"

# Module or package → what it may import of ours. Top to bottom: only what stands above it. The
# library first, which imports nothing of the laboratory; then the laboratory, part by part.
ALLOWED = {
    "types": "",
    "schedules": "",
    "ledger": "",
    "files": "types",
    "batches": "types",
    "loading": "types",
    "tasks": "types loading",
    "scores": "",
    "picks": "types",
    "selectors": "types schedules scores picks",
    "stores": "types files loading",
    "scoring": "types batches tasks stores",
    "plans": "types files loading stores",
    "fitting": "types ledger files batches loading tasks stores scoring plans",
    "loop": "types ledger batches loading tasks selectors stores scoring",
    "adapters": (
        "types ledger files batches loading tasks selectors stores scoring plans fitting loop"
    ),
    "costs": "types ledger batches tasks selectors stores scoring loop",
    "lab.__init__": "",
    "lab.locks": "types files",
    "lab.logs": "types files",
    "lab.arrow_logs": "types files lab.logs",
    "lab.records": "types files lab.logs lab.arrow_logs",
    "lab.info_records": "types lab.logs lab.arrow_logs lab.records",
    "lab.counts": "types",
    "lab.stopping": "",
    "lab.provenance": "__version__",
    "lab.data": "types loading",
    "lab.models": "types",
    "lab.encoders": "types",
    "lab.settings": "types",
    "lab.recipe": "types tasks selectors scoring lab.models lab.encoders lab.settings",
    "lab.splits": "types fitting loop lab.data lab.models lab.encoders lab.recipe",
    "lab.setup": f"{_LIBRARY} lab.records lab.data lab.models lab.recipe lab.splits",
    "lab.evaluation": "tasks scoring lab.data",
    "lab.training": f"{_RUNS} lab.logs lab.info_records lab.counts lab.evaluation",
    "lab.run": (
        f"{_RUNS} lab.locks lab.logs lab.info_records lab.stopping lab.provenance lab.training"
    ),
    "lab.race": f"{_RUNS} lab.info_records lab.provenance lab.evaluation lab.training lab.run",
    "lab.checking": f"{_RUNS} lab.logs lab.info_records lab.training",
    "lab.sweep": _SWEEPS,
    "lab.bench": _SWEEPS,
    "lab.method_pages": "types scores selectors scoring",
    "lab.report": "lab.records lab.info_records",
    "lab.studies": f"{_SWEEPS} adapters lab.sweep lab.report",
    "lab.recipes": "types selectors lab.recipe lab.studies",
    "lab.demo": f"{_SWEEPS} lab.race lab.report lab.studies",
    "lab.cli": "*",
    "__main__": "lab.cli",
}
OPTIONAL = (
    "matplotlib pyarrow typer rich filelock reducible_data transformers tokenizers "
    "sentence_transformers huggingface_hub lightning pytorch_lightning accelerate datasets skorch "
    "sklearn trl peft torchvision pandas"
)


def _files() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def _unit(path: Path) -> str:
    first, *rest = path.relative_to(SOURCE).with_suffix("").parts
    return f"lab.{rest[0]}" if first == "lab" else first


def _imports(path: Path, *, inside_functions: bool = True) -> Iterator[str]:
    """Full names of what a file imports when it runs (not what only type checkers read)."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path} imports relatively"
                assert child.module is not None
                yield from (f"{child.module}.{alias.name}" for alias in child.names)
            elif isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
                continue
            elif inside_functions or not isinstance(child, ast.FunctionDef | ast.Lambda):
                yield from walk(child)

    yield from walk(ast.parse(path.read_text()))


def _ours(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Units of ours that a file imports."""
    names = (n.split(".") for n in _imports(path, inside_functions=inside_functions))
    ours = [n[1:] for n in names if n[0] == "reducible" and len(n) > 1]
    return {".".join(n[:2]) if n[0] == "lab" else n[0] for n in ours}


def test_the_table_allows_only_what_stands_above() -> None:
    order = list(ALLOWED)
    for unit, allowed in ALLOWED.items():
        for other in set(allowed.split()) - {"*", "__version__"}:
            assert order.index(other) < order.index(unit), f"{other} stands below {unit}"
            assert unit.startswith(("lab.", "__main__")) or not other.startswith("lab.")


def test_the_house_has_few_rooms() -> None:
    modules = [p for p in SOURCE.glob("*.py") if p.name != "__init__.py"]
    folders = [p.parent for p in SOURCE.rglob("__init__.py") if p.parent != SOURCE]
    packages = [f for f in folders if f.parent.name != "studies"]  # which hold no code of others
    assert len(modules) <= 9
    assert len(modules) + len(packages) <= 23


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_row_allows(path: Path) -> None:
    unit = _unit(path)
    assert unit in ALLOWED, f"decide where {unit} sits, and give it a row"
    if ALLOWED[unit] == "*":
        return
    assert _ours(path) - {unit} <= set(ALLOWED[unit].split())


FRAMEWORKS = {
    "transformers": {"transformers"},
    "transformers_data": {"transformers"},
    "lightning": set[str](),  # of two packages the one that is there, by name
    "accelerate": {"accelerate"},
    "skorch": {"skorch"},
}


@pytest.mark.parametrize("path", sorted((SOURCE / "adapters").glob("*.py")), ids=lambda p: p.stem)
def test_an_adapter_imports_its_framework_only(path: Path) -> None:
    found = {name.split(".")[0] for name in _imports(path)}
    others = found - set(sys.stdlib_module_names) - {"reducible", "torch"}
    assert others == FRAMEWORKS.get(path.stem, set())


def test_the_package_itself_is_imported_by_nobody_for_its_contents() -> None:
    units = {_unit(p) for p in _files()} | {"__version__"}
    for path in _files():
        assert _ours(path) <= units, f"{path} imports a re-export from the package's table"


def test_no_file_imports_itself_by_way_of_others() -> None:
    """No cycles between single files either, so that folders are layered inside, too."""
    modules = {
        ".".join(("reducible", *p.relative_to(SOURCE).with_suffix("").parts)): p for p in _files()
    }
    graph: dict[str, set[str]] = {}
    for name, path in modules.items():
        if path.name == "__init__.py":
            continue
        found = _imports(path, inside_functions=False)
        graph[name] = {m for n in found for m in (n, n.rpartition(".")[0]) if m in modules} - {name}
    assert sum(map(len, graph.values())) > 30  # the walk found imports at all
    TopologicalSorter(graph).prepare()  # raises CycleError


def test_no_function_hides_the_module_of_its_name() -> None:
    modules = {path.stem for path in SOURCE.iterdir() if path.suffix in ("", ".py")}
    hidden = modules.intersection(reducible.__all__)
    assert [n for n in hidden if not inspect.ismodule(getattr(reducible, n))] == []


def test_records_reach_for_types_only_where_an_error_is_raised() -> None:
    lab = SOURCE / "lab"
    assert _ours(lab / "logs.py", inside_functions=False) == {"files"}
    above = {"files", "lab.logs", "lab.arrow_logs"}
    assert _ours(lab / "records.py", inside_functions=False) == above


@pytest.mark.parametrize(
    "path", sorted((SOURCE / "lab" / "report").glob("*.py")), ids=lambda p: p.name
)
def test_reports_are_made_without_torch(path: Path) -> None:
    assert not any(name.split(".")[0] == "torch" for name in _imports(path))


@pytest.mark.parametrize("unit", ["scores", "picks", "selectors", "stores"])
def test_rules_and_stores_know_no_framework_but_torch(unit: str) -> None:
    for path in (SOURCE / unit).glob("*.py"):
        outside = {n.split(".")[0] for n in _imports(path)} - set(sys.stdlib_module_names)
        assert outside <= {"reducible", "torch", "safetensors"}, path


def _python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | environment,
    )
    return done.stdout


def test_import_loads_nothing_optional() -> None:
    loaded = _python(
        "import torch, sys; before = set(sys.modules); import reducible;"
        "print(*sorted({m.split('.')[0] for m in set(sys.modules) - before}))"
    ).split()
    assert "reducible" in loaded
    assert not set(loaded) & {*OPTIONAL.split(), "scipy", "sklearn", "PIL", "composer"}


def test_import_costs_little_beside_torch(tmp_path: Path) -> None:
    """At most 0.15 s more than torch alone: a decision about users, so a test about time.

    The least of five, for what else a machine does only adds. Torch's objects are frozen, or a
    collection that is due scans them all in our time. Compiled files are kept, as they are after
    any first import of an installed package.
    """
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    code = (
        "import gc, time, torch; gc.freeze(); start = time.process_time(); import reducible;"
        "print(time.process_time() - start)"
    )
    _python(code, **kept)
    assert min(float(_python(code, **kept)) for _ in range(5)) <= 0.15


def test_files_and_functions_stay_short() -> None:
    """A file of over 400 lines, or a function of over 60, holds two things."""
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                said = (ast.get_docstring(node, clean=False) or "").count("\n")
                assert lines - said <= 60, (path, node.name)
    tests = list(TESTS.rglob("*.py"))
    assert Path(__file__) in tests  # they were found at all
    for path in tests:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_the_root_is_a_floor_plan() -> None:
    modules = [p for p in SOURCE.glob("*.py") if p.name != "__init__.py"]
    packages = [p.parent for p in SOURCE.glob("*/__init__.py")]
    assert len(modules) <= 10
    assert len(modules) + len(packages) <= 23
