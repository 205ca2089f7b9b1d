"""Settings of a trainer that selects, as command lines read them."""

from __future__ import annotations

from dataclasses import dataclass, field

from reducible.scoring import Scoring
from reducible.stores import IrreducibleLossStore, TokenLossStore
from reducible.types import ConfigurationError, require_between

_KEEP = 0.1


@dataclass
class SelectionArguments:
    """Says how a SelectionTrainer chooses; ``HfArgumentParser`` reads it from the command line.

    ``per_device_train_batch_size`` × ``gradient_accumulation_steps`` rows stay what an update
    trains on; it chooses them from 1/``keep`` as many candidates.

    >>> SelectionArguments(selector="rho", keep=0.25).keep
    0.25
    """

    selector: str = field(
        default="rho", metadata={"help": "Name of the rule; `reducible selectors` lists them."}
    )
    keep: float = field(
        default=_KEEP, metadata={"help": "Share of the candidates that an update trains on."}
    )
    token_keep: float | None = field(
        default=None,
        metadata={
            "help": "Choose tokens, not rows: share of a batch's tokens to train on, by the rule."
        },
    )
    irreducible_loss: str | None = field(
        default=None, metadata={"help": "File of irreducible losses, of examples or of tokens."}
    )
    ids_column: str | None = field(
        default=None,
        metadata={"help": "Column with each row's id (int); the row's position if left out."},
    )
    updates_per_scoring: int = field(
        default=1, metadata={"help": "Updates made from one scored candidate batch."}
    )
    max_age: int = field(
        default=0, metadata={"help": "Steps for which a loss seen before stands for scoring."}
    )
    scoring_precision: str = field(
        default="float32", metadata={"help": "Of scoring: float32, bfloat16 or float16."}
    )
    scoring_max_length: int | None = field(
        default=None, metadata={"help": "Tokens of each text that scoring reads."}
    )
    selection_seed: int | None = field(
        default=None, metadata={"help": "Of every choice; the Trainer's seed if left out."}
    )
    log_selection: bool = field(
        default=True, metadata={"help": "Log what is chosen, beside the Trainer's own figures."}
    )

    def __post_init__(self) -> None:
        if self.keep > 1:
            raise ConfigurationError(
                f"keep={self.keep} is a share of the candidates here, in (0, 1]: how many rows an "
                "update trains on is per_device_train_batch_size × gradient_accumulation_steps."
            )
        require_between("keep", self.keep, 0.0, 1.0, open_low=True)
        if self.token_keep is not None:
            require_between("token_keep", self.token_keep, 0.0, 1.0, open_low=True)
            if self.keep != _KEEP:
                raise ConfigurationError(
                    f"keep={self.keep} of the rows and token_keep={self.token_keep} of their "
                    "tokens: all rows are trained on if tokens are chosen. Leave one out."
                )
        if self.updates_per_scoring * self.keep > 1:
            raise ConfigurationError(
                f"updates_per_scoring={self.updates_per_scoring} of a share of {self.keep} each "
                "are more than all of the candidates. Lower one of them."
            )

    @property
    def scoring(self) -> Scoring:
        """Settings of scoring."""
        return Scoring(
            batchnorm="running",
            precision=self.scoring_precision,  # pyright: ignore[reportArgumentType]
            max_length=self.scoring_max_length,
            updates_per_scoring=self.updates_per_scoring,
            max_age=self.max_age,
        )

    def opened_store(self) -> IrreducibleLossStore | TokenLossStore | None:
        """Opens the file of irreducible losses; None if none is named."""
        if self.irreducible_loss is None:
            return None
        kind = IrreducibleLossStore if self.token_keep is None else TokenLossStore
        return kind.load(self.irreducible_loss)
