"""The commands at the door: what they answer before PyTorch is there, and how they are found."""

import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import entry_points

import pytest
from processes import finish

import pyro_meta
from pyro_meta import Data, Guide, LoadPrior, Prior
from pyro_meta.__main__ import DOORS
from pyro_meta.__main__ import run as run_console_script
from pyro_meta.terminal.mistakes import option_strings
from pyro_meta.training.config import CLASS_OPTIONS, config_parser, read_options
from pyro_meta.training.settings import train_parser

WATCHED = """
import runpy, sys
try:
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
finally:
    print("torch" if "torch" in sys.modules else "no torch", file=sys.stderr)
"""


def enter(module: str, *words: str) -> subprocess.CompletedProcess[str]:
    """Enter a door; the last line on stderr says whether PyTorch was imported."""
    return finish([sys.executable, "-c", WATCHED, module, *words])


@pytest.mark.parametrize(
    ("module", "words", "message"),
    [
        ("train", ["--stepz", "3"], "unknown option --stepz; did you mean --steps or --seed?"),
        ("train", ["--optim.lrr=3"], "unknown option --optim.lrr; did you mean --optim.lr"),
        ("generate", ["RUN", "--promt", "3"], "unknown option --promt; did you mean --prompt"),
        ("generate", ["RUN", "--max_tokens", "-3"], "option --max_tokens: -3 given"),
        ("ablate", ["a.yaml", "--workerz", "3"], "unknown option --workerz; did you mean --worker"),
        ("ablate", ["--hlep"], "unknown option --hlep; did you mean --help or --steps?"),
        ("ablate", ["a.yaml", "--stepz", "3"], "unknown option --stepz; did you mean --steps"),
        ("ablate", ["--grid.stepz=[1]"], "unknown option --grid.stepz; did you mean --grid.steps"),
        ("ablate", ["no.yaml"], "cannot read no.yaml"),
        ("bench", ["--lenghts=[3]"], "unknown option --lenghts; did you mean --lengths"),
        ("report", ["RUN", "--beleif"], "unknown option --beleif; did you mean --belief?"),
    ],
)
def test_a_mistake_in_a_word_is_told_without_pytorch(
    module: str, words: list[str], message: str
) -> None:
    done = enter(f"pyro_meta.{module}", *words)
    error, watched = done.stderr.splitlines()
    assert done.returncode == 2
    assert error.startswith("error: ") and message in error
    assert watched == "no torch"


@pytest.mark.parametrize("module", ["train", "generate", "ablate", "report", "bench"])
@pytest.mark.parametrize("word", ["--help", "-h", "--version"])
def test_help_and_version_need_no_pytorch(module: str, word: str) -> None:
    done = enter(f"pyro_meta.{module}", word)
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines() == ["no torch"]
    shown = f"pyro-meta {pyro_meta.__version__}" if word == "--version" else "usage: python -m pyro"
    assert done.stdout.startswith(shown)


@pytest.mark.parametrize("module", ["bench", "contracts"])
def test_every_door_says_its_version(module: str) -> None:
    done = enter(f"pyro_meta.{module}", "--version")
    assert (done.returncode, done.stdout) == (0, f"pyro-meta {pyro_meta.__version__}\n")


def test_the_package_lists_its_doors() -> None:
    for words in ([], ["--help"]):
        done = enter("pyro_meta", *words)
        assert (done.returncode, done.stderr) == (0, "no torch\n")
        for name, (_, line) in DOORS.items():
            assert f"  {name} " in done.stdout and line in done.stdout
    assert enter("pyro_meta", "--version").stdout == f"pyro-meta {pyro_meta.__version__}\n"
    for module, _ in DOORS.values():
        assert callable(import_module(module).main)


def test_a_door_is_entered_by_its_name() -> None:
    done = enter("pyro_meta", "train", "--stepz", "3")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown option --stepz; did you mean --steps or --seed?")
    assert done.stderr.endswith("\nno torch\n")
    done = enter("pyro_meta", "trian")
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown command trian; allowed are train, generate,")
    assert done.stderr.endswith("did you mean train?\nno torch\n")


def test_the_console_script_is_the_package() -> None:
    (script,) = entry_points(group="console_scripts", name="pyro-meta")
    assert script.load() is run_console_script


def test_what_is_known_without_pytorch_is_what_a_run_reads() -> None:
    of_classes = {f"--{name}.help" for name in CLASS_OPTIONS}
    known = set(option_strings(train_parser()))
    fresh = config_parser.__wrapped__()  # jsonargparse adds options to one that has parsed
    assert known | of_classes == set(option_strings(fresh))


def test_help_names_every_class_of_ours() -> None:
    help_of = {action.dest: action.help for action in train_parser()._actions}
    for name, base in (("data", Data), ("prior", Prior), ("guide", Guide)):
        for public in pyro_meta.__all__:
            found = getattr(pyro_meta, public)
            bases = (base, LoadPrior)  # what has to be subclassed
            if isinstance(found, type) and issubclass(found, base) and found not in bases:
                assert public in re.findall(r"\w+", str(help_of[name]))


def test_reading_leaves_nothing_behind() -> None:
    plain = read_options([])[1]
    words = ["--prior=PaperDirichlet", "--prior.scale=2", "--guide=PointGuide", "--kl.weight=0.5",
             "--mechanisms=[full]", "--data=Recall", "--data.pairs=3", "--debug"]  # fmt: skip
    other = read_options(words)[1]
    assert read_options([])[1] == plain
    assert read_options(["--budget=0.5"])[1] != plain
    assert read_options(words)[1] == other != plain
