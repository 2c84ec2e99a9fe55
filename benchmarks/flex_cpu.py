"""Hard routes over {full, window} by the compiled `flex_attention` on a CPU, beside our ways.

    python benchmarks/flex_cpu.py --threads 1 --json benchmarks/results/current/flex_cpu.json

One layer's attention, inference only, from q, k and v to what its tokens get, by turns: our
gathered and masked ways; `flex_attention` in one call, with queries sorted by mechanism and then by
position, so that its block mask is sparse; and, as the measure, full attention for all tokens.
Every way is first compared with attention written out by its formula. Only on a machine that does
nothing else.

`flex_attention` is none of the ways that dispatch chooses from. It would have to be faster than
gathered queries (`flex_over_gathered` below 1) by enough to win back the compiler that each process
waits for before its first text (`compile_seconds`); and it needs one, and has no backward pass on a
CPU. Where there is no compiler the script says so in a line, and times the others.

Shapes: B = 1 sequence, H heads, T tokens, d head width, D = H d, m places for queries.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from scripts import Parser, a_count, a_file_to_write, give, run_script
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from pyro_meta.attention import Sizes, build_mechanisms, routed_attention
from pyro_meta.attention.clock import Calls, interleaved, medians
from pyro_meta.attention.ops.backend import backend
from pyro_meta.attention.ops.flex import BUCKET, block_mask
from pyro_meta.speed.scene import Attention, Scene
from pyro_meta.terminal.measured import measured_by

FULL, WINDOW = range(2)
LENGTHS, SHARES = (2048, 4096, 8192), (0.1, 0.4)
SAMPLE = 128  # tokens that are compared with the formula
CLOSE = 1e-4  # float32, by the largest difference
ROUNDS, ENOUGH_S = 7, 25.0  # of one length and share

Way = Callable[[Attention, Tensor], Tensor]
"""Attention of a layer and choices [1, T] -> what its tokens get, [1, T, D]."""


def by(name: str) -> Way:
    """One of our ways, whether it pays or not."""

    def run(attention: Attention, choice: Tensor) -> Tensor:
        with torch.no_grad(), backend(name):
            return routed_attention(attention.mechanisms, attention.gain, choice, attention.inputs)

    return run


def by_flex(attention: Attention, choice: Tensor) -> Tensor:
    """One call: the tokens of each mechanism stand together, padded to whole blocks of queries."""
    q, k, v = attention.inputs[:3]
    T, window = q.shape[2], cast(int, attention.mechanisms[WINDOW].window)
    places, last, lowest, owned = [], [], [], []
    begin = 0
    for kind in (FULL, WINDOW):
        own = (choice[0] == kind).nonzero()[:, 0]
        if not len(own):
            continue
        spare = -len(own) % BUCKET
        ends = F.pad(own, (0, spare), value=int(own[-1]))
        places.append(torch.arange(begin, begin + len(own)))
        last.append(ends)
        lowest.append((ends - window + 1).clamp(min=0) if kind == WINDOW else ends * 0)
        owned.append(own)
        begin += len(ends)
    ends, own = torch.cat(last), torch.cat(owned)
    keys = T + -T % BUCKET
    with torch.no_grad():
        k, v = (F.pad(x, (0, 0, 0, keys - T)) if keys > T else x for x in (k, v))
        mask = block_mask(ends[None], torch.cat(lowest)[None], torch.zeros(1).long(), keys)
        rows = q.index_select(2, ends)  # [1, H, m, d]; padding repeats the last query
        out = _flex()(rows, k, v, block_mask=mask)
        found = out[0].transpose(0, 1).flatten(1).index_select(0, torch.cat(places))  # [T, D]
        found = attention.gain.index_select(0, choice[0, own]) * found
        return torch.empty_like(found).index_copy_(0, own, found)[None]


@cache
def _flex() -> Callable[..., Tensor]:
    return cast(Callable[..., Tensor], torch.compile(flex_attention, dynamic=True))


def full(attention: Attention, choice: Tensor) -> Tensor:
    """Full attention for all tokens, whatever they chose."""
    with torch.no_grad():
        return attention.alone(FULL)


def largest_difference(attention: Attention, choice: Tensor, way: Way) -> float:
    """From the formula, softmax(q . k / sqrt(d)) v over the keys that are seen, of some tokens."""
    q, k, v = (x[0].double() for x in attention.inputs[:3])  # [H, T, d]
    T, window = q.shape[1], cast(int, attention.mechanisms[WINDOW].window)
    some = torch.linspace(0, T - 1, SAMPLE).long().unique()
    key = torch.arange(T)
    reach = torch.where(choice[0, some] == FULL, T, window)[:, None]
    seen = (key <= some[:, None]) & (key > some[:, None] - reach)
    scores = q[:, some] @ k.transpose(1, 2) / q.shape[-1] ** 0.5
    expected = scores.masked_fill(~seen, -torch.inf).softmax(-1) @ v
    expected = attention.gain[choice[0, some]] * expected.transpose(0, 1).flatten(1)
    return float((way(attention, choice)[0, some] - expected).abs().max())


def measured(
    scene: Scene, lengths: Sequence[int], shares: Sequence[float], rounds: int
) -> dict[str, Any]:
    """Ratios to full attention by length and share, how far each way is from the formula, and how
    long the compiler took, or why there is none."""
    ways: dict[str, Way] = {"gathered": by("gather"), "masked": by("mask"), "flex": by_flex}
    began = time.perf_counter()
    facts: dict[str, Any] = {}
    try:  # short, so that what is waited for is the compiler
        by_flex(_attention(scene, 256), _choice(scene, 256, 0.5))
        facts["compile_seconds"] = time.perf_counter() - began
    except Exception as error:  # whatever the compiler, or the one that it calls, raises
        why = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        print(f"flex_attention is left out: {why}", file=sys.stderr)
        facts["left_out"] = {"flex": why}
        del ways["flex"]
    points = [point(scene, ways, T, share, rounds) for T in lengths for share in shares]
    return facts | {"points": points}


def point(
    scene: Scene, ways: dict[str, Way], length: int, share: float, rounds: int
) -> dict[str, Any]:
    """Each way at one length and share of `full`, by turns.

    Raises
    ------
    SystemExit
        A way that gives something else than the formula.
    """
    attention, choice = _attention(scene, length), _choice(scene, length, share)
    differences = {name: largest_difference(attention, choice, way) for name, way in ways.items()}
    for name, difference in differences.items():
        if not difference < CLOSE:
            sys.exit(f"{name}: {difference:.3g} from the formula at {length} tokens")

    def call(way: Way) -> Callable[[], object]:
        return lambda: way(attention, choice)

    calls: Calls = {name: call(way) for name, way in (ways | {"full": full}).items()}
    seconds = interleaved(calls, rounds, 1, enough_s=ENOUGH_S)
    middle = medians(seconds)
    found: dict[str, Any] = {
        "length": length,
        "share_of_full": share,
        "seconds": middle,
        "rounds": len(seconds["full"]),
        "ratio_to_full": {name: middle[name] / middle["full"] for name in ways},
        "largest_difference": differences,
    }
    if "flex" in ways:
        found["flex_over_gathered"] = middle["flex"] / middle["gathered"]
    ratios = ", ".join(f"{name} {found['ratio_to_full'][name]:.2f}" for name in ways)
    print(f"{length} tokens, {share:.0%} full, over full attention: {ratios}", file=sys.stderr)
    return found


def _attention(scene: Scene, length: int) -> Attention:
    """That of the routed benchmark, of `full` and `window` alone."""
    _, _, inputs = Attention.of(scene, length)
    built = build_mechanisms(["full", "window"], Sizes(scene.head_width, scene.window))
    draw = torch.Generator().manual_seed(scene.seed)
    return Attention(list(built), torch.rand(2, scene.width, generator=draw), inputs)  # type: ignore[arg-type]


def _choice(scene: Scene, length: int, share: float) -> Tensor:
    """Choices [1, T]: so many tokens full, at random places, the others a window."""
    draw = torch.Generator().manual_seed(scene.seed)
    is_window = torch.randperm(length, generator=draw) >= round(share * length)
    return is_window.long()[None]


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument(
        "--json", type=a_file_to_write, help="Where the figures go; else they are printed."
    )
    parser.add_argument("--threads", type=a_count, default=1)
    parser.add_argument("--lengths", type=a_count, nargs="+", default=LENGTHS)
    parser.add_argument("--rounds", type=a_count, default=ROUNDS)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    scene = Scene()
    facts = measured_by(["python", "benchmarks/flex_cpu.py", *sys.argv[1:]]) | {
        "threads": asked.threads,
        "setting": dataclasses.asdict(scene) | {"mechanisms": ["full", "window"], "batch": 1},
    }
    give(asked.json, facts | measured(scene, asked.lengths, SHARES, asked.rounds))


if __name__ == "__main__":
    run_script(main)
