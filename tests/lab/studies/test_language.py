"""The study of a language model: its text, its runs on little of it, its table by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers", reason="reducible[text] is not installed")

from reducible.lab.records import kept
from reducible.lab.studies.language import corpus, measure
from reducible.lab.studies.language.tables import collect, table


@pytest.fixture
def little(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """A few files, so that a run takes a second."""
    every = corpus.texts()
    kinds = {"source": 6, "documentation": 20, "licence": 2}
    few = [t for kind, n in kinds.items() for t in [t for t in every if t.kind == kind][:n]]
    short = [replace(t, text=t.text[:8000]) for t in few]
    monkeypatch.setattr(corpus, "texts", lambda: list(short))
    monkeypatch.setattr(measure, "STEPS", 6)
    monkeypatch.setattr(measure, "REFERENCE", {"width": 32, "layers": 1, "steps": 12, "rate": 1e-3})
    monkeypatch.setattr(measure, "RESULTS", tmp_path)
    monkeypatch.setattr(measure, "TURNS", 1)
    measure.setting.cache_clear()
    yield
    measure.setting.cache_clear()


def test_all_kinds_of_text_are_there_each_once() -> None:
    found = corpus.texts()
    assert {t.kind for t in found} == {"source", "documentation", "licence"}
    assert len({t.text for t in found}) == len(found)
    assert found == corpus.texts()  # in one order


def test_no_file_is_in_two_parts(little: None) -> None:
    first, again = corpus.parts(0), corpus.parts(0)
    assert torch.equal(first.train, again.train)
    assert len(first.kinds) == len(first.train)
    rows = [{tuple(r) for r in part.tolist()} for part in (first.train, first.test)]
    assert len(rows[0] & rows[1]) < 0.05 * len(rows[1])  # headers of licences, at most
    assert not torch.equal(corpus.parts(1).test[:5], first.test[:5])


def test_a_study_of_few_updates_from_costs_to_its_table(little: None, tmp_path: Path) -> None:
    known = kept(tmp_path / "costs.json", measure.costs)
    assert set(known["update"]) == set(measure.METHODS)
    for method in measure.METHODS:
        for rate in measure.RATES:
            kept(tmp_path / "rates" / f"{method}-{rate:g}.json", lambda: {"loss": 5.0})
    measure.run([0, 1])
    made = collect(measure.RESULTS)
    assert [seed["seed"] for seed in made["seeds"]] == [0, 1]
    for seed in made["seeds"]:
        assert 3 < seed["plain-tokens"]["loss"] < 8
        assert seed["tokens-tokens"]["steps"] == 6
    lines = table(made).splitlines()
    assert lines[2].startswith("| plain | ")
    assert len(lines) == 8


def test_the_table_by_hand() -> None:
    runs = [(0, 4.0, 3.9), (1, 4.2, 4.0), (2, 4.1, 4.05)]
    made: dict[str, Any] = {
        "seeds": [
            {"seed": s, "plain-tokens": {"loss": a, "steps": 600}, "tokens-tokens": {"loss": b}}
            for s, a, b in runs
        ],
        "costs": {
            "update": dict.fromkeys(measure.METHODS, 1.0),
            "reference": 200,
            "corpus": {"characters": {"source": 3_000_000}},
        },
    }
    lines = table(made).splitlines()
    assert lines[2].startswith("| plain | 4.100 nats (perplexity 60.3) | – | – | 1.00 |")
    assert "**-0.117 (-0.200 to -0.050)** | as at equal tokens | not run" in lines[4]
    assert "3 seeds, 600 plain updates" in lines[-1]
    assert "as long as 200 plain updates" in lines[-1]
