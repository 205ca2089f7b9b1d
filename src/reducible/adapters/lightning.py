"""Selection in Lightning: a loader that hands out what is chosen, and a callback that logs it."""

from __future__ import annotations

import math
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, final

from torch import Tensor, nn
from torch.utils.data import DataLoader

from reducible.adapters.planned import PlannedLoader
from reducible.loop import Chosen
from reducible.selectors import Selector
from reducible.tasks import Outputs, Task
from reducible.types import ConfigurationError, require_one_of


def _lightning() -> Any:
    """The package of the two that is imported already, or that is there."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return import_module(name)
        except ImportError:
            continue
    raise ImportError(
        "reducible.adapters.lightning needs Lightning: pip install 'reducible[lightning]'"
    )


if TYPE_CHECKING:
    from pytorch_lightning import Callback, LightningModule
else:
    Callback = _lightning().Callback


@final
class SelectionLoader(PlannedLoader):
    """A train loader whose batches are chosen: ``trainer.fit(module, SelectionLoader(…))``.

    The module stays as it is: its ``training_step`` gets batches of the loader's own structure and
    size, as many an epoch as without selection. The state goes into Lightning's checkpoints.

    Args:
        module: is trained; its ``forward`` makes the logits that candidates are scored by.
        loader: a DataLoader as it is without selection.
        rule: a rule, or its name.
        keep: share of the candidates to train on, in (0, 1].
        hands_out: ``"batch"``, or ``"chosen"``: a ``Chosen``, with ids and weights beside the
            batch, for rules that weigh rows or remember losses.
        options: see ``PlannedLoader``: ``store``, ``task``, ``seed``, and those of SelectingLoader.
    """

    def __init__(
        self,
        module: LightningModule,
        loader: DataLoader[Any],
        rule: Selector | str,
        *,
        keep: float,
        hands_out: Literal["batch", "chosen"] = "batch",
        **options: Any,
    ) -> None:
        super().__init__(module, loader, rule, keep=keep, **options)
        require_one_of("hands_out", hands_out, ("batch", "chosen"))
        self._module, self._hands_out = module, hands_out

    @property
    def accumulated(self) -> int:
        """Batches that an update is made of: what the trainer accumulates."""
        trainer = self._module._trainer
        return 1 if trainer is None else trainer.accumulate_grad_batches

    def _late_options(self) -> dict[str, Any]:
        trainer = self._module._trainer
        options: dict[str, Any] = {"task": _InPrecision(self.task, self._module)}
        if trainer is not None and math.isfinite(trainer.estimated_stepping_batches):
            options["total_steps"] = int(trainer.estimated_stepping_batches)
        return options

    def _handed_out(self, part: Chosen) -> Any:
        if self._hands_out == "chosen":
            return part
        if bool((part.weights != 1).any()):
            raise ConfigurationError(
                "the rule weighs the rows that it chooses, and the module does not hear of it. "
                "Pass hands_out='chosen', and let training_step take chosen.batch and "
                "reducible.weighted_mean(losses, chosen.weights)."
            )
        return part.batch


class _InPrecision(Task):
    """A task that runs the module as the trainer runs it: autocast, or in half precision."""

    def __init__(self, task: Task, module: LightningModule) -> None:
        self._task, self._module = task, module
        self.gives, self.needs_targets = task.gives, task.needs_targets

    def targets(self, batch: Any) -> Tensor | None:
        return self._task.targets(batch)

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        trainer = self._module._trainer
        if trainer is None:
            return self._task.forward(model, batch, features=features)
        plugin = trainer.precision_plugin
        with plugin.forward_context():
            return self._task.forward(model, plugin.convert_input(batch), features=features)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._task.loss(logits, targets)

    def labels(self, targets: Tensor) -> Tensor:
        return self._task.labels(targets)

    def unpadded(self, batch: Any) -> Any:
        return self._task.unpadded(batch)

    def side_by_side(self, logits: Tensor, targets: Tensor) -> Tensor:
        return self._task.side_by_side(logits, targets)

    def logits_of(self, output: Any) -> Tensor | None:
        return self._task.logits_of(output)


@final
class SelectionCallback(Callback):
    """Logs what is chosen to the trainer's loggers, and keeps validation out of its costs.

    Args:
        loader: whose choices are logged, every ``log_every_n_steps`` of the trainer.
    """

    def __init__(self, loader: SelectionLoader) -> None:
        self._loader = loader

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        """Logs the figures since the last time."""
        step = trainer.global_step
        due = trainer.log_every_n_steps and step % trainer.log_every_n_steps == 0
        if due and trainer.loggers and (figures := self._loader.metrics.take()):
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=step)

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """From here time is charged to evaluation."""
        if self._loader.batches is not None:
            self._loader.batches.ledger.phase("evaluate").__enter__()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """From here it is not."""
        if self._loader.batches is not None:
            self._loader.batches.ledger.phase("evaluate").__exit__(None, None, None)
