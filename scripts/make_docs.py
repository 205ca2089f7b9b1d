"""Method pages and the tables inside documents, from the table of rules and the results files."""

from pathlib import Path

from reducible.lab.method_pages import write_pages
from reducible.lab.recipes.equal_time import DATA, NETWORKS, data_of, measured
from reducible.lab.recipes.online import ONLINE, VARIANTS
from reducible.lab.recipes.scoring import STUDIES
from reducible.lab.report.equal_time import (
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
from reducible.lab.report.equal_time_picture import plot_overview
from reducible.lab.report.noise_floor import noise_floor_table
from reducible.lab.report.online import Study, block, titles_list
from reducible.lab.report.scoring import accuracy_table, cost_table
from reducible.lab.report.studies import demo_table, newest_results, replace_block

ROOT = Path(__file__).parent.parent
DEMO = {
    "demo/uniform": "uniform",
    "demo/rho": "RHO-LOSS, clean holdout",
    "demo/rho-noisy-holdout": "RHO-LOSS, holdout with the same noise",
}
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


def equal_time() -> None:
    """The study's tables, its overviews elsewhere, and the picture."""
    found = {
        (network, holdout): rows
        for network in measured()
        for holdout in HOLDOUTS
        if (rows := _found(network, holdout))
    }
    page = "\n\n".join(_tables(*where, rows) for where, rows in found.items())
    replace_block(ROOT / "docs" / "equal-time.md", "equal-time", page)
    noisy = {network: found[network, "noisy"] for network in PICTURED}
    rows = noisy["mlp"]
    seeds = {seeds_note(each, ["1x"]) for each in rows.values()}
    said = f"Fashion-MNIST, {NETWORKS['mlp']}, {HOLDOUTS['noisy']}. {' '.join(sorted(seeds))}"
    short = f"{overview(rows, rules=IN_README)}\n\n{said}"
    replace_block(ROOT / "README.md", "equal-time-mlp", short)
    pictured = {PICTURED[network]: rows for network, rows in noisy.items()}
    alike = [like_over_budgets(pictured, rule) for rule in ("plan-full", "plan-floor-all-128")]
    replace_block(ROOT / "docs" / "when.md", "like-with-like", "\n\n".join(alike))
    plot_overview(pictured, ROOT / "docs" / "equal-time.png", rules=PICTURED_RULES)


def _found(network: str, holdout: str) -> dict[str, list[Outcome]]:
    """By kind of data, where uniform was run; nothing where no plan was."""
    known = measured()
    found = {d: outcomes(ROOT / "results", network, d, holdout, known) for d in data_of(network)}
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


def online() -> None:
    """What the variants of choosing by loss are, and what was found."""
    page = ROOT / "docs" / "online.md"
    steps = {recipe.name.split("/")[-1]: recipe.steps for recipe in ONLINE}
    titles = {name: variant.title for name, variant in VARIANTS.items()}
    replace_block(page, "online-variants", titles_list(titles, steps))
    kinds = list(data_of("mlp"))
    noisy = [data for data in kinds if DATA[data]["label_noise"] > 0]
    study = Study.read(ROOT / "results", list(VARIANTS), kinds)
    replace_block(page, "online", block(study, noisy=noisy))


def scoring() -> None:
    """What cheap scoring costs, and what it keeps of the accuracy per step."""
    page = ROOT / "docs" / "scoring.md"
    for network in ("lenet", "resnet-18-16"):
        replace_block(page, network, cost_table(newest_results(ROOT / "results/fidelity", network)))
    for study in STUDIES:
        table = accuracy_table(ROOT / "results", f"scoring/{study}")
        replace_block(page, f"accuracy-{study}", table)


def noise_floor() -> None:
    """What plans drop of clean and of flipped labels."""
    fits = newest_results(ROOT / "results", "noise-floor")["fits"]
    replace_block(ROOT / "docs" / "noise-floor.md", "noise-floor", noise_floor_table(fits))


if __name__ == "__main__":
    equal_time()
    online()
    scoring()
    noise_floor()
    write_pages(ROOT / "docs" / "methods")
    demo = demo_table(ROOT / "results", DEMO, baseline="demo/uniform")
    replace_block(ROOT / "docs" / "demo.md", "demo", demo)
