"""Models that score beside the one being trained, and learn along with it."""

from __future__ import annotations

import copy
import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Self, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reducible.measure import Scoring, measure
from reducible.tasks import Classification, SequenceClassification, Task, per_example
from reducible.types import Candidates, ConfigurationError, DataError, require_between


@final
class CoTrained:
    """A model with an optimizer of its own, stepped by the loop on every chosen batch.

    Args:
        model: on the device of the model being trained.
        optimizer: over the model's parameters.
        lead: take the learning rate of this optimizer at every step, times ``lr_ratio``.
        lr_ratio: see ``lead``.
        distil: learn the predictions of the model being trained in place of the labels: its
            softmax on the chosen rows, as the loop overhears it in training, see ``Overheard``.
            Where nothing is overheard, the model is run once more on them.
        trunk: gives ``model`` its inputs [B, D]; is run as scoring runs a model, without a trace,
            and does not learn. See ``early_exit``.

    Attributes:
        model: what scores: the model, behind its trunk where it has one.
        distil: whether it learns predictions.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        lead: torch.optim.Optimizer | None = None,
        lr_ratio: float = 1.0,
        distil: bool = False,
        trunk: nn.Module | None = None,
    ) -> None:
        self.model = model if trunk is None else _Behind(trunk, model)
        self._learns = model
        self._optimizer = optimizer
        self._lead = lead
        self._lr_ratio = lr_ratio
        self.distil = distil
        self._trunk = trunk

    @classmethod
    def following(
        cls,
        model: nn.Module,
        lead: torch.optim.Optimizer,
        *,
        lr_ratio: float,
        distil: bool = False,
    ) -> CoTrained:
        """With an optimizer of the lead's class and settings, at lr_ratio × its rate."""
        make: Any = type(lead)
        try:
            # Defaults may hold what the class sets by itself, such as AdamW's decoupled decay.
            known = inspect.signature(make).parameters
            settings = {name: v for name, v in lead.defaults.items() if name in known}
            optimizer = make(model.parameters(), **settings)
        except (TypeError, ValueError) as error:
            raise ConfigurationError(
                f"cannot make another {type(lead).__name__} for the irreducible-loss model "
                f"({error}). Give the loop one of torch.optim's optimizers."
            ) from error
        return cls(model, optimizer, lead=lead, lr_ratio=lr_ratio, distil=distil)

    def step(
        self,
        task: Task,
        batch: Any,
        weights: Tensor,
        *,
        trained: nn.Module | None = None,
        scoring: Scoring | None = None,
        predictions: Tensor | None = None,
    ) -> None:
        """One update on the chosen batch: Σ w_i·L_i / K. Leaves the model in eval mode.

        Args:
            task: what the batch means.
            batch: the K chosen rows.
            weights: [K].
            trained: the model being trained, which ``distil`` needs; stays as it is.
            scoring: how it, and a trunk, are run.
            predictions: [K, C], the model's softmax on these rows, where it is known already.
        """
        if self._lead is not None:
            rate = self._lead.param_groups[0]["lr"] * self._lr_ratio
            for group in self._optimizer.param_groups:
                group["lr"] = rate
        scoring = scoring or Scoring()
        targets = predictions if self.distil else task.targets(batch)
        if targets is None:
            targets = self._predictions(task, batch, trained, scoring, len(weights))
        self._learns.train()
        device = weights.device
        devices = [] if device.type == "cpu" else [device]
        with torch.enable_grad(), torch.random.fork_rng(devices, device_type=device.type):
            if self._trunk is None:
                logits = task.forward(self._learns, batch).logits  # [K, C]
            else:
                inputs = _outputs(self._trunk, task, batch, scoring, len(weights))  # [K, D]
                logits = self._learns(inputs)
            loss = _cross_entropy(logits, targets) if self.distil else task.loss(logits, targets)
            loss = per_example(loss, len(weights))  # [K]
            self._optimizer.zero_grad()
            (loss * weights).mean().backward()
        self._optimizer.step()
        self._learns.eval()

    def _predictions(
        self, task: Task, batch: Any, trained: nn.Module | None, scoring: Scoring, rows: int
    ) -> Tensor:
        """[K, C]: the probabilities that the trained model gives."""
        if not self.distil:
            raise DataError("the task has no targets, so the scorer cannot be trained.")
        if trained is None:
            raise ConfigurationError("a distilled scorer learns from a model: pass trained=<it>.")
        whole = replace(scoring, resolution=None, max_length=None)
        return _outputs(trained, task, batch, whole, rows).softmax(1)

    def state_dict(self) -> dict[str, Any]:
        """Weights, buffers and the optimizer's state; a trunk's are not its own to save."""
        parts = {"model": self._learns.state_dict(), "optimizer": self._optimizer.state_dict()}
        return copy.deepcopy(parts)  # the originals move with the next step

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over weights, buffers and the optimizer's state."""
        self._learns.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])


def _cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """−Σ_c p_i(c) log q_i(c): [K] of q's logits and p, both [K, C]."""
    if logits.shape != probabilities.shape:
        raise ConfigurationError(
            f"the scorer gives {tuple(logits.shape)}, the model it is to learn from "
            f"{tuple(probabilities.shape)}: make it with as many classes."
        )
    return -(probabilities * logits.log_softmax(1)).sum(1)


def _outputs(model: nn.Module, task: Task, batch: Any, scoring: Scoring, rows: int) -> Tensor:
    """[K, ·] what ``model`` gives in its scoring mode; an ordinary tensor, without a graph."""
    norm = "candidates" if scoring.batchnorm == "reference" else scoring.batchnorm  # moves nothing
    scoring = replace(scoring, batchnorm=norm, compile=False)
    candidates = Candidates(torch.arange(rows), batch)
    found = measure(model, candidates, frozenset({"logits"}), scoring, task=task)
    return found.require("logits").clone()


@final
class Overheard:
    """What a model predicts of a batch in its training pass; listening costs no pass of its own.

    Heard is the first forward pass with gradients that gives logits of as many rows; scoring and
    evaluation are without gradients. Nothing is heard where rows come in smaller parts, where the
    task reads its logits in a way of its own, or from inside ``torch.compile``; a compiled model is
    heard where it is itself the one that is listened to.

    Args:
        model: the model being trained.
        task: what the batch means.
        batch: the rows.
        rows: K, their number.

    Attributes:
        predictions: [K, C] its softmax; None before the pass.
    """

    def __init__(self, model: nn.Module, task: Task, batch: Any, rows: int) -> None:
        self.predictions: Tensor | None = None
        self._task, self._batch, self._rows = task, batch, rows
        self._handle = model.register_forward_hook(_Ear(self))
        weakref.finalize(self, self._handle.remove).atexit = False

    def hear(self, output: Any) -> None:
        """Take in what the model returned, where it is of these rows; listens no longer then."""
        if not isinstance(self._task, Classification | SequenceClassification):
            return
        try:
            logits = self._task.forward(_Says(output), self._batch).logits.detach()
        except DataError:
            return
        if logits.dim() == 2 and logits.shape[0] == self._rows:
            self.predictions = logits.float().softmax(1)
            self._handle.remove()


class _Ear:
    """The hook of one who listens. Copies of the model and files of it have one that is deaf."""

    def __init__(self, listener: Overheard | None = None) -> None:
        self._listener = (lambda: None) if listener is None else weakref.ref(listener)

    def __call__(self, _module: nn.Module, _args: Any, output: Any) -> None:
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        listener = self._listener()
        if listener is not None:
            listener.hear(output)

    def __reduce__(self) -> tuple[Any, ...]:
        return _Ear, ()


@final
class _Says(nn.Module):
    """Stands in for a model that has run already."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self._output = output

    def forward(self, *_args: Any, **_kwargs: Any) -> Any:
        return self._output


def early_exit(
    model: nn.Module,
    at: str,
    *,
    num_classes: int,
    make_optimizer: Callable[[Any], torch.optim.Optimizer] = torch.optim.AdamW,
    width: int | None = None,
    grid: int = 1,
) -> CoTrained:
    """A scorer made of the first blocks of the model being trained and a linear head of its own.

    A pass runs the model up to the module ``at`` and no further. Its output, [B, D], [B, D, H, W]
    or [B, T, D], is averaged over places and positions, and a linear layer that is zero at the
    start makes logits of it. The loop steps the head on every chosen batch; the blocks are the
    model's, and learn with it alone.

    Args:
        model: the model being trained, on its device; what torch.compile or
            DistributedDataParallel put around it is left out.
        at: name of the last module that is run, as in ``model.named_modules()``.
        num_classes: C.
        make_optimizer: parameters of the head → optimizer.
        width: D; where None, that of the last layer with a known one that is defined up to ``at``.
        grid: of images, average the places of each of so many rows and columns apart: a head on
            D · grid² features, which knows where things are. Early blocks say little without.

    Raises:
        ConfigurationError: no such module, or nothing says how wide its output is.
    """
    require_between("num_classes", num_classes, 1, whole=True)
    model = _plain(model)
    trunk = _Truncated(model, at, width, grid)
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    # Skipping the initialisation draws nothing; zero is a fair start where the problem is convex.
    head = nn.utils.skip_init(nn.Linear, trunk.width * grid**2, num_classes, device=device)
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return CoTrained(head, make_optimizer(head.parameters()), trunk=trunk)


def _plain(model: nn.Module) -> nn.Module:
    """The model itself, out of its wrappers."""
    while True:
        inner = getattr(model, "_orig_mod", None)  # of torch.compile
        if isinstance(model, DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model
        model = inner


def _width(model: nn.Module, at: str) -> int:
    """Of the last layer that has one among those defined up to the end of ``at``."""
    found = None
    inside = False
    for name, module in model.named_modules():
        inside |= name == at
        if inside and name != at and not name.startswith(f"{at}."):
            break
        for attribute in _WIDTHS:
            size = getattr(module, attribute, None)
            size = size[-1] if isinstance(size, tuple) else size
            found = size if isinstance(size, int) else found
    if found is None:
        raise ConfigurationError(
            f"no layer up to {at!r} says how wide its output is: pass width=<its channels>."
        )
    return found


_WIDTHS = ("out_features", "out_channels", "num_features", "normalized_shape", "embedding_dim")


class _ModeOf(nn.Module):
    """A module that is in the mode of another one, and never sets it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    @property
    def training(self) -> bool:
        """As the other one's; what scoring takes for frozen depends on it."""
        return self.inner.training

    @training.setter
    def training(self, value: bool) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        pass

    def train(self, mode: bool = True) -> Self:
        """Does nothing."""
        return self


@final
class _Behind(_ModeOf):
    """A head behind a trunk."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__(trunk)
        self.head = head

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        features = self.inner(*args, **kwargs)  # [B, D]
        return self.head(features)


@final
class _Truncated(_ModeOf):
    """The first part of a model: the pooled output of one of its modules, float32.

    [B, D], or [B, D · grid²] where that is of images.
    """

    def __init__(self, model: nn.Module, at: str, width: int | None, grid: int) -> None:
        super().__init__(model)
        names = [name for name, _ in model.named_modules() if name]
        if at not in names:
            raise ConfigurationError(
                f"at={at!r} is no module of the model: name one of {', '.join(names)}."
            )
        self._at = at
        self.width = _width(model, at) if width is None else width
        require_between("width", self.width, 1, whole=True)
        require_between("grid", grid, 1, whole=True)
        self._grid = grid

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        hook = self.inner.get_submodule(self._at).register_forward_hook(_stop)
        try:
            self.inner(*args, **kwargs)
        except _Reached as reached:
            return self._checked(_pooled(reached.output, self._at, self._grid))
        finally:
            hook.remove()
        raise ConfigurationError(
            f"the model's forward pass never came to {self._at!r}: name a module that it calls."
        )

    def _checked(self, pooled: Tensor) -> Tensor:
        width = pooled.shape[1] // self._grid**2
        if width != self.width:
            raise ConfigurationError(
                f"the output of {self._at!r} is {width} wide, the head was made for "
                f"{self.width}: early_exit(…, width={width})."
            )
        return pooled


class _Reached(Exception):
    """Carries the output of the module that a pass was to stop at."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


def _stop(_module: nn.Module, _args: Any, output: Any) -> None:
    raise _Reached(output)


def _pooled(output: Any, at: str, grid: int) -> Tensor:
    """[B, D] float32 of [B, D] or [B, T, D], [B, D · grid²] of [B, D, H, W]; or of a tuple's first.

    Raises:
        ConfigurationError: an output of another kind, or without rows and columns for a grid.
    """
    if isinstance(output, tuple) and output:
        output = output[0]
    if not isinstance(output, Tensor) or output.dim() not in (2, 3, 4):
        got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise ConfigurationError(
            f"the output of {at!r} is {got}; [B, D], [B, D, H, W] or [B, T, D] was expected. Name "
            "another module."
        )
    output = output.detach().float()
    if output.dim() == 4:
        return F.adaptive_avg_pool2d(output, grid).flatten(1)
    if grid > 1:
        raise ConfigurationError(
            f"the output of {at!r} is {tuple(output.shape)}, without rows and columns for "
            f"grid={grid}: leave grid=1."
        )
    return output.mean(1) if output.dim() == 3 else output
