"""Tables of the clock: hard routes against full attention, SVI, mechanisms, `make train`."""

from typing import Any

from results_read import read
from table_cells import number, percent, table, times

LENGTHS = [512, 2048, 8192, 16384]
PARTS = {
    "attention": "attention alone",
    "prefill": "whole prefill",
    "training": "training step, routes given",
    "decoding": "decoding",
}
MIX = 0.1
"""Share of tokens on full attention; the rest is half window, half linear."""


def speed(points: list[dict[str, Any]], part: str, length: int, share: float) -> str:
    """Times as fast as full attention."""
    route = f"routed {share:g}"
    (found,) = (
        point
        for point in points
        if (point["part"], point["length"], point["route"]) == (part, length, route)
    )
    return times(1 / found["ratio_to_full"])


def cpu() -> str:
    """Two cores: four parts of the work by length."""
    points = read("xeon/routed.json")["points"]
    rows = [
        [str(length), *(speed(points, part, length, MIX) for part in PARTS)] for length in LENGTHS
    ]
    return table(["tokens", *PARTS.values()], rows)


def cpu_shares() -> str:
    """Two cores: attention alone by length and share of full."""
    points = read("xeon/routed.json")["points"]
    shares = [0.1, 0.25, 0.5, 0.75]
    rows = [
        [str(length), *(speed(points, "attention", length, share) for share in shares)]
        for length in LENGTHS
    ]
    return table(["tokens", *(f"{percent(share)} full" for share in shares)], rows)


def gpu() -> str:
    """One H100."""
    points = read("h100/routed.json")["points"]
    rows = [
        [
            str(length),
            speed(points, "attention", length, MIX),
            speed(points, "attention", length, 0.5),
            speed(points, "prefill", length, MIX),
        ]
        for length in (2048, 8192, 32768, 131072)
    ]
    head = ["tokens", "attention alone", "the same, half of all tokens full", "whole prefill"]
    return table(head, rows)


def targets() -> str:
    """What was wanted of hard routes on two cores, and what was measured."""
    rows = [
        [
            one["target"].replace(", 10% full, 45% window, 45% linear", ""),
            f"at least {one['at_least']:g}" if "at_least" in one else f"at most {one['at_most']:g}",
            times(one["measured"]),
            "yes" if one["met"] else "no",
        ]
        for one in read("xeon/routed.json")["targets"]
    ]
    return table(["what", "wanted", "measured", "met"], rows)


def parts() -> str:
    """SVI and single mechanisms."""
    svi, alone = read("svi.json"), read("mechanisms.json")
    growth, ratio = alone["growth_exponent_forward_backward"], alone["forward_ratio_to_full"]
    memory = {kind: amount / 1e6 for kind, amount in alone["peak_memory_bytes"]["8192"].items()}
    wanted_growth = alone["target_growth_exponent_at_most"]
    wanted_ratio = alone["target_forward_ratio_at_4096_at_most"]
    rows = [
        [
            "an SVI step over the same step in plain PyTorch",
            f"at most {svi['target_ratio_at_most']:.2f}",
            number(svi["ratio_of_medians"], 2),
        ],
        *(
            [
                f"growth of {kind} attention's time with length, as an exponent",
                f"at most {wanted_growth[kind]:.2f}",
                number(growth[kind], 2),
            ]
            for kind in ("window", "linear")
        ),
        *(
            [
                f"{kind} over full attention, forward, 4096 tokens",
                f"at most {wanted_ratio[kind]:.2f}",
                number(ratio["4096"][kind], 2),
            ]
            for kind in ("window", "linear")
        ),
        *(
            [f"peak memory of {kind}, forward and backward, 8192 tokens", "", f"{amount:.0f} MB"]
            for kind, amount in memory.items()
        ),
    ]
    return table(["what", "wanted", "measured"], rows)


TABLES = {
    "clock_cpu": cpu, "clock_shares": cpu_shares, "clock_gpu": gpu, "clock_targets": targets,
    "clock_parts": parts,
}  # fmt: skip
