"""Tasks: how to get inputs, labels, logits, features and per-example losses from (model, batch)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, final
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducible.loading.labels import class_labels
from reducible.types import DataError, require_between

_TARGET_KEYS = ("labels", "label", "targets", "target", "y")
_INPUT_KEYS = ("inputs", "input", "x", "image", "images", "pixel_values")
_TOKEN_KEYS = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
_NO_LABEL_IS_IGNORED = -(2**62)

Field = str | int | Callable[[Any], Any]
"""Place of something in a batch: a key, a position, or a function of the batch."""


class Outputs(NamedTuple):
    """Results of a forward pass."""

    logits: Tensor  # [B, C]
    features: Tensor | None  # [B, D] input of the last linear layer, if asked for


class Task(ABC):
    """Runs a model on a batch, and says what its loss is, example by example."""

    @abstractmethod
    def targets(self, batch: Any) -> Tensor | None:
        """[B] int64 labels of the batch; None if the task has none."""

    @abstractmethod
    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """Run the model in the mode it is in; features only if asked for."""

    @abstractmethod
    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B] loss of each example."""

    def unpadded(self, batch: Any) -> Any:
        """``batch`` without padding that no row needs; as it is if there is none."""
        return batch

    def logits_of(self, output: Any) -> Tensor | None:
        """[B, C] logits in what a model returned by itself, in a pass that the task did not make.

        So a scorer can learn from the training pass. None, as here, for a task that reads outputs
        in a way of its own: the model is then run once more.

        Raises:
            DataError: an output without logits.
        """
        return None

    def side_by_side(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, M] loss of each example under each of M logits, [B, C, M]."""
        rows, _, several = logits.shape
        flat = logits.transpose(1, 2).flatten(0, 1)  # [B·M, C]
        loss = self.loss(flat, targets.repeat_interleave(several))
        return per_example(loss, rows * several).view(rows, several)


class _CrossEntropy(Task):
    """Single-label classification by cross-entropy; how the model is called is left open."""

    def __init__(
        self, *, targets: Field | None, features: str | None, label_smoothing: float
    ) -> None:
        require_between("label_smoothing", label_smoothing, 0.0, 1.0, open_high=True)
        self._targets = targets
        self._features = features
        self._smoothing = label_smoothing
        self._heads: WeakKeyDictionary[nn.Module, nn.Module] = WeakKeyDictionary()

    @abstractmethod
    def _call(self, model: nn.Module, batch: Any) -> Any:
        """Returns what the model returns for the inputs of the batch."""

    def targets(self, batch: Any) -> Tensor:
        """[B] int64 labels, of whole numbers [B] or [B, 1]."""
        found = self._find_targets(batch)
        return class_labels(
            found, f"Other labels are named as {self._name}(targets=<key, position or function>)."
        )

    def _find_targets(self, batch: Any) -> Any:
        if self._targets is not None:
            return _get(batch, self._targets, "targets")
        if isinstance(batch, tuple | list):
            if len(batch) == 2:
                return batch[1]
        elif isinstance(batch, Mapping):
            key = next((k for k in _TARGET_KEYS if k in batch), None)
            if key is not None:
                return batch[key]
        raise DataError(
            f"cannot find the labels in a batch of {_describe(batch)}. Name them: "
            f"{self._name}(targets=<key, position or function>)."
        )

    def forward(self, model: nn.Module, batch: Any, *, features: bool = False) -> Outputs:
        """Logits [B, C], and the input of the last linear layer [B, D] if asked for."""
        if not features:
            return Outputs(_logits(self._call(model, batch)), None)
        head = self._head(model, batch)
        caught: list[Tensor] = []
        hook = head.register_forward_pre_hook(lambda _, args: caught.append(args[0]))
        try:
            logits = _logits(self._call(model, batch))
        finally:
            hook.remove()
        found = self._pooled(caught[-1], batch) if caught else None
        if found is None or found.dim() != 2:
            shape = "nothing" if found is None else tuple(found.shape)
            raise DataError(
                f"the last linear layer saw {shape}, not [B, D]. Name the layer whose input are "
                f"the features: {self._name}(features='<module name>')."
            )
        return Outputs(logits, found)

    def logits_of(self, output: Any) -> Tensor:
        """A tensor itself, its ``.logits``, or the first entry of a tuple: [B, C]."""
        return _logits(output)

    def _pooled(self, seen: Tensor, batch: Any) -> Tensor:
        """One row per example of what a layer took in or put out."""
        return seen

    def _head(self, model: nn.Module, batch: Any) -> nn.Module:
        """The last linear layer: by name, or the one whose output are the logits."""
        if self._features is not None:
            try:
                return model.get_submodule(self._features)
            except AttributeError as error:
                raise DataError(f"the model has no module {self._features!r}: {error}") from error
        if model in self._heads:
            return self._heads[model]
        made: list[tuple[nn.Module, int, int]] = []

        def note(module: nn.Module, _: Any, out: Tensor) -> None:
            # The size too: what was let go of may lie where the logits lie now.
            made.append((module, out.data_ptr(), out.numel()))

        logits = self._call_watched(model, batch, note)
        here = (logits.data_ptr(), logits.numel())
        found = next((module for module, *at in reversed(made) if tuple(at) == here), None)
        if found is None and made:
            found = self._head_before_pooling(model, batch, made[-1][0])
        if found is not None:
            self._heads[model] = found
            return found
        raise DataError(
            "no nn.Linear of the model puts out the logits, so the features cannot be found. "
            f"Name the layer whose input they are: {self._name}(features='<module name>')."
        )

    def _call_watched(
        self, model: nn.Module, batch: Any, watch: Callable[[nn.Module, Any, Tensor], None]
    ) -> Tensor:
        """The logits of a pass whose linear layers are watched."""
        linear = [module for module in model.modules() if isinstance(module, nn.Linear)]
        hooks = [module.register_forward_hook(watch) for module in linear]
        try:
            return _logits(self._call(model, batch))
        finally:
            for hook in hooks:
                hook.remove()

    def _head_before_pooling(
        self, model: nn.Module, batch: Any, last: nn.Module
    ) -> nn.Module | None:
        """The linear layer that ran last, if the logits are pooled from its output."""
        return None

    @property
    def _name(self) -> str:
        return type(self).__name__

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """−log softmax(z_i)[y_i]: [B]."""
        try:
            return F.cross_entropy(
                logits,
                targets,
                reduction="none",
                label_smoothing=self._smoothing,
                ignore_index=_NO_LABEL_IS_IGNORED,
            )
        except (IndexError, RuntimeError, ValueError) as error:
            raise DataError(self._why(logits, targets)) from error

    def side_by_side(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[B, M] from [B, C, M]: a tenth of the time that B·M rows would take."""
        return self.loss(logits, targets.unsqueeze(1).expand(-1, logits.shape[2]))

    def _why(self, logits: Tensor, targets: Tensor) -> str:
        if logits.dim() != 2 or logits.shape[0] != targets.shape[0]:
            return (
                f"the model gave logits of shape {tuple(logits.shape)} for {targets.shape[0]} "
                "labels; [B, C] was expected."
            )
        outside = targets[(targets < 0) | (targets >= logits.shape[1])].unique()
        return (
            f"labels outside [0, {logits.shape[1]}): {outside[:5].tolist()}. The model has "
            f"{logits.shape[1]} classes; number the classes from 0, and leave out rows that are "
            "marked to be ignored."
        )


@final
class Classification(_CrossEntropy):
    """Single-label classification by cross-entropy.

    Batches are ``(inputs, targets)`` pairs or mappings; what is not named is found: the targets
    under one of labels, label, targets, target, y; the inputs under inputs, input, x, image,
    images, pixel_values, else all that is not the target is passed to the model by keyword.

    Args:
        inputs: key, position or function of the batch.
        targets: the same, for the labels.
        features: name of the last linear layer; found by a trial pass if None.
        label_smoothing: of the cross-entropy, in [0, 1).
    """

    def __init__(
        self,
        *,
        inputs: Field | None = None,
        targets: Field | None = None,
        features: str | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(targets=targets, features=features, label_smoothing=label_smoothing)
        self._inputs = inputs

    def _call(self, model: nn.Module, batch: Any) -> Any:
        if self._inputs is not None:
            return model(_get(batch, self._inputs, "inputs"))
        if isinstance(batch, tuple | list) and batch:
            return model(batch[0])
        if isinstance(batch, Mapping):
            key = next((k for k in _INPUT_KEYS if k in batch), None)
            if key is not None:
                return model(batch[key])
            return model(**{k: v for k, v in batch.items() if k not in _TARGET_KEYS})
        raise DataError(
            f"cannot find the inputs in a batch of {_describe(batch)}. Name them: "
            "Classification(inputs=<key, position or function>, targets=…)."
        )


@final
class SequenceClassification(_CrossEntropy):
    """Classification of texts, by models that take padded tokens by keyword.

    Such as ``AutoModelForSequenceClassification`` of transformers, or
    ``reducible.lab.encoders.minilm``. Batches are mappings with ``input_ids`` [B, T] int64,
    ``attention_mask`` [B, T], 1 at tokens and 0 at padding, and labels [B]; ``token_type_ids`` and
    ``position_ids`` go to the model too if they are there, and nothing else does. So the model
    makes no loss of its own, and texts or lengths may stand in the batch.

    Features are what the classifier layer takes in, pooled as the model does it: before the layer,
    or, if a causal model classifies every token, at the last token of each row.
    ``Scoring(max_length=…)`` cuts tokens and mask alike, to the start of each text if padding
    stands on the right; of rows padded on the left it would keep the padding.

    Args:
        targets: key or function of the batch, for the labels; found if None under one of
            labels, label, targets, target, y.
        features: name of the classifier layer; found by a trial pass if None.
        label_smoothing: of the cross-entropy, in [0, 1).
        pad_id: the token that pads, from which the mask is made if a batch has none.
    """

    def __init__(
        self,
        *,
        targets: Field | None = None,
        features: str | None = None,
        label_smoothing: float = 0.0,
        pad_id: int | None = None,
    ) -> None:
        super().__init__(targets=targets, features=features, label_smoothing=label_smoothing)
        if pad_id is not None:
            require_between("pad_id", pad_id, 0, whole=True)
        self._pad_id = pad_id

    def unpadded(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """``batch`` without the columns on the right that are padding in every row.

        Rows chosen from many candidates are padded to the longest of the candidates; cut to the
        longest of their own, they cost less to train on, and the model sees the same texts.
        """
        attended = self._tokens(batch)["attention_mask"]  # [B, T]
        columns = (attended != 0).any(dim=0).nonzero()  # [T', 1]
        longest = int(columns[-1]) + 1 if columns.numel() else 0
        padded = attended.shape
        return {
            k: v[:, :longest] if isinstance(v, Tensor) and v.shape == padded else v
            for k, v in batch.items()
        }

    def _tokens(self, batch: Any) -> dict[str, Tensor]:
        """Returns what the model is called with."""
        if not isinstance(batch, Mapping) or "input_ids" not in batch:
            raise DataError(
                f"no 'input_ids' in a batch of {_describe(batch)}: a mapping with input_ids, "
                "attention_mask and labels was expected. Other inputs than tokens? Use "
                "Classification(inputs=…)."
            )
        tokens = {k: batch[k] for k in _TOKEN_KEYS if k in batch}
        ids = tokens["input_ids"]
        if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point():
            what = f"{ids.dtype} of shape {tuple(ids.shape)}" if isinstance(
                ids, Tensor
            ) else type(ids).__name__  # fmt: skip
            raise DataError(
                f"input_ids must be whole numbers of shape [B, T], got {what}. Rows of unequal "
                "length? Pad them, as data.TokenSet does."
            )
        if "attention_mask" not in tokens:
            if self._pad_id is None:
                raise DataError(
                    f"no 'attention_mask' in a batch of {_describe(batch)}, so padding would be "
                    "read as text. Let the tokenizer return it, or name the token that pads: "
                    "SequenceClassification(pad_id=…)."
                )
            tokens["attention_mask"] = (ids != self._pad_id).long()  # [B, T]
        mask = tokens["attention_mask"]
        if mask.shape != ids.shape:
            raise DataError(
                f"attention_mask of shape {tuple(mask.shape)} for input_ids of shape "
                f"{tuple(ids.shape)}: both must be [B, T]. Was one of them cut or padded alone?"
            )
        return tokens

    def _call(self, model: nn.Module, batch: Any) -> Any:
        return model(**self._tokens(batch))

    def _pooled(self, seen: Tensor, batch: Any) -> Tensor:
        """[B, D]: as it is, or of [B, T, D] the last token that is not padding."""
        mask = self._tokens(batch)["attention_mask"]  # [B, T]
        if seen.shape[:-1] != mask.shape:
            return seen
        columns = torch.arange(mask.shape[1], device=mask.device)  # [T]
        last = (columns * (mask != 0)).argmax(dim=1)  # [B]
        return seen[torch.arange(len(last), device=last.device), last]

    def _head_before_pooling(
        self, model: nn.Module, batch: Any, last: nn.Module
    ) -> nn.Module | None:
        """The linear layer that ran last, if its rows at the last tokens are the logits."""
        pooled: list[Tensor] = []

        def keep(module: nn.Module, _: Any, out: Tensor) -> None:
            if module is last:
                pooled.append(self._pooled(out, batch))

        logits = self._call_watched(model, batch, keep)
        return last if torch.equal(pooled[-1], logits) else None


def _get(batch: Any, field: Field, what: str) -> Any:
    if callable(field):
        return field(batch)
    try:
        return batch[field]
    except (KeyError, IndexError, TypeError) as error:
        raise DataError(f"no {what} at {field!r} in a batch of {_describe(batch)}.") from error


def _logits(output: Any) -> Tensor:
    """The logits of a model output: a tensor, ``.logits``, or the first entry of a tuple."""
    if isinstance(output, Tensor):
        return output
    logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, tuple | list) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise DataError(
            f"the model returned {type(output).__name__}: a tensor of logits [B, C], an object "
            "with .logits, or a tuple that starts with them was expected."
        )
    return logits


def _describe(batch: Any) -> str:
    if isinstance(batch, Mapping):
        return f"{type(batch).__name__} with keys {sorted(map(str, batch))}"
    if isinstance(batch, tuple | list):
        return f"{type(batch).__name__} of length {len(batch)}"
    return type(batch).__name__


def per_example(loss: Tensor, rows: int) -> Tensor:
    """``loss`` if it is [rows]; raises DataError if it was reduced.

    >>> import torch
    >>> per_example(torch.ones(3), 3).shape
    torch.Size([3])
    """
    if loss.shape != (rows,):
        raise DataError(
            f"a loss of shape {tuple(loss.shape)} for {rows} rows: it is already reduced. Compute "
            "it with reduction='none', one number per example."
        )
    return loss
