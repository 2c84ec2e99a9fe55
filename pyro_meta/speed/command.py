"""What `python -m pyro_meta.bench` does once its words are understood."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyro
import torch
from jsonargparse import Namespace
from rich.console import Console
from rich.markup import escape

from pyro_meta.analysis.plots.routed_speed import PICTURES
from pyro_meta.analysis.plots.style import save_png
from pyro_meta.attention.profile import of_this_machine, profiled, require_known_profile
from pyro_meta.errors import UsageError
from pyro_meta.results_index import folder_of
from pyro_meta.speed import MECHANISMS, depth_gates
from pyro_meta.speed.mechanisms_by_length import bench_mechanisms
from pyro_meta.speed.routed_by_share import LENGTHS, SHARES, bench_routed, steps_of
from pyro_meta.speed.scene import Scene
from pyro_meta.speed.timed_parts import PARTS
from pyro_meta.terminal.consoles import busy, console
from pyro_meta.terminal.measured import measured_by, write_measured
from pyro_meta.terminal.progress import step_by_step
from pyro_meta.terminal.tables import (
    executed_rows,
    table_of_figures,
    table_of_pairs,
    table_of_rows,
    trained_rows,
)
from pyro_meta.training.run import Run

REPEATS, ROUTED_REPEATS = 15, 7
CAPTURED = ("attention", "prefill")  # the parts that can be launched as CUDA graphs
MECHANISM_LENGTHS = [1024, 2048, 4096, 8192]
ROUTED = (
    "repeats",
    "lengths",
    "shares",
    "parts",
    "mechanisms",
    "layers",
    "threads",
    "run",
    "device",
    "precision",
    "graphs",
)
READS: dict[str, tuple[str, ...]] = {
    "all": ROUTED,
    "mechanisms": ("repeats", "lengths", "threads"),
    "routed": ROUTED,
    "depth": ("repeats", "lengths", "shares", "layers", "threads", "device", "precision"),
    "opponents": ("repeats", "lengths", "shares", "threads", "device", "precision"),
    "converted": ("repeats", "lengths", "threads", "run", "budget", "device", "precision"),
    "draw": (),
}
"""The options that a benchmark looks at, beside --out; others are refused."""


@pyro.validation_enabled(False)
def bench(options: Namespace, defaults: Namespace, argv: list[str]) -> None:
    """Run the benchmarks that `options` ask for, and write one JSON file for each.

    `argv` are the words that gave the options, and `defaults` those of the command line.
    """
    _check(options, defaults)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        options.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"option --out: cannot make {options.out}: {error.strerror}") from error
    out, progress_out = console(), console(stderr=True)
    facts = measured_by(["python", "-m", "pyro_meta.bench", *argv])
    if options.what in ("all", "mechanisms"):
        with busy(progress_out, "mechanisms"):
            lengths = options.lengths or MECHANISM_LENGTHS
            result = bench_mechanisms(lengths, options.repeats or REPEATS)
        _write(options.out / "mechanisms.json", facts, result, out)
        _print_mechanisms(result, out)
    if options.what in ("all", "routed"):
        result = _routed(options, progress_out)
        _write(options.out / "routed.json", facts, result, out)
        _print_routed(result, out)
    if options.what == "depth":
        result = _depth(options, progress_out)
        _write(options.out / "depth.json", facts, result, out)
        _print_depth(result, out)
    if options.what == "opponents":
        result = _opponents(options, progress_out)
        _write(options.out / "opponents.json", facts, result, out)
        _print_opponents(result, out)
    if options.what == "converted":
        result = _converted(options, progress_out)
        _write(options.out / "converted.json", facts, result, out)
        _print_converted(result, out)
    if options.what in ("all", "routed", "draw"):
        for path in _draw(options.out / "routed.json"):
            out.print(f"wrote {escape(str(path))}", soft_wrap=True)


def _check(options: Namespace, defaults: Namespace) -> None:
    what = options.what
    for name in (*ROUTED, "budget"):
        if name not in READS[what] and options[name] != defaults[name]:
            those = ", ".join(f"--{other}" for other in ("out", *READS[what]))
            raise UsageError(
                f"option --{name}: it does nothing with --what {what}; {those} are allowed"
            )
    for name in ("repeats", "layers", "threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise UsageError(f"option --{name}: {value} given; at least 1 is allowed")
    if what == "depth" and options.layers < 2:  # the first is never skipped
        raise UsageError(f"option --layers: {options.layers} given; 2 or more are allowed")
    most = os.cpu_count() or 1
    if options.threads is not None and options.threads > most:
        raise UsageError(
            f"option --threads: {options.threads} given; 1 to {most}, the processors of this "
            "machine, are allowed"
        )
    lengths, least = options.lengths, 2 if what in ("all", "mechanisms") else 1  # growth takes two
    if lengths is not None and not _are_lengths(lengths, least):
        raise UsageError(
            f"option --lengths: {lengths} given; {('one', 'two')[least - 1]} or more different "
            "lengths are allowed"
        )
    _check_shares(options)
    parts = options.parts
    if not parts or len(set(parts)) < len(parts) or not set(parts) <= set(PARTS):
        raise UsageError(
            f"option --parts: {parts} given; one or more of {', '.join(PARTS)} are allowed"
        )
    _check_mechanisms(options.mechanisms)
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("option --device: cuda given, and there is none here; cpu is allowed")
    if options.graphs and not (torch.cuda.is_available() and options.device != "cpu"):
        raise UsageError("option --graphs: true given, without CUDA; false is allowed")
    if options.graphs and not set(parts) <= set(CAPTURED):
        raise UsageError(
            f"option --graphs: true given, with --parts {parts}; then of {', '.join(CAPTURED)} are "
            "allowed"
        )
    if options.graphs and options.run is not None:
        raise UsageError("option --graphs: true given, with --run; false is allowed")
    if options.run is not None:
        Run.open(options.run, options.trust).whole_state()  # before an hour of measuring
    require_known_profile()


def _check_mechanisms(names: list[str]) -> None:
    is_choice = len(set(names)) == len(names) >= 2 and names[0] == "full"
    if not is_choice or not set(names) <= set(MECHANISMS):
        first, *others = MECHANISMS
        raise UsageError(
            f"option --mechanisms: {names} given; {first}, then one or more of "
            f"{', '.join(others)}, are allowed"
        )


def _check_shares(options: Namespace) -> None:
    shares = options.shares
    if shares is None:
        return
    if not shares or len(set(shares)) < len(shares) or not all(0 <= s <= 1 for s in shares):
        raise UsageError(
            f"option --shares: {shares} given; one or more different shares from 0 to 1 are allowed"
        )
    if options.what == "depth":
        most = (options.layers - 1) / options.layers
        if not 0 < min(shares) <= max(shares) <= most:
            raise UsageError(
                f"option --shares: {shares} given; above 0 and at most {most:g} is allowed, since "
                f"nobody skips the first of {options.layers} layers"
            )


def _are_lengths(lengths: list[int], least: int) -> bool:
    return len(lengths) >= least and len(set(lengths)) == len(lengths) and min(lengths) >= 1


def _routed(options: Namespace, progress_out: Console) -> dict[str, Any]:
    scene, shares = _scene(options), options.shares or SHARES
    lengths = options.lengths or LENGTHS[scene.device]
    total = steps_of(lengths, options.parts, options.run is not None)
    by = of_this_machine(scene.device)
    with profiled(by), step_by_step(total, progress_out, prints_lines=True) as tell:
        run = None if options.run is None else Run.open(options.run, options.trust)
        found = bench_routed(scene, lengths, shares, options.parts, run, tell)
    return {"profile": asdict(by)} | found


def _depth(options: Namespace, progress_out: Console) -> dict[str, Any]:
    scene = _scene(options)
    shares = options.shares or [s for s in depth_gates.SHARES if s <= 1 - 1 / options.layers]
    lengths = options.lengths or depth_gates.LENGTHS[scene.device]
    by = of_this_machine(scene.device)
    steps = 2 * len(lengths)
    with profiled(by), step_by_step(steps, progress_out, prints_lines=True) as tell:
        found = depth_gates.bench_depth(scene, lengths, shares, tell)
    return {"profile": asdict(by)} | found


def _opponents(options: Namespace, progress_out: Console) -> dict[str, Any]:
    from pyro_meta.speed import opponents  # which needs flex_attention

    scene, lengths = _scene(options), options.lengths or opponents.LENGTHS
    shares = options.shares or opponents.SHARES
    by = of_this_machine(scene.device)
    with profiled(by), step_by_step(len(lengths), progress_out, prints_lines=True) as tell:
        found = opponents.bench_opponents(scene, lengths, shares, tell)
    return {"profile": asdict(by)} | found


def _converted(options: Namespace, progress_out: Console) -> dict[str, Any]:
    if options.run is None:
        raise UsageError("option --run: a run of a pretrained model is needed")
    from pyro_meta.speed.converted import LENGTHS, bench_converted  # which needs transformers

    scene, lengths, budget = _scene(options), options.lengths or LENGTHS, options.budget
    if budget is not None and not 0 < budget < 1:
        raise UsageError(f"option --budget: {budget:g} given; above 0 and below 1 is allowed")
    by = of_this_machine(scene.device)
    steps = len(lengths) * (1 if budget is None else 2)
    with profiled(by), step_by_step(steps, progress_out, prints_lines=True) as tell:
        run = Run.open(options.run, options.trust)
        found = bench_converted(run, scene, lengths, budget, tell)
    return {"profile": asdict(by)} | found


def _scene(options: Namespace) -> Scene:
    device, precision = options.device, options.precision
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if precision == "auto":
        precision = "bfloat16" if device == "cuda" else "float32"
    repeats = options.repeats or ROUTED_REPEATS
    mechanisms = tuple(options.mechanisms)
    return Scene(
        device, precision, repeats, options.layers, graphs=options.graphs, mechanisms=mechanisms
    )


def _print_mechanisms(result: dict[str, Any], out: Console) -> None:
    both = result["forward_backward_seconds"]
    lengths = (f"{length:,} tokens" for length in both)
    table = table_of_figures("forward and backward, times as fast as full attention", "", lengths)
    for name in next(iter(both.values())):
        ratios = [times["full"] / times[name] for times in both.values()]
        table.add_row(name, *(f"{ratio:.2f}" for ratio in ratios))
    out.print(table)


def _print_routed(result: dict[str, Any], out: Console) -> None:
    """What hard routes of a trained run, and random ones, cost by length and share of full."""
    if trained := result.get("trained_run"):
        rows = (*executed_rows(trained, hides_noise=False), *trained_rows(trained))
        out.print(table_of_pairs(escape(trained["run"]), rows))
    macs = result["macs_ratio_to_full"]
    shares = sorted(map(float, next(iter(macs.values()))))
    headings = ["tokens", *(f"{share:.0%}" for share in shares)]
    table = table_of_figures("hard routes, by share of tokens on full attention", "", headings)
    for length, ratios in macs.items():
        cells = (f"{ratios[f'{share:g}']:.0%}" for share in shares)
        table.add_row("MACs of attention", f"{length:,}", *cells)
    for part, lengths in result["break_even_share"].items():
        table.add_section()
        ratios = {
            (point["length"], point["share_of_full"]): point["ratio_to_full"]
            for point in result["points"]
            if point["part"] == part and point["route"].startswith("routed")
        }
        for length in lengths:
            cells = (f"{1 / ratios[length, share]:.2f}" for share in shares)
            table.add_row(part, f"{length:,}", *cells)
    out.print(table)
    out.print(
        "MACs over those of full attention on the same tokens; below, how many times as fast",
        style="dim",
    )


def _print_depth(result: dict[str, Any], out: Console) -> None:
    headings = ("skipped", "MACs", "times as fast", "tokens")
    table = table_of_figures("prefill with hard depth gates", "routes", headings)
    for row in result["points"]:
        table.add_row(
            row["route"],
            f"{row['passed_by']:.1%}",
            f"{row['macs_ratio']:.1%}",
            f"{row['speed_up']:.2f}",
            f"{row['length']:,}",
        )
    out.print(table)


def _print_opponents(result: dict[str, Any], out: Console) -> None:
    """Time over full attention's, by length and by what is run; below, what was not, and why."""
    ratios = {(row["route"], row["length"]): row["ratio_to_full"] for row in result["points"]}
    lengths = list(dict.fromkeys(length for _, length in ratios))
    headings = (f"{length:,} tokens" for length in lengths)
    table = table_of_figures("time of attention over full attention's", "", headings)
    for route in dict.fromkeys(route for route, _ in ratios):
        cells = (ratios.get((route, length)) for length in lengths)
        table.add_row(route, *("" if one is None else f"{one:.2f}" for one in cells))
    out.print(table)
    for row in result["left_out"]:
        what = f"{row['route']}, {row['length']:,} tokens: {row['why']}"
        out.print(escape(what), style="dim", soft_wrap=True)


def _print_converted(result: dict[str, Any], out: Console) -> None:
    headings = ("tokens", "visits", "prefill", "attention", "decoding")
    rows = []
    for row in result["points"]:
        speed = row["times_as_fast"]
        for way in dict.fromkeys(way for part in speed.values() for way in part):
            cells = (
                f"{speed[part][way]:.2f}" if way in speed[part] else "" for part in headings[2:]
            )
            visits = f"{row['visits']:.3f}" if way == "routed" else "1"
            rows.append((way, f"{row['length']:,}", visits, *cells))
    out.print(table_of_rows("times as fast as sdpa", "", headings, rows))


def _write(path: Path, facts: dict[str, Any], result: dict[str, Any], out: Console) -> None:
    with _writing(path):
        write_measured(path, facts | result)
    out.print(f"wrote {escape(str(path))}", soft_wrap=True)


def _draw(path: Path) -> list[Path]:
    """Draw a file that this command wrote, beside it; raises `UsageError` if it is none."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if not result["points"]:
            raise ValueError("it has no points")
        drawn = {path.parent / name: picture(result) for name, picture in PICTURES.items()}
    except OSError as error:
        raise UsageError(f"cannot draw {path}: {error.strerror}") from error
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UsageError(
            f"cannot draw {path}: it is not what --what routed writes "
            f"({type(error).__name__}: {error})"
        ) from error
    for name, figure in drawn.items():
        with _writing(name):
            save_png(figure, name)
    if folder_of(path) is not None:
        with _writing(path):
            write_measured(path, result, beside=list(drawn))
    return list(drawn)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UsageError(f"option --out: cannot write {path}: {error.strerror}") from error
