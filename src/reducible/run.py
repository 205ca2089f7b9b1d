"""The one training loop of recipes, demo and studies, and the folder it leaves behind."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import Progress
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from reducible import schedules
from reducible.data import EMBEDDED, TensorSet, fashion_mnist, flip_labels
from reducible.files import replacing
from reducible.irreducible import cross_fit_irreducible_loss, fit_irreducible_loss
from reducible.ledger import Ledger
from reducible.loop import SelectingLoader, weighted_mean
from reducible.measure import Scoring
from reducible.models import MODELS
from reducible.records import MetricsWriter, PickWriter, Tally, read_json, summarise, write_json
from reducible.seeds import stream_seed
from reducible.selectors import selector
from reducible.stores import IrreducibleLossStore
from reducible.types import ConfigurationError, require_between, require_one_of

_FINAL_EVALUATIONS = 5  # final accuracy is the mean of the last so many


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that decides a run but its seed.

    Attributes:
        name: as the command line knows it.
        selector: row of SELECTORS.
        hyperparameters: of the selector.
        dataset: ``"fashion-mnist-30k"`` is embedded; ``"fashion-mnist"`` is the full one, from
            the folder that REDUCIBLE_DATA names.
        model: row of MODELS.
        train_examples: size of the train set D, cut from the training images.
        holdout_examples: size of the holdout, disjoint from D; 0: none.
        label_noise: share of D whose labels are flipped to another class.
        holdout_noise: the same for the holdout.
        n_b: rows trained on per update.
        n_candidates: rows of a candidate batch (n_B).
        steps: updates.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        schedule: of the learning rate over the steps.
        evaluate_every: updates between evaluations on the test set.
        batchnorm: statistics used for scoring, see Scoring.
        irreducible_model: row of MODELS.
        irreducible_epochs: passes over the holdout.
        irreducible_batch: rows per update of the irreducible-loss model.
        irreducible_smoothing: of the labels, in updates of the irreducible-loss model.
        irreducible_from: ``"holdout"``, or ``"cross-fit"`` of D in two folds.
    """

    name: str
    selector: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dataset: Literal["fashion-mnist-30k", "fashion-mnist"] = "fashion-mnist-30k"
    model: str = "mlp-512"
    train_examples: int = 20_000
    holdout_examples: int = 10_000
    label_noise: float = 0.1
    holdout_noise: float = 0.0
    n_b: int = 32
    n_candidates: int = 320
    steps: int = 3000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["constant", "cosine"] = "constant"
    evaluate_every: int = 50
    batchnorm: Literal["candidates", "running", "reference"] = "candidates"
    irreducible_model: str = "mlp-128"
    irreducible_epochs: int = 6
    irreducible_batch: int = 64
    irreducible_smoothing: float = 0.0
    irreducible_from: Literal["holdout", "cross-fit"] = "holdout"

    def __post_init__(self) -> None:
        require_one_of("dataset", self.dataset, ("fashion-mnist-30k", "fashion-mnist"))
        require_one_of("model", self.model, list(MODELS))
        require_one_of("irreducible_model", self.irreducible_model, list(MODELS))
        require_one_of("schedule", self.schedule, ("constant", "cosine"))
        require_one_of("irreducible_from", self.irreducible_from, ("holdout", "cross-fit"))
        fits = "irreducible_loss" in selector(self.selector, **self.hyperparameters).needs
        if fits and self.irreducible_from == "holdout" and self.holdout_examples == 0:
            raise ConfigurationError(
                f"{self.selector} needs irreducible losses from a holdout of 0 examples. Ask for "
                "more, or take irreducible_from='cross-fit'."
            )
        require_between("holdout_examples", self.holdout_examples, 0, whole=True)
        for name in ("train_examples", "n_b", "n_candidates", "steps", "evaluate_every"):
            require_between(name, getattr(self, name), 1, whole=True)
        require_between("n_b", self.n_b, 1, self.n_candidates, whole=True)
        require_between("n_candidates", self.n_candidates, 1, self.train_examples, whole=True)
        for name in ("label_noise", "holdout_noise"):
            require_between(name, getattr(self, name), 0.0, 1.0)
        require_between("learning_rate", self.learning_rate, 0.0, open_low=True)
        Scoring(batchnorm=self.batchnorm)
        selector(self.selector, **self.hyperparameters)

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """This recipe with fields replaced, values given as text (``"500"``, ``"mlp-64"``).

        Raises:
            ConfigurationError: no such field, or a value of another type.
        """
        types = {f.name: f.type for f in fields(self)}
        changes: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in types or name == "name":
                known = ", ".join(n for n in types if n != "name")
                raise ConfigurationError(f"a recipe has no setting {name!r}. It has: {known}.")
            old = getattr(self, name)
            if isinstance(old, str):
                changes[name] = text
                continue
            try:
                value = json.loads(text)
            except ValueError:
                value = text
            wanted = Mapping if isinstance(old, Mapping) else type(old)
            if wanted is float and isinstance(value, int):
                value = float(value)
            if not isinstance(value, wanted) or isinstance(value, bool):
                raise ConfigurationError(
                    f"{name}={text!r} is no {types[name]}; it is {old!r} by default."
                )
            changes[name] = value
        return replace(self, **changes)


@final
@dataclass(frozen=True, slots=True)
class Splits:
    """The data of one run."""

    train: TensorSet
    holdout: TensorSet | None
    test: TensorSet
    corrupted: Tensor  # [max id + 1] bool, by id


def make_splits(recipe: Recipe, seed: int) -> Splits:
    """Cut train set and holdout from the training images, and flip labels; by seed."""
    generator = torch.Generator().manual_seed(stream_seed(seed, 0))
    root = EMBEDDED if recipe.dataset == "fashion-mnist-30k" else None
    pool, test = fashion_mnist("train", root=root), fashion_mnist("test", root=root)
    wanted = recipe.train_examples + recipe.holdout_examples
    if wanted > len(pool):
        raise ConfigurationError(
            f"train and holdout want {wanted} examples, the data set has {len(pool)}. Ask for "
            "fewer, or take dataset='fashion-mnist'."
        )
    order = torch.randperm(len(pool), generator=generator)
    corrupted = torch.zeros(len(pool), dtype=torch.bool)

    def cut(positions: Tensor, share: float) -> TensorSet:
        part = pool.subset(positions)
        noisy = flip_labels(part.targets, share, num_classes=part.num_classes, generator=generator)
        corrupted[part.ids] = noisy.corrupted
        return part.relabelled(noisy.targets)

    train = cut(order[: recipe.train_examples], recipe.label_noise)
    rest = order[recipe.train_examples : wanted]
    holdout = cut(rest, recipe.holdout_noise) if rest.numel() else None
    return Splits(train, holdout, test, corrupted)


def fit_store(
    recipe: Recipe, splits: Splits, seed: int, *, ledger: Ledger, progress: bool | Progress
) -> IrreducibleLossStore:
    """The irreducible losses that the recipe asks for."""
    options: dict[str, Any] = {
        "epochs": recipe.irreducible_epochs,
        "label_smoothing": recipe.irreducible_smoothing,
        "batch_size": recipe.irreducible_batch,
        "make_optimizer": lambda parameters: torch.optim.AdamW(parameters, fused=True),
        "seed": seed,
        "ledger": ledger,
        "progress": progress,
    }
    make_model = MODELS[recipe.irreducible_model]
    if recipe.irreducible_from == "cross-fit" or splits.holdout is None:
        return cross_fit_irreducible_loss(make_model, splits.train, **options)
    return fit_irreducible_loss(make_model, splits.holdout, splits.train, **options)


@torch.inference_mode()
def accuracy_and_loss(model: nn.Module, data: TensorSet) -> tuple[float, float]:
    """Share of correct predictions and mean loss, in eval mode."""
    was_training = model.training
    model.eval()
    correct, loss = 0, 0.0
    for _, (x, y) in data.loader(1000, shuffle=False, drop_last=False):
        logits = model(x)  # [B, C]
        correct += int((logits.argmax(1) == y).sum())
        loss += float(F.cross_entropy(logits, y, reduction="sum"))
    model.train(was_training)
    return correct / len(data), loss / len(data)


@final
class Run:
    """One run in its folder: config.json first, then metrics, picks, checkpoints, the summary.

    Args:
        recipe: what to do.
        out: an empty or new folder.
        seed: of the split, the noise, the initialisation, the order and every choice.
        max_steps: stop earlier than the recipe does.
        progress: show bars (bool), or the rich Progress to show them in.
        checkpoint_every: updates between checkpoints; 0: none.

    Raises:
        ConfigurationError: the folder holds a run already.
    """

    def __init__(
        self,
        recipe: Recipe,
        out: Path,
        *,
        seed: int = 0,
        max_steps: int | None = None,
        progress: bool | Progress = True,
        checkpoint_every: int = 500,
    ) -> None:
        self.recipe, self.out, self.seed = recipe, out, seed
        self.steps = recipe.steps if max_steps is None else min(max_steps, recipe.steps)
        require_between("max_steps", self.steps, 1, whole=True)
        self._progress = progress if isinstance(progress, Progress) else None
        self._show = progress is True
        self._checkpoint_every = checkpoint_every
        self.ledger = Ledger()
        self.curve: list[list[float]] = []

    def start(self, store: IrreducibleLossStore | None = None) -> dict[str, Any]:
        """Train from the beginning; returns the summary."""
        refuse_used_folder(self.out)
        self.out.mkdir(parents=True, exist_ok=True)
        write_json(
            self.out / "config.json",
            {
                "recipe": self.recipe.name,
                "settings": asdict(self.recipe),
                "seed": self.seed,
                "steps": self.steps,
                "checkpoint_every": self._checkpoint_every,
                "versions": versions(),
            },
        )
        return self._go(store, checkpoint=None)

    def resume(self) -> dict[str, Any]:
        """Go on from the last checkpoint, or from the start before the first one.

        A finished run is left as it is; its summary is returned.
        """
        if (self.out / "summary.json").exists():
            return read_json(self.out / "summary.json")
        path = self.out / "checkpoint.pt"
        checkpoint = torch.load(path, weights_only=True) if path.exists() else None
        if checkpoint is None:
            for name in ("metrics.jsonl", "picks.arrow"):
                (self.out / name).unlink(missing_ok=True)
        return self._go(None, checkpoint)

    def _go(
        self, store: IrreducibleLossStore | None, checkpoint: dict[str, Any] | None
    ) -> dict[str, Any]:
        with self._progress or Progress(disable=not self._show) as bar:
            return self._train(bar, store, checkpoint)

    def _train(
        self,
        bar: Progress,
        store: IrreducibleLossStore | None,
        checkpoint: dict[str, Any] | None,
    ) -> dict[str, Any]:
        recipe = self.recipe
        rule = selector(recipe.selector, **recipe.hyperparameters)
        splits = make_splits(recipe, self.seed)
        saved_store = self.out / "irreducible_loss.safetensors"
        if store is None and "irreducible_loss" in rule.needs:
            if saved_store.exists():
                store = IrreducibleLossStore.load(saved_store)
                # Fitted before the stop, so its cost is this run's; a checkpoint's ledger has it.
                self.ledger.seconds["irreducible_loss"] += store.header["seconds"]
                self.ledger.counts.flops_irreducible_loss += store.header["flops"]
            else:
                store = fit_store(recipe, splits, self.seed, ledger=self.ledger, progress=bar)
                store.save(saved_store)
        with torch.random.fork_rng([]):
            torch.manual_seed(stream_seed(self.seed, 1))
            model = MODELS[recipe.model]()
            optimizer = torch.optim.AdamW(
                model.parameters(),
                lr=recipe.learning_rate,
                weight_decay=recipe.weight_decay,
                fused=True,
            )
            order = torch.Generator().manual_seed(stream_seed(self.seed, 2))
            step = 0 if checkpoint is None else int(checkpoint["loader"]["step"])
            resuming = checkpoint is not None
            picks_path, metrics_path = self.out / "picks.arrow", self.out / "metrics.jsonl"
            with (
                PickWriter.resume(picks_path, step)
                if resuming
                else PickWriter(picks_path) as picks,
                MetricsWriter.resume(metrics_path, step)
                if resuming
                else MetricsWriter(metrics_path) as metrics,
            ):
                batches = SelectingLoader(
                    splits.train.loader(recipe.n_candidates, generator=order),
                    model,
                    rule,
                    keep=recipe.n_b,
                    store=store,
                    scoring=Scoring(batchnorm=recipe.batchnorm),
                    seed=self.seed,
                    ledger=self.ledger,
                    record=picks,
                    total_steps=recipe.steps,
                )
                tally = Tally(splits.train.num_classes)
                parts = _Parts(model, optimizer, batches, tally)
                if checkpoint is not None:
                    self.curve = parts.load(checkpoint)
                self._loop(bar, parts, splits, metrics, picks)
        return self._finish(parts)

    def _loop(
        self,
        bar: Progress,
        parts: _Parts,
        splits: Splits,
        metrics: MetricsWriter,
        picks: PickWriter,
    ) -> None:
        recipe, ledger = self.recipe, self.ledger
        model, optimizer, batches = parts.model, parts.optimizer, parts.batches
        shown = bar.add_task(recipe.name, total=self.steps, completed=batches.step)
        model.train()
        while batches.step < self.steps:
            for chosen in batches:
                x, y = chosen.batch
                for group in optimizer.param_groups:
                    group["lr"] = recipe.learning_rate * self._decay(batches.step - 1)

                def update(
                    x: Tensor = x, y: Tensor = y, weights: Tensor = chosen.weights
                ) -> Tensor:
                    logits = model(x)  # [K, C]
                    loss = weighted_mean(F.cross_entropy(logits, y, reduction="none"), weights)
                    optimizer.zero_grad()
                    loss.backward()
                    return logits.detach()

                logits = self._counted(update, batches, y.numel())
                optimizer.step()
                with ledger.phase("evaluate"):
                    bar.advance(shown)
                    correct = logits.argmax(1) == y  # judged before the update
                    parts.tally.add(chosen.ids, y, correct, splits.corrupted[chosen.ids])
                    if batches.step % recipe.evaluate_every == 0 or batches.step == self.steps:
                        self._evaluate(parts, splits.test, metrics)
                    every = self._checkpoint_every
                    if every and batches.step % every == 0 and batches.step < self.steps:
                        picks.flush()
                        with replacing(self.out / "checkpoint.pt") as temporary:
                            torch.save(parts.state(self.curve), temporary)
                if batches.step == self.steps:
                    break

    def _decay(self, step: int) -> float:
        if self.recipe.schedule == "constant":
            return 1.0
        return schedules.cosine(step, start=0, end=self.recipe.steps)

    def _counted(self, update: Callable[[], Tensor], batches: SelectingLoader, rows: int) -> Tensor:
        """Run an update; the first one is measured, so that training FLOPs are torch's own."""
        if batches.train_flops_per_example is not None:
            return update()
        with FlopCounterMode(display=False) as counter:
            logits = update()
        batches.train_flops_per_example = counter.get_total_flops() / rows
        self.ledger.counts.flops_train = counter.get_total_flops()
        return logits

    def _evaluate(self, parts: _Parts, test: TensorSet, metrics: MetricsWriter) -> None:
        accuracy, loss = accuracy_and_loss(parts.model, test)
        step, charged = parts.batches.step, self.ledger.charged
        self.curve.append([step, charged, accuracy])
        cost = self.ledger.summary()
        metrics.write(
            {
                "step": step,
                "seconds": charged,
                "accuracy": accuracy,
                "loss": loss,
                "examples_scored": cost["examples_scored"],
                "examples_trained": cost["examples_trained"],
                "forwards_scored": cost["forwards_scored"],
                "flops": {k: v for k, v in cost.items() if k.startswith("flops")},
                "seconds_by_phase": cost["seconds"],
                "peak_memory_bytes": cost["peak_memory_bytes"],
                "selected": parts.tally.take(),
            }
        )

    def _finish(self, parts: _Parts) -> dict[str, Any]:
        weights = {name: w.detach().contiguous() for name, w in parts.model.state_dict().items()}
        with replacing(self.out / "model.safetensors") as temporary:
            save_file(weights, temporary)
        overall = parts.tally.overall()
        cost = self.ledger.summary()
        summary = {
            "steps_to_target": None,
            "seconds_to_target": None,
            "final_accuracy": final_accuracy(self.curve),
            "seconds": cost["seconds"],
            "examples_scored": cost["examples_scored"],
            "examples_trained": cost["examples_trained"],
            "corrupted_share": overall["corrupted_share"],
            "already_correct_share": overall["already_correct_share"],
            "curve": self.curve,
            "selected": overall,
            "ledger": {k: v for k, v in cost.items() if k != "seconds"},
        }
        write_json(self.out / "summary.json", summary)
        (self.out / "checkpoint.pt").unlink(missing_ok=True)
        return summary


@dataclass(slots=True)
class _Parts:
    """What a checkpoint holds."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    batches: SelectingLoader
    tally: Tally

    def state(self, curve: list[list[float]]) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.batches.state_dict(),
            "tally": self.tally.state_dict(),
            "train_flops_per_example": self.batches.train_flops_per_example,
            "torch_stream": torch.get_rng_state(),
            "curve": curve,
        }

    def load(self, checkpoint: dict[str, Any]) -> list[list[float]]:
        """Take over a checkpoint; returns the curve so far."""
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.batches.load_state_dict(checkpoint["loader"])
        self.tally.load_state_dict(checkpoint["tally"])
        self.batches.train_flops_per_example = checkpoint["train_flops_per_example"]
        torch.set_rng_state(checkpoint["torch_stream"])
        return checkpoint["curve"]


def final_accuracy(curve: list[list[float]]) -> float:
    """Mean of the last five evaluations (of fewer, where there are fewer)."""
    last = [accuracy for _, _, accuracy in curve[-_FINAL_EVALUATIONS:]]
    return sum(last) / len(last)


def with_target(summary: dict[str, Any], target: float) -> dict[str, Any]:
    """``summary`` with the steps and the charged seconds at which its curve reached ``target``."""
    steps, seconds = summarise(summary["curve"], target)
    return summary | {"steps_to_target": steps, "seconds_to_target": seconds}


def refuse_used_folder(out: Path) -> None:
    """Raise ConfigurationError where ``out`` is a file or holds a run."""
    if out.exists() and not out.is_dir():
        raise ConfigurationError(f"{out} is a file; name a folder for the run.")
    held = [n for n in ("config.json", "metrics.jsonl", "summary.json") if (out / n).exists()]
    if held:
        raise ConfigurationError(
            f"{out} holds a run already ({', '.join(held)}); nothing was touched. Name another "
            "folder, go on with it (reducible resume), or remove it yourself."
        )


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    from reducible import __version__

    return {
        "reducible": __version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }
