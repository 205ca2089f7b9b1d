"""Rated sentences: the embedded ones, and the full file."""

from pathlib import Path

import pytest
import torch

from reducible.lab.data import Sentences, sentences
from reducible.types import DataError

FULL = (
    "source\tid\trating\ttext\n"
    'movie\t1\t2.2\t"Quotes" are\'nt "special\n'
    "movie\t2\t-0.6\tzu lang, “schön”\n"
    'amazon\t1_1\t0.0\t"open\n'
    "tweet\t1\t0.2\tok\n"
)


@pytest.fixture(autouse=True)
def _no_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("REDUCIBLE_DATA", raising=False)


def write(folder: Path, text: str | bytes) -> Path:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "snippets.tsv").write_bytes(data)
    return folder


def test_the_embedded_film_sentences():
    data = sentences()
    assert isinstance(data, Sentences)
    assert len(data) == len(data.texts) == len(data.sources) == 10_605
    assert data.texts[2] == "Effective but too tepid biopic"
    assert data.ratings.dtype == torch.float32
    assert data.ratings[2].item() == pytest.approx(-0.6)
    assert float(data.ratings.abs().max()) <= 4
    assert torch.equal(data.ids, torch.arange(10_605))
    assert set(data.sources) == {"movie"}
    assert data.targets.dtype == torch.int64
    assert round(float(data.targets.float().mean()), 2) == 0.49


def test_quotation_marks_are_text(tmp_path: Path):
    data = sentences(root=write(tmp_path, FULL), sources=("movie", "amazon"))
    assert data.texts == ['"Quotes" are\'nt "special', "zu lang, “schön”", '"open']
    assert data.sources == ["movie", "movie", "amazon"]
    assert data.targets.tolist() == [1, 0, 0]  # a rating of 0 is not positive


def test_ids_are_rows_of_the_full_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("REDUCIBLE_DATA", str(write(tmp_path, FULL)))
    assert sentences(sources=("tweet", "movie")).ids.tolist() == [0, 1, 3]
    assert sentences(sources="tweet").texts == ["ok"]


def test_a_source_that_is_not_there():
    with pytest.raises(DataError, match=r"no text from tweet in .*; it has: movie.*give root="):
        sentences(sources=("movie", "tweet"))
    with pytest.raises(DataError, match="no text from no source"):
        sentences(sources=())


def test_a_folder_without_the_file(tmp_path: Path):
    with pytest.raises(DataError, match=r"sentences\(\) needs snippets.tsv"):
        sentences(root=tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"has the columns \[\], not"),
        ("movie\t1\t2.2\tfine\n", r"has the columns \['movie', .*without its header"),
        (FULL + "movie\t3\t1.0\n", "line 6 of .* is not source, id, rating, text"),
        (FULL + "movie\t3\thigh\tfine\n", "line 6 of .*'high'"),
        (FULL + "movie\t3\tnan\tfine\n", "line 6 of .*'nan'"),
        (FULL.encode("latin-1", "replace") + "movie\t3\t1\tschön\n".encode("latin-1"), "not UTF-8"),
    ],
)
def test_a_file_that_is_another(tmp_path: Path, text: str | bytes, message: str):
    with pytest.raises(DataError, match=message):
        sentences(root=write(tmp_path, text))
