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
"""Share of tokens on full attention; the others share the rest alike."""
SHARES = [0.1, 0.25, 0.5, 0.75]
NEW, TWO, OLD = "epyc/routed.json", "epyc_window/routed.json", "xeon/routed.json"
"""Today's code, among three mechanisms and among two; and an earlier one on another processor."""


def speed_of(points: list[dict[str, Any]], part: str, length: int, share: float) -> float:
    """Times as fast as full attention."""
    route = f"routed {share:g}"
    (found,) = (
        point
        for point in points
        if (point["part"], point["length"], point["route"]) == (part, length, route)
    )
    return 1 / float(found["ratio_to_full"])


def speed(points: list[dict[str, Any]], part: str, length: int, share: float) -> str:
    return times(speed_of(points, part, length, share))


def cpu() -> str:
    """Two cores: four parts of the work by length, and what MACs alone would give."""
    found = read(NEW)
    rows = []
    for length in LENGTHS:
        macs = found["macs_ratio_of_parts"][str(length)]
        cells = (
            f"{speed(found['points'], part, length, MIX)} ({times(1 / macs[part][f'{MIX:g}'])})"
            for part in PARTS
        )
        rows.append([str(length), *cells])
    return table(["tokens", *PARTS.values()], rows)


def by_share(name: str) -> str:
    """Attention alone by length and share of full."""
    points = read(name)["points"]
    rows = [
        [str(length), *(speed(points, "attention", length, share) for share in SHARES)]
        for length in LENGTHS
    ]
    return table(["tokens", *(f"{percent(share)} full" for share in SHARES)], rows)


def cpu_shares() -> str:
    """Among full, window and linear attention."""
    return by_share(NEW)


def cpu_shares_of_two() -> str:
    """Among full attention and a window."""
    return by_share(TWO)


def xeon() -> str:
    """Two cores of another processor, and earlier code."""
    points = read(OLD)["points"]
    rows = [
        [str(length), *(speed(points, part, length, MIX) for part in PARTS)] for length in LENGTHS
    ]
    return table(["tokens", *PARTS.values()], rows)


ROUTES = {
    "window": "window", "linear": "linear attention", "routed 0.1": "routes, 10% full",
    "routed 0.5": "routes, 50% full", "flex window": "`flex_attention`, a sliding window, compiled",
    "meta-attention": "the public routine of Meta-Attention, 10% full",
}  # fmt: skip


def opponents() -> str:
    """Attention alone, times as fast as full attention, beside what one would run instead."""
    points = {(one["route"], one["length"]): one for one in read("epyc/opponents.json")["points"]}
    lengths = sorted({length for _, length in points})
    rows = []
    for route, words in ROUTES.items():
        cells = (points.get((route, length)) for length in lengths)
        shown = ("" if one is None else times(1 / one["ratio_to_full"]) for one in cells)
        rows.append([words, *shown])
    return table(["", *(f"{length} tokens" for length in lengths)], rows)


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
    """What was wanted on two cores, what was measured, and what MACs alone would give."""
    found = read("epyc/targets.json")["targets"]
    window = [
        one | {"target": f"{one['target']}, without linear attention"}
        for one in read("epyc_window/targets.json")["targets"]
        if one["target"].startswith("attention alone, any share")
    ]
    rows = []
    for one in [*found, *window]:
        if any(one["target"].startswith(begins) for begins in (*OF_PARTS, "chunk")):
            continue  # told below, or of mechanisms
        what = one["target"].replace(", 10% full, 45% window, 45% linear", "")
        is_least = "at_least" in one
        bound = one["at_least"] if is_least else one["at_most"]
        limit = times(one["by_arithmetic"]) if "by_arithmetic" in one else ""
        wanted = f"at {'least' if is_least else 'most'} {times(bound)}"
        met = {True: "yes", False: "no", None: ""}[one["met"]]
        measured = "" if one["measured"] is None else times(one["measured"])
        rows.append([what, wanted, measured, limit, met])
    rows += [*_of_training(), *_of_converted()]
    return table(["what", "wanted", "measured", "MACs alone", "met"], rows)


def _of_training() -> list[list[str]]:
    """The run of `make train`, of an earlier commit and today's code."""
    found = read("training_rate.json")
    rate = {name: found[name]["tokens_per_second"]["median"] for name in ("before", "after")}
    faster = rate["after"] / rate["before"]
    met = "yes" if faster >= RATE else "no"
    what = "`make train`, tokens per second over those of commit 437d0cf"
    return [[what, f"at least {times(RATE)}", times(faster), "", met]]


def _of_converted() -> list[list[str]]:
    """A pretrained model along routes, against itself as it was.

    The limits are of visits alone: attention takes their share of its time, and all else its own.
    In decoding a cache that grows in place is no merit of routes; so the last row leaves it out.
    """
    (point,) = read("pretrained/at_40/converted.json")["points"]
    seconds, length = point["seconds"], f"{point['length']} tokens"
    prefill, decoding = seconds["prefill"], seconds["decoding"]
    in_place = decoding["sdpa, in place"]

    def limit(whole: float, attention: float, visits: float) -> float:
        return whole / (whole - attention * (1 - visits))

    visits, of_last = point["visits"], point["visits_of_the_last"]
    of_newest = limit(in_place, seconds["attention of a decoded token"]["sdpa"], of_last)
    found = [
        (
            f"{visits:.2f} of the key visits, {length}, prefill: times as fast as `sdpa`",
            prefill["sdpa"] / prefill["routed"],
            limit(prefill["sdpa"], seconds["attention"]["sdpa"], visits),
            CONVERTED,
        ),
        (
            f"the same routes, decoding behind {length} ({of_last:.2f}): times as fast as `sdpa`",
            decoding["sdpa"] / decoding["routed"],
            of_newest * decoding["sdpa"] / in_place,
            CONVERTED,
        ),
        (
            "the same, over `sdpa` with a cache that grows in place, too",
            in_place / decoding["routed"],
            of_newest,
            None,
        ),
    ]
    return [
        [
            f"SmolLM2-135M, {what}",
            "" if wanted is None else f"at least {times(wanted)}",
            times(measured),
            times(most),
            "" if wanted is None else "yes" if measured >= wanted else "no",
        ]
        for what, measured, most, wanted in found
    ]


RATE = 1.4
"""What was wanted of the run of `make train`."""
CONVERTED = 1.2
"""What was wanted of a converted model, of prefill and decoding alike."""


OF_PARTS = {
    "SVI step": "an SVI step over the same step in plain PyTorch",
    "window: growth": "growth of window attention's time with length, as an exponent",
    "linear: growth": "growth of linear attention's time with length, as an exponent",
    "window: forward": "window over full attention, forward, 4096 tokens",
    "linear: forward": "linear over full attention, forward, 4096 tokens",
}


def parts() -> str:
    """SVI and single mechanisms."""
    judged = read("epyc/targets.json")["targets"]
    rows = []
    for begins, words in OF_PARTS.items():
        (one,) = (target for target in judged if target["target"].startswith(begins))
        rows.append([words, f"at most {one['at_most']:.2f}", number(one["measured"], 2)])
    memory = read("epyc/mechanisms.json")["peak_memory_bytes"]["8192"]
    rows += [
        [
            f"peak memory of {kind}, forward and backward, 8192 tokens", "",
            f"{memory[kind] / 1e6:.0f} MB",
        ]
        for kind in ("full", "window", "linear")
    ]  # fmt: skip
    return table(["what", "wanted", "measured"], rows)


TABLES = {
    "clock_cpu": cpu, "clock_shares": cpu_shares, "clock_shares_of_two": cpu_shares_of_two,
    "clock_opponents": opponents, "clock_xeon": xeon, "clock_gpu": gpu, "clock_targets": targets,
    "clock_parts": parts,
}  # fmt: skip
