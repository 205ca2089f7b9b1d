"""Two processes: each trains n_b rows of its own candidates, as one process would for both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import reducible as rd
import two_ranks
from hf_toys import Ids, bert, padded, texts
from reducible.loading.ranks import candidate_loader

SCRIPT = Path(two_ranks.__file__)


def _run(framework: str, folder: Path) -> list[dict[str, Any]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
         "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0",
         str(SCRIPT), framework, str(folder)],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


def _for_both(framework: str) -> tuple[list[Ids], list[float]]:
    """One process that chooses from each rank's candidates apart, and averages the gradients."""
    text = framework == "transformers"
    model = bert().double() if text else two_ranks.network()
    data: Any = texts(136) if text else two_ranks.Doubles()
    task = rd.SequenceClassification() if text else rd.Classification()
    optimizer = torch.optim.SGD(model.parameters(), lr=two_ranks.RATE)
    logs = [Ids(), Ids()]
    options: dict[str, Any] = {"collate_fn": rd.collate_with_ids(padded)} if text else {}
    loops = [
        rd.SelectingLoader(
            candidate_loader(rd.WithIds(data), 16, seed=3, rank=rank, ranks=2, **options), model,
            rd.selector("train_loss"), keep=two_ranks.N_B, task=task, seed=3, record=logs[rank],
            scoring=rd.Scoring(batchnorm="running"),
        )
        for rank in (0, 1)
    ]  # fmt: skip

    def endless(loop: Any) -> Any:
        while True:
            yield from loop

    for chosen in zip(*map(endless, loops), range(two_ranks.UPDATES), strict=False):
        for of_rank in chosen[:2]:
            loss = task.loss(task.forward(model, of_rank.batch).logits, task.targets(of_rank.batch))
            (loss.mean() / 2).backward()
        optimizer.step()
        optimizer.zero_grad()
    return logs, torch.cat([p.detach().flatten() for p in model.parameters()]).tolist()


@pytest.mark.parametrize("framework", ["accelerate", "lightning", "transformers"])
def test_picks_are_those_of_one_process_for_both(framework: str, tmp_path: Path) -> None:
    names = {"lightning": "pytorch_lightning", "transformers": "datasets"}
    pytest.importorskip(names.get(framework, framework))
    first, second = _run(framework, tmp_path)
    logs, weights = _for_both(framework)
    assert first["ids"] == logs[0].ids[: two_ranks.UPDATES]
    assert second["ids"] == logs[1].ids[: two_ranks.UPDATES]
    for mine, theirs in zip(first["ids"], second["ids"], strict=True):
        assert len(mine) == len(theirs) == two_ranks.N_B
        assert len({*mine, *theirs}) == 2 * two_ranks.N_B  # no id twice within an update
    assert first["weights"] == second["weights"]
    torch.testing.assert_close(torch.tensor(first["weights"]), torch.tensor(weights))


def test_a_run_stopped_on_both_goes_on_with_the_same_ids(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    whole = _run("accelerate_with_memory", tmp_path)
    resumed = _run("accelerate_resumed", tmp_path)
    assert whole[0]["ids"] != whole[1]["ids"]
    for before, after in zip(whole, resumed, strict=True):
        assert after["ids"] == before["ids"][two_ranks.SAVED_AT :]
        assert after["weights"] == before["weights"]
