"""Shows doctests as examples in the reference: an extension of the reader of docstrings."""

from typing import Any

import griffe


def with_section(docstring: str) -> str:
    """Put the doctest that ends a docstring under a heading that its reader knows."""
    lines = docstring.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith(">>>")), None)
    if first is None:
        return docstring
    return "\n".join([*lines[:first], "Examples:", *(f"    {line}" for line in lines[first:])])


class DoctestSections(griffe.Extension):
    """Does so for every docstring."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = with_section(obj.docstring.value)
