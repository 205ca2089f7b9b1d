"""On an accelerator: the same choices as on the CPU, and hardly a wait for it.

Run on a CUDA device by `make gpu`, and on a stand-in for one by test_far.py.
"""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reducible as rd
from reducible.lab.info_records import StepWriter, read_info
from reducible.lab.records import read_picks
from reducible.picks import top_k
from reducible.types import EVIDENCE_FIELDS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() and "REDUCIBLE_TEST_FAR" not in os.environ,
        reason="no CUDA device here; `make gpu` runs these on one, test_far.py on a stand-in",
    ),
]

B, C, D, S, K = 24, 4, 6, 3, 5
BY_BATCH = [name for name, row in rd.SELECTORS.items() if row.make().horizon == "batch"]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def evidence_at(step: int) -> rd.Evidence:
    """Everything that can be measured of B candidates, in float64, where devices agree."""
    g = generator(1000 + step)
    targets = torch.arange(B).remainder(C)[torch.randperm(B, generator=g)]
    logits = torch.randn(B, C, generator=g, dtype=torch.float64)
    return rd.Evidence(
        ids=torch.arange(2**53 + 1, 2**53 + 1 + B),
        targets=targets,
        logits=logits,
        loss=F.cross_entropy(logits, targets, reduction="none"),
        features=torch.randn(B, D, generator=g, dtype=torch.float64),
        mc_logits=torch.randn(S, B, C, generator=g, dtype=torch.float64),
        irreducible_loss=torch.rand(B, generator=g, dtype=torch.float64),
        group_irreducible_loss=torch.rand(B, C, generator=g, dtype=torch.float64),
        groups=targets.clone(),
        context={
            "step": torch.tensor(step),
            "epoch": torch.tensor(step // 10),
            "total_steps": torch.tensor(100),
            "group_holdout_loss": torch.rand(C, generator=g, dtype=torch.float64),
        },
    )


def put(accelerator: Any, evidence: rd.Evidence) -> rd.Evidence:
    """The same on the accelerator; the loop keeps step, epoch and total_steps on the CPU."""
    there = {n: accelerator.put(getattr(evidence, n)) for n in EVIDENCE_FIELDS}
    holdout = accelerator.put(evidence.context["group_holdout_loss"])
    context = {**evidence.context, "group_holdout_loss": holdout}
    return replace(evidence, **there, context=context)


def assert_equal_selection(there: rd.Selection, here: rd.Selection, device: torch.device) -> None:
    assert there.index.device == device
    assert there.weight.device == device
    assert there.index.tolist() == here.index.tolist()
    torch.testing.assert_close(there.weight.cpu(), here.weight)
    assert there.info.keys() == here.info.keys()
    for name, value in here.info.items():
        torch.testing.assert_close(there.info[name].cpu(), value)


@pytest.mark.parametrize("name", BY_BATCH)
def test_the_same_choice_as_on_the_cpu(name: str, accelerator: Any) -> None:
    here, there = rd.selector(name), rd.selector(name)
    for step in range(4):
        near = evidence_at(step)
        far = put(accelerator, near)
        chosen = here.select(near, K, generator=generator(step))
        also = there.select(far, K, generator=generator(step))
        assert_equal_selection(also, chosen, accelerator.device)
        here.observe(near, chosen)
        there.observe(far, also)
        if step == 1:  # a checkpoint comes back on the CPU
            state = nested_cpu(there.state_dict())
            there = rd.selector(name)
            there.load_state_dict(state)


def nested_cpu(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.cpu()
    if isinstance(value, dict):
        return {k: nested_cpu(v) for k, v in value.items()}
    return copy.copy(value)


@pytest.mark.parametrize("size", [40, 2000])
def test_ties_fall_as_on_the_cpu(size: int, accelerator: Any) -> None:
    scores = torch.randint(5, (size,), generator=generator()).double()
    here = top_k(scores, 12, generator=generator(3))
    there = top_k(accelerator.put(scores), 12, generator=generator(3))
    assert_equal_selection(there, here, accelerator.device)
    assert top_k(scores, 12, generator=generator(4)).index.tolist() != here.index.tolist()


def test_a_score_that_is_not_finite_is_refused(accelerator: Any) -> None:
    scores = torch.rand(40)
    scores[7] = float("nan")
    with pytest.raises(rd.SelectionError, match="ids 7"):
        top_k(accelerator.put(scores), 3, generator=generator())


@pytest.mark.parametrize(("name", "most"), [("rho", 1), ("train_loss", 1), ("divbs", 2)])
def test_a_choice_waits_for_the_device_once(name: str, most: int, accelerator: Any) -> None:
    rule, far = rd.selector(name), put(accelerator, evidence_at(0))
    with accelerator.counting() as waited:
        rule.select(far, K, generator=generator())
        assert waited() <= most


# -- the loop -------------------------------------------------------------------------------------

N, N_B, N_CANDIDATES = 240, 6, 40


class Problem:
    """A small network on points of four clusters; its irreducible losses."""

    def __init__(self) -> None:
        g = generator(5)
        self.y = torch.randint(4, (N,), generator=g)
        self.x = F.one_hot(self.y, 6).double() * 2 + torch.randn(N, 6, generator=g).double()
        losses = torch.rand(N, generator=g)
        self.store = rd.IrreducibleLossStore.from_tensor(losses)

    def loader(self) -> Any:
        rows = rd.WithIds(TensorDataset(self.x, self.y))
        return DataLoader(rows, N_CANDIDATES, shuffle=True, generator=generator(8))

    def model(self) -> nn.Module:
        with torch.random.fork_rng([]):
            torch.manual_seed(7)
            layers = nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)
            return nn.Sequential(*layers).double()


def train(
    problem: Problem, model: nn.Module, rule: str, steps: int, record: Any = None
) -> tuple[list[list[int]], list[list[float]]]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, foreach=False)
    store = problem.store if "irreducible_loss" in rd.selector(rule).needs else None
    batches = rd.SelectingLoader(
        problem.loader(), model, rd.selector(rule), keep=N_B, store=store, seed=9, record=record
    )
    ids, weights = list[list[int]](), list[list[float]]()
    while batches.step < steps:
        for chosen in batches:
            inputs, labels = chosen.batch
            loss = F.cross_entropy(model(inputs), labels, reduction="none")
            optimizer.zero_grad()
            rd.weighted_mean(loss, chosen.weights).backward()
            optimizer.step()
            ids.append(chosen.ids.tolist())
            weights.append(chosen.weights.tolist())
            if batches.step == steps:
                break
    return ids, weights


@pytest.mark.parametrize("rule", ["uniform", "rho", "train_loss", "grad_norm_is", "divbs", "rs2"])
def test_training_chooses_the_same_rows(rule: str, accelerator: Any) -> None:
    problem = Problem()
    here = train(problem, problem.model(), rule, 12)
    there = train(problem, problem.model().to(accelerator.device), rule, 12)
    assert there[0] == here[0]
    torch.testing.assert_close(there[1], here[1], rtol=1e-5, atol=1e-6)


def test_a_step_waits_for_the_device_once(accelerator: Any, tmp_path: Path) -> None:
    """Scoring, the choice, its ledger and its record; training as the user writes it waits not."""
    problem, waits = Problem(), list[int]()
    model = problem.model().to(accelerator.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, foreach=False)
    chosen_ids = list[Tensor]()
    with StepWriter(tmp_path, flush_every=4) as record:
        batches = rd.SelectingLoader(
            problem.loader(),
            model,
            rd.selector("rho"),
            keep=N_B,
            store=problem.store,
            record=record,
            shadows={"uniform": rd.selector("uniform")},
        )
        for _ in range(3):
            with accelerator.counting() as waited:
                for chosen in batches:
                    waits.append(waited())
                    chosen_ids.append(chosen.ids)
                    inputs, labels = chosen.batch
                    loss = F.cross_entropy(model(inputs), labels, reduction="none")
                    optimizer.zero_grad()
                    rd.weighted_mean(loss, chosen.weights).backward()
                    optimizer.step()
    per_step = torch.tensor(waits).diff(prepend=torch.zeros(1)).tolist()
    assert len(per_step) == 18
    assert max(per_step[2:]) <= 1
    assert read_picks(tmp_path / "picks.arrow")["ids"].to_pylist() == [
        ids.tolist() for ids in chosen_ids
    ]
    assert read_info(tmp_path / "info.arrow")["name"].to_pylist() == ["uniform"] * 18
