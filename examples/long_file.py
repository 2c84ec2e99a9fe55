"""A long file is read and continued, each token by its own route; and again, all by full attention.

Run it: python examples/long_file.py RUN [FILE] [--length 8192] [--tokens 200]

RUN is the folder of a trained run; without a FILE, what is read is the run's own validation text,
such as Python's documentation. Both ways run the same weights through the same cache, in turn. A
text longer than the run's context shows the clock, not what the run is good at.
"""

import argparse
import statistics
import time
from typing import NamedTuple

import pyro
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from rich.text import Text as Coloured
from torch import Tensor

from pyro_meta import Decision, Features, UsageError
from pyro_meta.data.corpus import TokenCorpus
from pyro_meta.data.text import Text
from pyro_meta.data.vocabulary import Vocabulary
from pyro_meta.evaluation.figures import evaluating
from pyro_meta.guides import mean_route
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Route, as_weights
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.terminal.commands import run_command
from pyro_meta.training.run import Run

COLOURS = ("red", "green", "blue", "magenta", "cyan", "yellow")
TURNS = 3


class Reading(NamedTuple):
    read_seconds: float
    decode_seconds: float
    nats: float  # per token that was read
    new: list[int]


@pyro.validation_enabled(False)
def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("file", nargs="?", help="UTF-8 text (default: the run's validation text)")
    parser.add_argument("--length", type=int, default=8192, help="most tokens to read")
    parser.add_argument("--tokens", type=int, default=200, help="tokens to add")
    options = parser.parse_args(argv)
    if options.length < 2 or options.tokens < 1:
        raise UsageError("--length: at least 2, and --tokens: at least 1, are allowed")

    run = Run.open(options.run)
    model, guide, vocabulary, _ = run.load()
    network, names = model.network, model.network.mechanism_names
    if "full" not in names:
        raise UsageError(f"{options.run}: its mechanisms are {', '.join(names)}; full is needed")
    tokens = tokens_of(run, options.file, vocabulary, options.length)

    weights = torch.zeros(network.shape.layers, tokens.shape[1] + options.tokens, len(names))
    routed = mean_route(guide, hard=True)

    def watched(layer: int, features: Features) -> Decision:
        decision = routed(layer, features)
        weights[layer, features.positions] = as_weights(decision.route, len(names))[0].float()
        return decision

    all_full = chosen_by_all(network, "full")

    with evaluating(model, guide):
        new = read_on(network, watched, tokens, options.tokens, guide.is_of_own_token).new
        turns: dict[str, list[Reading]] = {"routed": [], "all full": []}
        for _ in range(TURNS):
            for name, route, is_alone in (
                ("routed", routed, guide.is_of_own_token),
                ("all full", all_full, True),
            ):
                turns[name].append(read_on(network, route, tokens, options.tokens, is_alone))

    out = Console()
    out.print(clock(turns, tokens.shape[1], options.tokens, network.shape.context))
    out.print(loads(weights, names))
    passage = [*tokens[0, -240:].tolist(), *new]
    out.print(coloured(passage, weights, names, vocabulary), soft_wrap=True)


def tokens_of(run: Run, file: str | None, vocabulary: Vocabulary, length: int) -> Tensor:
    """At most `length` tokens, [1, T], of a file or of the run's own data."""
    if file is None:
        config = run.config()
        corpus = config.data.corpus()
        if isinstance(corpus, TokenCorpus):
            ids = torch.from_numpy(corpus.validation[:length].astype("int64"))
        else:
            ids = corpus.windows(config.context, length)[0].flatten()[:length]
    else:
        text = Text(file).corpus()
        start = text.vocabulary.decode(text.tokens[: 16 * length].tolist())
        ids = torch.from_numpy(vocabulary.encode(start.rstrip("\ufffd")))[:length]
    if len(ids) < 2:
        raise UsageError(f"{file or run.folder}: it has {len(ids)} tokens; at least 2 are needed")
    return ids[None]


def read_on(
    network: Network, route: Route, tokens: Tensor, count: int, looks_at_own_token: bool
) -> Reading:
    """Read tokens [1, T] and add `count`, the likeliest each time."""
    cache = network.new_cache(1, keeps_features=not looks_at_own_token)
    started = time.perf_counter()
    logits = network(tokens, route, cache)[0]
    read_seconds = time.perf_counter() - started
    nats = F.cross_entropy(logits[:-1].float(), tokens[0, 1:])
    started = time.perf_counter()
    new: list[int] = []
    for _ in range(count):
        new.append(int(logits[-1].argmax()))
        logits = network(torch.tensor([new[-1:]]), route, cache)[0]
    return Reading(read_seconds, time.perf_counter() - started, float(nats), new)


def clock(turns: dict[str, list[Reading]], length: int, count: int, context: int) -> Table:
    table = Table(title=f"{length} tokens read, {count} added; trained on {context} at a time")
    for column in ("", "read, tokens/s", "continued, tokens/s", "nats per token read"):
        table.add_column(column, justify="right" if column else "left")
    for name, readings in turns.items():
        read = statistics.median(reading.read_seconds for reading in readings)
        decode = statistics.median(reading.decode_seconds for reading in readings)
        table.add_row(
            name, f"{length / read:,.0f}", f"{count / decode:,.0f}", f"{readings[0].nats:.3f}"
        )
    return table


def loads(weights: Tensor, names: list[str]) -> Table:
    """Shares of the routes [L, T, K] by layer."""
    table = Table(title="share of each mechanism")
    table.add_column("layer")
    for name, colour in zip(names, COLOURS, strict=False):
        table.add_column(name, justify="right", style=colour)
    for layer, shares in enumerate(weights.mean(1).tolist()):
        table.add_row(str(layer), *(f"{share:.1%}" for share in shares))
    return table


def coloured(
    passage: list[int], weights: Tensor, names: list[str], vocabulary: Vocabulary
) -> Coloured:
    """The passage, each token in the colour of its mechanism, in the layer where most differ."""
    layer = int(weights.mean(1).amax(-1).argmin())
    choices = weights[layer, -len(passage) :].argmax(-1).tolist()
    text = Coloured(f"the end of it, as layer {layer} attends:\n\n", style="bold")
    for piece, choice in zip(vocabulary.pieces(passage), choices, strict=True):
        text.append(piece, style=f"not bold {COLOURS[choice % len(COLOURS)]}")
    return text


if __name__ == "__main__":
    run_command(main)
