"""Vocabularies: what goes in comes back, token by token, or it is said what does not."""

import itertools
import json
import random
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from commands import MOMENT, error_line, run, run_here
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from pyro_meta.data.added_text import byte_letters
from pyro_meta.data.loss import loss
from pyro_meta.data.text import Text
from pyro_meta.data.vocabulary import (
    ByteVocabulary,
    CharVocabulary,
    FileVocabulary,
    SymbolVocabulary,
    Vocabulary,
)
from pyro_meta.errors import UsageError
from pyro_meta.folders import PARTIAL, cache_folder

LETTERS = "aeht .\n▁世éß\ufffd"
WORDS = [
    "a", "e", "h", "t", " ", ".", "\n", "▁", "世", "é", "ß", "Ġ", "Ċ", "##a", "##t", "▁a", "▁th",
    "a</w>", "</w>", "the", "he", "<0xE4>", "<0xB8>", "<0x96>", "<0xff>", "<0x61>", "\ufffd", "ä",
    "¸", "ĸ", "Ã", "�a", "|", "<pad>", "n't", "",
]  # fmt: skip
ENGLISH = "the quick brown fox jumps over the lazy dog\nsphinx of black quartz, judge my vow. "


# -- random tokenizers -------------------------------------------------------------------------


def random_tokenizer(rng: random.Random) -> Tokenizer:
    """A tokenizer whose parts need not fit each other."""
    tokenizer = Tokenizer(random_model(rng))
    spaces = rng.choice(["always", "first", "never"])
    tokenizer.pre_tokenizer = rng.choice([
        pre_tokenizers.ByteLevel(add_prefix_space=rng.random() < 0.5),
        pre_tokenizers.Whitespace(), pre_tokenizers.WhitespaceSplit(),
        pre_tokenizers.Metaspace(prepend_scheme=spaces), pre_tokenizers.Split(" ", "isolated"),
        pre_tokenizers.BertPreTokenizer(), pre_tokenizers.Digits(),
    ])  # fmt: skip
    decoder = random_decoder(rng)
    if decoder is not None:
        tokenizer.decoder = decoder
    if rng.random() < 0.3:
        tokenizer.normalizer = rng.choice([
            normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents(),
            normalizers.Replace("a", ""), normalizers.Strip(), normalizers.BertNormalizer(),
        ])  # fmt: skip
    if rng.random() < 0.3:
        tokenizer.add_special_tokens(["<s>"])
        tokenizer.post_processor = processors.TemplateProcessing(
            "<s> $A <s>", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    if rng.random() < 0.3:
        tokenizer.add_tokens([AddedToken("ha", lstrip=True, rstrip=True)])
    if rng.random() < 0.3:
        tokenizer.enable_truncation(5)
    if rng.random() < 0.3:
        tokenizer.enable_padding(length=100)
    return tokenizer


def random_model(rng: random.Random) -> models.Model:
    words = ["a", "e", "h", "t", *rng.sample(WORDS[4:], rng.randint(5, len(WORDS) - 4))]
    rng.shuffle(words)
    ids = itertools.accumulate(rng.choices([1, 2, 9], [9, 1, 1], k=len(words)))
    vocabulary = dict(zip(words, ids, strict=True))
    unknown = rng.choice([None, "a", "[UNK]"])
    if unknown == "[UNK]" and rng.random() < 0.7:
        vocabulary["[UNK]"] = max(vocabulary.values()) + 1
    kind = rng.choice([models.BPE, models.WordPiece, models.WordLevel, models.Unigram])
    if kind is models.BPE:
        pairs = itertools.product(filter(None, vocabulary), repeat=2)
        merges = [pair for pair in pairs if "".join(pair) in vocabulary]
        return models.BPE(
            vocabulary, merges, unk_token=unknown, dropout=rng.choice([None, 0.5]),
            byte_fallback=rng.random() < 0.3, fuse_unk=rng.random() < 0.5,
        )  # fmt: skip
    if kind is models.Unigram:
        scored = [(word, -9 * rng.random()) for word in words]
        return models.Unigram(scored, rng.choice([None, 0, 1]), rng.random() < 0.3)
    return kind(vocabulary, unk_token=unknown or "[UNK]")


def random_decoder(rng: random.Random) -> decoders.Decoder | None:
    known = [
        decoders.Sequence([
            decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]),
        decoders.ByteLevel(),
    ]  # fmt: skip
    count = rng.choice([None, 0, 1, 1, 2, 3, 4])
    if count is None:
        return None
    return (
        decoders.Sequence([random_part(rng) for _ in range(count)]) if count else rng.choice(known)
    )


def random_part(rng: random.Random) -> decoders.Decoder:
    spaces = rng.choice(["always", "first", "never"])
    pattern = rng.choice(["▁", "a", "the", "Ġ", Regex("a+"), "<"])
    return rng.choice([
        decoders.ByteLevel(), decoders.WordPiece(cleanup=rng.random() < 0.5), decoders.CTC(),
        decoders.Metaspace(prepend_scheme=spaces), decoders.BPEDecoder(), decoders.ByteFallback(),
        decoders.Fuse(), decoders.Strip(rng.choice(" a"), rng.randint(0, 3), 0),
        decoders.Replace(pattern, rng.choice([" ", "", "x", "<0x61>"])),
    ])  # fmt: skip


@pytest.mark.parametrize("seed", range(100))
def test_any_tokenizer_gives_back_what_it_was_given_token_by_token(seed: int) -> None:
    rng = random.Random(seed)
    tokenizer = random_tokenizer(rng)
    names = tokenizer.get_vocab()
    if len(set(names.values())) < len(names):  # of added tokens, where ids have gaps
        with pytest.raises(ValueError, match="the same id"):
            FileVocabulary(tokenizer.to_str())
        return
    vocabulary = FileVocabulary(tokenizer.to_str())
    rows = [[rng.randrange(vocabulary.size) for _ in range(n)] for n in (0, 1, 2, 40, 80)]
    for _ in range(8):
        text = "".join(rng.choices(LETTERS, k=rng.randint(0, 60)))
        with suppress(UsageError):  # an unknown letter, and no unknown token
            ids = vocabulary.encode(text).tolist()
            assert ids == vocabulary.encode(text).tolist(), "merges are not drawn"
            rows.append(ids)
    again = Vocabulary.from_json(json.loads(json.dumps(vocabulary.to_json())))
    for ids in rows:
        assert all(0 <= token < vocabulary.size for token in ids)
        whole = vocabulary.decode(ids)
        pieces = vocabulary.pieces(ids)
        assert len(pieces) == len(ids) and "".join(pieces) == whole
        assert "".join(vocabulary.streamed(iter(ids))) == whole
        assert again.decode(ids) == whole


# -- what each token adds ------------------------------------------------------------------------


def byte_level() -> FileVocabulary:
    """A token for every byte, and a few of several."""
    words = [*byte_letters(), "ä¸", "Ġth", "the"]
    tokenizer = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return FileVocabulary(tokenizer.to_str())


def of_words(decoder: decoders.Decoder | None, *words: str) -> FileVocabulary:
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(words)}))
    if decoder is not None:
        tokenizer.decoder = decoder
    return FileVocabulary(tokenizer.to_str())


LLAMA = decoders.Sequence([
    decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)
])  # fmt: skip


def test_the_letters_of_bytes_are_the_library_s() -> None:
    assert set(byte_letters()) == set(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = byte_level()
    for byte in range(128):
        assert vocabulary.decode([byte]) == chr(byte)


@pytest.mark.parametrize(
    ("decoder", "words", "pieces"),
    [
        (None, ["a", "b"], ["a", " b"]),
        (decoders.WordPiece(), ["a", "##b", ",", "c"], ["a", "b", ",", " c"]),
        (decoders.Metaspace(), ["▁a", "▁b", "c"], ["a", " b", "c"]),
        (decoders.BPEDecoder(), ["a</w>", "b", "c</w>"], ["a", " b", "c"]),
        (LLAMA, ["▁a", "<0xE4>", "<0xB8>", "<0x96>", "▁b"], ["a", "", "", "世", " b"]),
        (LLAMA, ["▁a", "<0xE4>", "<0xB8>", "▁b"], ["a", "\ufffd", "\ufffd", " b"]),
        (LLAMA, ["▁", "▁", "b"], ["", " ", "b"]),
    ],
)
def test_what_a_token_adds(
    decoder: decoders.Decoder | None, words: list[str], pieces: list[str]
) -> None:
    names = list(dict.fromkeys(words))
    vocabulary = of_words(decoder, *names)
    ids = [names.index(word) for word in words]
    assert vocabulary.pieces(ids) == pieces
    assert "".join(pieces) == vocabulary.decode(ids)


def test_text_is_streamed_as_soon_as_it_is_certain() -> None:
    vocabulary = byte_level()
    ids = vocabulary.encode("aß").tolist()
    read: list[int] = []
    coming = (read.append(token) or token for token in ids)
    seen = [(text, len(read)) for text in vocabulary.streamed(coming)]
    assert seen == [("a", 1), ("", 2), ("ß", 3)]


def test_bytes_are_read_as_the_library_reads_them() -> None:
    """Python and Rust agree on what is one damaged character and what are two."""
    vocabulary, rng = byte_level(), random.Random(5)
    likely = [0x41, 0x80, 0xBF, 0xC3, 0xE0, 0xE4, 0xED, 0xF0, 0xF4, 0xFF]
    for _ in range(400):
        ids = rng.choices(likely, k=rng.randint(1, 9)) + rng.choices(range(vocabulary.size), k=3)
        assert "".join(vocabulary.streamed(ids)) == vocabulary.decode(ids)
        whole = bytes(token for token in ids if token < 256)
        assert "".join(ByteVocabulary().pieces(whole)) == ByteVocabulary().decode(whole)


@pytest.mark.parametrize(
    "make",
    [
        byte_level,
        lambda: of_words(None, "a", "b"),
        lambda: of_words(LLAMA, "▁a", "<0xE4>"),
        lambda: of_words(decoders.Sequence([decoders.Fuse(), decoders.Replace("ab", "x")]), "a"),
    ],
)
def test_pieces_take_linear_time(
    make: Callable[[], FileVocabulary], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted in tokens that the library decodes, not in seconds."""
    vocabulary, read = make(), []
    added = vocabulary._file._added
    decode = added._decode
    monkeypatch.setattr(added, "_decode", lambda ids: read.append(len(ids)) or decode(ids))
    work = []
    for count in (1000, 4000):
        read.clear()
        vocabulary.pieces([index % min(2, vocabulary.size) for index in range(count)])
        list(vocabulary.streamed([0] * count))
        work.append(sum(read))
    assert work[1] <= 4.1 * work[0] and work[0] <= 40 * 1000


# -- settings for another use ----------------------------------------------------------------------


def test_settings_for_another_use_are_switched_off() -> None:
    letters = {letter: index for index, letter in enumerate("abcdefgh")}
    merges = [(x, y) for x in "abcdefgh" for y in "abcdefgh"]
    words = letters | {x + y: 8 + index for index, (x, y) in enumerate(merges)}
    tokenizer = Tokenizer(models.BPE(words, merges, dropout=0.5))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        "<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    tokenizer.enable_truncation(16)
    tokenizer.enable_padding(length=999)
    vocabulary = FileVocabulary(tokenizer.to_str())
    text = "abcdefgh" * 100
    ids = vocabulary.encode(text)
    assert "".join(vocabulary.decode(ids.tolist()).split()) == text
    assert all(np.array_equal(ids, vocabulary.encode(text)) for _ in range(5))
    assert tokenizer.token_to_id("<s>") not in ids
    kept = json.loads(vocabulary.to_json()["tokenizer"])
    assert kept["truncation"] is None and kept["model"]["dropout"] is None


# -- ids ---------------------------------------------------------------------------------------


def test_ids_with_gaps_are_all_below_the_size() -> None:
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "b": 7}, unk_token="a"))
    assert tokenizer.get_vocab_size() == 2
    vocabulary = FileVocabulary(tokenizer.to_str())
    assert vocabulary.size == 8
    assert vocabulary.decode([0, 3, 7]) == "a b" == "".join(vocabulary.pieces([0, 3, 7]))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"a": 0, "b": 0}, "the same id"),
        ({"a": 0, "b": 1 << 31}, "ids go up to 2,147,483,648"),
        ({}, "it has no tokens"),
    ],
)
def test_ids_that_cannot_be_used_are_refused(words: dict[str, int], message: str) -> None:
    facts = json.loads(Tokenizer(models.WordLevel({}, unk_token="a")).to_str())
    facts["model"]["vocab"] = words
    with pytest.raises(ValueError, match=message):
        FileVocabulary(json.dumps(facts))


VOCABULARIES = {
    "byte": ByteVocabulary(),
    "char": CharVocabulary("ab"),
    "symbol": SymbolVocabulary(["a", "bc"]),
    "tokenizer": of_words(None, "a", "b"),
}


@pytest.mark.parametrize("kind", VOCABULARIES)
@pytest.mark.parametrize("token", [-1, 1 << 16, 1 << 40, 0.5])
def test_an_id_outside_the_vocabulary_is_refused(kind: str, token: int) -> None:
    vocabulary = VOCABULARIES[kind]
    for read in (vocabulary.decode, vocabulary.pieces, lambda ids: list(vocabulary.streamed(ids))):
        with pytest.raises(UsageError, match=f"token {token} given; 0 to {vocabulary.size - 1}"):
            read([0, token])


@pytest.mark.parametrize("kind", VOCABULARIES)
def test_half_a_character_is_refused(kind: str) -> None:
    for half in (0xD800, 0xDCFF):  # the second stands for the byte 0xff
        with pytest.raises(UsageError, match="UTF-8 text is needed"):
            VOCABULARIES[kind].encode(f"a{chr(half)}")


# -- what is lost --------------------------------------------------------------------------------


@pytest.fixture
def english(tmp_path: Path) -> Path:
    path = tmp_path / "english.txt"
    path.write_text(ENGLISH * 40, encoding="utf-8")
    return path


def saved(tokenizer: Tokenizer, folder: Path) -> Path:
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_what_a_tokenizer_loses_is_said(english: Path, tmp_path: Path) -> None:
    """A BPE without an unknown token leaves out what it does not know."""
    path = saved(Tokenizer(models.BPE({"a": 0, "t": 1}, [])), tmp_path)
    with pytest.warns(UserWarning, match=r"the tokens lose [\d,]+ of [\d,]+ characters") as said:
        corpus = Text(str(english), str(path)).corpus()
    assert len(said) == 1 and "such as ' '" in str(said[0].message)
    assert "the tokens lose" in corpus.description
    assert "the tokens lose" in Text(str(english), str(path)).corpus().description


@pytest.mark.parametrize(
    ("tokenizer", "text", "lost"),
    [
        (Tokenizer(models.WordLevel({"a": 0, "b": 1, "[UNK]": 2}, unk_token="[UNK]")), "zz U", 4),
        (Tokenizer(models.BPE({"a": 0}, [])), "aba", 1),
    ],
)
def test_unknown_and_missing_characters_are_counted(
    tokenizer: Tokenizer, text: str, lost: int
) -> None:
    found = loss(FileVocabulary(tokenizer.to_str()), text)
    assert (found.lost.total(), found.read) == (lost, len(text))


def test_a_change_of_letters_is_a_loss_and_an_added_blank_is_none() -> None:
    tokenizer = Tokenizer(models.WordLevel({"Ab": 0, "ab": 1}, unk_token="ab"))
    tokenizer.normalizer = normalizers.Lowercase()
    assert "such as 'A'" in loss(FileVocabulary(tokenizer.to_str()), "Ab").said()
    letters = {letter: byte for byte, letter in enumerate(byte_letters())}
    tokenizer = Tokenizer(models.BPE(letters, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    vocabulary = FileVocabulary(tokenizer.to_str())
    assert vocabulary.decode(vocabulary.encode("ß世 a").tolist()) == " ß世 a"
    assert loss(vocabulary, "ß世 a").said() == ""


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (Tokenizer(models.BPE({"€": 0}, [])), "knows nothing of the text"),
        (
            Tokenizer(models.WordLevel({"€": 0, "[UNK]": 1}, unk_token="[UNK]")),
            "knows nothing of the text",
        ),
        (Tokenizer(models.WordLevel({"a": 0}, unk_token="[UNK]")), "cannot write the text"),
        (Tokenizer(models.Unigram([("a", -1.0)], None, False)), "cannot write the text"),
    ],
)
def test_a_tokenizer_that_cannot_write_the_text_is_refused_by_name(
    tokenizer: Tokenizer, message: str, english: Path, tmp_path: Path
) -> None:
    path = saved(tokenizer, tmp_path)
    with pytest.raises(UsageError, match=rf"data\.tokens: .*tokenizer\.json: .*{message}"):
        Text(str(english), str(path)).corpus()
    assert not [*cache_folder().glob(f"*{PARTIAL}*")]


def test_a_decoder_that_fails_for_some_tokens_is_refused(english: Path, tmp_path: Path) -> None:
    """The library panics where `Strip` takes more from the end than there is."""
    tokenizer = Tokenizer(
        models.BPE({letter: at for at, letter in enumerate(sorted(set(ENGLISH)))}, [])
    )
    tokenizer.decoder = decoders.Sequence([decoders.Fuse(), decoders.Strip(" ", 1, 1)])
    with pytest.raises(UsageError, match=r"tokenizer\.json .*its decoder strips at the end"):
        Text(str(english), str(saved(tokenizer, tmp_path))).corpus()


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", "\x00", '{"model": {}}', "[" * 100_000, '{"model": null}']
)
def test_a_file_that_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"tokenizer\.json is no tokenizer\.json \("):
        FileVocabulary.from_path(path)
    with pytest.raises(UsageError, match=r"byte, char or a tokenizer\.json is allowed"):
        FileVocabulary.from_path(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "", "[]", "{}", '{"kind": "words"}', '{"kind": "char", "characters": ["ab"]}',
        '{"kind": "char", "characters": ["a", "a"]}', '{"kind": "symbol", "symbols": [""]}',
        '{"kind": "symbol", "symbols": 3}', '{"kind": "tokenizer", "tokenizer": "{}"}', "[" * 99999,
    ],
)  # fmt: skip
def test_a_damaged_vocabulary_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "vocabulary.json"
    path.write_text(content)
    with pytest.raises(UsageError, match="no readable vocabulary"):
        Vocabulary.load(path)


def test_a_vocabulary_that_is_no_plain_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vocabulary.json").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="no plain file"):
        Vocabulary.load(tmp_path / "vocabulary.json")


# -- from the command line ---------------------------------------------------------------------


@pytest.mark.long
def test_a_lossy_tokenizer_from_the_command_line(english: Path, tmp_path: Path) -> None:
    words = {letter: index for index, letter in enumerate("abcdefgh ")}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.enable_truncation(16)
    options = [f"--data.path={english}", f"--data.tokens={saved(tokenizer, tmp_path)}"]
    done = run("train", *MOMENT, *options, f"--out={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert "the tokens lose" in done.stdout and done.stderr.count("the tokens lose") == 1
    generate = ("generate", tmp_path / "run", "--max_tokens=2")
    again = run(*generate, "--prompt", "abcd" * 30 + "xyz")
    assert again.returncode == 0 and again.stdout.replace(" ", "").startswith("abcd" * 30)
    assert "option --prompt: the tokens lose 3 of 123 characters" in again.stderr
    assert "nothing of it is in" in error_line(run_here(*generate, "--prompt", "xyz"))
    assert "UTF-8 text is needed" in error_line(run_here(*generate, "--prompt", "a\udcff"))
    assert run_here(*generate).returncode == 0  # without a prompt: it does not know a line end
