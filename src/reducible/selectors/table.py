"""The table of selection rules, and ``selector(name, …)``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from reducible import scores
from reducible.picks import rank_sample, soft_top_k
from reducible.scores import SCORES
from reducible.selectors.adaptive_size import RhoEma
from reducible.selectors.base import Selector
from reducible.selectors.chain import Chain
from reducible.selectors.class_balanced import RhoClassBalanced
from reducible.selectors.curriculum import CurriculumRho
from reducible.selectors.divbs import DivBS
from reducible.selectors.diverse import rho_greedy_diversity, rho_hybrid_diversity
from reducible.selectors.grad_norm import GradNormIS, grad_norm
from reducible.selectors.infobatch import InfoBatch
from reducible.selectors.reducr import Reducr
from reducible.selectors.rho_updating import RhoUpdating
from reducible.selectors.rs2 import RS2
from reducible.selectors.scored import Score, Scored
from reducible.selectors.selective_backprop import SelectiveBackprop
from reducible.selectors.svp import SVP
from reducible.selectors.uniform import Uniform
from reducible.types import ConfigurationError, require_between, require_one_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One selection rule: how to build it, where it comes from, what is said against it.

    Attributes:
        name: as ``selector`` and the command line know it.
        build: keyword hyperparameters → Selector.
        equation: as the paper has it.
        paper: source and place in it.
        summary: one line on what it prefers.
        against: what the papers or our results say against it.
        ranges: hyperparameter → the values it may take, as text.
    """

    name: str
    build: Callable[..., Selector]
    equation: str
    paper: str
    summary: str
    against: str
    ranges: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def hyperparameters(self) -> Mapping[str, Any]:
        """Name → default of each hyperparameter."""
        parameters = inspect.signature(self.build).parameters
        return {name: p.default for name, p in parameters.items()}

    @property
    def needs(self) -> frozenset[str]:
        """Evidence that the rule reads at its defaults."""
        return self.build().needs


def scored(
    score: Score, limits: Mapping[str, dict[str, Any]] | None = None
) -> Callable[..., Selector]:
    """A constructor for the top-k rule of ``score``; its defaults become hyperparameters.

    Args:
        score: keyword tensors → [B].
        limits: hyperparameter → keywords of ``require_between``, finite numbers if not said.
    """
    finite = {"open_low": True, "open_high": True}
    bounds = {name: finite | known for name, known in (limits or {}).items()}

    def build(**hyperparameters: Any) -> Selector:
        for name, value in hyperparameters.items():
            require_between(name, value, **bounds.get(name, finite))
        return Scored(score, hyperparameters=hyperparameters)

    parameters = inspect.signature(score).parameters.values()
    keep = [p for p in parameters if p.default is not p.empty]
    build.__signature__ = inspect.Signature(keep)  # pyright: ignore[reportFunctionMemberAccess]
    return build


def with_dropout(score: Score) -> Callable[..., Selector]:
    """A constructor for the top-k rule of a score over dropout passes."""

    def build(*, samples: int = 10) -> Selector:
        require_between("samples", samples, 1, whole=True)
        return Scored(score, samples=samples)

    return build


def entropy(*, samples: int = 10) -> Selector:
    """Entropy over dropout passes, or of one plain pass if ``samples`` is 0."""
    require_between("samples", samples, 0, whole=True)
    return with_dropout(scores.entropy)(samples=samples) if samples else Scored(
        scores.entropy_of_logits
    )  # fmt: skip


def train_loss_rank(*, pressure: float = 100.0) -> Selector:
    """Draws by rank of the loss."""
    require_between("pressure", pressure, 1.0, open_low=True, open_high=True)
    return Scored(scores.train_loss, pick=rank_sample, pick_options={"pressure": pressure})


def rho_soft(*, temperature: float = 1.0, correct: bool = False) -> Selector:
    """Gumbel-top-k of ρ / temperature; weights that undo the bias if ``correct``."""
    require_between("temperature", temperature, 0.0, open_low=True, open_high=True)
    require_one_of("correct", correct, (True, False))
    options = {"temperature": temperature, "correct": correct}
    return Scored(scores.rho, pick=soft_top_k, pick_options=options, unbiased=correct)


def rho_divbs(*, prefilter: int = 50) -> Selector:
    """The best by ρ, then DivBS among them."""
    return Chain(Scored(scores.rho), prefilter=prefilter, then=DivBS())


def rho_margin(*, prefilter: int = 100) -> Selector:
    """The best by ρ, then the smallest margins among them."""
    return Chain(Scored(scores.rho), prefilter=prefilter, then=Scored(scores.margin))


def rho_bald(*, prefilter: int = 100, samples: int = 10) -> Selector:
    """The best by ρ, then those that dropout passes disagree on."""
    then = with_dropout(scores.bald)(samples=samples)
    return Chain(Scored(scores.rho), prefilter=prefilter, then=then)


RHO_LOSS = "Mindermann et al. 2022, RHO-LOSS"
EXTENSIONS = "Extensions of RHO-LOSS"
_COUNT, _POSITIVE, _NOT_NEGATIVE = "whole number ≥ 1", "> 0", "≥ 0"
_ACTIVE = (
    "Helps on clean, simple data only; RHO-LOSS, Fig. 9, saw no gain on CIFAR-10. Costs S passes."
)

_ROWS = (
    Row(
        name="uniform",
        build=Uniform,
        equation="k of B at random",
        paper=RHO_LOSS,
        summary="The baseline; costs nothing.",
        against="Spends updates on what is learnt already, and on wrong labels at their share.",
    ),
    *(
        Row(
            name=row.name,
            build=scored(row.score, row.limits),
            equation=row.equation,
            paper=row.paper,
            summary=row.summary,
            against=row.against,
            ranges=row.ranges,
        )
        for row in SCORES
    ),
    Row(
        name="grad_norm",
        build=grad_norm,
        equation="top-k ‖p_i − onehot(y_i)‖₂",
        paper="Katharopoulos & Fleuret 2018, as in RHO-LOSS",
        summary="The largest gradients.",
        against="Falls for wrong labels, as the training loss does.",
        ranges={"bound": '"logits" or "last_layer"'},
    ),
    Row(
        name="grad_norm_is",
        build=GradNormIS,
        equation="p_i = g_i/Σg with replacement, w_i = 1/(n_B·p_i)",
        paper="Katharopoulos & Fleuret 2018",
        summary="Importance sampling by gradient norm: unbiased, lower variance.",
        against="Draws wrong labels more often, though it counts them less.",
        ranges={"bound": '"logits" or "last_layer"', "tau_gate": "True or False"},
    ),
    Row(
        name="train_loss_rank",
        build=train_loss_rank,
        equation="p_i ∝ exp(−log(s)/n_B)^rank_i, without replacement",
        paper="Loshchilov & Hutter 2015; REDUCR, Eq. 10",
        summary="Hard examples more often than easy ones.",
        against="Falls for wrong labels, more slowly than top-k does.",
        ranges={"pressure": "> 1"},
    ),
    Row(
        name="rho_updating",
        build=RhoUpdating,
        equation="top-k L_i − L[y_i | x_i; D_ho, D_t]",
        paper=f"{RHO_LOSS}, Eq. 2 and App. D",
        summary="RHO-LOSS whose irreducible-loss model keeps learning.",
        against="Chooses more wrong labels late in training; lower final accuracy (Table 4).",
        ranges={"lr_ratio": _NOT_NEGATIVE},
    ),
    Row(
        name="svp",
        build=SVP,
        equation="once: top-k uncertainty of a proxy, then uniform",
        paper="Coleman et al. 2020",
        summary="The share of the data set that a proxy model is least certain of.",
        against="Uncertain examples hold most of the wrong labels; the worst baseline of RHO-LOSS.",
        ranges={"uncertainty": '"entropy", "least_confidence" or "margin"'},
    ),
    Row(
        name="bald",
        build=with_dropout(scores.bald),
        equation="top-k H[p̄_i] − mean_s H[p_is]",
        paper="Houlsby et al. 2011; RHO-LOSS, App. G",
        summary="What dropout passes disagree on; ignores labels.",
        against=_ACTIVE,
        ranges={"samples": _COUNT},
    ),
    Row(
        name="entropy",
        build=entropy,
        equation="top-k H[p̄_i]",
        paper="RHO-LOSS, App. G",
        summary="Uncertain predictions; ignores labels.",
        against=_ACTIVE,
        ranges={"samples": "whole number ≥ 0; 0: one plain pass"},
    ),
    Row(
        name="conditional_entropy",
        build=with_dropout(scores.conditional_entropy),
        equation="top-k mean_s H[p_is]",
        paper="RHO-LOSS, App. G",
        summary="What stays uncertain whatever the parameters; ignores labels.",
        against="Prefers ambiguous examples, from which there is least to learn. Costs S passes.",
        ranges={"samples": _COUNT},
    ),
    Row(
        name="loss_minus_conditional_entropy",
        build=with_dropout(scores.loss_minus_conditional_entropy),
        equation="top-k −log p̄_i[y_i] − mean_s H[p_is]",
        paper="RHO-LOSS, App. G",
        summary="RHO-LOSS with the model's own idea of noise; needs no holdout.",
        against="The model knows little of wrong labels: a confident model gives them no discount.",
        ranges={"samples": _COUNT},
    ),
    Row(
        name="reducr",
        build=Reducr,
        equation="top-k Σ_c w_c·max(0, L_i − IL_ic), w = softmax(−η·S)",
        paper="REDUCR, Algorithm 1",
        summary="Reducible loss per class, weighted towards the classes that do worst.",
        against="One irreducible loss per class to fit; η depends on batch size and data set "
        'unless reduce="mean"; its gain is on the worst class, not on the average.',
        ranges={
            "eta": _NOT_NEGATIVE,
            "gamma": _NOT_NEGATIVE,
            "clip": "True or False",
            "class_holdout": "True or False",
            "class_irreducible": "True or False",
            "model_loss": "True or False",
            "reduce": '"sum" or "mean"',
        },
    ),
    Row(
        name="divbs",
        build=DivBS,
        equation="greedy argmax |⟨G_i, r⟩|, r ← r − ⟨e, r⟩·e, G_i = h_i ⊗ f_i",
        paper="Hong et al. 2024, DivBS",
        summary="Rows whose gradients together explain the mean gradient.",
        against="The mean gradient holds that of wrong labels too; picking costs milliseconds.",
        ranges={"rule": '"greedy" or "sample"', "project": "None or a whole number ≥ 1"},
    ),
    Row(
        name="rho_divbs",
        build=rho_divbs,
        equation="top-m ρ, then divbs to k",
        paper=EXTENSIONS,
        summary="Reducible examples with different gradients.",
        against="One seed gave −5 epochs to 80 %, about what runs of RHO-LOSS differ by.",
        ranges={"prefilter": "whole number ≥ 1; at least k is used"},
    ),
    Row(
        name="rho_ema",
        build=RhoEma,
        equation="top-k_t ρ_i, k_t = clip(α·exp(ρ̄ − EMA_t)·k_base, k_min, k_max)",
        paper=EXTENSIONS,
        summary="More rows while there is more to learn.",
        against="The batch size varies, and the gradient's noise with it; saved 2.8 % of rows.",
        ranges={
            "beta": "[0, 1)",
            "alpha": _POSITIVE,
            "k_base": "None (n_B) or a whole number ≥ 1",
            "k_min": _COUNT,
            "k_max": "None (k) or a whole number ≥ k_min",
        },
    ),
    Row(
        name="rho_bald",
        build=rho_bald,
        equation="top-m ρ, then top-k BALD",
        paper=EXTENSIONS,
        summary="Reducible examples that dropout passes disagree on.",
        against="Needs a network with dropout, and S passes over the survivors.",
        ranges={"prefilter": "whole number ≥ 1; at least k is used", "samples": _COUNT},
    ),
    Row(
        name="rho_margin",
        build=rho_margin,
        equation="top-m ρ, then the k smallest p(1) − p(2)",
        paper=EXTENSIONS,
        summary="Reducible examples near the decision boundary.",
        against="The report found it slower than RHO-LOSS (80 % at epoch 44 against 41).",
        ranges={"prefilter": "whole number ≥ 1; at least k is used"},
    ),
    Row(
        name="rho_greedy_diversity",
        build=rho_greedy_diversity,
        equation="greedy argmax ρ_i − λ·Σ_{j∈S} cos(f_i, f_j)",
        paper=EXTENSIONS,
        summary="Reducible examples unlike all that is chosen.",
        against="The sum grows with S and drowns ρ; slower than RHO-LOSS (epoch 48 against 41).",
        ranges={"lam": _NOT_NEGATIVE},
    ),
    Row(
        name="rho_hybrid_diversity",
        build=rho_hybrid_diversity,
        equation="greedy argmax ρ_i − λ·max_{j∈S} cos(f_i, f_j)",
        paper=EXTENSIONS,
        summary="Reducible examples unlike the most alike that is chosen.",
        against="λ = 0.3 gave −3 epochs to 80 % on one seed, λ = 0.5 none.",
        ranges={"lam": _NOT_NEGATIVE},
    ),
    Row(
        name="rho_class_balanced",
        build=RhoClassBalanced,
        equation="quota_t ∝ exp(ρ̄_t − EMA_t); hybrid diversity inside class t",
        paper=f'{EXTENSIONS}, "RHO-DCAST"',
        summary="Reducible examples of every class.",
        against="λ = 0.2 gave −7 epochs to 80 % on one seed, λ = 0.5 cost 6.",
        ranges={
            "lam": _NOT_NEGATIVE,
            "beta": "[0, 1)",
            "k_min": "whole number ≥ 0",
            "adaptive": "True or False",
        },
    ),
    Row(
        name="curriculum_rho",
        build=CurriculumRho,
        equation="lowest L_i for some epochs, then top-k ρ_i",
        paper=EXTENSIONS,
        summary="Easy examples first.",
        against="Harmful: the report's run never reached 80 %.",
        ranges={"warmup_epochs": "whole number ≥ 0"},
    ),
    Row(
        name="rho_soft",
        build=rho_soft,
        equation="Gumbel-top-k of ρ_i/T, without replacement; correct: w_i = k/(n_B·q_i)",
        paper="REDUCR, A.9.3; weights: Kool et al. 2019",
        summary="RHO-LOSS with chance: T → 0 is top-k, T → ∞ uniform.",
        against="One more hyperparameter, on the scale of the loss. Corrected, it is the mean loss "
        "that is minimised, wrong labels and all.",
        ranges={"temperature": _POSITIVE, "correct": "True or False"},
    ),
    Row(
        name="selective_backprop",
        build=SelectiveBackprop,
        equation="p_i ∝ CDF_R(L_i)^β, without replacement",
        paper="Jiang et al. 2019",
        summary="The higher a loss stands among recent ones, the likelier.",
        against="Falls for wrong labels.",
        ranges={"beta": _NOT_NEGATIVE, "history": _COUNT},
    ),
    Row(
        name="infobatch",
        build=InfoBatch,
        equation="each epoch: drop a share of the ids with L_i < L̄, weight the kept ones of them",
        paper="Qin et al. 2024, InfoBatch",
        summary="Fewer updates on what is learnt, without bias; no extra forward.",
        against="Keeps every wrong label: their loss stays above the mean. Takes keep = 1.0 alone.",
        ranges={"prune_below_mean": "[0, 1), of the below-mean ids", "anneal": "[0, 1]"},
    ),
    Row(
        name="rs2",
        build=RS2,
        equation="each epoch: k ids at random, none twice until all are used",
        paper="Okanovic et al. 2024, RS2",
        summary="A fresh random subset per epoch; costs nothing.",
        against="Looks at nothing; still beats most pruning methods.",
    ),
)

SELECTORS: Mapping[str, Row] = MappingProxyType({row.name: row for row in _ROWS})
"""Every selection rule by name."""


def did_you_mean(name: str, known: Mapping[str, Any]) -> str:
    """A hint at the closest known name, or the list of them."""
    close = get_close_matches(name, list(known), n=1)
    return f"Did you mean {close[0]!r}?" if close else f"There are: {', '.join(known)}."


def selector(name: str, **hyperparameters: Any) -> Selector:
    """The selection rule ``name`` with its hyperparameters.

    Raises:
        ConfigurationError: no such rule or hyperparameter (with the closest name), or a value
            that cannot work.

    >>> selector("rho").needs == {"loss", "irreducible_loss"}
    True
    """
    if name not in SELECTORS:
        raise ConfigurationError(f"no selector {name!r}. {did_you_mean(name, SELECTORS)}")
    row = SELECTORS[name]
    for given in hyperparameters:
        if given not in row.hyperparameters:
            known = row.hyperparameters
            hint = did_you_mean(given, known) if known else "It has none."
            raise ConfigurationError(f"selector {name!r} has no hyperparameter {given!r}. {hint}")
    return row.build(**hyperparameters)
