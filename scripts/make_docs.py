"""Method pages and the tables inside documents, from the table of rules and the results files."""

from pathlib import Path

from reducible.pages import write_pages
from reducible.recipes.equal_time import NETWORKS, data_of, measured
from reducible.report.equal_time import Outcome, outcomes, overview, plot_overview, seeds_of, table
from reducible.report.studies import demo_table, replace_block

ROOT = Path(__file__).parent.parent
DEMO = {
    "demo/uniform": "uniform",
    "demo/rho": "RHO-LOSS, clean holdout",
    "demo/rho-noisy-holdout": "RHO-LOSS, holdout with the same noise",
}
HOLDOUTS = {"noisy": "holdout with the noise of D", "clean": "clean holdout"}


def equal_time() -> None:
    """The study's tables, its overview in the README, and the picture."""
    known, parts = measured(), list[str]()
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
            for data, rows in found.items():
                parts.append(f"## {model}, {data}, {title}\n\n{table(rows)}")
                parts.append(f"{seeds_of(rows)} seeds.")
            if (network, holdout) == ("mlp", "noisy"):
                note = f"Fashion-MNIST, MLP-512, {min(map(seeds_of, found.values()))} seeds"
                replace_block(
                    ROOT / "README.md", "equal-time", f"{overview(found)}\n\n{note}, {title}."
                )
                plot_overview(found, ROOT / "docs" / "equal-time.png")
    if parts:
        replace_block(ROOT / "docs" / "equal-time.md", "equal-time", "\n\n".join(parts))


def _complete(rows: list[Outcome]) -> bool:
    return any(o.rule == "uniform" and "1x" in o.accuracy for o in rows)


if __name__ == "__main__":
    equal_time()
    write_pages(ROOT / "docs" / "methods")
    table = demo_table(ROOT / "results", DEMO, baseline="demo/uniform")
    replace_block(ROOT / "README.md", "demo", table)
