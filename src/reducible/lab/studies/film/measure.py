"""Trains a pretrained MiniLM in Hugging Face's Trainer; writes results/film of the folder it is in.

Every run is written as it ends, so that a study that was stopped goes on:

    python -m reducible.lab.studies.film.measure costs    # quiet machine: nothing else running
    python -m reducible.lab.studies.film.measure rates    # on validation data
    python -m reducible.lab.studies.film.measure runs --seeds 0-4

One thread; about two hours. Then ``make docs``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch

import reducible as rd
from reducible.lab.data import flip_labels, sentences
from reducible.lab.encoders import bag_of_embeddings, minilm_folder
from reducible.lab.provenance import versions
from reducible.lab.records import kept

RESULTS = Path("results") / "film"
STEPS, N_B, N_CANDIDATES = 200, 16, 64
SIZES = {"holdout": 2_000, "train": 5_000, "validation": 1_500, "test": 2_000}
FLIPS = 0.1
METHODS = ("plain", "train_loss", "grad_norm_is", "rho", "plan")
RATES = (1e-4, 2e-4, 4e-4)
TUNED_ON = 101  # seed
ROUNDS, IN_ROUND = 4, 12


class Setting(NamedTuple):
    """One seed's data, as columns of tokens and labels, and what the reference says of them."""

    parts: dict[str, Any]
    store: rd.IrreducibleLossStore
    plan: rd.Plan
    collate: Any


@lru_cache(maxsize=1)
def setting(seed: int) -> Setting:
    """Splits, flips labels of what is trained on and of the holdout, fits the reference."""
    import datasets
    from transformers import AutoTokenizer, DataCollatorWithPadding

    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    texts = sentences()
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(texts), generator=g)
    noisy = flip_labels(texts.targets, FLIPS, num_classes=2, generator=g).targets
    parts: dict[str, Any] = {}
    cut = order[: sum(SIZES.values())].split(list(SIZES.values()))
    for name, rows in zip(SIZES, cut, strict=True):
        targets = noisy if name in ("holdout", "train") else texts.targets
        columns = tokenizer([texts.texts[i] for i in rows.tolist()], truncation=True, max_length=32)
        parts[name] = datasets.Dataset.from_dict({**columns, "labels": targets[rows].tolist()})
    collate = DataCollatorWithPadding(tokenizer)
    store = _reference(parts, collate, seed)
    labels = torch.tensor(parts["train"]["labels"][:])
    plan = rd.Plan.from_irreducible_loss(store, torch.arange(len(labels)), labels, exponent=0.0)
    return Setting(parts, store, plan, collate)


def _reference(parts: dict[str, Any], collate: Any, seed: int) -> rd.IrreducibleLossStore:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return rd.fit_irreducible_loss(
            bag_of_embeddings, rd.WithIds(parts["holdout"]), rd.WithIds(parts["train"]), epochs=10,
            batch_size=64, seed=seed, progress=False, task=rd.SequenceClassification(),
            collate_fn=rd.collate_with_ids(collate),
        )  # fmt: skip


def trainer(made: Setting, method: str, rate: float, steps: int, seed: int, folder: str) -> Any:
    """The Trainer of a method: plain is Hugging Face's own."""
    from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

    from reducible.adapters.transformers import SelectionArguments, SelectionTrainer

    torch.manual_seed(seed)  # of the new classifier
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
    arguments = TrainingArguments(
        folder, per_device_train_batch_size=N_B, max_steps=steps, learning_rate=rate, seed=seed,
        warmup_steps=math.ceil(steps / 10), lr_scheduler_type="cosine", report_to=[],
        use_cpu=True, save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    common = {"train_dataset": made.parts["train"], "data_collator": made.collate}
    if method == "plain":
        return Trainer(model, arguments, **common)
    if method == "plan":
        choice = SelectionArguments(selector="uniform", keep=1.0)
        return SelectionTrainer(model, arguments, selection=choice, plan=made.plan, **common)
    choice = SelectionArguments(selector=method, keep=N_B / N_CANDIDATES, log_selection=False)
    store = made.store if method == "rho" else None
    return SelectionTrainer(model, arguments, selection=choice, store=store, **common)


def costs() -> dict[str, Any]:
    """Seconds of an update in those of a plain one, from short runs in turns; and of the fit.

    Processor time of one thread, so that what else the machine does counts little.
    """
    torch.set_num_threads(1)
    made = setting(TUNED_ON)
    taken: dict[str, list[float]] = {name: [] for name in (*METHODS, "fit")}
    for turn in range(ROUNDS):
        for method in METHODS if turn % 2 == 0 else METHODS[::-1]:
            taken[method] += _seconds(made, method)
        began = time.process_time()
        _reference(made.parts, made.collate, 0)
        taken["fit"].append(time.process_time() - began)
    middle = {name: statistics.median(values) for name, values in taken.items()}
    return {
        "versions": versions(),
        "update": {m: round(middle[m] / middle["plain"], 3) for m in METHODS},
        "reference": round(middle["fit"] / middle["plain"]),
    }


def _seconds(made: Setting, method: str) -> list[float]:
    """Seconds of each update but the first of a short run."""
    from transformers import TrainerCallback

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            ends.append(time.process_time())

    with tempfile.TemporaryDirectory() as folder:
        run = trainer(made, method, 1e-5, IN_ROUND + 1, 0, folder)
        run.add_callback(Clock())
        run.train()
    return [after - before for before, after in pairwise(ends)]


def steps_of(method: str, known: dict[str, Any], share: float = 1.0) -> int:
    """Updates that fit into this share of the time of plain's, the fit included."""
    fit = known["reference"] if method in ("rho", "plan") else 0
    return max(1, int((share * STEPS - fit) / known["update"][method]))


def _run(method: str, rate: float, steps: int, seed: int, *, part: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    made = setting(seed)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = trainer(made, method, rate, steps, seed, folder)
        run.train()
        seconds = time.perf_counter() - began
        found = run.predict(made.parts[part])
    right = (found.predictions.argmax(1) == found.label_ids).mean()
    rows = len(found.label_ids)
    return {
        "accuracy": float(right), "rows": rows, "steps": steps, "rate": rate, "seconds": seconds
    }  # fmt: skip


def rates() -> dict[str, float]:
    """The best rate of each method in half the time, by accuracy on validation data."""
    known, best = kept(RESULTS / "costs.json", costs), {}
    for method in METHODS:
        steps = steps_of(method, known, 0.5)
        found = {
            rate: kept(
                RESULTS / "rates" / f"{method}-{rate:g}.json",
                _run, method, rate, steps, TUNED_ON, part="validation",
            )["accuracy"]
            for rate in RATES
        }  # fmt: skip
        best[method] = max(found, key=lambda rate: found[rate])
    return best


def run(seeds: list[int]) -> None:
    """Every method in as much time as plain takes, seed by seed."""
    known, best = kept(RESULTS / "costs.json", costs), rates()
    for seed in seeds:
        for method in METHODS:
            steps = steps_of(method, known)
            path = RESULTS / str(seed) / f"{method}.json"
            kept(path, _run, method, best[method], steps, seed, part="test")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["costs", "rates", "runs"])
    parser.add_argument("--seeds", default="0-4")
    asked = parser.parse_args()
    first, _, last = asked.seeds.partition("-")
    if asked.what == "costs":
        kept(RESULTS / "costs.json", costs)
    elif asked.what == "rates":
        print(rates())
    else:
        run(list(range(int(first), int(last or first) + 1)))
