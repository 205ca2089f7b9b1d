"""The documentation site: it builds without a warning, says everything, and fetches nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import reducible as rd

ROOT = Path(__file__).parents[1]
EXPLAINED_ELSEWHERE = {"SELECTORS", "scores"}  # by the pages of rules, and a page of its own


def _build(script: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(script), str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built")
    done = _build(ROOT / "scripts" / "make_site.py", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


def test_every_page_is_there(site: Path) -> None:
    sources = {p.relative_to(ROOT / "docs") for p in (ROOT / "docs").rglob("*.md")}
    expected = {s.with_suffix(".html") for s in sources if s.name != "README.md"}
    expected |= {Path(n) for n in ("index.html", "contributing.html", "changelog.html")}
    expected.add(Path("methods/index.html"))
    assert {p.relative_to(site) for p in site.rglob("*.html")} == expected | {Path("404.html")}


def test_every_public_name_is_explained(site: Path) -> None:
    pages = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    found = set(re.findall(r'id="reducible\.([A-Za-z_]+)"', pages))
    assert set(rd.__all__) - EXPLAINED_ELSEWHERE <= found
    scores = set(re.findall(r'id="reducible\.scores\.\w+\.(\w+)"', pages))
    assert {name for name in rd.scores.__all__ if name.islower()} <= scores


def test_pages_fetch_nothing_from_elsewhere(site: Path) -> None:
    loads = (
        r'<(?:script|img|iframe|source)[^>]+src="(https?:[^"]+)"|<link[^>]+href="(https?:[^"]+)"'
    )
    for page in site.rglob("*.html"):
        assert not re.findall(loads, page.read_text(encoding="utf-8")), page
    assert "assets/disk.js" in (site / "index.html").read_text(encoding="utf-8")
    assert "../assets/disk.js" in (site / "api" / "loop.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[gone](nowhere.md)", "page does not exist"),
        ("[gone](when.md#nowhere)", "anchor does not exist"),
        ("::: reducible.Nothing", "reducible.Nothing"),
    ],
)
def test_what_leads_nowhere_ends_the_build(text: str, said: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    (copy / "docs").mkdir(parents=True)
    (copy / "scripts").mkdir()
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (copy / name).write_text("# Title\n")
    (copy / "src").symlink_to(ROOT / "src")
    (copy / "docs" / "api").mkdir()
    settings = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    (copy / "mkdocs.yml").write_text(settings[: settings.index("nav:")], encoding="utf-8")
    script = copy / "scripts" / "make_site.py"
    for name in ("make_site.py", "doctest_sections.py"):
        source = (ROOT / "scripts" / name).read_text(encoding="utf-8")
        (copy / "scripts" / name).write_text(source, encoding="utf-8")
    (copy / "docs" / "when.md").write_text(f"# When\n\n{text}\n")
    done = _build(script, tmp_path / "built")
    assert done.returncode != 0
    assert said in done.stdout + done.stderr
