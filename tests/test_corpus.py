"""Text becomes tokens, deterministically, and bad text is refused by name."""

import errno
import fcntl
import hashlib
import os
import random
import resource
import shutil
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SHAKESPEARE
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from pyro_meta.data import files
from pyro_meta.data import prepared as prepared_module
from pyro_meta.data import text as text_module
from pyro_meta.data.corpus import TokenCorpus
from pyro_meta.data.text import Text
from pyro_meta.data.vocabulary import ByteVocabulary, CharVocabulary, Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.ngrams import ngram_nll
from pyro_meta.folders import PARTIAL, cache_folder, locked

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
    assert corpus.sha256 == hashlib.sha256(corpus.tokens.tobytes()).hexdigest()
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


# -- which files, and what is text in them -----------------------------------------------------


def text_of(path: Path | str, tokens: str = "byte") -> str:
    corpus = Text(str(path), tokens).corpus()
    return corpus.vocabulary.decode(corpus.tokens.tolist())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "texts"
    path.mkdir()
    (path / "a.txt").write_text("first\n")
    (path / "b.txt").write_text("second\n")
    return path


def test_each_file_is_read_once(folder: Path, tmp_path: Path) -> None:
    (folder / "c.txt").symlink_to(folder / "a.txt")
    (folder / "d.txt").hardlink_to(folder / "b.txt")
    (folder / "e.txt").symlink_to("c.txt")
    outside = tmp_path / "outside.txt"
    outside.write_text("third\n")
    (folder / "f.txt").symlink_to(outside)
    for path in (folder, folder / "*.txt", folder / "**"):
        corpus = Text(str(path)).corpus()
        assert corpus.vocabulary.decode(corpus.tokens.tolist()) == "first\nsecond\nthird\n"
        assert "left out: 3 named more than once" in corpus.description
    assert "left out" not in Text(str(folder / "a.txt")).corpus().description
    assert text_of(folder / "c.txt") == "first\n"


def test_links_in_circles_and_what_is_no_file_are_left_out(folder: Path) -> None:
    (folder / "round").symlink_to("round")
    (folder / "nowhere").symlink_to("gone")
    (folder / "up").symlink_to("..")
    (folder / "here").symlink_to(".")
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "socket"))
        (folder / "inner").mkdir()
        (folder / "inner" / "again").symlink_to("..")
        for path in (folder, folder / "**"):
            corpus = Text(str(path)).corpus()
            assert corpus.vocabulary.decode(corpus.tokens.tolist()) == "first\nsecond\n"
        corpus = Text(str(folder)).corpus()
        assert "left out: 7 no plain file (link to a folder, pipe or device)" in corpus.description
        assert text_of(folder / "**" / "*.txt") == "first\nsecond\n"


def test_a_path_that_is_no_plain_file_is_refused_at_once(folder: Path) -> None:
    os.mkfifo(folder / "pipe")
    (folder / "round").symlink_to("round")
    for path, message in (
        (folder / "pipe", "is a pipe; a file of text"), ("/dev/zero", "is a device"),
        (folder / "round", "Too many levels"), (folder / "no*such", "no such file"),
        (folder / ("x" * 300), "File name too long"), ("a\0b", "no such file"),
        (folder / "pip*", "1 no plain file"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=message) as refusal:
            Text(str(path)).corpus()
        assert "data.path" in str(refusal.value)


def test_a_folder_that_cannot_be_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not left out without a word."""
    (folder / "locked").mkdir()
    scan = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    for path in (folder, folder / "**"):
        with pytest.raises(UsageError, match=r"data\.path: .*locked: Permission denied"):
            Text(str(path)).corpus()


def test_a_mark_of_the_byte_order_is_no_text(folder: Path) -> None:
    mark = "\ufeff"
    (folder / "a.txt").write_text(f"{mark}first {mark}\n", encoding="utf-8")
    (folder / "b.txt").write_text(f"{mark}second", encoding="utf-8")
    (folder / "c.txt").write_text(mark, encoding="utf-8")
    assert text_of(folder) == f"first {mark}\nsecond"
    assert mark not in CharVocabulary(text_of(folder / "b.txt", "char")).characters
    with pytest.raises(UsageError, match="holds no text"):
        Text(str(folder / "c.txt")).corpus()


@pytest.mark.parametrize(
    ("encoding", "name"),
    [
        ("utf-16", "UTF-16"), ("utf-32", "UTF-32"), ("utf-16-le", "UTF-16, UTF-32"),
        ("utf-16-be", "UTF-16, UTF-32"), ("utf-32-be", "UTF-16, UTF-32"),
    ],
)  # fmt: skip
def test_other_encodings_are_named(folder: Path, encoding: str, name: str) -> None:
    (folder / "b.txt").write_text("not UTF-8, though every byte may be\n" * 9, encoding=encoding)
    with pytest.raises(UsageError, match=rf"b\.txt is {name}.* text, not UTF-8") as refusal:
        Text(str(folder)).corpus()
    with pytest.raises(UsageError, match=f"option --x: .*b.txt is {name}"):
        files.read_text(folder / "b.txt", "option --x")
    assert "\n" not in str(refusal.value)


def test_files_are_joined_at_line_ends_and_keep_their_own(folder: Path) -> None:
    for name, text in (("a", "one\r\n"), ("b", "two"), ("c", ""), ("d", "three\r"), ("e", "four")):
        (folder / f"{name}.txt").write_bytes(text.encode())
    joined = "one\r\ntwo\nthree\rfour"
    assert text_of(folder) == text_of(folder, "char") == joined
    (folder / "whole").write_bytes(b"\xef\xbb\xbf" + joined.encode())
    assert files.read_text(folder / "whole", "option --x") == text_of(folder / "whole") == joined


@pytest.mark.parametrize("text", ["x" * 9999, "word " * 2000, "世界" * 3000, "ab\r\n" * 3000])
def test_text_without_line_ends_is_read_in_pieces_too(
    folder: Path, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words are not cut where there are any."""
    monkeypatch.setattr(files, "READ_CHARACTERS", 700)
    (folder / "a.txt").write_bytes(text.encode())
    pieces = list(files.read_files([folder / "a.txt"]))
    assert "".join(pieces) == text and max(map(len, pieces)) <= 1400
    if " " in text:
        assert all(piece.startswith(" word") for piece in pieces[1:-1])
    if "\n" in text:
        assert all(piece.endswith("\r\n") for piece in pieces)


def test_a_pipe_may_be_a_prompt_and_nothing_is_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert files.read_text(tmp_path / "pipe", "option --x") == ""
    reader, writer = os.pipe()
    os.write(writer, "grüße\r\n".encode())
    os.close(writer)
    assert files.read_text(Path(f"/dev/fd/{reader}"), "option --x") == "grüße\r\n"
    os.close(reader)
    for path, message in ((Path("/dev/zero"), "is a device"), (tmp_path, "is a folder")):
        with pytest.raises(UsageError, match=f"option --x: .*{message}"):
            files.read_text(path, "option --x")


def test_a_text_that_changes_while_it_is_read_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(found: list[Path]) -> Iterator[str]:
        yield from files.read_files(found)
        (folder / "b.txt").write_text("another")

    monkeypatch.setattr(text_module, "read_files", read)
    with pytest.raises(UsageError, match=r"data\.path: .* was changed while it was read"):
        Text(str(folder)).corpus()
    assert not list(cache_folder().glob(f"*{PARTIAL}*"))


def test_a_change_that_keeps_size_and_time_is_seen(folder: Path) -> None:
    path = folder / "a.txt"
    before = path.stat()
    assert text_of(path) == "first\n"
    path.write_text("f1rst\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert text_of(path) == "f1rst\n"


# -- prepared text -------------------------------------------------------------------------------


def kept(corpus: TokenCorpus) -> Path:
    return Path(corpus.tokens.filename).parent  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:prepared text in:UserWarning")
def test_damaged_prepared_text_is_made_anew(sample: Path) -> None:
    """Whatever byte of whatever file is another, or missing."""
    rng = random.Random(1)
    first = Text(str(sample), "char").corpus()
    folder = kept(first)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(whole) == {"tokens.bin", "vocabulary.json", "corpus.json"}
    for _ in range(120):
        name = rng.choice(sorted(whole))
        content = bytearray(whole[name])
        at = rng.randrange(len(content))
        damage = rng.choice(["flip", "cut", "longer", "gone", "empty", "link"])
        if damage == "flip":
            content[at] ^= 1 << rng.randrange(8)
        elif damage == "longer":
            content += bytes([content[at]])
        else:
            del content[at if damage == "cut" else 0 :]
        path = folder / name
        path.unlink()
        if damage == "link":
            path.symlink_to("/dev/zero")
        elif damage != "gone":
            path.write_bytes(content)
        again = Text(str(sample), "char").corpus()
        assert again.vocabulary.decode(again.tokens.tolist()) == SAMPLE, (name, damage)
        for name in ("tokens.bin", "vocabulary.json"):
            assert (folder / name).read_bytes() == whole[name]
    assert first.vocabulary.decode(first.tokens.tolist()) == SAMPLE, "it stays mapped"
    assert not list(cache_folder().glob(f"*{PARTIAL}*"))


def test_it_is_said_that_prepared_text_was_damaged(sample: Path) -> None:
    folder = kept(Text(str(sample)).corpus())
    content = (folder / "tokens.bin").read_bytes()
    (folder / "tokens.bin").write_bytes(b"Other" + content[5:])
    with pytest.warns(UserWarning, match=rf"{folder} was damaged; it is made anew") as said:
        assert text_of(sample) == SAMPLE
    assert len(said) == 1
    shutil.rmtree(folder)
    folder.write_text("a file in its place")
    with pytest.warns(UserWarning, match="made anew"):
        assert text_of(sample) == SAMPLE


def test_prepared_text_of_another_is_not_taken(sample: Path, folder: Path) -> None:
    """Whole, but in the wrong place."""
    one, other = (kept(Text(str(path)).corpus()) for path in (sample, folder))
    shutil.rmtree(one)
    shutil.copytree(other, one)
    with pytest.warns(UserWarning, match="made anew"):
        assert text_of(sample) == SAMPLE


def test_whoever_asks_at_once_waits_for_the_first(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    make = prepared_module._make
    monkeypatch.setattr(prepared_module, "_make", lambda *given: made.append(1) or make(*given))
    with ThreadPoolExecutor(6) as pool:
        texts = list(pool.map(text_of, [sample] * 12))
    assert set(texts) == {SAMPLE} and len(made) == 1


def test_what_a_killed_process_left_is_cleared(sample: Path) -> None:
    folder = kept(Text(str(sample)).corpus())
    shutil.rmtree(folder)
    left, of_another, of_living = (
        folder.with_name(f".{name}{PARTIAL}{number}-0a0b0c0d")
        for number, name in enumerate((folder.name, "other", folder.name))
    )
    for path in (left, of_another, of_living):
        path.mkdir()
        (path / "tokens.bin").write_bytes(b"half")
    with locked(of_living, busy=""):
        assert text_of(sample) == SAMPLE
    assert not left.exists() and of_another.exists() and of_living.exists()
    shutil.rmtree(of_another)
    shutil.rmtree(of_living)


def test_without_locks_nothing_is_cleared_that_may_be_in_use(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int, way: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    folder = kept(Text(str(sample)).corpus())
    shutil.rmtree(folder)
    left = folder.with_name(f".{folder.name}{PARTIAL}1-0a0b0c0d")
    left.mkdir()
    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.warns(UserWarning, match="this file system has no locks"):
        assert text_of(sample) == SAMPLE
    assert left.exists()
    left.rmdir()


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_full_disk_is_one_line_and_leaves_nothing(folder: Path, share: float) -> None:
    """A file that may grow no further fails as one on a full disk does."""
    path = folder / "long.txt"
    path.write_text("a long text\n" * 20_000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(share * path.stat().st_size), hard))
    try:
        with pytest.raises(UsageError, match=r"cannot keep prepared text in .*File too large"):
            Text(str(path)).corpus()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(cache_folder().glob(f"*{PARTIAL}*"))
    assert text_of(path) == "a long text\n" * 20_000


def test_without_a_home_the_cache_has_to_be_named(
    sample: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PYRO_META_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UsageError, match=r"there is no home folder.*PYRO_META_CACHE"):
        Text(str(sample)).corpus()
