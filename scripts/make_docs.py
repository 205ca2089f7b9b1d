"""Method pages and the tables inside documents, from the table of rules and the results files."""

from pathlib import Path

from reducible.pages import write_pages
from reducible.recipes.equal_time import DATA, NETWORKS, data_of, measured
from reducible.recipes.online import ONLINE, VARIANTS
from reducible.recipes.scoring import STUDIES
from reducible.report.equal_time import (
    Outcome,
    gate_note,
    like_with_like,
    outcomes,
    overview,
    seeds_note,
    table,
)
from reducible.report.equal_time_picture import plot_overview
from reducible.report.online import Study, block, titles_list
from reducible.report.scoring import accuracy_table, cost_table
from reducible.report.studies import demo_table, newest_results, replace_block

ROOT = Path(__file__).parent.parent
DEMO = {
    "demo/uniform": "uniform",
    "demo/rho": "RHO-LOSS, clean holdout",
    "demo/rho-noisy-holdout": "RHO-LOSS, holdout with the same noise",
}
IN_README = (
    "rs2",
    "rs2-128",
    "uniform-all",
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
WITH_CLEAN_HOLDOUT = (
    "uniform-all",
    "rs2-all-128",
    "holdout-only",
    "rho",
    "plan-filter",
    "plan-floor",
    "plan-floor-all-128",
)
PICTURED = {"mlp": "MLP", "cnn": "CNN"}
HOLDOUTS = {"noisy": "holdout with the noise of D", "clean": "clean holdout"}


def equal_time() -> None:
    """The study's tables, its overview in the README, and the picture."""
    known, parts = measured(), list[str]()
    overviews, likes = dict[tuple[str, str], str](), list[str]()
    pictured: dict[str, dict[str, list[Outcome]]] = {}
    for network, model in NETWORKS.items():
        if network not in known:
            continue
        for holdout, title in HOLDOUTS.items():
            found = {
                data: outcomes(ROOT / "results", network, data, holdout, known)
                for data in data_of(network)
            }
            found = {d: rows for d, rows in found.items() if _complete(rows)}
            if not any(rule.rule.startswith("plan") for rows in found.values() for rule in rows):
                continue
            parts.append(f"## {model}, {title}: all at a glance\n\n{overview(found)}")
            for data, rows in found.items():
                parts.append(f"## {model}, {data}, {title}\n\n{table(rows)}")
                parts.append(seeds_note(rows))
            alike = like_with_like(found)
            parts += filter(None, [gate_note(found), alike])
            if network not in PICTURED:
                continue
            shown = IN_README if holdout == "noisy" else WITH_CLEAN_HOLDOUT
            seeds = {seeds_note(rows, ["1x"]) for rows in found.values()}
            note = f"Fashion-MNIST, {model}, {title}. {' '.join(sorted(seeds))}"
            overviews[network, holdout] = f"{overview(found, rules=shown)}\n\n{note}"
            if holdout == "noisy":
                likes.append(f"{model}:\n\n{alike}")
                pictured[PICTURED[network]] = found
    plot_overview(pictured, ROOT / "docs" / "equal-time.png", rules=IN_README)
    replace_block(ROOT / "README.md", "equal-time", overviews["mlp", "noisy"])
    others = [("cnn", "noisy"), ("mlp", "clean"), ("cnn", "clean")]
    more = "\n\n".join([*likes, *(overviews[which] for which in others)])
    replace_block(ROOT / "README.md", "equal-time-more", more)
    if parts:
        replace_block(ROOT / "docs" / "equal-time.md", "equal-time", "\n\n".join(parts))


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


if __name__ == "__main__":
    equal_time()
    online()
    scoring()
    write_pages(ROOT / "docs" / "methods")
    demo = demo_table(ROOT / "results", DEMO, baseline="demo/uniform")
    replace_block(ROOT / "README.md", "demo", demo)
