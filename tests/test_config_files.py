"""Options in files and words: one meaning, what is written reads back, faults in one line at once.

Protects a person's texts from being taken for numbers, a study from a typing error that nobody
notices, and the terminal from tracebacks.
"""

import inspect
import json
import os
import re
import shlex
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import error_line, run_here
from hypothesis import example, given, settings
from hypothesis import strategies as st

import pyro_meta
from pyro_meta import UsageError, ablate, bench, generate
from pyro_meta.study.description import Study
from pyro_meta.terminal.commands import parse
from pyro_meta.terminal.option_files import MOST_VALUES, as_word, dumps, loads, text_of, typed
from pyro_meta.training.config import CLASS_OPTIONS, read_options, train_words
from pyro_meta.training.options import TEXT, layered, layers_of
from pyro_meta.training.settings import DEFAULT_CLASSES, known_options

PYTHONS = re.compile(r"<class|Union|Optional|NoneType|typing|Literal|Namespace|Traceback|subtype")
"""What no error line names."""


def told(*words: str) -> str:
    """The one line that says what is wrong with options."""
    with pytest.raises(UsageError) as caught:
        read_options(words)
    line = str(caught.value)
    assert not PYTHONS.search(line), line
    assert "\n" not in line and "\0" not in line and len(line) < 1000, line
    return line


def of_file(tmp_path: Path, text: str, *more: str) -> Any:
    """Options, all of them, of a run with such a file."""
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    return yaml.safe_load(read_options([f"--config={path}", *more])[1])


# -- text stays text -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "2024-01-02",
        "1e3",
        "yes",
        "on",
        "12:30",
        "0x10",
        "010",
        "1_0",
        "-.inf",
        ".nan",
        "1.50",
        "true",
    ],
)
def test_a_text_is_what_was_written_in_a_file_or_typed(tmp_path: Path, word: str) -> None:
    assert of_file(tmp_path, f"data: {{path: {word}}}")["data"]["init_args"]["path"] == word
    saved = yaml.safe_load(read_options([f"--data.path={word}"])[1])
    assert saved["data"]["init_args"]["path"] == word
    (tmp_path / "out.yaml").write_text(f"out: {word}")
    assert read_options([f"--config={tmp_path / 'out.yaml'}"])[0].out == Path(word)


@pytest.mark.parametrize(
    "word", ["[ab]", "{a: 1}", "# x", "---", "[" * 10_000, "&a [*a]", "- a", "!!x y"]
)
def test_a_typed_path_may_look_like_yaml(word: str) -> None:
    saved = read_options([f"--data.path={word}"])[1]
    assert yaml.safe_load(saved)["data"]["init_args"]["path"] == word


def test_a_prompt_is_what_was_typed() -> None:
    parser = generate._parser()
    for text in ("null", "1e3", "yes", "[a", "- a", "# x", '"quoted"', "~", "[" * 10_000, "é\n x "):
        assert parse(parser, ["run", "--prompt", text]).prompt == text
        assert parse(parser, [f"--prompt={text}", "run"]).prompt == text


AWKWARD = ["null", "~", "", " ", "'", '"', '"x"', "{a: b}", "[x]", "- a", "#", "a: b", "1e3", "yes",
           "\n", "a\n b\n", " a ", "\0", "\x85", "\u2028", "\ufeff", "é😀", "<<", "=", "!", "*a",
           "1" * 5000, "null ", "...", "---", "~/x", "\t", "\\", "%", "2024-01-02"]  # fmt: skip
texts = st.one_of(
    st.sampled_from(AWKWARD), st.text(st.characters(exclude_categories=["Cs"]), max_size=9)
)
numbers = st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def meant(value: Any) -> Any:
    """Numbers by their values, where a spelling was kept."""
    if isinstance(value, dict):
        return {key: meant(item) for key, item in value.items()}
    if isinstance(value, list):
        return [meant(item) for item in value]
    return getattr(value, "value", value)


@given(st.dictionaries(texts, values, max_size=4))
@settings(max_examples=300)
def test_what_is_written_reads_back(options: dict[str, Any]) -> None:
    assert meant(loads(dumps(options), "test")) == options
    assert yaml.safe_load(dumps(options)) == options, "by PyYAML itself"


@given(texts)
@settings(max_examples=300)
def test_a_text_survives_as_a_word(text: str) -> None:
    word = as_word(text)
    assert typed(word) == text and type(typed(word)) is str
    assert text_of(word) in (None, text)


@given(path=texts.filter(lambda text: "\0" not in text and text != ""), steps=st.integers(1, 10**8),
       weight=st.floats(1e-30, 1e30), name=texts)  # fmt: skip
@example(path="null", steps=1, weight=1e-5, name="null")
@settings(max_examples=30)
def test_a_run_is_repeated_by_its_file_and_by_its_words(
    path: str, steps: int, weight: float, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    layer = {
        "data": {"path": path},
        "steps": steps,
        "kl.weight": weight,
        "mechanisms": ["full", name],
    }
    config, saved = read_options(layered([layer], DEFAULT_CLASSES))
    assert (config.data.path, config.steps) == (path, steps)  # type: ignore[attr-defined]
    assert config.kl.weight == weight and config.mechanisms == ["full", name]
    file = tmp_path_factory.mktemp("run") / "config.yaml"
    file.write_text(saved, encoding="utf-8", newline="")
    assert read_options([f"--config={file}"])[1] == saved
    assert read_options(train_words(saved))[1] == saved


def test_a_file_name_that_is_no_utf8_survives(tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.txt")
    assert of_file(tmp_path, read_options([f"--data.path={name}"])[1])["data"]["init_args"][
        "path"
    ] == name  # fmt: skip


def test_quotes_tell_text_from_numbers_where_both_may_be(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    for text in ("'3'", "3", "'null'", "true", "'yes'"):
        file.write_text(f"guide: {{class_path: own_options.Named, init_args: {{name: {text}}}}}")
        saved = read_options([f"--config={file}"])[1]
        given_name = yaml.safe_load(saved)["guide"]["init_args"]["name"]
        assert given_name == yaml.safe_load(text)
        assert read_options(train_words(saved))[1] == saved


# -- null, presets, groups -------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [["--prior.rate", "null"], ["--guide.total=null"], ["--steps", "null"], ["--kl", "null"],
     ["--kl.weight=3", "--kl=null"], ["--prior=null"], ["--debug", "null"], ["--budget=null"],
     ["--mechanisms=null"], ["--data.tokens=null"], ["--out=null"], ["--steps=3", "--steps=null"],
     ["--prior.rate=3", "--prior.rate=null"]],
)  # fmt: skip
def test_null_means_the_default_on_the_command_line(words: list[str]) -> None:
    assert read_options(words)[1] == read_options([])[1]


@pytest.mark.parametrize(
    "text", ["guide: {total: null}", "kl: null", "prior: null", "steps: ~", "data: {tokens: null}",
             "kl: {weight: null}", "optim: {}", "preset: null", "kl.weight: null", "# nothing", ""],
)  # fmt: skip
def test_null_means_the_default_in_a_file_and_a_study(tmp_path: Path, text: str) -> None:
    default = read_options([])[1]
    assert of_file(tmp_path, text) == yaml.safe_load(default)
    options = {name: value for name, value in (loads(text, "") or {}).items() if name != "preset"}
    assert (
        read_options(layered([{"steps": 9}, {"steps": None}, options], DEFAULT_CLASSES))[1]
        == default
    )


def test_an_argument_that_may_be_none_is_none(tmp_path: Path) -> None:
    for name in ("size", "name"):
        saved = read_options(["--guide=own_options.Sized", f"--guide.{name}=null"])[1]
        assert yaml.safe_load(saved)["guide"]["init_args"][name] is None
        assert of_file(tmp_path, saved) == yaml.safe_load(saved)
        assert read_options(train_words(saved))[1] == saved
    saved = read_options(["--guide=own_options.Sized", '--guide.name="null"'])[1]
    assert yaml.safe_load(saved)["guide"]["init_args"]["name"] == "null"
    assert of_file(tmp_path, saved) == yaml.safe_load(saved)


def test_a_file_may_name_a_preset_and_wins_over_it(tmp_path: Path) -> None:
    found = of_file(tmp_path, "steps: 9\npreset: tiny")
    assert (found["steps"], found["width"]) == (9, 32)
    assert of_file(tmp_path, "preset: tiny", "--width=64")["width"] == 64
    layers = layers_of(tmp_path / "c.yaml", "option", DEFAULT_CLASSES, known_options())
    assert [path.name for path, _ in layers] == ["tiny.yaml", "c.yaml"]


def test_a_group_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "kl.yaml").write_text("{weight: 2.0, wieght: 3}")
    line = told(f"--kl={tmp_path / 'kl.yaml'}")
    assert "kl.yaml" in line and "did you mean weight" in line
    (tmp_path / "kl.yaml").write_text("weight: 2")
    assert read_options([f"--kl={tmp_path / 'kl.yaml'}"])[0].kl.weight == 2
    assert of_file(tmp_path, f"kl: {tmp_path / 'kl.yaml'}")["kl"]["weight"] == 2
    assert read_options(["--kl={weight: 2, peak: 3}"])[0].kl.peak == 3
    assert "given twice" in told("--kl={weight: 2, weight: 3}")


# -- what is refused -------------------------------------------------------------------------

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: 1\nsteps: 2", "line 2: steps is given twice"),
        ("kl: {weight: 1, weight: 2}", "weight is given twice"),
        ("kl: {weight: 1}\nkl.weight: 2", "kl.weight is given twice"),
        ("kl: {weight: .inf}", "--kl.weight: inf given; a finite number"),
        ("kl: {weight: 1e400}", "--kl.weight: inf given; a finite number"),
        ("prior: {rate: .nan}", "--prior.rate: nan given; a finite number"),
        ("stepz: 10", "'stepz'; did you mean steps"),
        ("optim: {learning_rate: .1}", "'learning_rate'; lr, final_lr, warmup"),
        ("optim: {beta: .1}", "did you mean beta"),
        ("optim.lrr: 0.1", "'lrr'; lr"),
        ("prior: {ratee: 3}", "unknown option --prior.ratee; did you mean rate"),
        ("prior: {class_path: CostDirichlet, init_args: {rate: x}}", "rate: x given; a number"),
        ("prior.class_path: CostDirichlet", "--prior CLASS names a class"),
        ("preset: timy", "'timy' given; head_split, look_ups, paper, pretrained, tiny"),
        ("preset: [tiny]", "are allowed"),
        ("resume: x", "'resume', which no file may set"),
        ("config: x", "'config', which no file may set"),
        ("from: x", "'from', which no file may set"),
        ("trust: true", "'trust', which no file may set"),
        ("data: book.txt", "--data.path book.txt"),
        ("kl: 3", "a YAML file of options is allowed"),
        ("kl: [1]", "a YAML file of options is allowed"),
        ("optim: {lr: [1]}", "--optim.lr: [1] given; a number is allowed"),
        ("window: 0", "window: 0 given"),
        ("out: ''", "--out: it is empty"),
        ("<<: {steps: 3}", "<< merges mappings"),
        ("a: &a {steps: 3}\n<<: *a", "<< merges mappings"),
        ("steps: !!int 3", "tag"),
        ("x: !!python/object/apply:os.system [ls]", "tag"),
        ("steps: 3\n---\nsteps: 4", "a second document"),
        ("[" * 10_000, "nested deeper"),
        ("{a: " * 10_000, "nested deeper"),
        ("- " * 10_000, "nested deeper"),
        (BOMB, "more than 50,000 values"),
        ("a: &a [*a]", "*a stands for nothing whole"),
        ("a: *b", "*b stands for nothing whole"),
        ("1: 2", "1 is no name"),
        ("null: 2", "null is no name"),
        ("? [a]\n: 3", "a list or a mapping is no name"),
        ("\tsteps: 3", "line 1"),
        ("steps: [1", "line"),
        ("- steps", "no mapping of options"),
        ("steps", "no mapping of options"),
        ("steps: \0", "no YAML"),
        ("x: y\n" + "# " + "y" * 1_100_000, "longer than"),
        ("x: [" + "1," * MOST_VALUES + "]", "more than 50,000 values"),
        ("steps: " + "9" * 5000, "--steps: 999"),
    ],
)  # fmt: skip
def test_a_file_is_refused_in_one_line_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    line = told(f"--config={path}")
    assert message in line and str(path) in line


def test_what_is_no_file_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    os.mkfifo("fifo")
    Path("big").write_bytes(b"")
    os.truncate("big", 8 << 30)  # it takes no room
    Path("binary").write_bytes(bytes(range(256)))
    refused = {"fifo": "no ordinary file", "big": "longer than", "binary": "not UTF-8",
               ".": "a folder", "nowhere": "No such file", "/dev/zero": "no ordinary file",
               "": "it is empty", "x" * 400: "name too long", "a\0b": "null"}  # fmt: skip
    for name, message in refused.items():
        for option in ("config", "kl"):
            assert message in told(f"--{option}={name}"), name
    with pytest.raises(UsageError, match="no ordinary file"):
        ablate.main(["/dev/zero"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--optim.lr=inf"], "--optim.lr: inf given"),
        (["--optim.lr=.inf"], "a finite number"),
        (["--kl.weight=nan"], "--kl.weight: nan given"),
        (["--kl.weight=1e400"], "a finite number"),
        (["--prior.rate=.nan"], "a finite number"),
        (["--prior.cost=[1,.inf,2]"], "a finite number"),
        (["--budget=x"], "--budget: x given; a number is allowed"),
        (["--data", "book.txt"], "--data.path book.txt"),
        (["--data", "texts/book"], "--data.path texts/book"),
        (["--prior", "mine.yaml"], "a class is allowed"),
        (["book.txt"], "'book.txt' belongs to no option; a text is named by --data.path book.txt"),
        (["--steps", "3", "my book"], "--data.path"),
        (["--data.path="], "data.path: it is empty"),
        (["--out="], "--out: it is empty"),
        (["--mechanisms="], "--mechanisms: nothing given"),
        (["--preset="], "it is empty"),
        (["--kl="], "it is empty"),
        (["--data="], "it is empty"),
        (["--depth="], "no class ''"),
        (["--steps"], "a value is missing"),
        (["--data.path", "--steps=3"], "a value is missing"),
        (["--prior.class_path=json.JSONDecoder"], "--prior CLASS names a class"),
        (["--mechanisms=" + "[" * 10_000], "a list such as [a,b] is allowed"),
        (["--mechanisms=" + BOMB], "a list such as [a,b] is allowed"),
        (["--guide=FixedGuide", "--guide.loads=x"], "a list of lists of numbers"),
    ],
)
def test_words_are_refused_in_one_line_at_once(words: list[str], message: str) -> None:
    assert message in told(*words)


@pytest.mark.parametrize(
    "option",
    ["steps", "layers", "batch", "context", "width", "heads", "kv_heads", "window", "sinks",
     "chunk", "mlp_width", "accumulate", "devices", "short.factor"],
)  # fmt: skip
@pytest.mark.parametrize("value", [10**9, 10**30])
def test_what_no_machine_can_do_is_refused_with_the_limit(option: str, value: int) -> None:
    assert option in told(f"--{option}={value}")


def test_sizes_that_are_too_large_together_are_refused() -> None:
    assert "tokens in a step" in told("--batch=1000000", "--context=512")
    config, _ = read_options(["--width=65536", "--layers=1000"])
    with pytest.raises(UsageError, match="GiB, and this machine has"):
        config.build(256)


def test_empty_mechanisms_and_blocks_are_refused() -> None:
    for word in ("--mechanisms=[]", "--block="):
        config, _ = read_options([word])
        with pytest.raises(UsageError):
            config.build(256)


# -- every option of every command -----------------------------------------------------------

BAD = "x-y"


def numbered(kinds: dict[str, Any]) -> list[str]:
    return [
        name for name, kind in kinds.items() if kind not in TEXT and name not in ("block", "depth")
    ]


def of_classes() -> list[list[str]]:
    """Words with a bad value for every argument of every class that can be named."""
    found = []
    for option, (base, _) in CLASS_OPTIONS.items():
        for name in pyro_meta.NAMED_BY_FILES:
            chosen = getattr(pyro_meta, name)
            if not (inspect.isclass(chosen) and issubclass(chosen, base)) or inspect.isabstract(
                chosen
            ):
                continue
            kinds = inspect.get_annotations(chosen.__init__, eval_str=True)
            needed = ["--guide.loads=[1,0,0]"] if "loads" in kinds else []
            for argument, kind in kinds.items():
                if argument != "return" and kind in (int, float, bool, int | None, float | None):
                    found.append([f"--{option}={name}", *needed, f"--{option}.{argument}={BAD}"])
    return found


def test_a_bad_value_is_named_with_what_is_allowed() -> None:
    of_train = [[f"--{name}={BAD}"] for name in numbered(dict(known_options().kinds))]
    of_arguments = of_classes()
    assert len(of_train) > 40 and len(of_arguments) > 20
    for words in (*of_train, *of_arguments):
        line, option = told(*words), words[-1].partition("=")[0]
        assert f"option {option}: {BAD} given; " in line and " is allowed" in line, line


@pytest.mark.parametrize("module", [generate, ablate, bench])
def test_a_bad_value_is_named_by_other_commands(module: Any) -> None:
    parser = module._parser()
    options = {
        action.option_strings[0]
        for action in parser._actions
        if action.option_strings and getattr(action, "_typehint", None) not in (None, *TEXT)
    }
    assert len(options) > 4
    for option in options:
        for words in ([f"{option}={BAD}"], [f"{option}={BOMB}"]):
            with pytest.raises(UsageError) as caught:
                parse(parser, [*["run"] * (module is generate), *words])
            line = str(caught.value)
            assert line.startswith(f"option {option}: ") and " is allowed" in line, line
            assert not PYTHONS.search(line) and len(line) < 500, line
        parse(parser, [*["run"] * (module is generate), option, "null"])  # the default


def test_what_stands_alone_is_told_what_to_type(tmp_path: Path) -> None:
    line = error_line(run_here("generate", tmp_path, "hi there"))
    assert f"--prompt {shlex.quote('hi there')}" in line
    assert "one STUDY.yaml" in error_line(run_here("ablate", "x.yaml", "y"))
    for words in (["report"], ["report", tmp_path, "--belief=maybe"], ["generate"]):
        line = error_line(run_here(*words))  # type: ignore[arg-type]
        assert ("RUN" in line or "run" in line) if len(words) == 1 else "true or false" in line
        assert not PYTHONS.search(line)
    assert "--out: it is empty" in error_line(run_here("bench", "--out="))
    assert "--out: it is empty" in error_line(run_here("ablate", "--out=", "--seeds=1"))


# -- studies ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"seeds": 100_000_000}, "at most 10,000"),
        ({"grid": {"seed": 10**30}}, "at most 10,000"),
        ({"seeds": [10**30]}, "below 2"),
        ({"grid": {f"x{i}": list(range(100)) for i in range(4)}}, "300,000,000 runs"),
        ({"grid": {"steps": list(range(200)), "width": list(range(100))}}, "60,000 runs"),
        ({"variants": {str(i): {} for i in range(6000)}, "seeds": 2}, "12,000 runs"),
        ({"seedz": 1}, "did you mean seeds"),
        ({"seeds": "x" * 9999}, "a number of seeds or a list"),
        ({"base": {"from": "x"}}, "'from' given"),
    ],
)  # fmt: skip
def test_a_study_that_nobody_can_run_is_refused_with_its_size(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        Study.read(given, "study.yaml")
    assert len(str(caught.value)) < 400


@given(texts.filter(lambda text: text != ""), st.floats(1e-9, 1e9))
@settings(max_examples=60)
def test_a_study_is_repeated_by_its_file(text: str, weight: float) -> None:
    given_study = {"base": {"data": {"path": text}, "steps": 5}, "grid": {"kl.weight": [weight, 2]},
                   "variants": {text: {"data.tokens": text}}, "seeds": [3]}  # fmt: skip
    study = Study.read(given_study, "study")
    again = Study.read(loads(study.as_yaml(), "study"), "study")
    assert meant(vars(again)["base"]) == study.base and again.variants == study.variants
    assert meant(again.grid) == study.grid and again.as_yaml() == study.as_yaml()


def test_ablate_takes_words_as_train_does() -> None:
    words = ["--data.path=1e3", "--steps=1_0", "--mechanisms=[full,window]", "--kl.weight=1e-3",
             "--data.tokens=null", "--grid.kl.peak=[1,2.50]"]  # fmt: skip
    _, grid, base = ablate._sort_words(words, [])
    study = Study.read({"base": base, "grid": grid, "seeds": 1}, "study")
    again = Study.read(loads(study.as_yaml(), "study"), "study")
    for one in (study, again):
        config, _ = read_options(layered(one.base, DEFAULT_CLASSES))
        assert (config.data.path, config.data.tokens) == ("1e3", "byte")  # type: ignore[attr-defined]
        assert (config.steps, config.kl.weight) == (10, 1e-3)
        assert config.mechanisms == ["full", "window"]
        assert meant(one.grid) == {"kl.peak": [1, 2.5]}


# -- random files ----------------------------------------------------------------------------

NAMES = [*known_options().kinds, *known_options().groups, *DEFAULT_CLASSES, "class_path",
         "init_args",
         "rate", "path", "preset", "resume", "lr", "weight", "Text", "CostDirichlet"]  # fmt: skip
keys = st.one_of(st.sampled_from(NAMES), texts)
trees = st.dictionaries(
    keys,
    st.recursive(
        st.one_of(st.none(), st.booleans(), numbers, texts, st.sampled_from(NAMES)),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
        max_leaves=6,
    ),
    max_size=4,
)
WHOLE = read_options([])[1]
CHANGES = ["", ":", "- ", "[", "]", "{", "}", "&a ", "*a", "!", "'", '"', "\t", "\n", "null",
           ".inf", "-1", "1e9", "\0", "#", "<<: ", "é", "0", "x", "---\n", "? "]  # fmt: skip


@st.composite
def mutations(draw: st.DrawFn) -> str:
    """A real config.yaml with up to three places changed."""
    text = WHOLE
    for _ in range(draw(st.integers(1, 3))):
        at, cut = draw(st.integers(0, len(text))), draw(st.integers(0, 9))
        text = text[:at] + draw(st.sampled_from(CHANGES)) + text[at + cut :]
    return text


documents = st.one_of(
    trees.map(lambda tree: yaml.safe_dump(tree)),
    mutations(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
    st.text("[]{}:,-?&*!|>'\"%@`# \nabc01", max_size=60),
    trees.map(json.dumps),
)


@given(documents)
@settings(max_examples=600)
def test_any_file_is_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_text(text, encoding="utf-8", newline="")
    began = time.monotonic()
    try:
        _, saved = read_options([f"--config={path}"])
    except UsageError as error:
        line = str(error)
        assert str(path) in line and "\0" not in line and not PYTHONS.search(line), line
    else:
        path.write_text(saved, encoding="utf-8", newline="")
        assert read_options([f"--config={path}"])[1] == saved
    assert time.monotonic() - began < 60, "it hangs"
