"""The documentation site, from ``docs`` and the pages at the root; a broken link ends it.

    .venv/bin/python scripts/make_site.py [FOLDER]

The site is written to FOLDER/site, ``build/site`` by default, and works opened from disk.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
AT_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
WITHOUT_HEADING = "    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
SHIM = "https://unpkg.com/iframe-worker/shim"  # of the theme: the one thing fetched from elsewhere


def as_within(text: str) -> str:
    """A page at the root of the repository, with links as from ``docs``."""
    for name, page in AT_ROOT.items():
        text = text.replace(f"]({name}", f"]({page}")
    return re.sub(r"\]\(docs/", "](", text)


def as_beside(text: str, depth: int) -> str:
    """A page ``depth`` folders below ``docs``, with links to where those at the root are now."""
    up = "../" * depth
    for name, page in AT_ROOT.items():
        text = text.replace(f"](../{up}{name}", f"]({up}{page}")
    return text


def scores() -> list[str]:
    """Modules of ``reducible.scores``; a new one needs no line here."""
    modules = (ROOT / "src" / "reducible" / "scores").glob("[a-z]*.py")
    return sorted(path.stem for path in modules if path.stem != "rows")


def assemble(folder: Path) -> None:
    """Write the sources of all pages, and the settings, below ``folder``."""
    docs = folder / "docs"
    shutil.rmtree(docs, ignore_errors=True)
    shutil.copytree(ROOT / "docs", docs)
    for path in docs.rglob("*.md"):
        depth = len(path.relative_to(docs).parts) - 1
        path.write_text(as_beside(path.read_text(encoding="utf-8"), depth), encoding="utf-8")
    for name, page in AT_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        (docs / page).write_text(as_within(text), encoding="utf-8")
    with (docs / "api" / "scores.md").open("a", encoding="utf-8") as page:
        page.writelines(f"\n::: reducible.scores.{name}\n{WITHOUT_HEADING}" for name in scores())
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    source = os.path.relpath(ROOT / "src", folder)
    settings = settings.replace("[src]", f"[{source}]")
    settings = settings.replace("[scripts/", f"[{ROOT / 'scripts'}/")
    (folder / "mkdocs.yml").write_text(settings, encoding="utf-8")


def build(folder: Path) -> int:
    """Build ``folder``/site; returns the builder's exit code, which a warning makes an error."""
    shutil.rmtree(folder / "site", ignore_errors=True)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run([*command, "-f", "mkdocs.yml"], cwd=folder, check=False)
    for path in (folder / "site").rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        up = "../" * (len(path.relative_to(folder / "site").parts) - 1)
        path.write_text(text.replace(SHIM, f"{up}assets/disk.js"), encoding="utf-8")
    return done.returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build")
    folder = parser.parse_args().folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    assemble(folder)
    code = build(folder)
    if code == 0:
        print(f"written: {folder / 'site' / 'index.html'}")
    return code


if __name__ == "__main__":
    sys.exit(main())
