"""Text becomes tokens, deterministically, and bad text is refused by name."""

from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SHAKESPEARE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pyro_meta.data import files
from pyro_meta.data.corpus import Text
from pyro_meta.data.vocabulary import ByteVocabulary, CharVocabulary, Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.ngrams import ngram_nll

SAMPLE = "Grüße, 世界!\n" * 60


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.txt"
    path.write_text(SAMPLE, encoding="utf-8")
    return path


def test_bytes_and_characters_come_back(sample: Path) -> None:
    for tokens in ("byte", "char"):
        corpus = Text(str(sample), tokens).corpus()
        assert corpus.vocabulary.decode(corpus.tokens.tolist()) == SAMPLE
        assert corpus.vocabulary.kind == tokens
    assert Text(str(sample), "char").corpus().vocabulary.size == len(set(SAMPLE))


def test_a_tokenizer_file_is_read(sample: Path, tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=letters)
    tokenizer.train_from_iterator([SAMPLE], trainer)
    path = tmp_path / "tokenizer.json"
    tokenizer.save(str(path))
    corpus = Text(str(sample), str(path)).corpus()
    assert corpus.tokens.tolist() == tokenizer.encode(SAMPLE, add_special_tokens=False).ids
    saved = tmp_path / "vocabulary.json"
    corpus.vocabulary.save(saved)
    again = Vocabulary.load(saved)
    ids = corpus.tokens[:9].tolist()
    assert again.decode(ids) == corpus.vocabulary.decode(ids)
    assert "".join(again.pieces(ids)) == again.decode(ids)
    ids = again.encode(SAMPLE).tolist()
    assert "".join(again.streamed(ids)) == again.decode(ids)


def test_pieces_add_up_to_the_text() -> None:
    vocabulary = ByteVocabulary()
    ids = vocabulary.encode("aß世").tolist()
    assert len(vocabulary.pieces(ids)) == len(ids)
    assert "".join(vocabulary.pieces(ids)) == "aß世"
    assert list(vocabulary.streamed(ids)) == ["a", "", "ß", "", "", "世", ""]
    assert list(vocabulary.streamed(ids[:2])) == ["a", "", "\ufffd"]
    assert list(CharVocabulary("ab").streamed([1, 0])) == ["b", "a"]


def test_a_character_that_the_corpus_lacks_is_refused() -> None:
    with pytest.raises(UsageError, match="'z' is not among the 2"):
        CharVocabulary("ab").encode("abz")


def test_tokens_are_memory_mapped_and_split_by_position(sample: Path) -> None:
    corpus = Text(str(sample), validation=0.25).corpus()
    assert isinstance(corpus.tokens, np.memmap) and corpus.tokens.dtype == np.uint8
    assert len(corpus.train) == int(0.75 * len(corpus.tokens))
    joined = np.concatenate([corpus.train, corpus.validation])
    assert np.array_equal(joined, corpus.tokens)


def test_folders_and_globs_are_read_in_order(tmp_path: Path) -> None:
    for name, text in (("b.txt", "second"), ("a/x.txt", "first "), (".hidden", "never")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    folder = Text(str(tmp_path)).corpus()
    assert folder.vocabulary.decode(folder.tokens.tolist()) == "first \nsecond"
    some = Text(str(tmp_path / "**" / "*.txt")).corpus()
    assert some.vocabulary.decode(some.tokens.tolist()) == "first \nsecond"


def test_a_changed_file_is_read_anew(sample: Path) -> None:
    before = Text(str(sample)).corpus()
    sample.write_text("other text, of another length")
    after = Text(str(sample)).corpus()
    assert before.sha256 != after.sha256
    assert after.vocabulary.decode(after.tokens.tolist()) == "other text, of another length"


def test_pieces_of_a_large_file_join_without_loss(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "READ_CHARACTERS", 7)
    corpus = Text(str(sample)).corpus()
    assert corpus.vocabulary.decode(corpus.tokens.tolist()) == SAMPLE


def test_a_cache_that_cannot_be_written_is_named(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYRO_META_CACHE", str(sample / "inside-a-file"))
    with pytest.raises(UsageError, match="set PYRO_META_CACHE"):
        Text(str(sample)).corpus()


def test_the_order_is_a_function_of_seed_and_step(sample: Path) -> None:
    corpus = Text(str(sample)).corpus()
    first, again = corpus.batch(3, 5, 4, 20), corpus.batch(3, 5, 4, 20)
    assert torch.equal(first[0], again[0])
    assert not torch.equal(first[0], corpus.batch(3, 6, 4, 20)[0])
    assert not torch.equal(first[0], corpus.batch(4, 5, 4, 20)[0])
    assert torch.equal(first[0][:, 1:], first[1][:, :-1]), "targets are the next tokens"


def test_training_never_reads_validation(tmp_path: Path) -> None:
    path = tmp_path / "ab.txt"
    path.write_text("a" * 900 + "b" * 100)
    corpus = Text(str(path)).corpus()
    drawn = [corpus.batch(0, step, 16, 30) for step in range(60)]
    assert all((part == ord("a")).all() for pair in drawn for part in pair)
    tokens, targets = corpus.windows(30, 10_000)
    assert tokens.shape == (3, 30) and (targets == ord("b")).all()


def test_windows_are_spread_without_overlap(sample: Path) -> None:
    corpus = Text(str(sample), validation=0.5).corpus()
    tokens, _ = corpus.windows(10, 50)
    assert tokens.shape == (5, 10)
    everything, _ = corpus.windows(10, 10**9)
    assert everything.numel() <= len(corpus.validation)
    assert everything.numel() > len(corpus.validation) - 20


def test_the_default_corpus_is_python_s_own_documentation() -> None:
    corpus = Text().corpus()
    assert len(corpus.tokens) > 500_000
    assert corpus.sha256[:12] in corpus.description
    head = corpus.vocabulary.decode(corpus.tokens[:200_000].tolist())
    assert "statement" in head


def test_ngrams_equal_counting_by_hand(tmp_path: Path) -> None:
    train = np.array([0, 1, 0, 1, 2, 0], np.uint8)
    windows = (torch.tensor([[0, 1]]), torch.tensor([[1, 0]]))
    unigram, bigram = ngram_nll(train, windows, 3)
    counts = np.array([4, 3, 2]) / 9
    assert unigram == pytest.approx(-np.log(counts[[1, 0]]).mean())
    by_hand = [(2 + counts[1]) / 3, (1 + counts[0]) / 3]
    assert bigram == pytest.approx(-np.log(by_hand).mean())


@pytest.mark.skipif(not SHAKESPEARE.exists(), reason="needs shared data")
def test_a_bigram_knows_shakespeare_better_than_a_unigram() -> None:
    corpus = Text(str(SHAKESPEARE), "char").corpus()
    assert corpus.vocabulary.size == 65
    unigram, bigram = ngram_nll(corpus.train, corpus.windows(64, 20_000), 65)
    assert 2.3 < bigram < 2.6 < unigram < 3.5


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "no such file"), (b"", "no text"), (b"abc\xff\xfe", "not UTF-8")],
)
def test_bad_files_are_refused_by_name(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "bad.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UsageError, match=f"bad.txt.*{message}|{message}.*bad.txt"):
        Text(str(path)).corpus()


def test_a_short_text_is_refused(sample: Path) -> None:
    with pytest.raises(UsageError, match="a context of 256 needs at least 257"):
        Text(str(sample)).corpus().require(256)


def test_bad_tokens_are_refused(sample: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"byte, char or a tokenizer\.json"):
        Text(str(sample), "words").corpus()
    (tmp_path / "t.json").write_text("{}")
    with pytest.raises(UsageError, match=r"no tokenizer\.json"):
        Text(str(sample), str(tmp_path / "t.json")).corpus()
    with pytest.raises(UsageError, match=r"data\.validation"):
        Text(validation=1.0)
