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
from statistics import median

import pytest

import reducible

SOURCE = Path(reducible.__file__).parent

_ABOVE_LOOP = (
    "types files seals checkpoints streams schedules scores picks structure selectors labels "
    "fetching copies floors stores tasks scoring scorers ledger fitting irreducible plans gate "
    "distributed loaders workers reader group_holdout measuring epochs inspection seeds keep "
    "passes chosen hindsight gating assembly states"
)
_ABOVE_RUN = f"{_ABOVE_LOOP} loop logs arrow_logs records info_records data models encoders"

# Module or folder → what it may import of ours. Top to bottom: only what stands above it.
ALLOWED = {
    "types": "",
    "files": "types",  # inside functions only: see the test below
    "seals": "",
    "checkpoints": "types files seals",
    "schedules": "",
    "scores": "",
    "ledger": "",
    "labels": "types",
    "fetching": "",
    "streams": "types",
    "workers": "streams",
    "loaders": "types fetching",
    "reader": "types loaders streams workers",
    "picks": "types",
    "structure": "types",
    "selectors": "types schedules scores picks",
    "stores": "types files streams labels fetching",
    "tasks": "types labels",
    "scoring": "types structure tasks stores",
    "scorers": "types tasks scoring",
    "copies": "types",
    "floors": "",
    "fitting": "types checkpoints copies floors structure stores tasks scoring ledger loaders",
    "irreducible": (
        "types checkpoints copies floors structure stores tasks scorers scoring ledger loaders "
        "fitting"
    ),
    "plans": "types checkpoints floors labels stores",
    "gate": "types",
    "distributed": "types picks",
    "group_holdout": "types structure stores tasks scoring",
    "measuring": "types structure stores tasks selectors scorers scoring ledger group_holdout",
    "epochs": "types structure stores tasks selectors scoring ledger loaders",
    "inspection": "types stores tasks",
    "seeds": "",
    "keep": "types",
    "chosen": "",
    "hindsight": "types selectors ledger measuring",
    "gating": "types structure tasks selectors scoring gate ledger measuring seeds",
    "passes": (
        "types keep ledger loaders reader inspection selectors stores structure epochs seeds"
    ),
    "assembly": (
        "types stores tasks selectors scorers scoring ledger loaders group_holdout measuring "
        "epochs gate gating keep"
    ),
    "states": "types selectors stores scoring loaders",
    "loop": _ABOVE_LOOP,
    "tally": "types",
    "logs": "types files seals",  # types inside functions only: see the test below
    "arrow_logs": "types seals logs",  # as above
    "records": "types files seals logs arrow_logs",  # as above
    "info_records": "types logs arrow_logs records",  # as above
    "adapters": "types loop records",
    "data": "types loaders",
    "models": "types",
    "encoders": "types",
    "recipe": "types tasks scoring models encoders selectors",
    "splits": "types data models encoders irreducible recipe seeds",
    "ingredients": f"{_ABOVE_LOOP} records data models recipe splits",
    "evaluation": "tasks scoring data",
    "stopping": "",
    "provenance": "",
    "run": f"{_ABOVE_RUN} stopping provenance tally recipe splits ingredients evaluation",
    "checking": f"{_ABOVE_RUN} ingredients recipe run",
    "sweep": f"{_ABOVE_RUN} stopping provenance recipe run",
    "recipes": f"{_ABOVE_RUN} recipe run",
    "payoff": "types structure stores tasks scoring",
    "fidelity": ("types structure stores tasks selectors scorers scoring ledger measuring payoff"),
    "bench": f"{_ABOVE_RUN} run payoff fidelity",
    "pages": "types scoring selectors",
    "report": "records info_records",
    "demo": f"{_ABOVE_RUN} stopping provenance run recipes report",
    "cli": "*",
    "__main__": "cli",
}
OPTIONAL = (
    "matplotlib pyarrow typer transformers tokenizers sentence_transformers huggingface_hub "
    "lightning accelerate datasets torchvision pandas"
)


def _files() -> list[Path]:
    return sorted(p for p in SOURCE.rglob("*.py") if p != SOURCE / "__init__.py")


def _unit(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first.removesuffix(".py")


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
    """Modules and folders of ours that a file imports."""
    names = (n.split(".") for n in _imports(path, inside_functions=inside_functions))
    return {n[1] for n in names if n[0] == "reducible" and len(n) > 1}


def test_the_table_allows_only_what_stands_above() -> None:
    order = list(ALLOWED)
    for unit, allowed in ALLOWED.items():
        # scorers, plans and the like are named before they are written
        for other in allowed.split():
            assert (
                other == "*"
                or order.index(other) < order.index(unit)
                or other
                in (
                    "ledger",
                    "structure",
                )
            ), f"{unit} may not import {other}, which stands below it"


@pytest.mark.parametrize("path", _files(), ids=lambda p: str(p.relative_to(SOURCE)))
def test_a_file_imports_only_what_its_row_allows(path: Path) -> None:
    unit = _unit(path)
    assert unit in ALLOWED, f"decide where {unit} sits, and give it a row"
    if ALLOWED[unit] == "*":
        return
    imported = _ours(path) - {unit, "__version__"}
    assert imported <= set(ALLOWED[unit].split())


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
    assert _ours(SOURCE / "logs.py", inside_functions=False) == {"files", "seals"}
    assert _ours(SOURCE / "records.py", inside_functions=False) == {
        "files",
        "seals",
        "logs",
        "arrow_logs",
    }


@pytest.mark.parametrize("path", sorted((SOURCE / "report").glob("*.py")), ids=lambda p: p.name)
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
    """At most 0.2 s more than torch alone: a decision about users, so a test about time.

    Compiled files are kept, as they are after any first import of an installed package.
    """
    kept = {"PYTHONDONTWRITEBYTECODE": "", "PYTHONPYCACHEPREFIX": str(tmp_path)}
    code = (
        "import time, torch; start = time.process_time(); import reducible;"
        "print(time.process_time() - start)"
    )
    _python(code, **kept)
    assert median(float(_python(code, **kept)) for _ in range(3)) <= 0.2
