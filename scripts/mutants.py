"""Ways of breaking a file once: an operator, constant, comparison, keyword or statement changed."""

from __future__ import annotations

import ast
import copy
import difflib
from collections.abc import Iterator
from pathlib import Path

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
