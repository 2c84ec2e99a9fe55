"""Trained runs on held-out text, side by side: losses, key visits, retrieval.

The work of `python -m pyro_meta.evaluate`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyro
from jsonargparse import Namespace
from numpy.typing import NDArray

from pyro_meta.data.corpus import Corpus, TokenCorpus, Windows, as_windows
from pyro_meta.data.files import find_files, read_text
from pyro_meta.data.preparing import telling
from pyro_meta.data.retrieval import Retrieval
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.errors import UsageError
from pyro_meta.evaluation.beside import HARD, at_budget, is_of_guide, routes_beside
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.evaluation.retrieval import Cell, retrieved
from pyro_meta.evaluation.spending import at_price
from pyro_meta.guides import Guide, mean_route
from pyro_meta.models import LanguageModel
from pyro_meta.network.route import Route
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.study.held_out_tables import (
    table_by_document,
    table_by_position,
    table_of_losses,
    table_of_retrieval,
)
from pyro_meta.terminal.consoles import busy, console
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.terminal.progress import step_by_step
from pyro_meta.training.config import Config
from pyro_meta.training.run import Run

Rows = dict[str, dict[str, Any]]
MOST_LENGTH = 1 << 17


@dataclass(frozen=True)
class Loaded:
    """A run that is to be evaluated."""

    name: str
    model: LanguageModel
    guide: Guide
    config: Config


def compare(options: Namespace, argv: list[str]) -> None:
    """Read the runs, print the tables, write the JSON.

    Raises
    ------
    UsageError
        A run, a text or a number that does not do.
    """
    _require_numbers(options)
    out = console()
    with pyro.validation_enabled(False):
        runs, vocabulary = _loaded(options.runs, options.trust)
        with busy(out, "preparing the text") as tell, telling(tell):
            corpus = runs[0].config.data.corpus()
        lengths = options.lengths or [runs[0].config.context]
        for run in runs:
            _require_known(run, max(lengths))
        texts = {length: _texts(options, corpus, vocabulary, length) for length in lengths}
        needles = [
            Retrieval(vocabulary.encode, _filler(corpus), kind, options.digits)
            for kind in options.retrieval or []
        ]
        for needle in needles:  # refused before anything is read
            needle(min(lengths), 0.5, np.random.default_rng(options.seed))
        found = measured_by(["python", "-m", "pyro_meta.evaluate", *argv])
        found |= {"losses": {}, "retrieval": {}}
        _keep(found, options.json)  # a place that cannot be written to is told at once
        for length, (windows, names) in texts.items():
            with busy(out, f"reading {len(names)} texts of {length} tokens"):
                rows = _losses(runs, windows, options)
            found["losses"][str(length)] = {"texts": names, "rows": rows}
            out.print(table_of_losses(length, len(names), rows))
            out.print(table_by_position(rows))
            if options.documents is not None:
                out.print(table_by_document(names, rows))
            _keep(found, options.json)
        for needle in needles:
            cells = _retrieved(runs, needle, found["losses"], options)
            figures = {name: [one.figures() for one in row] for name, row in cells.items()}
            found["retrieval"][needle.kind] = {"chance": needle.chance, "rows": figures}
            out.print(table_of_retrieval(needle.kind, cells, needle.chance))
            _keep(found, options.json)
    if options.json is not None:
        out.print(f"figures: {options.json}", soft_wrap=True, markup=False)


def _keep(found: dict[str, Any], path: Path | None) -> None:
    """Write what there is so far: nothing is lost when it ends early."""
    if path is not None:
        write_measured(path, found)


def _texts(
    options: Namespace, corpus: Corpus, vocabulary: Vocabulary, length: int
) -> tuple[Windows, list[str]]:
    """What is read at a length, and the names of the texts."""
    if options.documents is not None:
        return _documents(options, vocabulary.encode, length)
    corpus.require(length)
    windows = corpus.windows(length, options.tokens)
    return windows, [str(number) for number in range(len(windows[0]))]


def _require_numbers(options: Namespace) -> None:
    for length in options.lengths or []:
        if not 2 <= length <= MOST_LENGTH:
            raise UsageError(f"option --lengths: {length} given; 2 to {MOST_LENGTH} are allowed")
    if not options.depths:
        raise UsageError("option --depths: none given; one or more are allowed")
    for depth in options.depths:
        if not 0 <= depth <= 1:
            raise UsageError(f"option --depths: {depth} given; 0 to 1 are allowed")
    for budget in options.budgets or []:
        if not 0 < budget <= 1:
            raise UsageError(f"option --budgets: {budget} given; above 0, at most 1 is allowed")
    for name in ("tokens", "questions"):
        if options[name] < 1:
            raise UsageError(f"option --{name}: {options[name]} given; at least 1 is allowed")
    if not 0 <= options.seed < 1 << 63:
        raise UsageError(f"option --seed: {options.seed} given; 0 to 2**63 - 1 are allowed")


def _loaded(folders: list[str], trusts: bool) -> tuple[list[Loaded], Vocabulary]:
    """The runs, and the vocabulary that they share.

    Raises
    ------
    UsageError
        One is given twice, or they read text by other tokens, so that no loss can be compared.
    """
    runs: list[Loaded] = []
    vocabulary: Vocabulary | None = None
    for folder in folders:
        name = Path(folder).name or folder
        if any(name == one.name for one in runs):
            raise UsageError(f"option RUN: two runs are called {name}; each needs a name")
        model, guide, its_own, config = Run.open(folder, trusts).load()
        if vocabulary is not None and its_own.to_json() != vocabulary.to_json():
            raise UsageError(
                f"option RUN: {folder} has other tokens than {folders[0]}; losses per token "
                "cannot be compared"
            )
        vocabulary = its_own
        runs.append(Loaded(name, model, guide, config))
    assert vocabulary is not None
    return runs, vocabulary


def _require_known(run: Loaded, length: int) -> None:
    """Raise `UsageError` for more positions than a pretrained model has been trained on."""
    if run.config.pretrained is None:
        return
    config = run.model.network.hf_model.config  # type: ignore[attr-defined]
    known = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    if known is not None and length > known:
        raise UsageError(
            f"option --lengths: {length} given; the model of {run.name} knows {known} positions"
        )


def _documents(options: Namespace, encode: Any, length: int) -> tuple[Windows, list[str]]:
    """The first tokens of each document, and its name; those that are shorter are left out."""
    rows: list[NDArray[np.int64]] = []
    names: list[str] = []
    for file in find_files(options.documents).files:
        if (len(rows) + 1) * length > max(options.tokens, length):
            break
        tokens: NDArray[np.int64] = encode(read_text(file, "option --documents"))
        if len(tokens) > length:
            rows.append(tokens[: length + 1])
            names.append(file.name)
    if not rows:
        raise UsageError(
            f"option --documents: {options.documents} has no file of more than {length} tokens"
        )
    return as_windows(np.stack(rows)), names


def _filler(corpus: Corpus) -> NDArray[np.int64]:
    if not isinstance(corpus, TokenCorpus):
        raise UsageError("option --retrieval: the first run was trained on no text to plant in")
    return np.asarray(corpus.validation, dtype=np.int64)


def _losses(runs: list[Loaded], windows: Windows, options: Namespace) -> Rows:
    """Of each run what `routes_beside` gives; mechanisms of a network that all share come once."""
    rows: Rows = {}
    are_one = _have_one_network(runs)
    for run in runs:
        is_new = options.alone and (not are_one or run is runs[0])
        found = routes_beside(
            run.model, run.guide, windows, 1, options.seed, options.budgets or (), is_new
        )
        for name, row in found.items():
            rows[name if are_one and not is_of_guide(name) else f"{run.name}: {name}"] = row
    return rows


def _have_one_network(runs: list[Loaded]) -> bool:
    """Whether all route one pretrained network: weights, mechanisms, sizes and precision."""
    if any(run.config.pretrained is None for run in runs):
        return False
    said = [(run.model.network.describe(), run.config.precision) for run in runs]
    return all(one == said[0] for one in said)


class _Way(NamedTuple):
    """One way of attending that is asked for what was planted."""

    name: str
    model: LanguageModel
    guide: Guide
    route: Route
    prices: dict[int, float]
    """At which routes are decided, by length; none: as they were trained."""


def _ways(
    runs: list[Loaded], losses: dict[str, Any], budgets: list[float], alone: bool
) -> Iterator[_Way]:
    """Each run's hard routes, at each budget, and if asked each mechanism of its network alone.

    Budgets are met by the prices that met them on the texts of each length.
    """
    seen = set()
    are_one = _have_one_network(runs)
    for run in runs:
        hard = mean_route(run.guide, hard=True)
        for row in [at_budget(HARD, budget) for budget in budgets] or [HARD]:
            name = f"{run.name}: {row}"
            prices = {int(T): found["rows"][name].get("price") for T, found in losses.items()}
            yield _Way(name, run.model, run.guide, hard, prices if budgets else {})
        for mechanism in run.model.network.mechanism_names if alone else ():
            name = mechanism if are_one else f"{run.name}: {mechanism}"
            if name not in seen:
                seen.add(name)
                route = chosen_by_all(run.model.network, mechanism)
                yield _Way(name, run.model, run.guide, route, {})


def _retrieved(
    runs: list[Loaded], retrieval: Retrieval, losses: dict[str, Any], options: Namespace
) -> dict[str, list[Cell]]:
    """The cells of each way, by its name."""
    ways = list(_ways(runs, losses, options.budgets or [], options.alone))
    lengths = [int(length) for length in losses]
    steps = len(ways) * len(lengths)
    found: dict[str, list[Cell]] = {}
    with step_by_step(steps, console(stderr=True)) as tell:
        for way in ways:
            found[way.name] = []
            for length in lengths:
                tell(f"{retrieval.kind}: {way.name}")
                own = float(way.guide.execution.price)
                with (
                    evaluating(way.model, way.guide),
                    at_price(way.guide, way.prices.get(length, own)),
                ):
                    found[way.name] += retrieved(
                        way.model.network, way.route, retrieval, [length], options.depths,
                        options.questions, options.seed,
                    )  # fmt: skip
    return found
