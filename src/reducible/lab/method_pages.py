"""Method pages, generated from the table of rules."""

from __future__ import annotations

import inspect
from pathlib import Path

from reducible.scores import Row
from reducible.scoring import RUNS_THE_MODEL
from reducible.selectors import SELECTORS

_STORED = {"irreducible_loss", "group_irreducible_loss"}


def cost(row: Row) -> str:
    """Says what a rule costs per candidate, from the evidence it needs.

    >>> cost(SELECTORS["rho"])
    'one forward pass, one look-up'
    """
    rule = row.make()
    parts: list[str] = []
    if rule.horizon == "run":
        return "one forward pass of a proxy, once a run"
    if rule.horizon == "epoch":
        return "nothing; training losses are remembered" if rule.needs else "nothing"
    if rule.needs & (RUNS_THE_MODEL - {"mc_logits"}):
        parts.append("one forward pass")
    if "mc_logits" in rule.needs:
        on = " on the survivors" if len(parts) else ""
        parts.append(f"{rule.samples} passes with dropout{on}")
    if rule.lr_ratio is not None:
        parts.append("one pass of the irreducible-loss model, and its step on every chosen batch")
    elif rule.needs & _STORED:
        parts.append("one look-up")
    if "group_holdout_loss" in rule.needs:
        parts.append("a pass over the holdout per epoch")
    return ", ".join(parts) if parts else "nothing"


def describe(row: Row) -> dict[str, object]:
    """All that the table says of a rule, for pages and the command line."""
    return {
        "name": row.name,
        "rule": row.equation,
        "summary": row.summary,
        "source": row.paper,
        "needs": sorted(row.needs),
        "cost per candidate": cost(row),
        "hyperparameters": [
            f"{name}={default!r} ({row.ranges[name]})"
            for name, default in row.hyperparameters.items()
        ],
        "against": row.against,
    }


def page(row: Row) -> str:
    """The Markdown page of one rule."""
    said = describe(row)
    needs = ", ".join(f"`{n}`" for n in sorted(row.needs)) or "nothing"
    call = ", ".join([f'"{row.name}"', *(f"{k}={v!r}" for k, v in row.hyperparameters.items())])
    lines = [
        f"# `{row.name}`",
        "",
        row.summary,
        "",
        "```python",
        f"reducible.selector({call})",
        "```",
        "",
        "| | |",
        "|---|---|",
        f"| rule | {_cell(row.equation)} |",
        f"| source | {_cell(row.paper)} |",
        f"| evidence | {needs} |",
        f"| cost per candidate | {said['cost per candidate']} |",
        f"| decides | {_HORIZON[row.make().horizon]} |",
        "",
        "**Against it.** " + row.against,
        "",
    ]
    if row.hyperparameters:
        lines += ["| hyperparameter | default | values |", "|---|---|---|"]
        lines += [
            f"| `{name}` | `{default!r}` | {_cell(row.ranges[name])} |"
            for name, default in row.hyperparameters.items()
        ]
        lines.append("")
    detail = inspect.getdoc(row.make)
    if detail:
        lines += ["```text", detail, "```", ""]
    return "\n".join(lines)


_HORIZON = {
    "batch": "for every candidate batch",
    "epoch": "once an epoch, over the whole train set",
    "run": "once, before training",
}


def index() -> str:
    """The Markdown table of all rules."""
    lines = [
        "# Selection rules",
        "",
        "ρ_i = L_i − IL_i; L_i is the loss of candidate i under the model being trained, IL_i its "
        "irreducible holdout loss, p_i the predicted probabilities, h_i = p_i − onehot(y_i), f_i "
        "the input of the last linear layer. Generated from the table of rules by `make docs`.",
        "",
        "| name | rule | cost per candidate | source |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| [`{r.name}`]({r.name}.md) | {_cell(r.equation)} | {cost(r)} | {_cell(r.paper)} |"
        for r in SELECTORS.values()
    ]
    return "\n".join([*lines, ""])


def write_pages(folder: Path) -> list[Path]:
    """Write index and pages; removes pages of rules that are no more. Returns what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = {"README.md": index()} | {f"{row.name}.md": page(row) for row in SELECTORS.values()}
    for stale in set(folder.glob("*.md")) - {folder / name for name in texts}:
        if stale.read_text(encoding="utf-8").startswith(f"# `{stale.stem}`\n"):
            stale.unlink()
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
