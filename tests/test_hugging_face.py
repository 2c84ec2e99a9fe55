"""Datasets of Hugging Face become tokens as text files do, and bad ones are refused by name."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import MOMENT, error_line, run_here, train
from hypothesis import given
from hypothesis import strategies as st
from test_own_data import BATCH, TOKENS
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from pyro_meta import HuggingFace, UsageError
from pyro_meta.data import hugging_face as module
from pyro_meta.data.corpus import TokenCorpus
from pyro_meta.data.hugging_face import in_pieces
from pyro_meta.data.preparing import telling
from pyro_meta.data.soundness import _require_sound, sound_corpus
from pyro_meta.folders import PARTIAL, cache_folder
from pyro_meta.training.config import read_options
from pyro_meta.training.run import Run

datasets: Any = pytest.importorskip("datasets")

ROWS = [f"row {number}: grüße, 世界" for number in range(80)]
HELD_OUT = [f"held out {number}" for number in range(30)]
TEXT = "\n".join(ROWS)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "of-the-library")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same rows in all ways that they may lie on a disk; to be left as they are."""
    folder = tmp_path_factory.mktemp("datasets")
    columns = {"text": ROWS, "number": [*range(len(ROWS))], "other": [one.upper() for one in ROWS]}
    rows = datasets.Dataset.from_dict(columns)
    held_out = datasets.Dataset.from_dict({"text": HELD_OUT})
    datasets.disable_progress_bars()
    rows.save_to_disk(folder / "saved")
    splits = datasets.DatasetDict(train=rows.select_columns("text"), test=held_out)
    splits.save_to_disk(folder / "splits")
    for name in ("folder", "odd", "empty"):
        (folder / name).mkdir()
    rows.to_parquet(folder / "folder" / "train.parquet")
    datasets.Dataset.from_dict({"text": HELD_OUT}).to_parquet(folder / "folder" / "test.parquet")
    rows.to_parquet(folder / "rows.parquet")
    rows.to_json(folder / "rows.jsonl", force_ascii=False)
    rows.to_json(folder / "rows.json.gz", force_ascii=False, compression="gzip")
    rows.to_csv(folder / "rows.csv")
    (folder / "rows.txt").write_text(TEXT)
    (folder / "broken.parquet").write_bytes(b"nothing")
    (folder / "broken.jsonl").write_text("{nothing")
    (folder / "odd" / "rows.xyz").write_text("?")
    (folder / "nothing.jsonl").write_text('{"text": null}\n{"text": ""}\n')
    datasets.enable_progress_bars()
    return folder


def text_of(corpus: TokenCorpus) -> str:
    return corpus.vocabulary.decode(corpus.tokens.tolist())


# -- what is read --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["saved", "splits", "folder", "rows.parquet", "rows.jsonl", "rows.json.gz", "rows.csv",
     "rows.txt", "*.csv"],
)  # fmt: skip
def test_rows_are_the_same_wherever_they_lie(made: Path, name: str) -> None:
    corpus = HuggingFace(str(made / name)).corpus()
    assert text_of(corpus) == TEXT and isinstance(corpus.tokens, np.memmap)
    assert len(corpus.train) == int(0.9 * len(corpus.tokens))
    if name not in ("rows.txt", "splits"):
        assert text_of(HuggingFace(str(made / name), "other").corpus()) == TEXT.upper()


@pytest.mark.parametrize("name", ["splits", "folder"])
def test_another_split_can_be_held_out(made: Path, name: str) -> None:
    for tokens in ("byte", "char"):
        corpus = HuggingFace(str(made / name), validation_split="test", tokens=tokens).corpus()
        assert corpus.vocabulary.decode(corpus.train.tolist()) == TEXT
        assert corpus.vocabulary.decode(corpus.validation.tolist()) == "\n".join(HELD_OUT)
    assert "text of train and test (" in corpus.description


def test_what_ours_promise_holds(made: Path) -> None:
    """The same checks as of data of one's own, also of what is streamed."""
    for more in ({}, {"validation_split": "test"}, {"stream_tokens": 900}, {"tokens": "char"}):
        data = HuggingFace(str(made / "folder"), **more)  # type: ignore[arg-type]
        corpus = sound_corpus(data, 16, BATCH, TOKENS)
        _require_sound(corpus, "HuggingFace", 16, BATCH, 64, seed=1)
        again = HuggingFace(str(made / "folder"), **more).corpus()  # type: ignore[arg-type]
        assert torch.equal(corpus.batch(3, 5, 4, 8)[0], again.batch(3, 5, 4, 8)[0])


def test_what_a_dataset_saves_beside_its_rows_changes_nothing(made: Path, tmp_path: Path) -> None:
    rows = datasets.load_from_disk(str(made / "saved")).with_format("numpy")
    rows.save_to_disk(tmp_path / "formatted")
    assert text_of(HuggingFace(str(tmp_path / "formatted")).corpus()) == TEXT


def test_a_changed_dataset_is_read_anew(made: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "first"}\n')
    before = HuggingFace(str(path)).corpus()
    path.write_text('{"text": "second"}\n')
    after = HuggingFace(str(path)).corpus()
    assert (text_of(before), text_of(after)) == ("first", "second")
    assert before.sha256 != after.sha256


def test_nothing_is_copied_and_the_library_stays_as_it_was(made: Path, tmp_path: Path) -> None:
    level = datasets.logging.get_verbosity()
    HuggingFace(str(made / "rows.jsonl")).corpus()
    HuggingFace(str(made / "saved")).corpus()
    assert not (tmp_path / "of-the-library").exists()
    assert datasets.logging.get_verbosity() == level
    assert not datasets.utils.are_progress_bars_disabled()


@given(
    st.lists(st.text(alphabet="ab \r\n", min_size=1, max_size=12), max_size=12), st.integers(1, 9)
)
def test_pieces_are_the_rows_each_on_its_lines(rows: list[str], size: int) -> None:
    whole = "".join(
        row if last or row.endswith(("\n", "\r")) else row + "\n"
        for row, last in zip(rows, [False] * (len(rows) - 1) + [True], strict=False)
    )
    pieces = list(in_pieces(iter(rows), size))
    assert "".join(pieces) == whole and all(pieces)
    longest = max(map(len, rows), default=0)
    assert all(len(piece) <= size + longest + 1 for piece in pieces)


# -- streams ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", ["byte", "char"])
def test_a_stream_is_read_as_far_as_is_wanted(
    made: Path, monkeypatch: pytest.MonkeyPatch, tokens: str
) -> None:
    monkeypatch.setattr(module, "ROWS", 1)
    read: list[str] = []
    rows = HuggingFace._rows

    def watched(self: HuggingFace, split: Any) -> Iterator[str]:
        for row in rows(self, split):
            read.append(row)
            yield row

    monkeypatch.setattr(HuggingFace, "_rows", watched)
    data = HuggingFace(str(made / "rows.jsonl"), stream_tokens=200, tokens=tokens)
    corpus = data.corpus()
    assert len(corpus.tokens) == 200 and len(corpus.validation) == 20
    whole = TEXT.encode()[:200] if tokens == "byte" else TEXT[:200].encode()
    assert text_of(corpus) == whole.decode("utf-8", "replace")
    assert len(read) < 2 * len(ROWS) // 3
    read.clear()
    assert text_of(data.corpus()) == text_of(corpus) and not read, "a resume reads what is kept"


def test_a_stream_takes_its_share_of_each_split(made: Path) -> None:
    corpus = HuggingFace(
        str(made / "folder"), validation_split="test", validation=0.25, stream_tokens=400
    ).corpus()
    assert corpus.vocabulary.decode(corpus.train.tolist()) == TEXT.encode()[:300].decode(
        "utf-8", "replace"
    )
    assert corpus.vocabulary.decode(corpus.validation.tolist()) == "\n".join(HELD_OUT)[:100]


def test_streams_of_another_length_are_other_texts(made: Path) -> None:
    path = str(made / "rows.txt")
    corpora = [HuggingFace(path, stream_tokens=most).corpus() for most in (100, 101)]
    corpora += [HuggingFace(path).corpus()]
    assert len({corpus.sha256 for corpus in corpora}) == 3


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "; train of .* has 1,909; at most 1,909 is allowed"),
        ({"validation_split": "test"}, ", 90,000 of them of train; .* has 1,909; at most 2,121 is"),
        (
            {"validation_split": "test", "validation": 0.99},
            ", 99,000 of them of test; .* has 349; ",
        ),
    ],
)
def test_a_stream_that_is_too_short_is_refused(
    made: Path, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=rf"^data\.stream_tokens: 100,000 given{message}"):
        HuggingFace(str(made / "folder"), stream_tokens=100_000, **more).corpus()
    assert not list(cache_folder().glob(f"*{PARTIAL}*"))


def test_it_is_told_how_far_it_is(made: Path) -> None:
    told: list[str] = []
    with telling(told.append):
        HuggingFace(str(made / "rows.txt"), stream_tokens=150).corpus()
    HuggingFace(str(made / "rows.txt"), stream_tokens=151).corpus()
    assert told[-1] == "preparing the text: 150 tokens"
    assert all(re.fullmatch(r"preparing the text: \d+ tokens(, \d+ to come)?", one) for one in told)


# -- the hub ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream_tokens", [None, 500])
def test_a_dataset_of_the_hub_is_asked_for_by_its_name(
    made: Path, monkeypatch: pytest.MonkeyPatch, stream_tokens: int | None
) -> None:
    asked: list[Any] = []
    load = datasets.load_dataset_builder

    def from_here(path: str, name: str | None, revision: str | None) -> Any:
        asked.append((path, name, revision))
        return load(str(made / "folder"))

    monkeypatch.setattr(datasets, "load_dataset_builder", from_here)
    data = HuggingFace("someone/rows", name="de", revision="1a2b", stream_tokens=stream_tokens)
    corpus = data.corpus()
    assert text_of(corpus) == TEXT.encode()[:stream_tokens].decode("utf-8", "replace")
    assert asked == [("someone/rows", "de", "1a2b")]
    data.corpus()
    assert len(asked) == 1, "once prepared, nobody is asked"


@pytest.mark.parametrize("name", ["someone/nothing", "nothing"])
def test_a_dataset_that_is_nowhere_is_refused(
    name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match=rf"^data\.path: {name} is not on this disk, and cannot"):
        HuggingFace(name).corpus()
    assert not caplog.records
    assert len(capfd.readouterr().err.splitlines()) <= 1, "more than what is looked for was said"


# -- what is refused -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("saved", {"column": "txt"}, r"column: 'txt' given, .*; text, other is allowed"),
        ("rows.jsonl", {"column": "txt"}, r"column: 'txt' given, .*; text, other is"),
        ("saved", {"column": "number"}, "column: number of .* holds int; a column of text"),
        ("rows.parquet", {"column": "number"}, "column: number of .* holds int"),
        ("saved", {"split": "test"}, r"split: 'test' given, .*; train is allowed"),
        ("splits", {"split": "dev"}, r"split: 'dev' given, .*; train, test is allowed"),
        ("folder", {"validation_split": "dev"}, r"validation_split: 'dev' given, .*; train, test"),
        ("rows.csv", {"split": "dev"}, "split: 'dev' given"),
        ("nowhere", {}, "path: .*nowhere: no such file"),
        ("nowhere.parquet", {}, "path: .*: no such file"),
        ("*.arrow", {}, "path: .*: no such file"),
        ("*.??*", {}, "path: .* given; files of one kind are allowed, of .parquet"),
        ("odd/rows.xyz", {}, "path: .* files of one kind are allowed"),
        ("odd", {}, "path: .*odd cannot be read: "),
        ("empty", {}, "path: .*empty: no such file, and no file in a folder"),
        ("broken.parquet", {}, "path: .*broken.parquet cannot be read: "),
        ("broken.jsonl", {}, "path: .*broken.jsonl cannot be read: "),
        ("nothing.jsonl", {}, "path: .* holds no text in text of train"),
        ("rows.csv", {"name": "de"}, "name: de given, and .* has no configurations"),
        ("saved", {"name": "de"}, "name: de given, and .* has no configurations"),
        ("folder", {"name": "de"}, "path: .*folder cannot be read: .*'de' not found"),
        ("saved", {"revision": "main"}, "revision: main given, and .* is on this disk"),
        ("rows.txt", {"tokens": "words"}, "tokens: 'words' given; byte, char"),
        ("rows.txt", {"tokens": ""}, "tokens: it is empty"),
        ("rows.txt", {"validation": 1.0}, "validation: 1.0 given; above 0"),
        ("rows.txt", {"stream_tokens": 0}, "stream_tokens: 0 given; at least 1 is allowed"),
        ("splits", {"validation_split": "train"}, "validation_split: 'train' given, which is"),
        ("splits", {"validation_split": "test", "validation": 0.2}, "validation: 0.2 given beside"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_told_in_one_line(
    made: Path, name: str, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=rf"^data\.{message}") as refusal:
        HuggingFace(str(made / name), **more).corpus()
    assert "\n" not in str(refusal.value)
    assert not list(cache_folder().glob(f"*{PARTIAL}*"))


def test_without_the_library_it_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a folder of data is what can be imported under its name."""
    for found in (None, type(sys)("datasets")):
        monkeypatch.setitem(sys.modules, "datasets", found)
        with pytest.raises(UsageError, match=r"pip install 'pyro-meta\[datasets\]'"):
            HuggingFace(str(made / "rows.csv"), "other", stream_tokens=77).corpus()


# -- runs ------------------------------------------------------------------------------------------


def test_a_resumed_run_reads_nothing_of_the_dataset(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    words = [*MOMENT, "--steps=2", "--data=HuggingFace", f"--data.path={made / 'folder'}"]
    words += ["--data.validation_split=test", "--data.stream_tokens=1000", f"--out={run}"]
    assert train(*words) == 0
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert train(f"--resume={run}", "--steps=3") == 0
    text = Run.open(run).config().data.corpus()
    assert isinstance(text, TokenCorpus) and len(text.tokens) == 1000


def test_a_pretrained_model_brings_its_own_tokens(made: Path, tmp_path: Path) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({one: at for at, one in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    words = [f"--pretrained={tmp_path}", "--data=HuggingFace", f"--data.path={made / 'rows.csv'}"]
    corpus = read_options(words)[0].data.corpus()
    assert isinstance(corpus, TokenCorpus) and corpus.vocabulary.kind == "tokenizer"
    assert text_of(corpus) == TEXT


def test_the_command_says_what_is_wrong_in_one_line(made: Path, tmp_path: Path) -> None:
    words = [*MOMENT, "--data=HuggingFace", f"--out={tmp_path / 'run'}"]
    for more, message in (
        ([], "option --data.path: HuggingFace needs it; --data.help HuggingFace"),
        ([f"--data.path={made / 'saved'}", "--data.colum=text"], "--data.colum"),
        ([f"--data.path={made / 'saved'}", "--data.column=txt"], "data.column: 'txt' given"),
        ([f"--data.path={made / 'saved'}", "--data.stream_tokens=many"], "a whole number"),
    ):
        done = run_here("train", *words, *more)
        assert done.returncode == 2 and message in error_line(done), error_line(done)
    assert not (tmp_path / "run").exists()
