"""Options as a person gives them: which one wins, help, classes by name, what is refused."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import MOMENT, error_line, run, run_here, train
from pyro.distributions import Dirichlet, LogisticNormal

from pyro_meta import DirichletGuide, Features, Text, UsageError
from pyro_meta.study.description import Study
from pyro_meta.study.plan import expand
from pyro_meta.terminal.mistakes import shipped
from pyro_meta.training.config import CLASS_OPTIONS, read_options
from pyro_meta.training.misplaced import arguments_of


def test_what_comes_later_wins(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("{steps: 7, prior: {class_path: CostDirichlet, init_args: {rate: 9}}}")
    words = ["--prior.rate=2", "--steps=5"]

    def rate_and_steps(*words: str) -> tuple[float, int]:
        config, saved = read_options(words)
        return yaml.safe_load(saved)["prior"]["init_args"]["rate"], config.steps

    assert rate_and_steps(*words, "--config", str(path)) == (9, 7)
    assert rate_and_steps("--config", str(path), *words) == (2, 5)
    switched = ["--prior", "PaperDirichlet", "--prior.scale=2", "--config", str(path)]
    assert rate_and_steps(*switched) == (9, 7)


def test_a_printed_configuration_is_read_back(tmp_path: Path) -> None:
    printed = run_here("train", "--steps=7", "--guide.hidden=null", "--print_config")
    assert printed.returncode == 0
    (tmp_path / "c.yaml").write_text(printed.stdout)
    assert read_options(["--config", str(tmp_path / "c.yaml")])[0].steps == 7


def test_a_switch_needs_no_value() -> None:
    assert read_options(["--debug", "--steps", "3"])[0].debug
    assert read_options(["--debug", "True", "--steps", "3"])[0].debug
    assert read_options(["--steps", "3", "--debug"])[0].debug
    assert not read_options(["--debug", "false"])[0].debug


def test_another_class_never_takes_arguments_meant_for_the_default(tmp_path: Path) -> None:
    """PaperDirichlet has a floor and a cost of its own, of the same names."""
    (tmp_path / "c.yaml").write_text("prior: {class_path: CostDirichlet, init_args: {floor: 0.3}}")
    for words in (["--prior", "PaperDirichlet"],
                  ["--config", str(tmp_path / "c.yaml"), "--prior", "PaperDirichlet"]):  # fmt: skip
        _, saved = read_options(words)
        assert yaml.safe_load(saved)["prior"]["init_args"] == {
            "scale": 1.0, "floor": 0.01, "cost": "nominal",
        }  # fmt: skip
    (tmp_path / "null.yaml").write_text("steps: null")
    assert read_options(["--config", str(tmp_path / "null.yaml")])[0].steps == 1000
    _, saved = read_options(["--config", str(tmp_path / "c.yaml"), "--prior.rate", "2"])
    assert yaml.safe_load(saved)["prior"]["init_args"]["floor"] == 0.3
    assert yaml.safe_load(saved)["prior"]["init_args"]["rate"] == 2.0


def test_presets_are_complete_and_can_be_overridden() -> None:
    config, _ = read_options(["--preset", "paper", "--steps", "7"])
    assert config.steps == 7 and config.kl.weight == 1.0 and config.harden.final == 0.0
    model, guide = config.build(256)
    assert type(model.prior).__name__ == "PaperDirichlet"
    assert type(guide).__name__ == "PaperGuide"


def test_make_train_trains_the_preset_of_look_ups() -> None:
    path = Path(__file__).parents[1] / "benchmarks" / "studies" / "first_run.yaml"
    routed, *alone = expand(Study.read(yaml.safe_load(path.read_text()), "first_run"))
    _, expected = read_options(["--preset", "look_ups"])
    assert yaml.safe_load(routed.run_yaml(0)) == yaml.safe_load(expected)
    assert sorted(one.kind for one in alone) == ["mechanism"] * 3 + ["split"]


def test_help_names_the_options_of_the_default_classes() -> None:
    done = run_here("train", "--help")
    assert done.returncode == 0
    for option in ("--data.path", "--data.tokens", "--prior.rate", "--guide.hidden", "--resume"):
        assert option in done.stdout
    assert "--prior.load_strength" in run_here("train", "--prior.help").stdout


def test_a_users_own_classes_train_by_import_path(tmp_path: Path, text_file: Path) -> None:
    options = ["--prior=my_prior.CheapBelow", "--prior.cheap=2"]
    options += ["--mechanisms=[full,window,my_mechanism.Ends]"]
    assert train(*MOMENT, *options, f"--data.path={text_file}", f"--out={tmp_path / 'run'}") == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert list(summary["load"]) == ["full", "window", "ends"]


class Random(DirichletGuide):
    """A guide that draws where it should say its distribution."""

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(1 + super().posterior(layer, features).sample())


class Drawn(DirichletGuide):
    """A guide that gives weights where it should give their distribution."""

    def posterior(self, layer: int, features: Features) -> Any:
        return super().posterior(layer, features).mean


class Meanless(DirichletGuide):
    """A guide whose distribution has no mean."""

    def posterior(self, layer: int, features: Features) -> LogisticNormal:  # type: ignore[override]
        zeros = torch.zeros(*features.tokens.shape, 2)
        return LogisticNormal(zeros, zeros + 1)


class Misshapen(DirichletGuide):
    """A guide that forgets its sequences."""

    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(super().posterior(layer, features).concentration[:, 0])


INSTANCE = Text()
NUMBERS = [1, 2]


class Changeling(Text):
    """A class that makes something else of itself."""

    def __new__(cls) -> Any:
        return object()


def makes_one() -> Text:
    return Text()


@pytest.mark.parametrize("option", ["data", "prior", "guide"])
@pytest.mark.parametrize(
    ("name", "kind"), [("INSTANCE", "Text"), ("NUMBERS", "list"), ("makes_one", "function")]
)
def test_an_object_in_place_of_a_class_is_told_by_its_type(
    option: str, name: str, kind: str
) -> None:
    line = error_line(run_here("train", f"--{option}=test_options.{name}"))
    said = f"option --{option}: test_options.{name} is of type {kind}, and no class; allowed are "
    assert said in line and f"my_file.My{option.title()}" in line
    assert " object at 0x" not in line


def test_data_of_another_kind_is_refused() -> None:
    line = error_line(run_here("train", "--data=json.JSONDecoder"))
    assert "option --data: json.JSONDecoder is not a Data; allowed are HuggingFace, " in line
    line = error_line(run_here("train", "--data=test_options.Changeling"))
    assert "data: an object of type object given; allowed are HuggingFace, " in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mechanisms", "[full,test_options.NUMBERS]"], "is no class, but of type list"),
        (["--stesp", "3"], "did you mean --steps"),
        (["--prior", "CostDirichle"], "did you mean CostDirichlet"),
        (["--prior", "json.JSONDecoder"], "is not a Prior"),
        (["--prior", "Prior"], "does not define forward"),
        (["--guide", "nowhere.Mine"], "cannot import 'nowhere.Mine': ModuleNotFoundError"),
        (["--guide", "nowhere.at.all.Mine"], "; nowhere.py is sought in the folder that you are"),
        (["--guide", "DirichletGuid"], "did you mean DirichletGuide"),
        (["--prior.load_strenght", "3"], "did you mean load_strength"),
        (
            ["--prior", "PaperDirichlet", "--prior.strength", "3"],
            "unknown option --prior.strength: prior is PaperDirichlet; CostDirichlet, ",
        ),
        (
            ["--preset", "look_ups", "--data.path", "x y"],
            "unknown option --data.path: data is Recall by --preset look_ups (look-ups planted in "
            "text of its own, filler: definitions, and queries far behind them); Text, HuggingFace "
            "take it: --data Text --data.path 'x y'",
        ),
        (
            ["--config", "recall.yaml", "--data.path", "x"],
            "data is Recall by recall.yaml (look-ups",
        ),
        (["--data.pairs", "3"], "data is Text; Recall takes it: --data Recall --data.pairs 3"),
        (["--data.pat", "x"], "unknown option --data.pat; did you mean path?"),
        (["--data.nothing", "x"], "data is Text; --data.help Text lists what it takes"),
        (["--guide.rate", "3"], "unknown option --guide.rate; did you mean --prior.rate?"),
        (["--depth", "beta", "--depth.skip", "0.5"], "--depth.skip; did you mean --gate.skip?"),
        (["--prior.cost", "[1,2]"], "2 costs given for 3 mechanisms"),
        (["--prior.rate", "2", "--prior", "PaperDirichlet"], "name the class first"),
        (["--prior", "broken.Prior"], "cannot import 'broken.Prior': SyntaxError"),
        (["--mechanisms", "[full,broken.Mechanism]"], "cannot import 'broken.Mechanism'"),
        (["--mechanisms", "[full,leaky.Costless]"], "does not define nominal_cost"),
        (["--guide", "leaky.LeakyGuide"], "guide: LeakyGuide: the future is seen"),
        (
            ["--guide", "test_options.Random"],
            "Random: two calls in evaluation mode give two outputs",
        ),
        (["--guide", "test_options.Meanless"], "has no mean"),
        (["--guide", "test_options.Drawn"], "guide: Drawn: posterior() of layer 0"),
        (["--guide", "test_options.Misshapen"], "its batch must be [2, 16]"),
        (["--config.x", "1"], "unknown option --config.x"),
        (["--seed", "99999999999999999999999"], "at most 9,223,372,036,854,775,807"),
        (["--data.path", ""], "data.path: it is empty"),
        (["--data.path", "~nobody-here/text"], "data.path: ~nobody-here/text"),
        (["--data.path", "x" * 400], "data.path: xxx"),
        (["--resume="], "the folder of a run is needed"),
        (["--resum", "taken"], "unknown option --resum; did you mean --resume"),
        (["--config", "keys.yaml"], "'rate' beside class_path"),
        (["--config", "resume.yaml"], "which no file may set"),
        (["--config", "list.yaml"], "a class or a mapping is allowed"),
        (["--prior.load_strength", "-1"], "above 0 is allowed"),
        (["--prior.load_floor", "0"], "above 0 is allowed"),
        (["--mechanisms", "[full,windw]"], "did you mean window"),
        (["--mechanisms", "[full,json.JSONDecoder]"], "is not a mechanism"),
        (["--window", "0"], "at least 1 is allowed"),
        (["--sinks", "-1"], "sinks: -1 given; at least 0 is allowed"),
        (["--width", "18"], "divisible by 2 x heads"),
        (["--kv_heads", "3"], "a divisor of heads"),
        (["--batch", "5", "--accumulate", "2"], "divisible by devices x accumulate"),
        (["--steps", "0"], "steps: 0"),
        (["--steps", "many"], "option --steps: many given; a whole number is allowed"),
        (["--accelerator", "tpu"], "tpu given; one of 'auto', 'cpu', 'cuda' is allowed"),
        (["--data.path", "nowhere.txt"], "nowhere.txt: no such file"),
        (["--data.tokens", "words"], "byte, char or a tokenizer.json is allowed"),
        (["--data.path", "empty.txt"], "empty.txt holds no text"),
        (["--data.path", "short.txt"], "a context of 16 needs at least 17"),
        (["--data.path", "image.png"], "image.png is not UTF-8 text"),
        (["--out", "taken"], "taken exists"),
        (["--config", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (
            ["--preset", "papre"],
            "'papre' given; head_split, look_ups, paper, pretrained, tiny are allowed",
        ),
        (["--resume", "taken"], "taken is not a run"),
        (["--resume", "taken", "--width", "3"], "--width given beside it"),
        (["--kl.weight", "0"], "kl.weight: 0.0 given"),
        (["--harden.order", "sideways"], "sideways given; one of 'uncertain_last', 'reversed'"),
        (["--harden.order", "all_at_once", "--harden.final", "0.5"], "harden.final: 0.5 given"),
        (["--optim.refit", "-1"], "optim.refit: -1 given; at least 0"),
        (["--optim.refit", "20"], "optim.refit: 20 given; at most steps = 12"),
        (["--optim.refit", "4", "--guide", "FixedGuide"], "neither FixedGuide nor"),
        (["--kl.begin", "0.5", "--kl.end", "0.6"], "kl.begin: 0.5 given; below optim.router_end"),
    ],
)
def test_bad_input_is_refused_by_name(
    tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a short text")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\xff\xfe")
    (tmp_path / "keys.yaml").write_text("prior: {class_path: CostDirichlet, rate: 7}")
    (tmp_path / "resume.yaml").write_text("resume: taken")
    (tmp_path / "recall.yaml").write_text("data: Recall")
    (tmp_path / "list.yaml").write_text("prior: {class_path: CostDirichlet, init_args: [1, 2]}")
    (tmp_path / "broken.py").write_text("def (")
    monkeypatch.syspath_prepend(tmp_path)
    base = [] if words[0].startswith("--resum") else [*MOMENT, f"--data.path={text_file}"]
    with pytest.raises(UsageError, match=re.escape(message)):
        train(*base, *words)
    assert not (tmp_path / "runs").exists(), "nothing is left behind"


@pytest.mark.parametrize("option", CLASS_OPTIONS)
def test_an_argument_of_another_class_is_told_with_a_class_that_takes_it(option: str) -> None:
    classes = {one.__name__: arguments_of(one) or {} for one in shipped(CLASS_OPTIONS[option][0])}
    pairs = [
        (name, argument)
        for name, own in classes.items()
        for argument in {one for other in classes.values() for one in other} - own.keys()
    ]
    assert len(pairs) > 10
    for name, argument in pairs:
        with pytest.raises(UsageError, match=f"^unknown option --{option}.{argument}") as refusal:
            read_options([f"--{option}={name}", f"--{option}.{argument}=1"])
        if found := re.search(rf"--{option} (\w+) --{option}\.{argument} 1$", str(refusal.value)):
            assert argument in classes[found[1]]
        else:  # one of its own is spelled like it
            hint = re.search(r"; did you mean (\w+)( or \w+)?\?$", str(refusal.value))
            assert hint is not None and hint[1] in classes[name]


@pytest.mark.parametrize("name", ["Leaky", "LateLeak"])
def test_a_mechanism_that_sees_the_future_is_refused(
    tmp_path: Path, text_file: Path, name: str
) -> None:
    with pytest.raises(UsageError, match=f"{name}: the future is seen"):
        train(*MOMENT, f"--mechanisms=[full,leaky.{name}]", f"--data.path={text_file}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_missing_device_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = run_here("train", *MOMENT[:-1], "--accelerator", "cuda")
    assert "option --accelerator, --devices: cuda, 1 given" in error_line(done)


def test_an_error_is_one_line_and_exit_code_two(tmp_path: Path) -> None:
    assert "did you mean --steps" in error_line(run("train", "--stesp", "3", cwd=tmp_path))
    assert "is not a run" in error_line(run("generate", tmp_path))
    assert "is not a run" in error_line(run("report", tmp_path))
    assert "lengths" in error_line(run("bench", "--lengths=[5]"))
    for module in ("generate", "report"):
        assert "run" in error_line(run_here(module)).lower(), "no words at all"
