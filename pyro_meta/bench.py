"""`python -m pyro_meta.bench`: what the parts cost on this machine, as JSON.

    mechanisms   forward and backward time and peak memory of each mechanism by length
    routed       hard routes as they are executed against full attention, with pictures
    converted    a pretrained model along the routes of a run against the model as it was
    opponents    attention along hard routes against what one would run instead
    depth        hard depth gates as they are executed against the same routes without
    draw         the pictures of routed.json again

Times are medians of interleaved repetitions; only ratios within one file mean anything.
"""

from pathlib import Path
from typing import Literal

from jsonargparse import ArgumentParser

from pyro_meta.speed import MECHANISMS, PART_NAMES
from pyro_meta.terminal.commands import TRUST_HELP, answer, command_parser, parse, run_command


def main(argv: list[str]) -> None:
    """Run the benchmarks and write one JSON file for each."""
    parser = _parser()
    answer(parser, argv)
    options = parse(parser, argv)
    from pyro_meta.speed.command import bench  # what needs PyTorch

    bench(options, parser.get_defaults(), argv)


def _parser() -> ArgumentParser:
    parser = command_parser("bench", "Measure what the parts cost on this machine.")
    kinds = Literal[
        "all", "mechanisms", "routed", "opponents", "converted", "depth", "draw"
    ]  # the keys of READS
    add = parser.add_argument
    add("--what", type=kinds, default="all", help="Which benchmark.")
    add("--out", type=Path, default=Path("benchmarks/results"), help="Folder of the JSON files.")
    add("--repeats", type=int | None, help="Interleaved repetitions (default: 15; routed: 7).")
    add("--lengths", type=list[int] | None, help="Lengths T (default: each benchmark's own).")
    add(
        "--shares", type=list[float] | None,
        help="Routed, opponents: shares of full attention. Depth: shares of token-layer pairs to "
        "skip.",
    )  # fmt: skip
    add(
        "--parts",
        type=list[str],
        default=list(PART_NAMES),
        help=f"Routed: of {', '.join(PART_NAMES)}.",
    )
    add(
        "--mechanisms",
        type=list[str],
        default=list(MECHANISMS),
        help="Routed: what routes choose from, full among them.",
    )
    add("--layers", type=int, default=4, help="Layers of the networks.")
    add("--threads", type=int | None, help="Threads of PyTorch (default: as it chooses).")
    add(
        "--run",
        type=Path | None,
        help="Routed: a trained run whose routes are timed too. Converted: the run.",
    )
    add(
        "--budget",
        type=float | None,
        help="Converted: share of key visits that routes make (default: as the run's).",
    )
    add("--trust", type=bool, default=False, help="With --run. " + TRUST_HELP)
    devices, precisions = Literal["auto", "cpu", "cuda"], Literal["auto", "float32", "bfloat16"]
    add("--device", type=devices, default="auto", help="Routed, opponents, depth: where it runs.")
    add(
        "--precision", type=precisions, default="auto",
        help="Routed, opponents, depth: auto is float32 on a CPU and bfloat16 on CUDA.",
    )  # fmt: skip
    add(
        "--graphs", type=bool, default=False,
        help="Routed, on CUDA: launch each call as one CUDA graph, so that the host's time is left "
        "out (attention and prefill).",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    run_command(main)
