"""Language models as a task: losses of sequences by hand, padding, prompts, what is refused."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import reducible as rd
from reducible.tasks import is_predicted, token_losses
from reducible.tasks.tokens import row_hashes


class Tiny(nn.Module):
    """Logits that depend on the token and the place alone, so that padding changes nothing."""

    def __init__(self, words: int = 9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.Embedding(words, words)
        self.asked: list[set[str]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **others: Any) -> Tensor:
        self.asked.append({"input_ids", "attention_mask", *others})
        return self.words(input_ids)


def _batch(*rows: list[int], left: bool = False) -> dict[str, Tensor]:
    longest = max(map(len, rows))
    pads = [[0] * (longest - len(row)) for row in rows]
    ids = torch.tensor([p + r if left else r + p for p, r in zip(pads, rows, strict=True)])
    return {"input_ids": ids, "attention_mask": (ids > 0).long()}


ROWS = [3, 4, 5], [1, 2], [7, 8, 1, 2, 3]


def _by_hand(model: Tiny, row: list[int]) -> list[float]:
    table = model.words.weight.detach()
    return [float(-table[before].log_softmax(0)[after]) for before, after in pairwise(row)]


@pytest.mark.parametrize("left", [False, True])
def test_the_loss_of_a_sequence_by_hand(left: bool) -> None:
    model, task, batch = Tiny(), rd.CausalLM(), _batch(*ROWS, left=left)
    loss = task.loss(task.forward(model, batch).logits, task.targets(batch))
    if left:  # the first token of a row is predicted from padding, which no label asks for
        batch["labels"] = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        first = (batch["attention_mask"].cumsum(1) == 1) & (batch["attention_mask"] == 1)
        batch["labels"][first] = -100
        loss = task.loss(task.forward(model, batch).logits, task.targets(batch))
    expected = [sum(x) / len(x) for x in (_by_hand(model, row) for row in ROWS)]
    torch.testing.assert_close(loss, torch.tensor(expected))
    assert model.asked[0] == {"input_ids", "attention_mask"}


def test_sums_and_masked_prompts() -> None:
    model, batch = Tiny(), _batch(*ROWS)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[2, :3] = -100  # a prompt of three tokens
    labels[1] = -100  # nothing at all
    batch["labels"] = labels
    task = rd.CausalLM(reduce="sum")
    loss = task.loss(task.forward(model, batch).logits, task.targets(batch))
    expected = [sum(_by_hand(model, ROWS[0])), 0.0, sum(_by_hand(model, ROWS[2])[2:])]
    torch.testing.assert_close(loss, torch.tensor(expected))
    mean = rd.CausalLM().loss(task.forward(model, batch).logits, labels)
    torch.testing.assert_close(mean, loss / torch.tensor([2.0, 1.0, 2.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_losses_of_half_precision_are_made_in_pieces_and_in_float32(dtype: torch.dtype) -> None:
    logits = torch.randn(7, 5, 11).to(dtype)
    labels = torch.randint(0, 11, (7, 5))
    found = token_losses(logits, labels)
    wide = logits[:, :-1].float().log_softmax(2).gather(2, labels[:, 1:, None]).squeeze(2)
    torch.testing.assert_close(found[:, 1:], -wide)
    assert found.dtype == torch.float32
    assert not bool(found[:, 0].any())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reducible.tasks.tokens._AT_ONCE", 100)  # a row at a time
        assert torch.equal(token_losses(logits, labels), found)


def test_the_gradient_is_that_of_cross_entropy() -> None:
    logits = torch.randn(3, 4, 6, requires_grad=True)
    labels = torch.tensor([[1, 2, -100, 3], [0, 1, 2, 3], [5, 4, -100, -100]])
    token_losses(logits, labels).sum().backward()
    mine, logits.grad = logits.grad, None
    F.cross_entropy(
        logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum"
    ).backward()
    torch.testing.assert_close(mine, logits.grad)


def test_which_tokens_are_predicted() -> None:
    labels = torch.tensor([[4, 5, -100], [-100, 6, 7]])
    assert is_predicted(labels).tolist() == [[False, True, False], [False, True, True]]
    assert labels.tolist() == [[4, 5, -100], [-100, 6, 7]]  # not written to


@settings(max_examples=50)
@given(
    rows=st.lists(st.lists(st.integers(0, 10**6), min_size=1, max_size=6), min_size=2, max_size=6),
    pad=st.integers(0, 4),
)
def test_hashes_of_rows_do_not_see_padding(rows: list[list[int]], pad: int) -> None:
    longest = max(map(len, rows)) + pad
    right = torch.tensor([r + [-100] * (longest - len(r)) for r in rows])
    left = torch.tensor([[-100] * (longest - len(r)) + r for r in rows])
    hashes = row_hashes(right)
    assert torch.equal(hashes, row_hashes(left))
    for i, row in enumerate(rows):
        for j, other in enumerate(rows):
            assert (row == other) == bool(hashes[i] == hashes[j])


def test_padding_that_no_row_needs_is_cut() -> None:
    batch = _batch(*ROWS) | {"labels": torch.zeros(3, 5), "name": ["a", "b", "c"]}
    short = {k: v[:2] for k, v in batch.items()}
    found = rd.CausalLM().unpadded(short)
    assert found["input_ids"].shape == found["labels"].shape == (2, 3)
    assert found["name"] == ["a", "b"]


def test_bad_input() -> None:
    task = rd.CausalLM()
    with pytest.raises(rd.DataError, match=r"no 'attention_mask'.*CausalLM\(pad_id=…\)"):
        task.targets({"input_ids": torch.ones(2, 3, dtype=torch.int64)})
    with pytest.raises(rd.DataError, match="padding-free"):
        token_losses(torch.zeros(1, 6, 4), torch.zeros(2, 3, dtype=torch.int64))
    with pytest.raises(rd.ConfigurationError, match="reduce"):
        rd.CausalLM(reduce="median")
    padless = rd.CausalLM(pad_id=0)
    assert padless.targets({"input_ids": torch.tensor([[2, 0]])}).tolist() == [[2, -100]]


class _Rows(Dataset[dict[str, Tensor]]):
    def __len__(self) -> int:
        return 24

    def __getitem__(self, i: int) -> dict[str, Tensor]:
        return {"input_ids": torch.arange(1, 3 + i % 5)}


def _collate(items: list[Any]) -> dict[str, Tensor]:
    return _batch(*(item["input_ids"].tolist() for item in items))


def _loop(rule: str, **options: Any) -> rd.SelectingLoader:
    loader = DataLoader(rd.WithIds(_Rows()), 8, collate_fn=rd.collate_with_ids(_collate))
    return rd.SelectingLoader(
        loader, Tiny(), rd.selector(rule), keep=2, task=rd.CausalLM(), **options
    )


def test_sequences_of_highest_loss_are_chosen() -> None:
    model = Tiny()
    for first, chosen in zip(range(0, 24, 8), _loop("train_loss"), strict=True):
        rows = {i: _by_hand(model, list(range(1, 3 + i % 5))) for i in range(first, first + 8)}
        losses = {i: sum(x) / len(x) for i, x in rows.items()}
        worst = sorted(losses.values())[-2:]
        assert sorted(losses[i] for i in chosen.ids.tolist()) == pytest.approx(worst)


@pytest.mark.parametrize("rule", ["grad_norm", "entropy", "rho_margin", "divbs", "reducr"])
def test_rules_that_read_more_than_losses_are_refused(rule: str) -> None:
    store = rd.IrreducibleLossStore.from_tensor(torch.rand(24))
    with pytest.raises(rd.ConfigurationError, match=r"CausalLM does not give|group"):
        _loop(rule, store=store)


def test_what_needs_class_probabilities_besides_is_refused() -> None:
    held_out = [_batch(*ROWS)]
    with pytest.raises(rd.ConfigurationError, match="the gate needs class probabilities and"):
        _loop("train_loss", gate="auto", held_out=held_out)
    scorer = Tiny()
    learner = rd.CoTrained(scorer, torch.optim.SGD(scorer.parameters(), lr=0.1), distil=True)
    with pytest.raises(rd.ConfigurationError, match="distil=False"):
        _loop("train_loss", scorer=learner)
    with pytest.raises(rd.ConfigurationError, match=r"label_smoothing=0\.1 is of class"):
        rd.fit_irreducible_loss(
            Tiny, rd.WithIds(_Rows()), rd.WithIds(_Rows()), task=rd.CausalLM(),
            label_smoothing=0.1, progress=False, collate_fn=rd.collate_with_ids(_collate),
        )  # fmt: skip


def test_irreducible_losses_are_fitted_on_sequences_of_any_length() -> None:
    data = rd.WithIds(_Rows())
    holdout = torch.utils.data.Subset(data, range(8))
    train = torch.utils.data.Subset(data, range(8, 24))
    store = rd.fit_irreducible_loss(
        Tiny, holdout, train, task=rd.CausalLM(), epochs=2, batch_size=4, progress=False,
        collate_fn=rd.collate_with_ids(_collate),
    )  # fmt: skip
    assert len(store) == 16
    assert "noise_floor" not in store.header  # there are no classes
    assert store.knows_labels
    for chosen in _loop("uniform", store=None):
        assert chosen.ids.numel() == 2
