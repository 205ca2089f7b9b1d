"""Method pages and the tables inside documents, from the table of rules and the results files."""

from importlib import import_module
from pathlib import Path

from reducible.lab.method_pages import write_pages
from reducible.lab.studies import WITH_DOCUMENTS

ROOT = Path(__file__).parent.parent

if __name__ == "__main__":
    docs, results = ROOT / "docs", ROOT / "results"
    for study in WITH_DOCUMENTS:
        import_module(f"reducible.lab.studies.{study}.documents").write(docs, results)
    write_pages(docs / "methods")
