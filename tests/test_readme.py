"""The README: its snippets run, its commands exist, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from typer.main import get_command
from typer.testing import CliRunner

import reducible as rd
from reducible.lab.cli import app
from reducible.lab.data import TensorSet
from reducible.lab.recipes import RECIPES

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
RUNS = (ROOT / "docs" / "howto" / "runs.md").read_text(encoding="utf-8")
COMMANDS: dict[str, Any] = get_command(app).commands  # pyright: ignore[reportAttributeAccessIssue]


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


class Images(Dataset[Any]):
    """As small as a data set that works in the README's place can be."""

    def __init__(self, n: int, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        self.x = torch.randn(n, 6, generator=g)
        self.targets = (self.x[:, 0] > 0).long() + (self.x[:, 1] > 0).long()

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], int(self.targets[index])


# a linear model on 200 rows knows little, and the plan says so
@pytest.mark.filterwarnings("ignore:the plan keeps", "ignore:the mean irreducible loss")
def test_every_python_block_runs_in_order() -> None:
    model = nn.Linear(6, 3)
    space: dict[str, Any] = {
        "train": Images(960, 0),
        "holdout": Images(200, 1),
        "make_small_model": lambda: nn.Linear(6, 3),
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }
    before = model.weight.clone()
    blocks = _blocks(README, "python")
    assert len(blocks) >= 3
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        for i, block in enumerate(blocks):
            exec(compile(block, f"README.md, python block {i + 1}", "exec"), space)
            if i == 0:
                assert space["batches"].step == 3  # 960 examples are three batches of 320
                assert space["chosen"].ids.numel() == 32
    assert not torch.equal(model.weight, before)
    assert isinstance(space["store"], rd.IrreducibleLossStore)
    assert space["would_have_been"].numel() == 32  # a tenth of 320


def _named_commands(text: str) -> list[list[str]]:
    spans = re.findall(r"`(reducible [^`]+)`", text)
    lines = [line for block in _blocks(text, "sh") for line in block.splitlines()]
    spans += [s[s.index("reducible ") :] for s in lines if re.search(r"(^|/)reducible ", s)]
    return [shlex.split(s.split("#")[0])[1:] for s in spans if not s.startswith("reducible.")]


@pytest.mark.parametrize(
    "text", [README, CONTRIBUTING, RUNS], ids=["README", "CONTRIBUTING", "runs"]
)
def test_every_command_named_exists(text: str) -> None:
    named = _named_commands(text)
    for command, *rest in named:
        assert command in COMMANDS, command
        helped = CliRunner().invoke(app, [command, "--help"])
        assert helped.exit_code == 0
        known = {o for p in COMMANDS[command].params for o in p.opts}
        given = {part for part in rest if part.startswith("--")}
        assert given <= known, (command, given - known)
        recipes = [p for p in rest if re.fullmatch(r"(?!runs/)[a-z]+/[a-z-]+", p)]
        if command in ("run", "sweep"):
            assert recipes
            assert set(recipes) <= set(RECIPES), command
    if text is README:
        assert {c for c, *_ in named} >= {"demo", "selectors", "recipes", "run", "report", "bench"}


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_every_make_target_named_exists(text: str) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    named = set(re.findall(r"`make ([a-z]+)`", text))
    named |= {m for b in _blocks(text, "sh") for m in re.findall(r"^make ([a-z]+)", b, re.M)}
    assert named <= targets
    assert "test" in named


def test_the_snippets_on_when_to_use_what_run() -> None:
    when = (ROOT / "docs" / "when.md").read_text(encoding="utf-8")
    plan, lasting, gated = _blocks(when, "python")
    images = Images(900, 0)
    train = TensorSet(images.x, images.targets)
    store = rd.fit_irreducible_loss(
        lambda: nn.Linear(6, 3),
        rd.WithIds(Images(400, 1)),
        train,
        epochs=20,
        make_optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=0.05),
        progress=False,
    )
    model = nn.Linear(6, 3)
    space: dict[str, Any] = {
        "rd": rd, "torch": torch, "F": F, "DataLoader": DataLoader, "train": train, "store": store,
        "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }  # fmt: skip
    exec(plan, space)
    chosen = list(space["batches"])
    assert len(chosen) == 4 * (len(space["plan"].ids) // 192) > 0
    assert all(c.ids.numel() == 32 for c in chosen)
    before = model.weight.detach().clone()
    exec(lasting, space)
    assert space["batches"].step == len(space["plan"].ids) // 192
    assert not torch.equal(model.weight, before)
    chosen = list(space["batches"])  # what the second pass scores is seen already, all of it
    scored = space["batches"].ledger.counts.examples_scored
    assert 0 < scored <= len(space["plan"].ids)
    space["held_out"] = DataLoader(rd.WithIds(Images(100, 2)), batch_size=50)
    exec(gated, space)
    assert space["why"]["state"] == "watching"
    assert space["batches"].step == len(train) // 192


def test_the_front_door_is_short() -> None:
    assert len(README.splitlines()) <= 150


def test_the_two_commands_that_matter_are_named() -> None:
    block = next(block for block in _blocks(README, "sh") if "make" in block)
    assert [line.split("#")[0].strip() for line in block.splitlines()] == ["make demo", "make test"]


@pytest.mark.parametrize("text", [README, CONTRIBUTING], ids=["README", "CONTRIBUTING"])
def test_links_within_the_repository_lead_somewhere(text: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        assert not path or (ROOT / path).exists(), target
        if anchor:
            headings = re.findall(
                r"^#+ (.+)$", (ROOT / path if path else ROOT / "README.md").read_text(), re.M
            )
            assert anchor in {
                re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings
            }


def test_the_pictures_are_pictures() -> None:
    demo = (ROOT / "docs" / "demo.md").read_text(encoding="utf-8")
    shown = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    paths = [ROOT / path for path in shown]
    paths += [ROOT / "docs" / path for path in re.findall(r"!\[[^]]+\]\(([^)]+)\)", demo)]
    assert len(paths) == 3
    for path in paths:
        data = path.read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        width, height = struct.unpack(">II", data[16:24])
        assert width > height > 300


def test_what_the_readme_calls_is_exported() -> None:
    for name in re.findall(r"\brd\.([A-Za-z_]+)", README):
        assert hasattr(rd, name), name


def test_the_rules_named_in_the_readme_exist() -> None:
    for name in re.findall(r'rd\.selector\("([a-z_]+)"\)', README):
        assert name in rd.SELECTORS
