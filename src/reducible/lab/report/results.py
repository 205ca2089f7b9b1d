"""Results files, and the blocks of documents that hold what is made of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from reducible.lab.records import read_json, record_error


def newest_results(results: Path, recipe: str) -> dict[str, Any]:
    """The results file of ``recipe`` that was finished last; raises ReducibleError without one."""
    found = [read_json(path) for path in sorted((results / recipe).glob("*.json"))]
    if not found:
        raise record_error(f"no results of {recipe} in {results}: run `reducible sweep {recipe}`.")
    return max(found, key=lambda result: result["machine"]["finished"])


def replace_block(document: Path, name: str, text: str) -> bool:
    """Put ``text`` between the markers of block ``name``; returns whether that changed it.

    Markers are the comments ``<!-- name -->`` and ``<!-- /name -->``, each on a line of its own.
    """
    old = document.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    if not pattern.search(old):
        raise record_error(f"{document} has no block {name!r}: mark it <!-- {name} --> … .")
    new = pattern.sub(lambda match: f"{match[1]}{text}\n{match[2]}", old)
    document.write_text(new, encoding="utf-8")
    return new != old
