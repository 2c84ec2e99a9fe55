"""What `python -m pyro_meta.train` is asked for: a new run, or one to go on with or begin from.

Nothing here needs PyTorch, so that a run that is finished is answered at once.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from pyro_meta.errors import UsageError

NUMBERS = ("steps", "devices")
"""Options of a run that may change once it is begun."""
BESIDE_RESUME = (*NUMBERS, "trust", "debug")
"""Options that may stand beside --resume."""


@dataclass(frozen=True)
class Request:
    """The words of a command line, sorted."""

    options: list[str] = field(default_factory=list)
    """Words of the options of a new run."""
    resumed: str | None = None
    """The run to go on with."""
    steps: int | None = None
    """How far it is to go, if further than it was asked to."""
    devices: int | None = None
    """How many processes are to go on with it, if others than it began with."""
    begun_from: str | None = None
    """The run whose weights a new one begins with."""
    trusts: bool = False
    """Whether classes that such a run names may be imported."""
    logger: str | None = None
    """Where figures of training are logged, besides."""


def read_request(argv: Sequence[str]) -> Request:
    """Sort the words of a command line.

    Raises
    ------
    UsageError
        A run is missing, or other options stand beside --resume.
    """
    named: dict[str, str] = {}
    rest: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        is_option = word.startswith("--")
        if is_option and name in ("resume", "from"):
            value = value if has_value or not words else words.pop(0)
            if not value or value.startswith("--"):
                raise UsageError(f"option --{name}: the folder of a run is needed")
            if named.get(name, value) != value:
                raise UsageError(
                    f"option --{name}: {named[name]} and {value} given; one is allowed"
                )
            named[name] = value
        elif is_option and name == "logger":
            value = value if has_value or not words else words.pop(0)
            if not value or value.startswith("--"):
                raise UsageError("option --logger: a value is missing; csv or tensorboard, say")
            named[name] = value
        elif is_option and name == "trust":
            if not has_value and words and words[0] in ("true", "false"):
                value, has_value = words.pop(0), "="
            if has_value and value not in ("true", "false"):
                raise UsageError(f"option --trust: {value} given; true or false is allowed")
            named[name] = value or "true"
        else:
            rest.append(word)
    trusts = named.get("trust") == "true"
    if "resume" not in named:
        return Request(
            rest, begun_from=named.get("from"), trusts=trusts, logger=named.get("logger")
        )
    if "from" in named:
        raise UsageError("option --from: it begins a new run, and --resume goes on with one")
    numbers = _numbers(rest)
    return Request(
        resumed=named["resume"],
        steps=numbers.get("steps"),
        devices=numbers.get("devices"),
        trusts=trusts,
        logger=named.get("logger"),
    )


def _numbers(words: list[str]) -> dict[str, int]:
    """The values of --steps and --devices."""
    found: dict[str, int] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        name, has_value, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or name not in BESIDE_RESUME:
            raise UsageError(
                f"option --resume: {word} given beside it; --steps, --devices, --logger, --trust "
                "and --debug are allowed, and the rest is in the run's config.yaml"
            )
        if not has_value and words and (name in NUMBERS or words[0] in ("true", "false")):
            value = words.pop(0)
        if name in NUMBERS:
            if not value.isdecimal() or not int(value):
                raise UsageError(f"option --{name}: {value} given; a number from 1 is allowed")
            found[name] = int(value)
    return found
