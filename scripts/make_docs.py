"""Method pages and the tables inside documents, from the table of rules and the results files."""

from pathlib import Path

from reducible.pages import write_pages
from reducible.report.studies import demo_table, replace_block

ROOT = Path(__file__).parent.parent
DEMO = {
    "demo/uniform": "uniform",
    "demo/rho": "RHO-LOSS, clean holdout",
    "demo/rho-noisy-holdout": "RHO-LOSS, holdout with the same noise",
}

if __name__ == "__main__":
    write_pages(ROOT / "docs" / "methods")
    table = demo_table(ROOT / "results", DEMO, baseline="demo/uniform")
    replace_block(ROOT / "README.md", "demo", table)
