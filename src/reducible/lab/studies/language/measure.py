"""Trains a small language model four ways; writes results/language of the folder it is started in.

Every run is written as it ends, so that a study that was stopped goes on:

    python -m reducible.lab.studies.language.measure costs    # quiet machine: nothing else running
    python -m reducible.lab.studies.language.measure rates    # on a part of the holdout
    python -m reducible.lab.studies.language.measure runs --seeds 0-4

One thread; about two hours. Then ``make docs``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

import reducible as rd
from reducible.lab.provenance import versions
from reducible.lab.records import kept
from reducible.lab.studies.language.corpus import LENGTH, WORDS, Parts, parts
from reducible.tasks import token_losses

RESULTS = Path("results") / "language"
STEPS, N_B, N_CANDIDATES = 1000, 32, 128
TRAIN = 12_000  # sequences: plain passes over them two and a half times
NETWORK = {"width": 64, "layers": 2}
TOKENS_KEPT, PLAN_KEEPS = 0.6, 0.9
REFERENCE = {"width": 64, "layers": 2, "steps": 300, "rate": 2e-3}
# An update of a plan or of chosen tokens costs what a plain one does: with the reference given,
# equal time is equal tokens.
BUDGETS = {
    "plain": ("tokens",),
    "plan": ("tokens", "time"),
    "tokens": ("tokens", "time"),
    "sequences": ("tokens", "time", "shared"),
}
METHODS = tuple(BUDGETS)
RATES = (2e-3, 4e-3, 8e-3, 16e-3)
TUNED_ON, TUNED_STEPS, TUNED_TRAIN = 101, 750, 20_000  # seed, updates, sequences
TURNS, IN_TURN = 10, 5
WARMUP = 0.1  # share of the updates


@dataclass(frozen=True, slots=True)
class Setting:
    """One seed's data, with what the reference model says of them."""

    data: Parts
    rows: Any  # the train set, with ids
    by_token: rd.TokenLossStore
    by_sequence: rd.IrreducibleLossStore


def network(width: int, layers: int, seed: int) -> nn.Module:
    """A GPT-2 of transformers' without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return GPT2LMHeadModel(
            GPT2Config(
                vocab_size=WORDS, n_positions=LENGTH, n_embd=width, n_layer=layers,
                n_head=width // 32, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
                bos_token_id=0, eos_token_id=0,
            )
        )  # fmt: skip


def _batch(ids: Tensor) -> dict[str, Tensor]:
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


class _Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    def __init__(self, ids: Tensor) -> None:
        self.ids_of_tokens = ids

    def __len__(self) -> int:
        return len(self.ids_of_tokens)

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return _batch(self.ids_of_tokens[i])


@lru_cache(maxsize=1)
def setting(seed: int, train: int) -> Setting:
    """Splits, fits the reference on the holdout, and scores the train set by it."""
    whole = parts(seed)
    data = replace(whole, train=whole.train[:train], kinds=whole.kinds[:train])
    reference = network(REFERENCE["width"], REFERENCE["layers"], seed)
    for _ in _reference_updates(reference, data, seed):
        pass
    rows = rd.WithIds(_Rows(data.train))
    by_token = rd.score_token_irreducible_loss(
        reference, rows, batch_size=N_CANDIDATES, progress=False
    )
    # A sequence's loss is the mean of its tokens': nothing is scored twice.
    everything = torch.ones(1, LENGTH, dtype=torch.bool).index_fill(1, torch.tensor([0]), False)
    losses = by_token.lookup(by_token.ids, everything.expand(len(rows), -1))
    means = losses.sum(1) / (LENGTH - 1)
    return Setting(data, rows, by_token, rd.IrreducibleLossStore.from_tensor(means))


def _reference_updates(reference: nn.Module, data: Parts, seed: int) -> Iterator[None]:
    optimizer = torch.optim.AdamW(reference.parameters(), lr=REFERENCE["rate"], fused=True)
    order = torch.Generator().manual_seed(seed)
    for step in range(REFERENCE["steps"]):
        _schedule(optimizer, REFERENCE["rate"], step / REFERENCE["steps"])
        rows = data.holdout[torch.randint(len(data.holdout), (N_B,), generator=order)]
        logits = reference(**_batch(rows)).logits
        token_losses(logits, rows)[:, 1:].mean().backward()
        nn.utils.clip_grad_norm_(reference.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield


def _reference_scores(reference: nn.Module, data: Parts) -> Iterator[None]:
    """Scores a batch of the train set at every turn, as the store is made."""
    needs, task = frozenset({"logits", "targets"}), rd.CausalLM()
    scoring = rd.Scoring(batchnorm="running")
    while True:
        for rows in data.train.split(N_CANDIDATES):
            here = rd.Candidates(torch.arange(len(rows)), _batch(rows))
            found = rd.measure(reference, here, needs, scoring, task=task)
            token_losses(found.require("logits"), found.require("targets"))
            yield


def _schedule(optimizer: torch.optim.Optimizer, rate: float, share: float) -> None:
    """A tenth of the updates up in a line, then a cosine; ``share`` of them are done."""
    up, down = share / WARMUP, (share - WARMUP) / (1 - WARMUP)
    for group in optimizer.param_groups:
        group["lr"] = rate * min(up + 0.01, 0.5 * (1 + math.cos(math.pi * max(down, 0.0))))


def updates(made: Setting, model: nn.Module, method: str, rate: float, steps: int,
            seed: int) -> Iterator[None]:  # fmt: skip
    """Trains; an update at every turn."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, fused=True)
    rows: Any = made.rows
    if method == "plan":
        kept = made.by_sequence.values.argsort()[: int(PLAN_KEEPS * len(rows))]
        rows = Subset(rows, kept.sort().values.tolist())
    loader = DataLoader(
        rows, N_CANDIDATES if method == "sequences" else N_B, shuffle=True, drop_last=True,
        generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    batches = rd.SelectingLoader(
        loader, model, rd.selector("rho" if method == "sequences" else "uniform"), keep=N_B,
        store=made.by_sequence if method == "sequences" else None, task=rd.CausalLM(), seed=seed,
        scoring=rd.Scoring(batchnorm="running"),
    )  # fmt: skip
    tokens = rd.TokenSelection("rho", keep=TOKENS_KEPT, store=made.by_token, seed=seed)
    while True:
        for chosen in batches:
            _schedule(optimizer, rate, (batches.step - 1) / steps)
            ids = chosen.batch["input_ids"]
            logits: Tensor = model(**chosen.batch).logits
            if method == "tokens":
                loss = tokens.loss(logits, ids, chosen.ids)
            else:
                loss = token_losses(logits, ids)[:, 1:].mean()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            yield
            if batches.step >= steps:
                return


def judged(model: nn.Module, rows: Tensor) -> float:
    """Mean loss of a token, in nats."""
    with torch.no_grad():
        parts = [token_losses(model(**_batch(r)).logits, r)[:, 1:] for r in rows.split(256)]
    return float(torch.cat(parts).double().mean())


def costs() -> dict[str, Any]:
    """Seconds of an update in those of a plain one, side by side in turns; and of the reference.

    Processor time of one thread, so that what else the machine does counts little.
    """
    torch.set_num_threads(1)
    made = setting(TUNED_ON, TRAIN)
    runs = {m: updates(made, network(**NETWORK, seed=0), m, 1e-3, 10**6, TUNED_ON) for m in METHODS}
    small = network(REFERENCE["width"], REFERENCE["layers"], 0)
    runs["fit"] = _reference_updates(small, made.data, 0)
    runs["score"] = _reference_scores(small, made.data)
    taken: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        next(run)
    for turn in range(TURNS):
        for name in list(runs) if turn % 2 == 0 else list(runs)[::-1]:
            began = time.process_time()
            for _ in range(IN_TURN):
                next(runs[name])
            taken[name].append((time.process_time() - began) / IN_TURN)
    middle = {name: statistics.median(values) / statistics.median(taken["plain"])
              for name, values in taken.items()}  # fmt: skip
    scored = math.ceil(len(made.rows) / N_CANDIDATES)
    return {
        "versions": versions(),
        "corpus": {"digest": made.data.digest, "characters": made.data.characters},
        "update": {m: round(middle[m], 3) for m in METHODS},
        "reference": round(REFERENCE["steps"] * middle["fit"] + scored * middle["score"]),
    }


def steps_of(method: str, budget: str, known: dict[str, Any]) -> int:
    """Updates that fit: as many as plain's (equal tokens), or into its time, the fit included."""
    if budget == "tokens" or method == "plain":
        return STEPS
    left = STEPS - known["reference"] * (budget == "time")
    return max(1, int(left / known["update"][method]))


def _run(method: str, rate: float, steps: int, seed: int, *, validate: bool) -> dict[str, Any]:
    torch.set_num_threads(1)
    made = setting(seed, TUNED_TRAIN if validate else TRAIN)
    model = network(**NETWORK, seed=1000 + seed)
    began = time.perf_counter()
    for _ in updates(made, model, method, rate, steps, seed):
        pass
    seconds = time.perf_counter() - began
    rows = made.data.holdout[:2000] if validate else made.data.test
    return {"loss": judged(model, rows), "steps": steps, "rate": rate, "seconds": seconds}


def rates(methods: Sequence[str] = METHODS) -> dict[str, float]:
    """The best rate of each method on a part of the holdout, one seed."""
    best: dict[str, float] = {}
    for method in methods:
        found = {
            rate: kept(
                RESULTS / "rates" / f"{method}-{rate:g}.json",
                _run, method, rate, TUNED_STEPS, TUNED_ON, validate=True,
            )["loss"]
            for rate in RATES
        }  # fmt: skip
        best[method] = min(found, key=lambda rate: found[rate])
    return best


def run(seeds: list[int]) -> None:
    """Every method at equal tokens and in equal time, seed by seed."""
    known, best = kept(RESULTS / "costs.json", costs), rates()
    for seed in seeds:
        for method in METHODS:
            for budget in BUDGETS[method]:
                steps = steps_of(method, budget, known)
                path = RESULTS / str(seed) / f"{method}-{budget}.json"
                kept(path, _run, method, best[method], steps, seed, validate=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["costs", "rates", "runs"])
    parser.add_argument("--seeds", default="0-4")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="of rates")
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("-")
    if asked.what == "costs":
        kept(RESULTS / "costs.json", costs)
    elif asked.what == "rates":
        print(rates(asked.methods))
    else:
        run(list(range(int(first), int(last or first) + 1)))
