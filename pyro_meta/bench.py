"""`python -m pyro_meta.bench`: what the parts cost on this machine, as JSON.

    svi          an SVI step through Pyro against the same network and loss in plain PyTorch
    mechanisms   forward and backward time and peak memory of each mechanism by length

Times are medians of interleaved repetitions; only ratios within one file mean anything.
"""

import gc
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyro
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from torch.distributions import Dirichlet, kl_divergence

from pyro_meta.attention import build_mechanisms
from pyro_meta.console import command_parser, parse, run_command
from pyro_meta.errors import UsageError
from pyro_meta.guides import DirichletGuide
from pyro_meta.models import CostDirichlet, LanguageModel
from pyro_meta.run import hardware, versions
from pyro_meta.svi import Objective, Optimisation
from pyro_meta.transformer import Features, Shape, Transformer

MECHANISMS = ("full", "window", "linear")
HEADS, HEAD_WIDTH, WINDOW = 4, 32, 64


def main(argv: list[str]) -> None:
    """Run the benchmarks and write one JSON file for each."""
    parser = command_parser("bench", "Measure what the parts cost on this machine.")
    kinds = Literal["all", "svi", "mechanisms"]
    parser.add_argument("--what", type=kinds, default="all", help="Which benchmark.")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results"), help="Folder of the JSON files."
    )
    parser.add_argument("--repeats", type=int, default=15, help="Interleaved repetitions.")
    parser.add_argument(
        "--lengths",
        type=list[int],
        default=[1024, 2048, 4096, 8192],
        help="Lengths T of the mechanisms' benchmark.",
    )
    parser.add_argument("--layers", type=int, default=4, help="Layers of the SVI benchmark.")
    options = parse(parser, argv)
    if options.repeats < 1:
        raise UsageError(f"option --repeats: {options.repeats} given; at least 1 is allowed")
    if len(options.lengths) < 2 or min(options.lengths) < 1:
        raise UsageError(f"option --lengths: {options.lengths} given; two or more are allowed")
    options.out.mkdir(parents=True, exist_ok=True)
    out = Console()
    command = "python -m pyro_meta.bench " + " ".join(argv)
    if options.what in ("all", "svi"):
        with out.status("SVI step"):
            result = bench_svi(options.layers, options.repeats)
        _write(options.out / "svi.json", command, result, out)
    if options.what in ("all", "mechanisms"):
        with out.status("mechanisms"):
            result = bench_mechanisms(options.lengths, options.repeats)
        _write(options.out / "mechanisms.json", command, result, out)


def bench_svi(layers: int, repeats: int) -> dict[str, Any]:
    """Time of an SVI step over that of the plain PyTorch step (L, D128, H4, T=256, batch 16)."""
    torch.manual_seed(0)
    T, B = 256, 16
    shape = Shape(vocabulary=256, context=T, width=128, layers=layers, heads=4, window=WINDOW)
    network = Transformer(shape, MECHANISMS)
    model = LanguageModel(network, CostDirichlet(network))
    guide = DirichletGuide(model)
    objective = Objective(model, guide)
    optimiser = Optimisation().optimiser(objective)
    both = torch.randint(256, (B, T + 1))
    tokens, targets = both[:, :-1].contiguous(), both[:, 1:].contiguous()

    def step(loss: Callable[[], Tensor]) -> None:
        loss().backward()
        torch.nn.utils.clip_grad_norm_(objective.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()

    def with_pyro() -> Tensor:
        return objective(tokens, targets).loss

    def without_pyro() -> Tensor:
        return _plain_loss(model, guide, tokens, targets)

    with pyro.validation_enabled(False):
        seconds = _interleaved(
            {"svi": lambda: step(with_pyro), "plain": lambda: step(without_pyro)}, repeats
        )
    ratios = [a / b for a, b in zip(seconds["svi"], seconds["plain"], strict=True)]
    return {
        "setting": {"layers": layers, "width": 128, "heads": 4, "context": T, "batch": B},
        "median_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "ratio_of_medians": statistics.median(seconds["svi"]) / statistics.median(seconds["plain"]),
        "median_of_ratios": statistics.median(ratios),
        "target_ratio_at_most": 1.10,
    }


def _plain_loss(
    model: LanguageModel, guide: DirichletGuide, tokens: Tensor, targets: Tensor
) -> Tensor:
    """The same network and objective, with torch.distributions and no Pyro."""
    kls = []

    def route(layer: int, features: Features) -> Tensor:
        q = Dirichlet(guide.posterior(layer, features).concentration, validate_args=False)
        prior = model.prior(layer, features.positions).concentration
        kls.append(kl_divergence(q, Dirichlet(prior, validate_args=False)).mean())
        return q.rsample()

    logits = model.network(tokens, route)
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
    return nll + model.kl_weight * torch.stack(kls).sum()


def bench_mechanisms(lengths: list[int], repeats: int) -> dict[str, Any]:
    """Times by mechanism and length, growth exponents, ratios to full attention, peak memory."""
    forward: dict[int, dict[str, float]] = {}
    both: dict[int, dict[str, float]] = {}
    memory: dict[int, dict[str, int | None]] = {}
    for length in lengths:
        calls = {name: _mechanism_call(name, length, backward=False) for name in MECHANISMS}
        forward[length] = _medians(_interleaved(calls, repeats))
        calls = {name: _mechanism_call(name, length, backward=True) for name in MECHANISMS}
        both[length] = _medians(_interleaved(calls, max(3, repeats // 3)))
        memory[length] = {name: _peak_memory(name, length) for name in MECHANISMS}
    return {
        "setting": {"batch": 1, "heads": HEADS, "head_width": HEAD_WIDTH, "window": WINDOW},
        "forward_seconds": forward,
        "forward_backward_seconds": both,
        "peak_memory_bytes": memory,
        "growth_exponent_forward_backward": {
            name: _exponent(lengths, [both[length][name] for length in lengths])
            for name in MECHANISMS
        },
        "target_growth_exponent_at_most": {"window": 1.15, "linear": 1.15},
        "forward_ratio_to_full": {
            length: {name: times[name] / times["full"] for name in MECHANISMS}
            for length, times in forward.items()
        },
        "target_forward_ratio_at_4096_at_most": {"window": 0.35, "linear": 0.25},
    }


def _exponent(lengths: list[int], seconds: list[float]) -> float:
    """Slope of log time over log length, between the first and the last length."""
    return float(np.log(seconds[-1] / seconds[0]) / np.log(lengths[-1] / lengths[0]))


def _mechanism_call(name: str, length: int, backward: bool) -> Callable[[], None]:
    mechanism = build_mechanisms([name], HEAD_WIDTH, WINDOW)[0]
    q, k, v = torch.randn(3, 1, HEADS, length, HEAD_WIDTH)
    if not backward:

        def forward_only() -> None:
            with torch.no_grad():
                mechanism(q, k, v)

        return forward_only

    def forward_and_backward() -> None:
        inputs = [x.detach().requires_grad_() for x in (q, k, v)]
        mechanism(*inputs).sum().backward()

    return forward_and_backward


def _interleaved(calls: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call, taken in turn after two warm-up rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    gc.disable()
    try:
        for round_ in range(repeats + 2):
            names = list(calls) if round_ % 2 else list(calls)[::-1]
            for name in names:
                started = time.perf_counter()
                calls[name]()
                elapsed = time.perf_counter() - started
                if round_ >= 2:
                    seconds[name].append(elapsed)
    finally:
        gc.enable()
    return seconds


def _medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in seconds.items()}


def _peak_memory(name: str, length: int) -> int | None:
    """Bytes that a forward and backward pass adds at its peak, in a process of its own."""
    code = (
        "import json; from pyro_meta.bench import peak_memory_here; "
        f"print(json.dumps(peak_memory_here({name!r}, {length})))"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def peak_memory_here(name: str, length: int) -> int | None:
    """Growth of this process's peak resident memory; None where Linux's /proc is not there."""
    if not Path("/proc/self/clear_refs").exists():
        return None
    _mechanism_call(name, 64, backward=True)()  # libraries load now, not in the measurement
    call = _mechanism_call(name, length, backward=True)
    before = _status_bytes("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    call()
    return max(0, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def _write(path: Path, command: str, result: dict[str, Any], out: Console) -> None:
    facts = {"command": command.strip(), "hardware": hardware(), "versions": versions()}
    path.write_text(json.dumps(facts | result, indent=2) + "\n", encoding="utf-8")
    out.print_json(json.dumps(result))
    out.print(f"wrote {path}")


if __name__ == "__main__":
    run_command(main)
