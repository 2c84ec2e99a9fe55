"""Tables of what layers are made of: depth gates, chunks, blocks with momentum."""

from statistics import mean as average
from statistics import stdev
from typing import Any

from results_read import read
from table_cells import number, percent, plus_minus, table, times
from table_studies import behind, loss, mean, model_macs, rows_of, seeds

DEPTH = {
    "no gates": ("text_earlier_schedule", "routed"),
    "`beta`, a tenth wanted": ("depth", "beta, skip .1"),
    "`beta`, a quarter wanted": ("depth", "beta, skip .25"),
    "`point`, a quarter wanted": ("depth", "point, skip .25"),
    "three layers instead of four": ("depth", "three layers"),
}


def depth() -> str:
    """Depth gates beside a model of fewer layers."""
    rows = [
        [
            words, percent(mean(group, "depth.skipped_hard") or 0.0, 1), loss(group),
            behind(place, ("text_earlier_schedule", "routed")), model_macs(group), seeds(group),
        ]
        for words, place, group in rows_of(DEPTH)
    ]  # fmt: skip
    head = ["", "pairs skipped", "loss, hard", "against no gates", "MACs of the model per token"]
    return table([*head, "seeds"], rows)


CHUNKS = {
    "full attention": ("chunk", "full"),
    "`chunk`": ("chunk", "chunk"),
    "`chunk_sliding`": ("chunk", "chunk_sliding"),
    "`chunk_sentence`": ("chunk_kinds", "chunk_sentence"),
    "`chunk_learned`": ("chunk_kinds", "chunk_learned"),
    "window of 32": ("chunk", "window"),
}


def chunks() -> str:
    """Chunks against full attention and a window."""
    rows = [
        [words, loss(group), number(mean(group, "executed.macs_ratio_attention")), seeds(group)]
        for words, _, group in rows_of(CHUNKS)
    ]
    return table(["1024 tokens", "loss", "MACs of attention", "seeds"], rows)


def chunk_speed() -> str:
    """Chunks on one thread: times as fast as full attention, forward."""
    said: dict[str, Any] = read("chunks.json")
    kinds = ["chunk", "chunk_sliding", "chunk_sentence", "chunk_learned"]
    rows = [
        [length, *(times(1 / ratios[kind]) for kind in kinds)]
        for length, ratios in said["forward_ratio_to_full"].items()
    ]
    return table(["tokens", *(f"`{kind}`" for kind in kinds)], rows)


MOMENTUM = {
    "residual": ["residual-full-s0", "residual-full-s1", "full-alone-s2"],
    "momentum": ["momentum-full-s0", "momentum-full-s1", "momentum-full-s2"],
    "plain momentum": [f"plain-momentum-full-s{seed}" for seed in range(3)],
}


def momentum() -> str:
    """Blocks with momentum at equal parameters, full attention alone."""
    runs: dict[str, Any] = read("momentum.json")["runs"]
    losses = {
        words: [runs[name]["val_nll_hard"] for name in names] for words, names in MOMENTUM.items()
    }
    rows = []
    for words, names in MOMENTUM.items():
        apart = [
            number(one - other, sign=True)
            for one, other in zip(losses[words], losses["residual"], strict=True)
        ]
        rows.append([
            words,
            plus_minus(average(losses[words]), stdev(losses[words])),
            "" if words == "residual" else ", ".join(apart),
            f"{runs[names[0]]['parameters']:,}",
        ])  # fmt: skip
    return table(["block", "loss", "against residual, by seed", "parameters"], rows)


TABLES = {"depth": depth, "chunks": chunks, "chunk_speed": chunk_speed, "momentum": momentum}
