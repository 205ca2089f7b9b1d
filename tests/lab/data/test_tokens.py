"""TokenSet: texts tokenised once, padded batch by batch, with ids that stay."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reducible.lab.data import TokenSet, sentiment
from reducible.stores import fingerprint, require_disjoint
from reducible.types import Candidates, ConfigurationError, DataError

TEXTS = ["A good film.", "bad films", "very very dull", "zzz"]
ROWS = [[2, 4, 5, 7, 11, 3], [2, 6, 7, 8, 3], [2, 10, 10, 9, 3], [2, 1, 3]]
TARGETS = torch.tensor([1, 0, 0, 1])
KEYS = ["input_ids", "attention_mask", "labels"]
FULL = (
    "source\tid\trating\ttext\n"
    "movie\t1\t2.2\tgood\n"
    "movie\t2\t-0.4\tdull\n"
    "amazon\t1_1\t-0.5\tbad\n"
    "movie\t3\t0.0\ta film\n"
    "movie\t4\t-3.0\tvery bad\n"
)


def make(n: int = 4, **options: Any) -> TokenSet:
    """The rows of TEXTS, padded with the token 0."""
    tokens = torch.tensor([row + [0] * (6 - len(row)) for row in ROWS[:n]])
    lengths = torch.tensor([len(row) for row in ROWS[:n]])
    return TokenSet(tokens, lengths, TARGETS[:n], **options)


# -- tokenising -----------------------------------------------------------------------------------


def test_texts_become_the_tokens_of_the_vocabulary(wordpiece: Any) -> None:
    data = TokenSet.from_texts(TEXTS, TARGETS, tokenizer=wordpiece)
    assert data.tokens.tolist() == [row + [0] * (6 - len(row)) for row in ROWS]
    assert data.lengths.tolist() == [6, 5, 5, 3]
    assert data.tokens.dtype == torch.int32
    assert data.targets.tolist() == TARGETS.tolist()
    assert data.ids.tolist() == [0, 1, 2, 3]


def test_long_texts_keep_their_start_and_their_end_mark(wordpiece: Any) -> None:
    data = TokenSet.from_texts(TEXTS, TARGETS, tokenizer=wordpiece, max_length=4)
    assert [data[i].batch["input_ids"].tolist() for i in range(4)] == [
        [2, 4, 5, 3],
        [2, 6, 7, 3],
        [2, 10, 10, 3],
        [2, 1, 3],
    ]
    with pytest.raises(ConfigurationError, match="max_length must be a whole number in"):
        TokenSet.from_texts(TEXTS, TARGETS, tokenizer=wordpiece, max_length=2)


def _copy(tokenizer: Any) -> Any:
    return type(tokenizer).from_str(tokenizer.to_str())


def test_the_tokenizer_stays_as_it_is_and_its_padding_names_the_token(wordpiece: Any) -> None:
    own = _copy(wordpiece)
    own.enable_padding(length=9, pad_id=1, pad_token="[UNK]")
    own.enable_truncation(5)
    before = own.to_str()
    data = TokenSet.from_texts(TEXTS, TARGETS, tokenizer=own)
    assert data.lengths.tolist() == [6, 5, 5, 3]
    assert data.tokens[3].tolist() == [2, 1, 3, 1, 1, 1]
    assert own.to_str() == before


def test_the_token_that_pads_is_found_by_its_name_or_asked_for() -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    def words(*names: str) -> Any:
        made = Tokenizer(models.WordLevel({n: i for i, n in enumerate(names)}, unk_token="x"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
        return made

    data = TokenSet.from_texts(["y y", "x"], TARGETS[:2], tokenizer=words("x", "y", "<pad>"))
    assert data.tokens.tolist() == [[1, 1], [0, 2]]
    with pytest.raises(ConfigurationError, match=r"names no token that pads.*enable_padding"):
        TokenSet.from_texts(["y y", "x"], TARGETS[:2], tokenizer=words("x", "y"))


def test_what_is_no_tokenizer() -> None:
    with pytest.raises(ConfigurationError, match=r"must be a tokenizers\.Tokenizer.*got str\. A"):
        TokenSet.from_texts(TEXTS, TARGETS, tokenizer="bert-base-uncased")


def test_texts_that_do_not_fit(wordpiece: Any) -> None:
    with pytest.raises(DataError, match="3 texts for 4 targets"):
        TokenSet.from_texts(TEXTS[:3], TARGETS, tokenizer=wordpiece)
    with pytest.raises(DataError, match="the data set is empty"):
        TokenSet.from_texts([], TARGETS[:0], tokenizer=wordpiece)


# -- batches --------------------------------------------------------------------------------------


def test_a_batch_is_padded_to_its_own_longest_row() -> None:
    ids, batch = make().fetch(torch.tensor([3, 1]))
    assert list(batch) == KEYS
    assert ids.tolist() == [3, 1]
    assert batch["input_ids"].tolist() == [[2, 1, 3, 0, 0], [2, 6, 7, 8, 3]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [1, 0]
    assert {tensor.dtype for tensor in (ids, *batch.values())} == {torch.int64}
    assert make()[[3]].batch["input_ids"].shape == (1, 3)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32, torch.int64])
def test_tokens_of_any_whole_type_are_handed_over_as_int64(dtype: torch.dtype) -> None:
    data = make()
    stored = TokenSet(data.tokens.to(dtype), data.lengths, data.targets)
    assert stored.tokens.dtype == dtype
    assert stored[0].batch["input_ids"].dtype == torch.int64


@pytest.mark.parametrize("at", [0, 3, -1, -4])
def test_an_int_gives_one_example_without_padding(at: int) -> None:
    item = make()[at]
    assert isinstance(item, Candidates)
    assert item.ids.item() == at % 4
    assert item.batch["input_ids"].tolist() == ROWS[at]
    assert item.batch["attention_mask"].tolist() == [1] * len(ROWS[at])
    assert item.batch["labels"].shape == ()
    assert item.batch["labels"].item() == TARGETS[at]


def test_iterating_ends() -> None:
    assert [c.ids.item() for c in make()] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    with pytest.raises(IndexError, match="position 4 of a data set of 4"):
        make()[4]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=9))
def test_a_batch_is_its_examples_padded(positions: list[int]) -> None:
    data = make()
    ids, batch = data[positions]
    assert ids.tolist() == positions
    width = max(len(ROWS[i]) for i in positions)
    assert batch["input_ids"].tolist() == [
        ROWS[i] + [0] * (width - len(ROWS[i])) for i in positions
    ]
    assert batch["attention_mask"].sum(1).tolist() == [len(ROWS[i]) for i in positions]
    assert batch["labels"].tolist() == TARGETS[positions].tolist()


# -- other sets of the same texts -----------------------------------------------------------------


def test_ids_survive_subsets_of_subsets_however_large() -> None:
    ids = torch.tensor([2**24 + 1, 2**53 + 1, 7, 2**62 + 1])
    data = make(ids=ids, origin="here", num_classes=5)
    part = data.subset(torch.tensor([3, 1, 0])).subset(torch.tensor([1, 0]))
    assert part.ids.tolist() == [2**53 + 1, 2**62 + 1]
    found = part[[1, 0]]
    assert found.ids.tolist() == [2**62 + 1, 2**53 + 1]
    assert found.batch["input_ids"].tolist() == [[2, 1, 3, 0, 0], [2, 6, 7, 8, 3]]
    assert found.batch["labels"].tolist() == [1, 0]
    assert (part.origin, part.num_classes) == ("here", 5)


def test_relabelled_changes_the_labels_alone() -> None:
    data = make(ids=torch.tensor([9, 8, 7, 6]), classes=("no", "yes"))
    again = data.relabelled(1 - TARGETS)
    assert again[[0, 1]].batch["labels"].tolist() == [0, 1]
    assert data[[0, 1]].batch["labels"].tolist() == [1, 0]
    assert again.ids.tolist() == [9, 8, 7, 6]
    assert torch.equal(again[[0, 1]].batch["input_ids"], data[[0, 1]].batch["input_ids"])
    assert again.origin == data.origin
    assert again.classes == ("no", "yes")


def test_resampled_rows_are_examples_of_their_own() -> None:
    data = make(ids=torch.tensor([9, 8, 7, 6])).resampled(torch.tensor([3, 3, 0]), origin="new")
    assert data.ids.tolist() == [0, 1, 2]
    assert data.lengths.tolist() == [3, 3, 6]
    assert data.targets.tolist() == [1, 1, 1]
    assert data.origin == "new"


def test_fingerprints_tell_labels_apart_and_not_orders() -> None:
    def of(data: TokenSet) -> str:
        return fingerprint(data.ids, data.targets)

    assert of(make()) == of(make().subset(torch.tensor([2, 0, 3, 1])))
    assert of(make()) != of(make().relabelled(1 - TARGETS))
    assert of(make()) != of(make().subset(torch.tensor([2, 0, 3])))


def test_pickling_keeps_data_and_origin() -> None:
    data = make(origin="snippets")
    again = pickle.loads(pickle.dumps(data))
    assert torch.equal(again[[0, 3]].batch["input_ids"], data[[0, 3]].batch["input_ids"])
    assert again.origin == "snippets"


@pytest.mark.usefixtures("streams_untouched")
def test_loader_shuffles_by_its_generator() -> None:
    data = make().resampled(torch.arange(103) % 4)

    def epochs(seed: int) -> list[list[int]]:
        loader = data.loader(10, generator=torch.Generator().manual_seed(seed))
        return [[i for batch in loader for i in batch.ids.tolist()] for _ in range(2)]

    first, second = epochs(3)
    assert [first, second] == epochs(3)
    assert first != second
    assert first != epochs(4)[0]
    assert len(set(first)) == len(first) == 100


@pytest.mark.usefixtures("streams_untouched")
def test_loader_in_order() -> None:
    batches = list(make().loader(3, shuffle=False, drop_last=False))
    assert [b.ids.tolist() for b in batches] == [[0, 1, 2], [3]]
    assert [list(b.batch["input_ids"].shape) for b in batches] == [[3, 6], [1, 3]]
    with pytest.raises(ConfigurationError, match="batch_size=5 of 4 examples"):
        make().loader(5)


# -- what cannot be a set -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": torch.zeros(4, 6)}, r"whole numbers .* of 4 targets; got torch\.float32"),
        ({"tokens": torch.zeros(3, 6).long()}, r"got torch\.int64 of shape \(3, 6\)"),
        ({"tokens": torch.zeros(4).long()}, r"of shape \(4,\)\. Texts\? Use TokenSet\.from_texts"),
        ({"lengths": torch.ones(4, 6).long()}, r"of shape \(4, 6\)\. An attention mask\? Use mask"),
        ({"lengths": torch.ones(4)}, r"lengths must be \[N\] int64, .*got torch\.float32"),
        ({"lengths": torch.tensor([6, 0, 7, 3])}, r"in \[1, 6\]; ids 1, 2 have \[0, 7\]\. Empty"),
        ({"targets": TARGETS - 1}, r"targets must lie in"),
        ({"ids": torch.tensor([5, 3, 5, 3])}, "more than once: 3, 5"),
        ({"ids": torch.arange(3)}, r"same N; got \(4,\) and \(3,\)"),
    ],
)
def test_data_that_cannot_be_a_set(changes: dict[str, Tensor], message: str) -> None:
    good = make()
    same = {"tokens": good.tokens, "lengths": good.lengths, "targets": good.targets}
    with pytest.raises(DataError, match=message):
        TokenSet(**(same | changes))  # type: ignore[arg-type]


def test_names_for_other_classes() -> None:
    with pytest.raises(ConfigurationError, match="3 names for 2 classes"):
        make(classes=("a", "b", "c"))


def test_positions_that_are_none() -> None:
    with pytest.raises(DataError, match="A mask"):
        make().fetch(TARGETS.bool())
    with pytest.raises(DataError, match=r"must lie in \[0, 4\); got 0 to 4"):
        make().fetch(torch.tensor([0, 4]))
    with pytest.raises(DataError, match=r"1 of 3 positions repeat .*resampled\(\)"):
        make().subset(torch.tensor([0, 1, 0]))


# -- rated sentences ------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("REDUCIBLE_DATA", raising=False)
    (tmp_path / "snippets.tsv").write_text(FULL)
    return tmp_path


def test_clear_ratings_become_two_classes(wordpiece: Any, folder: Path) -> None:
    data = sentiment(wordpiece, root=folder)
    assert data.ids.tolist() == [0, 4]
    assert data.targets.tolist() == [1, 0]
    assert data[1].batch["input_ids"].tolist() == [2, 10, 6, 3]
    assert data.classes == ("negative", "positive")
    assert data.num_classes == 2
    both = sentiment(wordpiece, root=folder, sources=("movie", "amazon"), max_length=3)
    assert both.ids.tolist() == [0, 2, 4]  # −0.5 is at the edge of what is neutral, and stays
    assert both[[2]].batch["input_ids"].tolist() == [[2, 10, 3]]


def test_a_rating_of_zero_is_of_no_class(wordpiece: Any, folder: Path) -> None:
    assert sentiment(wordpiece, neutral=0.0, root=folder).ids.tolist() == [0, 1, 4]
    for neutral in (-0.1, 4.0):
        with pytest.raises(ConfigurationError, match="neutral must be a number in"):
            sentiment(wordpiece, neutral=neutral, root=folder)
    with pytest.raises(DataError, match="the data set is empty"):
        sentiment(wordpiece, neutral=3.5, root=folder)


def test_ids_mean_the_same_sentence_whatever_is_left_out(wordpiece: Any, folder: Path) -> None:
    few = sentiment(wordpiece, root=folder, sources="movie")
    more = sentiment(wordpiece, root=folder, neutral=0.1)
    with pytest.raises(DataError, match="share 2 examples of one data set, ids 0, 4"):
        require_disjoint(few, more)


def test_the_embedded_film_sentences(wordpiece: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REDUCIBLE_DATA", raising=False)
    data = sentiment(wordpiece)
    assert len(data) == 10_072
    assert data.targets.bincount().tolist() == [5_076, 4_996]
