"""Selection in Hugging Face's Trainer, and in trainers made of it, such as TRL's."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from reducible.adapters.arguments import SelectionArguments
from reducible.adapters.micro_batches import (
    MicroBatch,
    endless,
    micro_batches,
    planned_batches,
)
from reducible.files import checkpoints
from reducible.fitting import score_irreducible_loss, score_token_irreducible_loss
from reducible.loading.ranks import candidate_loader
from reducible.loop import (
    Chosen,
    SelectingLoader,
    SelectionMetrics,
    TokenSelection,
    weighted_mean,
)
from reducible.plans import Plan
from reducible.selectors import Selector, selector
from reducible.stores import IrreducibleLossStore, TokenLossStore
from reducible.tasks import Task, token_losses
from reducible.types import ConfigurationError

try:
    from transformers import Trainer
except ImportError as error:
    raise ImportError(
        "reducible.adapters.transformers needs transformers: pip install 'reducible[transformers]'"
    ) from error


from reducible.adapters import transformers_data as given

if TYPE_CHECKING:
    _Base = Trainer  # what it is mixed into
else:
    _Base = object


class SelectionMixin(_Base):
    """Makes a class derived from Hugging Face's Trainer choose what it trains on.

    ``class SelectionSFTTrainer(SelectionMixin, SFTTrainer)``. The planned number of updates, the
    rows of each, schedule, accumulation, evaluation, logging and checkpoints stay as they are; an
    epoch stays as many trained rows as the data set has, for which the candidates are passed over
    1/``keep`` times. What is chosen is what ``SelectingLoader`` chooses in a plain loop from the
    same candidates.

    Args:
        args: of the trainer.
        selection: how to choose.
        rule: a rule, in the stead of ``selection.selector``.
        store: irreducible losses (of tokens, if tokens are chosen), in the stead of a file.
        task: what batches mean; from the model if None.
        plan: which examples to train on and how often, see ``Plan``; the candidates are drawn by
            it. With ``rule="uniform"`` and ``keep=1.0`` it is all the selection there is.
        loader_options: of SelectingLoader: ``gate``, ``held_out``, ``scorer``, ``shadows``, ….
        kwargs: of the trainer.

    Raises:
        ConfigurationError: no such column of ids, too few rows, settings that do not go together.

    Attributes:
        batches: the SelectingLoader, once training has begun: its ledger and gate.
    """

    def __init__(
        self,
        *args: Any,
        selection: SelectionArguments | None = None,
        rule: Selector | str | None = None,
        store: IrreducibleLossStore | TokenLossStore | None = None,
        task: Task | None = None,
        plan: Plan | None = None,
        loader_options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if selection is None and rule is None and plan is not None:
            selection = SelectionArguments(selector="uniform", keep=1.0)  # the plan is all there is
        self.selection = selection or SelectionArguments()
        if not isinstance(self.selection, SelectionArguments):
            raise ConfigurationError(
                f"selection is {type(self.selection).__name__}; pass "
                "reducible.adapters.transformers.SelectionArguments(…)."
            )
        self._by_token = self.selection.token_keep is not None
        rule = self.selection.selector if rule is None else rule
        self._rule = selector(rule) if isinstance(rule, str) else rule
        self._store: Any = self.selection.opened_store() if store is None else store
        self._task, self._plan = task, plan
        self._options = dict(loader_options or {})
        self.batches: SelectingLoader | None = None
        self.metrics: SelectionMetrics | None = None
        self._forget()
        super().__init__(*args, **kwargs)
        given.check(self, self._store, self._plan, by_token=self._by_token)
        if self.train_dataset is not None:
            self._candidates()  # what cannot work is told now

    def score_irreducible_loss(
        self, model: nn.Module, **options: Any
    ) -> IrreducibleLossStore | TokenLossStore:
        """Scores the training set with a model as it stands, and chooses by that from now on.

        The rows are those that the Trainer trains on, after all that it does to the data set.

        Args:
            model: a pretrained one, such as a smaller or older one, of the same tokenizer; never
                trained on these rows.
            options: of ``reducible.score_irreducible_loss``, or of its like for tokens.

        Returns:
            The losses, to be saved and passed as ``store=`` the next time.
        """
        rows, collate = given.rows_of(self, self.selection.ids_column)
        model = model.to(self.args.device)
        score: Any = score_token_irreducible_loss if self._by_token else score_irreducible_loss
        self._store = score(model, rows, task=self.task, collate_fn=collate, **options)
        return self._store

    # -- hooks ---------------------------------------------------------------------------------

    def _inner_training_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._forget()
        return super()._inner_training_loop(*args, **kwargs)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """A loader that keeps the time: so many batches an epoch as without selection.

        The Trainer counts epochs, updates and what to skip on resuming by it; its batches are
        numbers. What is trained on comes from ``get_batch_samples``.
        """
        if self.train_dataset is None:
            raise ValueError("Trainer: training requires a train_dataset.")
        self._loader = self._candidates()
        if isinstance(self.train_dataset, IterableDataset):
            ticks: Any = given.Ticks()
        else:
            ticks = range(self._planned_rows())
        clock = DataLoader(ticks, batch_size=self._train_batch_size, drop_last=True)
        return self.accelerator.prepare(clock)

    def num_examples(self, dataloader: DataLoader[Any]) -> int:
        """Rows of the data set, whatever the loader that keeps the time says."""
        if isinstance(dataloader.dataset, range):
            return self._rows
        return super().num_examples(dataloader)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], Any]:
        """The micro-batches of one update, chosen together, and the items in them."""
        for _ in range(num_batches):
            try:
                next(epoch_iterator)
            except StopIteration:
                return [], None
        chosen = next(self._stream())
        parts = micro_batches(chosen, num_batches, self.task)
        batches = [part.batch for part in parts]
        self._pending.extend(parts)
        weighted = bool((chosen.weights != 1).any())
        own = (self.compute_loss_func or self.label_smoother) is not None
        if own and (weighted or self._by_token):
            raise ConfigurationError(
                "rows are weighed or tokens chosen, and the trainer has a loss of its own "
                "(compute_loss_func, label_smoothing_factor) that takes no weights. Leave it out."
            )
        self._own_loss = self._by_token or weighted
        if self._tokens is not None:
            self._scale = self._token_scale(batches)
        return batches, self._get_num_items_in_batch(batches, device)

    def training_step(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """The trainer's own, which learns which rows it is given."""
        self._part = self._pending.popleft()
        if self._own_loss:
            # The loss made here is a mean, so the trainer is to divide it by the accumulation.
            args, kwargs = (), {"num_items_in_batch": None}
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            self._part = None

    def compute_loss(self, model: nn.Module, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own, unless rows have weights or tokens are chosen."""
        part = self._part
        if part is not None and self._remembers and not self._own_loss:
            return self._remembered_loss(model, inputs, part, *args, **kwargs)
        if part is None or not self._own_loss:
            return super().compute_loss(model, inputs, *args, **kwargs)
        task = self.task
        labels = task.targets(inputs)
        outputs = model(**{k: v for k, v in inputs.items() if k != "labels"})
        if self._tokens is not None:
            losses = token_losses(outputs.logits, labels)  # pyright: ignore[reportArgumentType]
            chosen = self._tokens.chosen(losses, labels, part.ids)  # pyright: ignore[reportArgumentType]
            loss = (losses * chosen).sum() * self._scale
        else:
            each = task.loss(outputs.logits, labels)  # pyright: ignore[reportArgumentType]
            if self._remembers and self.batches is not None:
                self.batches.remember(part.ids, each)
            loss = weighted_mean(each, part.weights.to(each))
        return (loss, outputs) if kwargs.get("return_outputs") else loss

    def _remembered_loss(
        self, model: nn.Module, inputs: Any, part: MicroBatch, *args: Any, **kwargs: Any
    ) -> Any:
        """The trainer's own loss; those of the rows are told to the loop."""
        wanted, labels = kwargs.pop("return_outputs", False), self.task.targets(inputs)
        made: Any = super().compute_loss(model, inputs, *args, return_outputs=True, **kwargs)
        loss, outputs = made
        with torch.no_grad():
            each = self.task.loss(outputs.logits, labels)  # pyright: ignore[reportArgumentType]
        if self.batches is not None:
            self.batches.remember(part.ids, each)
        return (loss, outputs) if wanted else loss

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """The trainer's own; its time is not charged to training."""
        if self.batches is None:
            return super().evaluate(*args, **kwargs)
        with self.batches.ledger.phase("evaluate"):
            return super().evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's own, with what was chosen since the last time."""
        if self.selection.log_selection and "loss" in logs:
            told = self._tokens if self.metrics is None else self.metrics
            logs |= told.take() if told is not None else {}
        super().log(logs, *args, **kwargs)

    def _save_checkpoint(self, model: nn.Module, trial: Any, *args: Any, **kwargs: Any) -> None:
        super()._save_checkpoint(model, trial, *args, **kwargs)
        if self.batches is not None and not self.args.save_only_model:
            folder = Path(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            folder.mkdir(parents=True, exist_ok=True)
            state = {"batches": self.batches.state_dict(), "tokens": None}
            if self._tokens is not None:
                state["tokens"] = self._tokens.state_dict()
            checkpoints.write(folder / self._file, state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and not self.args.ignore_data_skip:
            self._resume_from = Path(checkpoint) / self._file

    # -- what they are made of -----------------------------------------------------------------

    def _forget(self) -> None:
        """Nothing was begun."""
        self._loader: Any = None
        self._chosen: Iterator[Chosen] | None = None
        self._pending: deque[MicroBatch] = deque()  # that wait for their training steps
        self._part: MicroBatch | None = None  # that is trained on
        self._own_loss = False  # whether its loss is made here, not by the trainer
        self._scale = 1.0  # of a loss that is a sum over tokens
        self._tokens: TokenSelection | None = None
        self._resume_from: Path | None = None

    @property
    def task(self) -> Task:
        """The task: what batches mean."""
        if self._task is None:
            self._task = given.task_of(self.model)
        return self._task

    @property
    def _remembers(self) -> bool:
        """Whether the losses of training stand for scoring, now or in the next epoch."""
        by_epoch = self._rule.horizon != "batch" and "loss" in self._rule.needs
        return by_epoch or self.selection.max_age > 0

    @property
    def _file(self) -> str:
        return f"selection-{self.args.process_index}.safetensors"

    @property
    def _rows(self) -> int:
        return len(self.train_dataset)  # pyright: ignore[reportArgumentType]

    @property
    def _n_b(self) -> int:
        """Rows of an update, on this process."""
        return self._train_batch_size * self.args.gradient_accumulation_steps

    def _planned_rows(self) -> int:
        """Rows of an epoch as the loader counts them that keeps the time: of whole updates."""
        each = self._train_batch_size * self.args.world_size
        drop, parts = self.args.dataloader_drop_last, self.args.gradient_accumulation_steps
        return each * planned_batches(self._rows, each, parts, drop_last=drop)

    def _candidates(self) -> DataLoader[Any]:
        """The loader of candidates on this process."""
        args, chosen = self.args, self.selection
        dataset: Any = self.train_dataset
        column = chosen.ids_column
        options = {
            "num_workers": args.dataloader_num_workers,
            "pin_memory": args.dataloader_pin_memory and torch.cuda.is_available(),
            "persistent_workers": args.dataloader_persistent_workers,
            "prefetch_factor": args.dataloader_prefetch_factor,
        }
        keep = 1.0 if self._by_token else chosen.keep
        size = math.floor(self._n_b / keep + 0.5)
        if isinstance(dataset, IterableDataset):
            mine, collate = given.streamed(self, column)
            return DataLoader(mine, size, collate_fn=collate, **options)
        rows, collate = given.rows_of(self, column)
        seed = args.seed if args.data_seed is None else args.data_seed
        sampler = None
        if self._plan is not None:
            sampler = self._plan.sampler(rows, generator=torch.Generator().manual_seed(seed))
        elif getattr(args, "train_sampling_strategy", "random") != "random":
            sampler = self._get_train_sampler(rows.dataset)
        return candidate_loader(
            rows,
            size,
            seed=seed,
            rank=args.process_index,
            ranks=args.world_size,
            sampler=sampler,
            collate_fn=collate,
            **options,
        )

    def _stream(self) -> Iterator[Chosen]:
        """Yields what is chosen, pass after pass; made when the model is where it trains."""
        if self._chosen is not None:
            return self._chosen
        chosen, args = self.selection, self.args
        seed = args.seed if chosen.selection_seed is None else chosen.selection_seed
        rule, store = self._rule, self._store
        if store is None and "irreducible_loss" in rule.needs and not self._options:
            raise ConfigurationError(
                "the rule reads irreducible losses, and there are none. Pass store=, name a file "
                "with SelectionArguments(irreducible_loss=…), or call "
                "trainer.score_irreducible_loss(model) before trainer.train()."
            )
        if self._by_token:
            share = chosen.token_keep or 1.0
            self._tokens = TokenSelection(rule, keep=share, store=store, seed=seed)
            rule, store = selector("uniform"), None
        options: dict[str, Any] = {
            "seed": seed,
            "total_steps": self.state.max_steps,
            "optimizer": self.optimizer,
            "scoring": chosen.scoring,
            **self._options,
        }
        if chosen.log_selection and not self._by_token:
            record = options.setdefault("record", SelectionMetrics(store=store))
            self.metrics = record if isinstance(record, SelectionMetrics) else None
            # A shadow has every candidate loaded, which a rule that draws blindly saves.
            if not rule.sometimes_blind and options.get("gate") is None:
                options.setdefault("shadows", {"chance": selector("uniform")})
        model: Any = self.model_wrapped if self.is_deepspeed_enabled else self.model
        made = SelectingLoader(
            self._loader, model, rule, keep=self._n_b, store=store, task=self.task, **options
        )
        if self.metrics is not None:
            self.metrics.ledger = made.ledger
        if self._resume_from is not None:
            given.take_over(self._resume_from, made, self._tokens)
        self.batches = made
        self._chosen = endless(made)
        return self._chosen

    def _token_scale(self, batches: list[Any]) -> float:
        """What a sum over chosen tokens is multiplied by, to be their mean over the update.

        The trainer divides by the accumulation and averages over processes: that is undone.
        """
        assert self._tokens is not None
        count = sum(self._tokens.count(self.task.targets(batch)) for batch in batches)  # pyright: ignore[reportArgumentType]
        if self.args.world_size > 1:
            here = torch.tensor(count, device=self.args.device)
            everywhere: Any = self.accelerator.gather(here)
            count = int(everywhere.sum())
        return len(batches) * self.args.world_size / max(1, count)


class SelectionTrainer(SelectionMixin, Trainer):
    """Hugging Face's Trainer, which chooses what it trains on; see ``SelectionMixin``."""
