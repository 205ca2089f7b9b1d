"""Writes docs/equal-time.md with its picture, and its overviews in the README and docs/when.md."""

from pathlib import Path

from reducible.lab.report.results import replace_block
from reducible.lab.studies.equal_time.picture import plot_overview
from reducible.lab.studies.equal_time.recipes import NETWORKS, data_of, measured
from reducible.lab.studies.equal_time.tables import (
    BUDGETS,
    Outcome,
    between_note,
    gate_note,
    like_over_budgets,
    like_with_like,
    outcomes,
    overview,
    seeds_note,
    table,
)

IN_README = ("rs2", "rs2-all", "rho", "rho-gate", "plan-floor", "plan-full")
PICTURED_RULES = (
    "rs2",
    "rs2-128",
    "rs2-all",
    "rs2-all-128",
    "holdout-only",
    "label-smoothing",
    "rho",
    "rho-gate",
    "plan-filter",
    "plan-cross-fit",
    "plan-floor",
    "plan-full",
    "plan-floor-all-128",
    "plan-online",
)
PICTURED = {"mlp": "MLP", "cnn": "CNN"}
HOLDOUTS = {"noisy": "holdout with the noise of D", "clean": "clean holdout"}


def write(docs: Path, results: Path) -> None:
    """The study's tables, its overviews elsewhere, and the picture."""
    found = {
        (network, holdout): rows
        for network in measured()
        for holdout in HOLDOUTS
        if (rows := _found(results, network, holdout))
    }
    page = "\n\n".join(_tables(*where, rows) for where, rows in found.items())
    replace_block(docs / "equal-time.md", "equal-time", page)
    noisy = {network: found[network, "noisy"] for network in PICTURED}
    rows = noisy["mlp"]
    seeds = {seeds_note(each, ["1x"]) for each in rows.values()}
    said = f"Fashion-MNIST, {NETWORKS['mlp']}, {HOLDOUTS['noisy']}. {' '.join(sorted(seeds))}"
    short = f"{overview(rows, rules=IN_README)}\n\n{said}"
    replace_block(docs.parent / "README.md", "equal-time-mlp", short)
    pictured = {PICTURED[network]: rows for network, rows in noisy.items()}
    alike = [like_over_budgets(pictured, rule) for rule in ("plan-full", "plan-floor-all-128")]
    replace_block(docs / "when.md", "like-with-like", "\n\n".join(alike))
    plot_overview(pictured, docs / "equal-time.png", rules=PICTURED_RULES)


def _found(results: Path, network: str, holdout: str) -> dict[str, list[Outcome]]:
    """By kind of data, where uniform was run; nothing where no plan was."""
    known = measured()
    found = {d: outcomes(results, network, d, holdout, known) for d in data_of(network)}
    found = {data: rows for data, rows in found.items() if _complete(rows)}
    rules = {outcome.rule for rows in found.values() for outcome in rows}
    return found if any(rule.startswith("plan") for rule in rules) else {}


def _tables(network: str, holdout: str, found: dict[str, list[Outcome]]) -> str:
    """All that was found for one network and one kind of holdout."""
    title = f"{NETWORKS[network]}, {{}}{HOLDOUTS[holdout]}"
    parts = [f"## {title.format('')}: all at a glance", overview(found)]
    for data, rows in found.items():
        parts += [
            f"## {title.format(f'{data}, ')}",
            table(rows),
            between_note(rows),
            seeds_note(rows),
        ]
    parts += [gate_note(found), *(like_with_like(found, budget=budget) for budget in BUDGETS)]
    return "\n\n".join(filter(None, parts))


def _complete(rows: list[Outcome]) -> bool:
    return any(o.rule == "uniform" and "1x" in o.accuracy for o in rows)
