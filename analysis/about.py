"""What a report is of: data, model, steps, seed, dates and versions."""

from collections.abc import Iterator
from datetime import UTC, datetime

from pyro_meta import __version__
from pyro_meta.analysis.reading import Reading
from pyro_meta.terminal.consoles import printable

UNKNOWN = "not recorded"
DIGITS = 12
"""Of a checksum that is shown."""


def facts(run: Reading) -> list[tuple[str, str]]:
    """Names and values, each one line."""
    return [(name, printable(value)) for name, value in _facts(run)]


def _facts(run: Reading) -> Iterator[tuple[str, str]]:
    yield "data", run.facts["data"]
    yield "model", _model(run)
    yield "mechanisms", ", ".join(run.mechanisms)
    yield "guide", run.facts["guide"]
    yield "prior", run.facts["prior"]
    yield "steps", _steps(run)
    yield "seed", str(run.facts["seed"])
    yield "trained", _trained(run)
    yield "weights", f"sha256 {run.facts['weights_sha256'][:DIGITS]}"
    versions = run.summary.get("versions", {})
    yield "versions", ", ".join(f"{name} {one}" for name, one in versions.items()) or UNKNOWN
    yield "read", f"{minute(now())} by pyro-meta {__version__}, {_read(run)}"


def _model(run: Reading) -> str:
    options = run.options
    groups, parameters = int(run.facts["groups"]), run.summary.get("parameters")
    parts = [f"{len(run.means) // groups} layers"]
    if "pretrained" in options and options["pretrained"] != "none":
        parts = [f"{options['pretrained']}, {parts[0]}"]
    elif "width" in options and "heads" in options:
        parts.append(f"width {options['width']}")
        parts.append(f"{options['heads']} heads")
    if groups > 1:
        parts.append(f"{groups} groups of heads with a route each")
    parts.append(f"context {run.facts['context']}")
    return ", ".join(parts + ([f"{parameters:,} parameters"] if parameters else []))


def _steps(run: Reading) -> str:
    batch = f" of {run.options['batch']} sequences" if "batch" in run.options else ""
    return f"{len(run.steps):,}{batch}"


def _trained(run: Reading) -> str:
    finished, device = run.summary.get("finished"), run.summary.get("device")
    when = UNKNOWN if finished is None else minute(datetime.fromisoformat(finished))
    return when + (f", {device}" if device else "")


def _read(run: Reading) -> str:
    drawn = len(run.targets)
    return f"{len(run.text):,} validation tokens, {drawn:,} of them with {len(run.draws)} draws"


def now() -> datetime:
    return datetime.now(UTC)


def minute(moment: datetime) -> str:
    """A date and a time that mean the same everywhere."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M UTC")
