"""What only a GPU runs, against what every device runs: skipped where there is none.

`python -m pytest tests/test_cuda.py` on a machine with one.
"""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import MOMENT, run
from processes import finish
from test_attention import rms_ratio
from test_dispatch import Case, each, tensors
from torch import Tensor

from pyro_meta import CostDirichlet, DirichletGuide, LanguageModel, Shape, Transformer
from pyro_meta.attention import (
    NO_TOKEN,
    dispatch,
    routed_attention,
)
from pyro_meta.attention.ops import dense, flex, gathered
from pyro_meta.attention.ops.backend import _chosen, backend
from pyro_meta.generation.sampling import Sampling, continue_batch
from pyro_meta.guides import mean_route

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
KERNELS = """
import torch
from test_attention import rms_ratio
from test_cuda import in_kernels
from test_dispatch import Case, each
from pyro_meta.attention import NO_TOKEN, Inputs
from pyro_meta.attention.ops import dense
from pyro_meta.attention.ops.backend import _chosen, backend

torch.manual_seed(0)


def compare(case, name):
    del case.mechanisms[3:]
    with in_kernels():
        assert rms_ratio(case.run("triton"), case.run("dense")) < 1e-6, name


with torch.no_grad():
    for B, H, T, d in [(1, 2, 64, 32), (2, 3, 300, 16), (1, 1, 1, 32), (1, 1, 600, 64)]:
        q, k, v = torch.randn(3, B, H, T, d)
        with backend("triton"), in_kernels():
            ours = dense.linear_attention(q, k, v)
        truth = dense.linear_attention(q.double(), k.double(), v.double())
        assert rms_ratio(ours.double(), truth) < 1e-6, (B, H, T, d)
    for lengths, heads, window, shares, width in [
        ([300, 170, 3], (4, 2), 70, (0.3, 0.4, 0.3), 16),
        ([1], (2, 2), 5, (1, 1, 1), 64),
        ([200, 0], (1, 1), 1, (0.1, 0.9, 0), 32),
        ([200], (2, 2), 300, (0, 1, 1), 16),
        ([500], (1, 1), 64, (1, 1, 0.1), 64),
        ([90, 80], (2, 1), 64, (0, 0, 1), 16),
    ]:
        for sinks in (0, 4, 64, 130):
            case = Case(lengths, heads, window, shares, width, dtype=torch.float32, sinks=sinks)
            compare(case, (lengths, sinks))
    case = Case([150, 100], (2, 2), 9, (1, 1, 1), 16, dtype=torch.float32)
    case.choice[:, 20:90:3] = NO_TOKEN  # in the middle, too
    case.choice = case.choice.to(torch.int8)
    fused = torch.randn(2, 150, 6, 16).transpose(1, 2)  # q, k and v of one projection
    q, k, v = fused.split(2, 1)
    case.inputs = Inputs(q, k, v, q, k)
    compare(case, "strides")
    many = Case([3] * 300, (1, 1), 2, (1, 1, 1), 16, dtype=torch.float32)
    many.choice = many.choice.to(torch.int8)
    compare(many, "300 sequences")
    past = Case([200, 200], (2, 1), 70, (1, 1, 1), 16, dtype=torch.float32)
    del past.mechanisms[3:]
    later = each(past.inputs, lambda x: torch.cat([x[:, :, :130], 3 - 5 * x[:, :, 130:]], 2))
    other = past.choice.clone()
    other[:, 130:] = (other[:, 130:] + 1) % 3
    with in_kernels():
        before, after = past.run("triton"), past.run("triton", later, other)
    torch.testing.assert_close(after[:, :130], before[:, :130], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(after[:, 130:], before[:, 130:])

twice = Case([80], (1, 1), 5, (1, 1, 1), 16, dtype=torch.float32)
assert twice.results("triton")[-1].abs().sum() > 0, "gains have gradients"
alone = each(twice.inputs, lambda x: x.detach())
assert twice.run("triton", alone).requires_grad, "also where nothing else has"
"""


@contextmanager
def in_kernels() -> Iterator[None]:
    """Fails unless everything within was run in the kernels."""
    with pytest.MonkeyPatch.context() as patch:
        for module, name in (
            (gathered, "linear_attention_of"),
            (gathered, "softmax_attention_of"),
            (flex, "softmax_attention_of"),
            (dispatch, "_owned"),
            (dense, "_linear_attention"),
        ):
            original, caught = getattr(module, name), name

            def refused(*args: Any, original: Any = original, caught: str = caught) -> Any:
                is_truth = _chosen.get() != "triton" or args[0].dtype == torch.float64
                assert is_truth, f"{caught} was run"
                return original(*args)

            patch.setattr(module, name, refused)
        yield


def on_gpu(case: Case) -> Case:
    """The same case there, its leaves too."""

    def moved(x: Tensor) -> Tensor:
        return x.detach().cuda().requires_grad_(x.requires_grad)

    case.inputs = each(case.inputs, moved)
    case.gain, case.weight, case.choice = moved(case.gain), moved(case.weight), case.choice.cuda()
    for one in case.mechanisms:
        one.cuda()
    return case


@needs_gpu
@pytest.mark.parametrize(
    ("heads", "dtype", "most"), [((2, 2), torch.float32, 1e-4), ((4, 2), torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize(("way", "width"), [("triton", 32), ("triton", 64), ("flex", 32)])
@pytest.mark.parametrize("sinks", [0, 4, 300])
def test_equals_dense_execution(
    sinks: int, way: str, width: int, heads: tuple[int, int], dtype: torch.dtype, most: float
) -> None:
    """In value and, on flex_attention, in gradient, against float64 of the same numbers."""
    for lengths in ([900, 1300, 3], [1], [200], [128, 0], [3000]):
        case = partial(Case, lengths, heads, 70, (0.3, 0.4, 0.3), width, sinks=sinks)
        here, truth = on_gpu(case(dtype=dtype)), on_gpu(case())
        truth.gain = here.gain.detach().double().requires_grad_()
        truth.weight = here.weight.double()
        truth.inputs = each(here.inputs, lambda x: x.detach().double().requires_grad_())
        for one in (here, truth):
            del one.mechanisms[3:]
        with torch.no_grad(), in_kernels() if way == "triton" else nullcontext():
            gap = rms_ratio(here.run(way).double(), truth.run("dense"))
        assert gap < most, lengths
        if way == "flex":
            pairs = zip(here.results(way), truth.results("dense"), strict=True)
            for index, (ours, theirs) in enumerate(pairs):
                gap = (ours.double() - theirs).norm() / (theirs.norm() + 1e-2)
                assert gap < 3 * most, (lengths, index)


@needs_gpu
def test_one_callable_serves_all_lengths() -> None:
    torch._dynamo.reset()
    counter = torch._dynamo.utils.counters["stats"]
    before = counter["unique_graphs"]
    with torch.no_grad():
        for length in range(200, 2200, 100):
            for window, sinks in ((5, 0), (64, 0), (5, 4)):
                sizes = {"window": window, "sinks": sinks, "width": 32}
                case = on_gpu(Case([length], dtype=torch.float32, **sizes))
                assert rms_ratio(case.run("flex"), case.run("dense")) < 1e-4
    assert counter["unique_graphs"] - before <= 6


@needs_gpu
@pytest.mark.parametrize("way", ["triton", "flex"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_past_does_not_depend_on_the_future(way: str, dtype: torch.dtype) -> None:
    made = partial(Case, [2000, 2000], window=64, width=32, dtype=dtype, sinks=4)
    case, changed = on_gpu(made()), on_gpu(made(seed=1))
    del case.mechanisms[3:]
    cut = 1111
    pairs = zip(tensors(case.inputs), tensors(changed.inputs), strict=True)
    joined = iter([torch.cat([a[:, :, :cut], b[:, :, cut:]], 2) for a, b in pairs])
    mixed = each(case.inputs, lambda _: next(joined))
    choice = case.choice.clone()
    choice[:, cut:] = changed.choice[:, cut:]
    with torch.no_grad():
        past = case.run(way)[:, :cut]
        again = case.run(way, mixed, choice)[:, :cut]
    # Queries meet others in their blocks: the same sums in another order, row by row.
    gap = (again - past).abs().amax(-1) / past.abs().amax()
    assert gap.max() < (1e-5 if dtype == torch.float32 else 2e-2)


@needs_gpu
def test_choices_are_sorted_into_their_owners() -> None:
    case = on_gpu(Case([300, 200], shares=(1, 1, 1), width=32, dtype=torch.float32))
    assert (case.choice == NO_TOKEN).any()
    with torch.no_grad():
        assert rms_ratio(case.run("auto"), case.run("dense")) < 1e-4
    for wrong in (-2, 4):
        choice = case.choice.clone()
        choice[0, 5] = wrong
        with pytest.raises(ValueError, match="choice"), backend("flex"):
            routed_attention(case.mechanisms, case.gain, choice, case.inputs)


@needs_gpu
@pytest.mark.parametrize("way", ["auto", "flex"])
def test_a_transformer_reads_and_continues_as_on_a_cpu(way: str) -> None:
    shape = Shape(vocabulary=13, context=64, width=64, layers=2, heads=2, window=5, sinks=2)
    network = Transformer(shape, ["full", "window", "linear"])
    model = LanguageModel(network, CostDirichlet(network))
    guide = DirichletGuide(model)
    for parameter in guide.parameters():
        torch.nn.init.normal_(parameter)
    guide.harden_below(1.0)
    model.eval(), guide.eval()
    tokens = torch.randint(0, 13, (2, 64))
    route = mean_route(guide, hard=True)
    with torch.no_grad(), backend(way if way == "auto" else "gather"):
        here = model.network(tokens, route)
    model.cuda(), guide.cuda()
    with torch.no_grad(), backend(way):
        there = model.network(tokens.cuda(), route)
        cache = model.network.new_cache(2)
        parts = [
            model.network(part, route, cache) for part in tokens.cuda().split([30, 1, 1, 32], 1)
        ]
    assert rms_ratio(there.cpu(), here) < 1e-3
    assert rms_ratio(torch.cat(parts, 1).cpu(), here) < 1e-3
    prompts = [[1], [2, 3, 4, 5, 6]]
    texts = [
        list(continue_batch(model, guide, prompts, 12, Sampling(greedy=True), 0, cache=is_cached))
        for is_cached in (True, False)
    ]
    assert texts[0] == texts[1]


@needs_gpu
def test_linear_attention_in_its_kernel() -> None:
    for length, width in [(64, 32), (777, 16), (1, 64), (5000, 32), (129, 64)]:
        for dtype, most in [(torch.float32, 1e-5), (torch.bfloat16, 5e-3)]:
            q, k, v = torch.randn(3, 2, 4, length, width, device="cuda").to(dtype)
            with in_kernels(), backend("triton"):
                ours = dense.linear_attention(q, k, v)
            truth = dense.linear_attention(q.double(), k.double(), v.double())
            assert ours.dtype == dtype
            assert rms_ratio(ours.double(), truth) < most
            prefix = dense.linear_attention(q[:, :, :50], k[:, :, :50], v[:, :, :50])
            torch.testing.assert_close(prefix, ours[:, :, :50], rtol=1e-2, atol=1e-2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs them itself")
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_in_tritons_interpreter() -> None:
    """What the kernels compute, without a GPU."""
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    done = finish([sys.executable, "-c", KERNELS], {"TRITON_INTERPRET": "1", "PYTHONPATH": paths})
    assert done.returncode == 0, done.stdout + done.stderr


@needs_gpu
@pytest.mark.parametrize(
    "options",
    [
        ["--depth", "beta"],
        ["--depth", "point", "--block", "momentum"],
        ["--mechanisms", "[full,window,linear,chunk]"],
        ["--mechanisms", "[full,linear_momentum,chunk_learned]"],
        ["--prior", "LogisticNormalPrior", "--guide", "LogisticNormalGuide"],
        ["--prior", "LoadDirichlet", "--budget", "0.5"],
        ["--guide", "PointGuide", "--cost", "measured"],
    ],
)
def test_a_run_trains_reports_and_continues(options: list[str], tmp_path: Path) -> None:
    out = tmp_path / "run"
    here = [*(word for word in MOMENT if "accelerator" not in word), "--width=32", "--context=64"]
    done = run("train", *here, *options, "--out", out)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bfloat16" in (out / "summary.json").read_text()
    assert (out / "posterior.nc").exists()
    done = run("generate", out, "--max_tokens=8")
    assert done.returncode == 0, done.stdout + done.stderr


@needs_gpu
@pytest.mark.parametrize("graphs", ["true", "false"])
def test_the_benchmark_runs(graphs: str, tmp_path: Path) -> None:
    words = [
        "--what=routed",
        "--repeats=1",
        "--layers=2",
        "--lengths=[256,512]",
        "--shares=[0.1,1]",
    ]
    done = run(
        "bench", *words, "--parts=[attention,prefill]", f"--graphs={graphs}", "--out", tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    facts = json.loads((tmp_path / "routed.json").read_text())
    assert facts["setting"]["device"] == "cuda"
    assert facts["setting"]["graphs"] == (graphs == "true")
    assert set(facts["macs_ratio_to_full"]) == {"256", "512"}
