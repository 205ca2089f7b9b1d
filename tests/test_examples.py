"""Every example runs offline, is short, and its page shows it as it is."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "scripts"))
from run_examples import EXAMPLES, PAGES, TITLES, run  # noqa: E402  # pyright: ignore[reportMissingImports]

NEEDS = {
    "huggingface_trainer": "datasets",
    "lightning_module": "pytorch_lightning",
    "accelerate_ddp": "accelerate",
    "skorch_net": "skorch",
    "token_selection": "transformers",
    "trl_sft": "trl",
}
AT_LEAST = {
    "plain_loop": 78.0, "plan": 78.0, "huggingface_trainer": 52.0, "lightning_module": 80.0,
    "accelerate_ddp": 78.0, "skorch_net": 85.0,
}  # fmt: skip
"""Per cent that the last accuracy in an example's output reaches."""


def test_each_is_known_and_short() -> None:
    files = {path.stem: path.read_text().splitlines() for path in EXAMPLES.glob("*.py")}
    assert set(files) == set(TITLES)
    assert {name: len(lines) for name, lines in files.items() if len(lines) > 60} == {}


@pytest.mark.parametrize("name", sorted(TITLES))
def test_its_page_shows_it_as_it_is(name: str) -> None:
    page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
    shown = re.findall(r"```py\n(.*?)\n```", page, re.S)
    assert shown == [(EXAMPLES / f"{name}.py").read_text(encoding="utf-8").strip()]
    assert re.search(r"```text\n.+?\n```", page, re.S)


@pytest.mark.parametrize("name", sorted(TITLES))
def test_it_runs(name: str, tmp_path: Path) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is not installed")
    output = run(name, tmp_path)
    accuracies = re.findall(r"(?:accuracy|selective) ([\d.]+)%", output)
    if name in AT_LEAST:
        assert float(accuracies[-1]) >= AT_LEAST[name], output
    else:
        assert output
    if name == "your_own_loss":
        candidates, chosen = (float(found) for found in re.findall(r"([\d.]+)% of", output))
        assert chosen < candidates / 1.5  # noise is passed over
