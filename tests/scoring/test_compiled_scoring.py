"""Compiled scoring: the same losses in every mode, and no trace of it in the model."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import shutil
import sys
import sysconfig
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import reducible as rd
from reducible.lab.models import MODELS
from scoring_toys import DATA, FULL, N_B, C, batches_of, train_until

_CXX = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
_HEADER = Path(sysconfig.get_paths()["include"], "Python.h")
needs_compiler = pytest.mark.skipif(
    shutil.which(_CXX) is None or not _HEADER.exists(),
    reason=f"torch.compile builds C++ here: it needs {_CXX} and {_HEADER}",
)


class Graphs:
    """A backend that runs captured graphs as they are: a network takes half a minute in C++.

    Capturing is where modes, buffers and guards could go wrong; the C++ is tested on a tiny MLP.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.compiled = self.captured = self.runs = 0
        inner = torch.compile

        def compile_(model: nn.Module, **options: Any) -> Any:
            self.compiled += 1
            return inner(model, backend=self, **options)

        monkeypatch.setattr(torch, "compile", compile_)

    def __call__(self, graph: Any, _: Any) -> Any:
        self.captured += 1

        def run(*args: Any) -> Any:
            self.runs += 1
            return graph.forward(*args)

        return run


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Graphs]:
    torch._dynamo.reset()
    yield Graphs(monkeypatch)
    torch._dynamo.reset()


def _tiny(*, norm: bool = True) -> nn.Sequential:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        middle: list[nn.Module] = [nn.BatchNorm1d(8)] if norm else []
        return nn.Sequential(
            nn.Linear(4, 8), *middle, nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, C)
        ).train()


def _trace(model: nn.Module) -> Any:
    tensors = {k: v.tolist() for k, v in model.state_dict().items()}
    modes = [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()]
    return tensors, modes, [p.grad for p in model.parameters()]


def _compiled_and_not(model: nn.Module, candidates: rd.Candidates, **scoring: Any) -> list[Tensor]:
    needs = frozenset({"loss"})
    return [
        rd.measure(model, candidates, needs, rd.Scoring(compile=c, **scoring)).require("loss")
        for c in (True, False)
    ]


@needs_compiler
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what the compiler imports
def test_a_compiled_mlp_scores_alike_and_keeps_no_trace(
    global_streams: Callable[[], Any],
) -> None:
    torch._dynamo.reset()
    model, candidates = _tiny(), DATA.fetch(torch.arange(N_B))
    before, streams = _trace(model), global_streams()
    compiled, plain = _compiled_and_not(model, candidates)
    for again in (compiled, _compiled_and_not(model, candidates)[0]):
        torch.testing.assert_close(again, plain)
    assert (_trace(model), global_streams()) == (before, streams)
    next(model.parameters()).data.mul_(-1)  # training goes on beneath it
    compiled, other = _compiled_and_not(model, candidates)
    torch.testing.assert_close(compiled, other)
    assert not torch.allclose(other, plain)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_a_compiled_network_in_every_mode(
    graphs: Graphs, training: bool, global_streams: Callable[[], Any]
) -> None:
    """One model, scored in one mode after the other: each is captured on its own."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        model = MODELS["resnet-18-16"]().train(training)
        images = torch.randn(6, 1, 16, 16) + 1
    candidates = rd.Candidates(torch.arange(6), (images, torch.arange(6)))
    before, streams = _trace(model), global_streams()
    losses = []
    for batchnorm in ("candidates", "running", "candidates"):
        captured, runs = graphs.captured, graphs.runs
        compiled, plain = _compiled_and_not(model, candidates, batchnorm=batchnorm)
        torch.testing.assert_close(compiled, plain)
        assert graphs.runs > runs
        assert (graphs.captured > captured) == (len(losses) < 2)
        losses.append(plain)
        assert (_trace(model), global_streams()) == (before, streams)
    assert not torch.allclose(losses[0], losses[1])
    assert graphs.compiled == 1


def test_compiled_scoring_in_the_loop_chooses_the_same_rows(graphs: Graphs) -> None:
    chosen, counts = [], []
    for compiled in (True, False):
        model: Any = _tiny(norm=False)
        batches = batches_of("rho", model, scoring={"compile": compiled})
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            chosen.append(train_until(batches, model, 2 * FULL)[0])
        counts.append(asdict(batches.ledger.counts))
    assert chosen[0] == chosen[1]
    assert counts[0] == counts[1]  # FLOPs too, which cannot be counted inside what is compiled
    assert counts[0]["flops_score"] > 0
    assert graphs.runs == 2 * FULL - 1  # the pass they are counted in is not compiled


def test_a_compiled_model_is_let_go_of_and_copied_without(graphs: Graphs) -> None:
    model, candidates = _tiny(), DATA.fetch(torch.arange(N_B))
    keys = list(model.state_dict())
    _compiled_and_not(model, candidates)
    assert list(model.state_dict()) == keys
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        captured = graphs.captured
        compiled, plain = _compiled_and_not(copied, candidates)
        torch.testing.assert_close(compiled, plain)
        next(copied.parameters()).data.zero_()
        assert not torch.allclose(_compiled_and_not(copied, candidates)[0], plain)
        assert graphs.captured >= captured
    torch.testing.assert_close(*_compiled_and_not(model, candidates))
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_features_are_caught_in_passes_as_they_are(graphs: Graphs) -> None:
    model, candidates = _tiny(), DATA.fetch(torch.arange(N_B))
    needs = frozenset({"loss", "features"})
    both = [rd.measure(model, candidates, needs, rd.Scoring(compile=c)) for c in (True, False)]
    for name in needs:
        assert torch.equal(both[0].require(name), both[1].require(name))
    assert graphs.captured == 0
