"""How much Python a decoded token takes: its function calls, and the operations of PyTorch.

    python benchmarks/calls_per_token.py --json benchmarks/results/current/calls_per_token.json

Counts, not seconds, so that they say the same on a busy machine: calls of functions, by cProfile
(those of C among them), and operations that reach PyTorch's dispatcher, by layer and token. Of our
transformer, whose every layer asks its guide and then follows routes that look random; and of a
converted model of transformers, along its guide. Beside each stands what a token takes with every
token on full attention and nobody asked: of a converted model, the model as it was.

With `--compile`, and a C++ compiler, `compiled` says what `torch.compile` wins on a CPU. A cache
grows with every token, so that what looks at it is left out. All else of a layer has one shape:
what follows its attention, and what comes before the next one's. `tokens_to_pay` is how many tokens
a process has to decode before the compiler is paid for; null: nothing is won. These are seconds:
only on a machine that does nothing else.

Shapes: L layers, B texts.
"""

import cProfile
import pstats
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from scripts import Parser, a_file_to_write, give, run_script
from torch import Tensor
from torch._dynamo.utils import counters
from torch.utils._python_dispatch import TorchDispatchMode

from pyro_meta.attention.clock import interleaved, medians
from pyro_meta.attention.rotary import rotation
from pyro_meta.guides import DirichletGuide, mean_route
from pyro_meta.models import CostDirichlet, LanguageModel
from pyro_meta.network.blocks import Block, Surroundings
from pyro_meta.network.blocks.base import Stream
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.network.shape import Shape
from pyro_meta.network.transformer import Transformer, chosen_by_all
from pyro_meta.speed.scene import Scene
from pyro_meta.terminal.measured import measured_by

LAYERS, WIDTH, HEADS, KV_HEADS, WINDOW = 4, 128, 8, 4, 64
LENGTHS = (200, 200, 150, 97)
"""Tokens that texts have when the first is counted."""
COUNTED, WARM_UP = 16, 4  # tokens
STEP = Callable[[], object]


class Count(NamedTuple):
    """By token and layer, on average."""

    calls: float
    """Of functions, Python's and C's."""
    operations: float
    """Of PyTorch."""


class _Operations(TorchDispatchMode):
    """Counts what reaches the dispatcher."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def counted(step: STEP) -> Count:
    """Of calls of `step`, each of which decodes one token of every text."""
    with torch.no_grad():
        for _ in range(WARM_UP):
            step()
        calls = cProfile.Profile()
        calls.enable()
        for _ in range(COUNTED):
            step()
        calls.disable()
        with _Operations() as operations:
            for _ in range(COUNTED):
                step()
    total: int = pstats.Stats(calls).total_calls  # type: ignore[attr-defined]
    each = COUNTED * LAYERS
    return Count(total / each, operations.count / each)


def of_transformer(texts: int, groups: int, mechanisms: tuple[str, ...]) -> dict[str, Count]:
    """Our transformer: along routes, and pinned to full attention, where no guide is asked."""
    torch.manual_seed(0)
    shape = Shape(256, 512, WIDTH, LAYERS, HEADS, kv_heads=KV_HEADS, window=WINDOW, groups=groups)
    network = Transformer(shape, mechanisms)
    model = LanguageModel(network, CostDirichlet(network))
    guide = DirichletGuide(model)
    model.eval(), guide.eval()
    ask = mean_route(guide, hard=True)
    draw = torch.Generator().manual_seed(0)
    table = torch.randint(len(mechanisms), (LAYERS, 997, max(1, groups)), generator=draw)

    def along(layer: int, features: Features) -> Decision:
        decision = ask(layer, features)
        at = (features.positions + 7 * features.tokens) % 997
        chosen = table[layer][at]  # [.., T, G]
        return decision._replace(route=chosen if groups > 1 else chosen[..., 0])

    def decoding(route: Route) -> STEP:
        lengths = list(LENGTHS[:texts])
        tokens = torch.randint(256, (texts, max(lengths)), generator=draw)
        cache = network.new_cache(texts, keeps_features=False)
        with torch.no_grad():
            network.states(tokens, route, cache, lengths)
        return lambda: network(tokens[:, :1], route, cache)

    return {
        "routed": counted(decoding(along)),
        "full": counted(decoding(chosen_by_all(network, "full"))),
    }


def of_converted(groups: int | str) -> dict[str, Count]:
    """A converted model of transformers, and the same as it was."""
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    from pyro_meta.pretrained import convert, wrap

    torch.manual_seed(0)
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    config = LlamaConfig(
        **sizes, num_key_value_heads=KV_HEADS, intermediate_size=2 * WIDTH, vocab_size=256
    )
    plain = LlamaForCausalLM(config).eval()
    again = LlamaForCausalLM(config).eval()
    again.load_state_dict(plain.state_dict())
    network = wrap(again, window=WINDOW, groups=groups)
    model = LanguageModel(network, CostDirichlet(network))
    guide = DirichletGuide(model)
    for head in guide.heads:
        for weight in head.parameters():  # so that its tokens differ
            torch.nn.init.normal_(weight)
    guide.harden_below(1.0)
    routed = convert(again, guide.eval(), checks=False)

    def decoding(hf_model: Any) -> STEP:
        tokens = torch.randint(256, (1, LENGTHS[0]), generator=torch.Generator().manual_seed(0))
        cache = DynamicCache(config=hf_model.config)
        with torch.no_grad():
            hf_model(input_ids=tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
        read = iter(range(10**6))

        def step() -> Tensor:
            one = tokens[:, next(read) % tokens.shape[1], None]
            found = hf_model(input_ids=one, past_key_values=cache, use_cache=True, logits_to_keep=1)
            return found.logits

        return step

    return {"routed": counted(decoding(routed)), "full": counted(decoding(plain))}


def compiled() -> dict[str, Any]:
    """What is won where a layer's work on one token is compiled, but for attention to the cache."""
    torch.manual_seed(0)
    scene = Scene(width=WIDTH, heads=HEADS, window=WINDOW, layers=LAYERS)
    network = scene.network(512)[0].network
    assert isinstance(network, Transformer)
    state, attended = torch.randn(2, 1, 1, WIDTH)

    def work(block: Block, at: Surroundings) -> tuple[Tensor, ...]:
        stream = block.advance(Stream(state), attended)
        normed = block.look(stream)
        inputs = block.attention._inputs(normed, at, None)
        return stream.state, normed, inputs.q_rotated, inputs.k_rotated, inputs.v

    def of_all(work: Callable[..., tuple[Tensor, ...]]) -> list[Tensor]:
        return [x for block in network.layers for x in work(block, places[-1])]

    places = [
        Surroundings(*rotation(torch.tensor([position]), scene.head_width), None)
        for position in (7, 300)
    ]
    counters.clear()
    fast = torch.compile(work, fullgraph=True)
    with torch.no_grad():
        began = time.perf_counter()
        try:
            for at in places:
                for block in network.layers:
                    fast(block, at)
        except Exception as error:  # whatever the compiler, or the one that it calls, raises
            why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            print(f"nothing is compiled: {why}", file=sys.stderr)
            return {"left_out": why}
        seconds = time.perf_counter() - began
        graphs = counters["stats"]["unique_graphs"]
        gaps = [float((x - y).abs().max()) for x, y in zip(of_all(fast), of_all(work), strict=True)]
        times = medians(
            interleaved({"eager": lambda: of_all(work), "compiled": lambda: of_all(fast)}, 50)
        )
    saved = times["eager"] - times["compiled"]
    return {
        "compile_seconds": seconds,
        "graphs": graphs,
        "largest_difference": max(gaps),
        "seconds_per_token": times,
        "tokens_to_pay": seconds / saved if saved > 0 else None,
    }


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--json", type=a_file_to_write, help="Where the counts go; else they are printed."
    )
    parser.add_argument("--compile", action="store_true", help="See what compiling wins, too.")
    asked = parser.parse_args()
    kinds = ("full", "window", "linear")
    found = {
        "one text": of_transformer(1, 1, kinds),
        "one text, routes by key-value head": of_transformer(1, KV_HEADS, kinds),
        "four texts of different lengths": of_transformer(4, 1, kinds),
        "four texts, routes by key-value head": of_transformer(4, KV_HEADS, kinds),
        "converted model": of_converted(1),
        "converted model, routes by key-value head": of_converted("kv"),
    }
    facts = measured_by(["python", "benchmarks/calls_per_token.py", *sys.argv[1:]]) | {
        "setting": {
            "layers": LAYERS, "width": WIDTH, "heads": HEADS, "kv_heads": KV_HEADS,
            "window": WINDOW, "lengths": LENGTHS,
        },
        "per_layer_and_token": {
            name: {way: count._asdict() for way, count in ways.items()}
            for name, ways in found.items()
        },
    }  # fmt: skip
    for name, ways in found.items():
        said = ", ".join(f"{way} {n.calls:.0f} / {n.operations:.0f}" for way, n in ways.items())
        print(f"{name}: calls / operations per layer and token: {said}", file=sys.stderr)
    if asked.compile:
        facts["compiled"] = compiled()
        print(f"compiled: {facts['compiled']}", file=sys.stderr)
    give(asked.json, facts)


if __name__ == "__main__":
    run_script(main)
