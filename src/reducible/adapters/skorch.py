"""Selection in skorch's nets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn

from reducible.adapters.planned import PlannedLoader
from reducible.loop import Chosen, weighted_mean
from reducible.tasks import PerExampleLoss, Task
from reducible.types import ConfigurationError

try:
    from skorch import NeuralNet
    from skorch.dataset import unpack_data
except ImportError as error:
    raise ImportError(
        "reducible.adapters.skorch needs skorch: pip install 'reducible[skorch]'"
    ) from error

if TYPE_CHECKING:
    _Base = NeuralNet  # what it is mixed into
else:
    _Base = object


class SelectionMixin(_Base):
    """Makes a net of skorch's choose what it trains on: ``class Net(SelectionMixin, NeuralNet…)``.

    ``batch_size`` stays what an update trains on; candidates are scored by the net's own criterion.
    Ids are positions in the data that are passed to ``fit``, before a validation set is split off.

    Args:
        args: of the net.
        selection_rule: a rule, or its name.
        selection_keep: share of the candidates to train on, in (0, 1].
        selection_store: irreducible losses, for rules that read them.
        selection_task: what batches (X, y) mean, for rules that read more than losses; by default
            losses come from the net's own criterion.
        selection_seed: of the order and of every choice.
        selection_options: of SelectingLoader, such as ``{"gate": "auto"}``.
        kwargs: of the net.

    Attributes:
        selection_: the loader, once fitting has begun; its ``state_dict`` is what is to be saved
            beside the net's parameters.
    """

    def __init__(
        self,
        *args: Any,
        selection_rule: Any = "rho",
        selection_keep: float = 0.1,
        selection_store: Any = None,
        selection_task: Task | None = None,
        selection_seed: int = 0,
        selection_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self.selection_rule, self.selection_keep = selection_rule, selection_keep
        self.selection_store, self.selection_task = selection_store, selection_task
        self.selection_seed, self.selection_options = selection_seed, selection_options
        super().__init__(*args, **kwargs)

    def get_iterator(self, dataset: Any, training: bool = False) -> Any:
        """The net's own; chosen batches if it is for training."""
        loader = super().get_iterator(dataset, training=training)
        if not training:
            return loader
        task = self.selection_task or PerExampleLoss(self._losses, targets_of=_labels)
        made = _Loader(
            self.module_,
            loader,
            self.selection_rule,
            keep=self.selection_keep,
            store=self.selection_store,
            task=task,
            seed=self.selection_seed,
            **(self.selection_options or {}),
        )
        if getattr(self, "selection_", None) is not None and self.selection_.batches is not None:
            made.load_state_dict(self.selection_.state_dict())  # partial_fit goes on
        self.selection_ = made
        return made

    def train_step_single(self, batch: Any, **fit_params: Any) -> dict[str, Any]:
        """The net's own, with each row's weight if the rule weighs them."""
        if not isinstance(batch, _Weighted):
            return super().train_step_single(batch, **fit_params)
        self._set_training(True)
        inputs, targets = unpack_data(tuple(batch))
        output = self.infer(inputs, **fit_params)
        loss = weighted_mean(self._by_example(output, targets), batch.weights)
        loss.backward()
        return {"loss": loss, "y_pred": output}

    def _losses(self, module: nn.Module, batch: Any) -> Tensor:
        """[B] losses by the net's criterion, as ``train_step_single`` makes their mean."""
        inputs, targets = unpack_data(batch)
        return self._by_example(self.infer(inputs), targets)

    def _by_example(self, output: Any, targets: Any) -> Tensor:
        criterion: Any = self.criterion_
        if not hasattr(criterion, "reduction"):
            raise ConfigurationError(
                f"{type(criterion).__name__} gives no loss by example: it has no reduction. Pass "
                "selection_task=…, and a rule that does not weigh rows."
            )
        reduction, criterion.reduction = criterion.reduction, "none"
        try:
            loss = self.get_loss(output, targets, training=False)
        finally:
            criterion.reduction = reduction
        return loss.flatten(1).mean(1) if loss.dim() > 1 else loss


class _Weighted(tuple[Any, ...]):
    """A batch (X, y) whose rows have weights."""

    weights: Tensor


@final
class _Loader(PlannedLoader):
    """Hands out batches as the net knows them."""

    def _handed_out(self, part: Chosen) -> Any:
        if not bool((part.weights != 1).any()):
            return part.batch
        made = _Weighted(part.batch)
        made.weights = part.weights
        return made


def _labels(batch: Any) -> Tensor:
    found = unpack_data(batch)[1]
    return found if isinstance(found, Tensor) else torch.as_tensor(found)
