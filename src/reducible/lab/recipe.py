"""A recipe: everything that decides a run but its seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Literal, final

from torch import nn

from reducible.lab.encoders import TEXT_MODELS
from reducible.lab.models import MODELS, RESNETS, evidence_of
from reducible.lab.settings import KeptFacts, RuleFacts, as_type
from reducible.scoring import RUNS_THE_MODEL, Scoring
from reducible.selectors import Scheduled, Selector, selector
from reducible.tasks import Classification, SequenceClassification
from reducible.types import ConfigurationError, require_between, require_one_of

_CHOICES: Mapping[str, tuple[object, ...]] = {
    "dataset": ("fashion-mnist-30k", "fashion-mnist", "film-sentences"),
    "train_on": ("train", "train+holdout", "holdout"),
    "noise": ("flip", "asymmetric", "web-like"),
    "schedule": ("constant", "cosine"),
    "loss": ("cross-entropy", "label-smoothing", "generalised", "noise-floor"),
    "plan": ("none", "filter", "weights", "filter+weights"),
    "irreducible_from": ("holdout", "cross-fit"),
    "group_irreducible": ("models", "shared"),
    "gate": ("off", "auto"),
    "distil": (True, False),
}
_STORED = frozenset({"irreducible_loss", "group_irreducible_loss"})
_FORMERLY = {"refresh": "rescore"}  # setting in old records → what it is called now


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe(KeptFacts):
    """Everything that decides a run but its seed.

    Attributes:
        name: as the command line knows it.
        selector: row of SELECTORS.
        hyperparameters: of the selector.
        dataset: ``"fashion-mnist-30k"`` is embedded; ``"fashion-mnist"`` is the full one, from
            the folder that REDUCIBLE_DATA names; ``"film-sentences"``: embedded, two classes,
            and needs the extra ``text``.
        model: row of MODELS, or of TEXT_MODELS for sentences.
        train_on: what updates are made on; with the holdout, or on it alone, as baselines.
        train_examples: size of the train set D, cut from the training images.
        holdout_examples: size of the holdout, disjoint from D; 0: none.
        validation_examples: cut from the training images; if there are any, runs are evaluated
            on them and never on the test set. For choosing settings.
        noise: ``"flip"`` to any other class; ``"asymmetric"``: to the class that a small model
            confuses with it; ``"web-like"``: flips, a third of the rows five times, two classes ten
            times rarer. Sentences have ``"flip"`` alone.
        label_noise: share of D whose labels are wrong.
        holdout_noise: the same for the holdout.
        n_b: rows trained on per update.
        n_candidates: rows of a candidate batch (n_B).
        workers: processes that load candidate batches; 0: the one that trains.
        steps: updates.
        learning_rate: of AdamW.
        weight_decay: of AdamW.
        schedule: of the learning rate over the steps.
        loss: what is minimised; smoothing by 0.1, or generalised cross-entropy with q = 0.7
            (Zhang & Sabuncu 2018), as robust baselines; or that with the plan's noise floor, see
            ``noise_floor_loss``.
        plan: what irreducible losses decide before training, see Plan.
        plan_multiple: of the noise floor, see ``noise_floor_filter``.
        plan_exponent: of the sampling weights.
        scorer: the same, for a co-trained scorer; none if empty.
        distil: the scorer learns what the model predicts, in place of the labels.
        scoring: how candidates are scored.
        select_until: share of the steps at which the rule chooses; after them, chance does.
        select_anneal: share of the steps, before those, over which the rule's share of the rows
            shrinks to nothing.
        random_share: share of the rows that is left to chance throughout; see Scheduled.
        gate: whether a gate decides if selection goes on; it watches progress on the holdout.
        evaluate_every: updates between evaluations on the test set.
        irreducible_model: row of MODELS, or of TEXT_MODELS for sentences.
        irreducible_epochs: passes over the holdout.
        irreducible_batch: rows per update of the irreducible-loss model.
        irreducible_rate: learning rate of the irreducible-loss model.
        irreducible_smoothing: of the labels, in updates of the irreducible-loss model.
        irreducible_from: ``"holdout"``, or ``"cross-fit"`` of D in two folds.
        group_irreducible: a model per class, or one shared network with adapters.
    """

    name: str
    selector: str
    hyperparameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    dataset: Literal["fashion-mnist-30k", "fashion-mnist", "film-sentences"] = "fashion-mnist-30k"
    model: str = "mlp-512"
    train_on: Literal["train", "train+holdout", "holdout"] = "train"
    train_examples: int = 20_000
    holdout_examples: int = 10_000
    validation_examples: int = 0
    noise: Literal["flip", "asymmetric", "web-like"] = "flip"
    label_noise: float = 0.1
    holdout_noise: float = 0.0
    n_b: int = 32
    n_candidates: int = 320
    workers: int = 0
    steps: int = 3000
    learning_rate: float = 1e-3
    weight_decay: float = 0.01
    schedule: Literal["constant", "cosine"] = "constant"
    loss: Literal["cross-entropy", "label-smoothing", "generalised", "noise-floor"] = (
        "cross-entropy"
    )
    plan: Literal["none", "filter", "weights", "filter+weights"] = "none"
    plan_multiple: float = 1.0
    plan_exponent: float = 0.25
    scorer: str = ""
    distil: bool = False
    scoring: Scoring = field(default_factory=Scoring)
    select_until: float = 1.0
    select_anneal: float = 0.0
    random_share: float = 0.0
    gate: Literal["off", "auto"] = "off"
    evaluate_every: int = 50
    irreducible_model: str = "mlp-128"
    irreducible_epochs: int = 6
    irreducible_batch: int = 64
    irreducible_rate: float = 1e-3
    irreducible_smoothing: float = 0.0
    irreducible_from: Literal["holdout", "cross-fit"] = "holdout"
    group_irreducible: Literal["models", "shared"] = "models"

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            require_one_of(name, getattr(self, name), allowed)
        self._check_models()
        if self.of_texts and self.noise != "flip":
            raise ConfigurationError(
                f"noise={self.noise!r} is made for ten classes of images; sentences of two classes "
                "can be flipped alone. Take noise='flip'."
            )
        self._check_schedule()
        if self.holdout_examples == 0 and (self.from_holdout or self.train_on != "train"):
            raise ConfigurationError(
                f"{self.name} needs a holdout, but holdout_examples=0. Ask for more, or take "
                "irreducible_from='cross-fit'."
            )
        if self.gate == "auto" and (self.holdout_examples == 0 or self.train_on != "train"):
            raise ConfigurationError("the gate watches a holdout that is not trained on.")
        judges_d_alone = self.train_on == "train+holdout" and not self.reads_by_row
        if self.train_on != "train" and self.from_holdout and not judges_d_alone:
            raise ConfigurationError(
                f"train_on={self.train_on!r}, but irreducible losses are of a holdout that is not "
                "trained on. Take irreducible_from='cross-fit'; or a plan with "
                "train_on='train+holdout', which lets the holdout's own examples pass."
            )
        self._check_rule()
        require_between("validation_examples", self.validation_examples, 0, whole=True)
        require_between("holdout_examples", self.holdout_examples, 0, whole=True)
        require_between("workers", self.workers, 0, whole=True)
        for name in ("train_examples", "n_b", "n_candidates", "steps", "evaluate_every"):
            require_between(name, getattr(self, name), 1, whole=True)
        require_between("n_b", self.n_b, 1, self.n_candidates, whole=True)
        rows = self.holdout_examples if self.train_on == "holdout" else self.train_examples
        require_between("n_candidates", self.n_candidates, 1, rows, whole=True)
        for name in ("label_noise", "holdout_noise"):
            require_between(name, getattr(self, name), 0.0, 1.0)
        require_between("plan_multiple", self.plan_multiple, 0.0, open_high=True)
        require_between("plan_exponent", self.plan_exponent, 0.0, open_high=True)
        for name in ("learning_rate", "irreducible_rate"):
            require_between(name, getattr(self, name), 0.0, open_low=True)
        self._check_scoring()

    def _check_schedule(self) -> None:
        """Raise ConfigurationError if the rule cannot be scheduled as asked."""
        require_between("select_until", self.select_until, 0.0, 1.0, open_low=True)
        require_between("select_anneal", self.select_anneal, 0.0, self.select_until)
        require_between("random_share", self.random_share, 0.0, 1.0, open_high=True)
        rule = self._bare_rule()
        if not self._scheduled or (rule.horizon == "batch" and rule.needs):
            return
        why = "chooses at random" if rule.horizon == "batch" else "plans its epochs itself"
        raise ConfigurationError(
            f"{self.selector} {why}, so select_until={self.select_until}, "
            f"select_anneal={self.select_anneal} and random_share={self.random_share} would do "
            "nothing. Leave them out, or take a rule that scores candidate batches."
        )

    def _check_models(self) -> None:
        """Raise ConfigurationError if a model is unknown, or cannot read the data."""
        for name in ("model", "irreducible_model", "scorer"):
            model = getattr(self, name)
            if name == "scorer" and not model:
                continue
            require_one_of(name, model, [*MODELS, *TEXT_MODELS])
            if model not in self.models:
                kind, other = ("texts", "images") if self.of_texts else ("images", "texts")
                raise ConfigurationError(
                    f"{name}={model!r} reads {other}, but dataset={self.dataset!r} holds {kind}. "
                    f"Models of {kind}: {', '.join(self.models)}."
                )

    def _check_rule(self) -> None:
        """Raise ConfigurationError if the rule does not go with the other settings."""
        rule = self.facts
        if rule.lr_ratio is not None and self.irreducible_from == "cross-fit":
            raise ConfigurationError(
                f"{self.selector} keeps training one irreducible-loss model, but cross-fitting "
                "makes two. Take irreducible_from='holdout'."
            )
        if rule.takes_all and self.n_candidates != self.n_b:
            raise ConfigurationError(
                f"{self.selector} leaves rows out itself, so every candidate is trained on, but "
                f"n_b={self.n_b} and n_candidates={self.n_candidates}. Take "
                f"n_candidates={self.n_b}."
            )
        if self.plan == "none":
            if self.loss == "noise-floor":
                raise ConfigurationError(
                    "loss='noise-floor' reads the floor of a plan: take plan='filter'."
                )
            return
        if "group_irreducible_loss" in rule.needs:
            raise ConfigurationError(
                f"a plan needs one irreducible loss per example, {self.selector} one per group."
            )
        if rule.horizon != "batch":
            raise ConfigurationError(
                f"{self.selector} plans its epochs itself, so plan={self.plan!r} would do nothing."
            )

    def _check_scoring(self) -> None:
        """Raise ConfigurationError if candidates cannot be scored so; here, not mid-run."""
        if self.distil and not self.scorer:
            raise ConfigurationError(
                "distil=True, but there is no scorer to learn what the model predicts. Take "
                "scorer='mlp-64'."
            )
        scored_by = self.scorer or self.model
        resolution, max_age = self.scoring.resolution, self.scoring.max_age
        if resolution is not None and scored_by not in RESNETS:
            raise ConfigurationError(
                f"resolution={resolution}, but {scored_by} takes images of one size alone. "
                f"Score with one of {', '.join(sorted(RESNETS))}, or leave resolution out."
            )
        self._check_evidence(scored_by)
        beyond = self.facts.needs & (RUNS_THE_MODEL - {"loss"})
        if max_age and beyond:
            raise ConfigurationError(
                f"max_age={max_age} remembers losses, but {self.selector} needs "
                f"{', '.join(sorted(beyond))}, for which every candidate must be scored. Leave "
                "max_age=0."
            )

    def _check_evidence(self, scored_by: str) -> None:
        """Raise ConfigurationError if the model that scores cannot give what the rule needs."""
        asked = self.facts.needs & (RUNS_THE_MODEL - {"loss", "logits"})
        if not asked:
            return
        try:
            given = evidence_of(self.models[scored_by], meta=not self.of_texts)
        except ConfigurationError:
            return  # its files are not installed; whoever makes the model says so
        for name in sorted(asked - given):
            why = {
                "mc_logits": "reads passes with dropout on",
                "features": "reads the input of the last linear layer",
            }[name]
            able = [
                other
                for other, make in MODELS.items()
                if not self.of_texts and name in evidence_of(make)
            ]
            raise ConfigurationError(
                f"{self.selector} {why}, but {scored_by}, which scores, has none. "
                + (f"Take one of {', '.join(able)}." if able else "Take minilm, or another rule.")
            )

    @property
    def of_texts(self) -> bool:
        """Whether the data are texts, not images."""
        return self.dataset == "film-sentences"

    @property
    def models(self) -> Mapping[str, Callable[..., nn.Module]]:
        """The models that can read the data, by name."""
        return TEXT_MODELS if self.of_texts else MODELS

    @property
    def task(self) -> Classification | SequenceClassification:
        """Says what a batch of the data means."""
        return SequenceClassification() if self.of_texts else Classification()

    def make_rule(self) -> Selector:
        """Builds a new selector, scheduled if the recipe says so; it remembers nothing yet."""
        if not self._scheduled:
            return self._bare_rule()
        return Scheduled(
            self._bare_rule(),
            end=round(self.select_until * self.steps),
            anneal=round(self.select_anneal * self.steps),
            mix=self.random_share,
        )

    @property
    def facts(self) -> RuleFacts:
        """Says what the rule needs and how it decides; told once, of a rule that is not run."""
        try:
            return self._facts
        except AttributeError:
            rule = self.make_rule()
        facts = RuleFacts(rule.needs, rule.samples, rule.lr_ratio, rule.horizon, rule.takes_all)
        object.__setattr__(self, "_facts", facts)
        return facts

    @property
    def _scheduled(self) -> bool:
        return self.select_until < 1.0 or self.select_anneal > 0.0 or self.random_share > 0.0

    def _bare_rule(self) -> Selector:
        return selector(self.selector, **self.hyperparameters)

    @property
    def reads_irreducible_loss(self) -> bool:
        """Whether selector or plan read irreducible losses."""
        return self.plan != "none" or bool(self.facts.needs & _STORED)

    @property
    def reads_by_row(self) -> bool:
        """Whether the selector itself reads irreducible or holdout losses of what is trained on."""
        return bool(self.facts.needs & (_STORED | {"group_holdout_loss"}))

    @property
    def from_holdout(self) -> bool:
        """Whether something is fitted or measured on the holdout."""
        needs = self.facts.needs
        grouped = bool(needs & {"group_irreducible_loss", "group_holdout_loss"})
        return grouped or (self.reads_irreducible_loss and self.irreducible_from == "holdout")

    def settings(self) -> dict[str, Any]:
        """All settings by name, as they are recorded; those of the scoring among them."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "scoring"}
        return own | asdict(self.scoring) | {"hyperparameters": dict(self.hyperparameters)}

    def changed(self, **settings: Any) -> Recipe:
        """This recipe with other settings, those of the scoring among them."""
        own = {name: value for name, value in settings.items() if name not in _OF_SCORING}
        scoring = {name: value for name, value in settings.items() if name in _OF_SCORING}
        return replace(self, scoring=replace(self.scoring, **scoring), **own)

    @classmethod
    def from_settings(cls, settings: Mapping[str, Any]) -> Recipe:
        """The recipe of recorded settings: of a run's config.json, or of a results file.

        Settings that were called otherwise when they were recorded are read under their old names.

        Raises:
            ConfigurationError: a setting that no recipe has, or settings that cannot work.
        """
        here = {_FORMERLY.get(name, name): value for name, value in settings.items()}
        if here.get("resolution") == 0:  # as images of their own size were recorded
            here["resolution"] = None
        unknown = sorted(set(here) - _own_settings() - _OF_SCORING)
        missing = sorted({"name", "selector"} - set(here))
        if unknown or missing:
            what = (
                f"{unknown}, which no recipe has" if unknown else f"no {' and no '.join(missing)}"
            )
            raise ConfigurationError(
                f"the recorded settings hold {what}: they were edited, or written by another "
                "version of reducible. Run them with that one, or run the recipe anew."
            )
        own = {name: value for name, value in here.items() if name not in _OF_SCORING}
        scoring = {name: value for name, value in here.items() if name in _OF_SCORING}
        return cls(**own, scoring=Scoring(**scoring))

    def with_settings(self, settings: Mapping[str, str]) -> Recipe:
        """This recipe with settings replaced, values as text: ``"500"``, ``"mlp-64"``, ``"true"``.

        Raises:
            ConfigurationError: no such setting, or a value of another type.
        """
        now = self.settings()
        changes: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in now or name == "name":
                known = ", ".join(n for n in now if n != "name")
                raise ConfigurationError(f"a recipe has no setting {name!r}. It has: {known}.")
            changes[name] = as_type(name, text, now[name])
        return self.changed(**changes)


_OF_SCORING = frozenset(f.name for f in fields(Scoring))


def _own_settings() -> set[str]:
    return {f.name for f in fields(Recipe)} - {"scoring"}
