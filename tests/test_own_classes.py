"""Somebody's own classes: the page that shows how, and every mistake in them is one line."""

import json
import math
import re
import sys
import types
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from commands import MOMENT, error_line, run_here, train
from hypothesis import given, settings
from hypothesis import strategies as st
from pyro.distributions import Beta, Dirichlet, Normal
from torch import Tensor, nn

import pyro_meta.__main__
from pyro_meta import (
    BetaDepthGuide,
    CategoricalGuide,
    Choice,
    CostDirichlet,
    Guide,
    Mechanism,
    Prior,
    ResidualBlock,
    UsageError,
)
from pyro_meta.attention.prices import macs_at
from pyro_meta.contracts import broken
from pyro_meta.contracts.__main__ import main as contracts_main
from pyro_meta.contracts.admission import require_sound
from pyro_meta.guides import of_own_token
from pyro_meta.inference.elbo import Objective
from pyro_meta.network.blocks import Stream
from pyro_meta.own_classes import blame, described
from pyro_meta.study.description import Study
from pyro_meta.study.plan import expand
from pyro_meta.training.config import Config, read_options
from pyro_meta.training.run import Run

# mechanisms as plain as these serve nobody alone, and are told so
pytestmark = pytest.mark.filterwarnings("ignore:.*does not define serve")

TUTORIALS = Path(__file__).parents[1] / "docs" / "tutorials"
WRITTEN = "%%writefile "
FILES = {
    first.removeprefix(WRITTEN).removesuffix(".py"): rest
    for kind in ("prior", "guide", "mechanism")
    for cell in json.loads((TUTORIALS / f"own_{kind}.ipynb").read_text())["cells"]
    for first, _, rest in ["".join(cell["source"]).partition("\n")]
    if first.startswith(WRITTEN)
}
"""What the pages write into files, by the names of the modules."""


# -- the pages -----------------------------------------------------------------------------------


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the files of the pages, from which Python imports."""
    for name, block in FILES.items():
        (tmp_path / f"{name}.py").write_text(block)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in FILES:
        sys.modules.pop(name, None)


def test_the_pages_have_a_whole_prior_guide_and_mechanism() -> None:
    assert {"my_prior_file", "my_guide_file", "my_mechanism_file"} <= FILES.keys()


@pytest.mark.usefixtures("page")
@pytest.mark.parametrize(
    "name",
    [
        "my_prior_file.MyPrior", "my_guide_file.MyGuide", "my_mechanism_file.MyMechanism",
        "my_faster_file.MyFaster",
    ],
)  # fmt: skip
def test_what_the_page_shows_keeps_the_whole_contract(name: str) -> None:
    assert broken(name) == {}


def test_what_the_page_shows_is_trained(page: Path, text_file: Path) -> None:
    words = [
        "--prior=my_prior_file.MyPrior", "--prior.rate=2", "--guide=my_guide_file.MyGuide",
        "--guide.hidden=8", "--mechanisms=[full,window,my_mechanism_file.MyMechanism]",
    ]  # fmt: skip
    assert (
        train(*MOMENT, "--steps=4", *words, f"--data.path={text_file}", f"--out={page / 'run'}")
        == 0
    )
    assert (page / "run" / "summary.json").exists()


# -- sound classes, as plain as can be -----------------------------------------------------------


class PlainPrior(Prior):
    def forward(self, layer: int, positions: Tensor) -> Any:
        return Dirichlet(torch.ones(len(positions), len(self.network.mechanisms)))


class PlainGuide(Guide):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        width, K = model.network.shape.width, len(model.network.mechanisms)
        self.nets = nn.ModuleList(nn.Linear(width, K) for _ in range(model.network.shape.layers))

    @of_own_token
    def posterior(self, layer: int, features: Any) -> Any:
        return Dirichlet(0.1 + nn.functional.softplus(self.nets[layer](features.normed)))


class PlainMechanism(Mechanism):
    nominal_cost = 0.1

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Any:
        return v.cumsum(2) / torch.arange(1, v.shape[2] + 1, dtype=v.dtype)[:, None]

    def macs(self, position: Tensor) -> Any:
        return 16.0


class PlainBlock(ResidualBlock):
    def look(self, stream: Stream) -> Any:
        return super().look(stream)

    def advance(self, stream: Stream, attended: Tensor) -> Any:
        return super().advance(stream, attended)


class PlainDepthGuide(BetaDepthGuide):
    def posterior(self, layer: int, features: Any) -> Any:
        return super().posterior(layer, features)


PLAIN: dict[str, type] = {
    "prior": PlainPrior,
    "guide": PlainGuide,
    "mechanisms": PlainMechanism,
    "block": PlainBlock,
    "depth": PlainDepthGuide,
}


def config_of(**own: type) -> Config:
    """A configuration with own classes, by the name of their option."""
    named = types.ModuleType("own_module")
    sys.modules["own_module"] = named
    for kind in own.values():
        setattr(named, kind.__name__, kind)
    chosen: dict[str, Any] = {"context": 16, "window": 4, "width": 16, "layers": 2, "heads": 2}
    for option, kind in own.items():
        path = f"own_module.{kind.__name__}"
        chosen[option] = kind if option in ("prior", "guide") else path
    if "mechanisms" in own:
        chosen["mechanisms"] = ["full", chosen["mechanisms"]]
    return Config(**chosen)


def admit(**own: type) -> None:
    """Build a model with own classes and look at it as training does."""
    model, guide = config_of(**own).build(13, lambda: [0])
    require_sound(model, guide)


def refusal(**own: type) -> str:
    """The line in which they are refused."""
    with pytest.raises(UsageError) as caught:
        admit(**own)
    return " ".join(str(caught.value).split())


@pytest.mark.parametrize("option", PLAIN)
def test_sound_classes_are_admitted(option: str) -> None:
    admit(**{option: PLAIN[option]})


def test_being_looked_at_leaves_no_trace() -> None:
    class Draws(PlainGuide):
        """From every generator, with a buffer and an attribute that remember, harmlessly."""

        def __init__(self, model: Any) -> None:
            super().__init__(model)
            self.register_buffer("calls", torch.zeros(()))
            self.seen = 0
            pyro.param("ours", torch.ones(()))

        def posterior(self, layer: int, features: Any) -> Any:
            self.seen += 1
            if self.training:
                self.calls += 1
            np.random.rand()  # noqa: NPY002
            torch.rand(())
            return super().posterior(layer, features)

    model, guide = config_of(prior=PlainPrior, guide=Draws, mechanisms=PlainMechanism).build(13)
    guide.train()
    model.eval()
    before = {k: v.clone() for k, v in guide.state_dict().items()}
    torch_at, numpy_at = torch.get_rng_state(), np.random.get_state()[2]  # noqa: NPY002
    require_sound(model, guide)
    assert torch.equal(torch_at, torch.get_rng_state())
    assert numpy_at == np.random.get_state()[2]  # noqa: NPY002
    assert all(torch.equal(before[k], v) for k, v in guide.state_dict().items())
    assert guide.seen == 0 and guide.training and not model.training
    assert all(one.grad is None for one in [*guide.parameters(), *model.parameters()])
    assert list(pyro.get_param_store().keys()) == ["ours"]


def test_classes_of_ours_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("asked")

    model, guide = config_of().build(13)
    monkeypatch.setattr(CategoricalGuide, "posterior", never)
    require_sound(model, guide)


# -- prices --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "macs",
    [16, 16.0, np.float32(16), np.int64(16), torch.tensor(16), torch.tensor(16.0), Fraction(16),
     np.full(16, 16), [16] * 16,
     torch.full((16,), 16), torch.full((16,), 16.0, dtype=torch.float64)],
    ids=described,
)  # fmt: skip
def test_any_number_is_a_price(macs: Any) -> None:
    class Priced(PlainMechanism):
        def macs(self, position: Tensor) -> Any:
            return macs if np.ndim(macs) == 0 else macs[: len(position)]

    Priced.nominal_cost = macs if np.ndim(macs) == 0 else 1
    priced = Priced(8, 4)
    found = macs_at(priced, torch.arange(16.0))
    assert found.dtype == torch.float32 and found.tolist() == [16.0] * 16


@pytest.mark.parametrize(
    "macs",
    [None, "16", True, math.nan, math.inf, -1.0, 1j, [1.0, 2.0], torch.ones(3), torch.ones(16, 1),
     [None] * 16, object(), torch.full((16,), math.nan), -torch.ones(16)],
    ids=described,
)  # fmt: skip
def test_what_is_no_price_is_refused_in_one_line(macs: Any) -> None:
    class Priced(PlainMechanism):
        def macs(self, position: Tensor) -> Any:
            return macs

    class Nominal(PlainMechanism):
        nominal_cost = macs

    assert "Priced.macs()" in refusal(mechanisms=Priced)
    assert "Nominal: nominal_cost is" in refusal(mechanisms=Nominal)


# -- what is refused, and how ---------------------------------------------------------------------


def changed(base: type, method: str, change: Callable[..., Any], name: str = "Mine") -> type:
    """A subclass whose method gives `change` of what the base's gives, and of the arguments."""

    def own(self: Any, *given: Any) -> Any:
        return change(getattr(super(made, self), method)(*given), *given)

    promised = {
        "posterior": lambda self, layer, features: own(self, layer, features),
        "look": lambda self, stream: own(self, stream),
        "advance": lambda self, stream, attended: own(self, stream, attended),
        "macs": lambda self, position: own(self, position),
    }
    forward = {
        PlainPrior: lambda self, layer, positions: own(self, layer, positions),
        PlainMechanism: lambda self, q, k, v: own(self, q, k, v),
    }
    function = promised.get(method) or forward[base]
    made = type(name, (base,), {method: function})
    return made


def of_nan(dist: Any, *given: Any) -> Any:
    return Dirichlet(dist.concentration * math.nan, validate_args=False)


LAWS: dict[str, Callable[..., Any]] = {
    "None": lambda dist, *_: None,
    "a tensor": lambda dist, *_: dist.concentration,
    "a draw": lambda dist, *_: dist.rsample(),
    "a tuple": lambda dist, *_: (dist, dist),
    "a class": lambda dist, *_: Dirichlet,
    "words": lambda dist, *_: "Dirichlet",
    "another event": lambda dist, *_: Dirichlet(dist.concentration[..., :-1]),
    "no event": lambda dist, *_: Normal(dist.concentration, 1.0),
    "NaN": of_nan,
    "another precision": lambda dist, *_: Dirichlet(dist.concentration.double()),
    "a part of the batch": lambda dist, *_: Dirichlet(dist.concentration[..., :-1, :]),
    "one more batch": lambda dist, *_: Dirichlet(dist.concentration[None]),
    "random": lambda dist, *_: Dirichlet(dist.concentration + torch.rand(())),
    "on another device": lambda dist, *_: Dirichlet(
        dist.concentration.to("meta"), validate_args=False
    ),
    "choices": lambda dist, *_: Choice(logits=dist.concentration.log()),
}
ROWS: dict[str, Callable[..., Any]] = {
    "None": lambda out, *_: None,
    "a list": lambda out, *_: [out],
    "wrong width": lambda out, *_: out[..., :-1],
    "wrong length": lambda out, *_: out[:, :, :-1],
    "one row for all": lambda out, *_: out[:1],
    "heads joined": lambda out, *_: out.flatten(1, 2),
    "another precision": lambda out, *_: out.to(torch.bfloat16),
    "integers": lambda out, *_: out.long(),
    "NaN": lambda out, *_: out * math.nan,
    "infinite": lambda out, *_: out / 0,
    "mixes sequences": lambda out, *_: out.flip(0),
    "normalised over the batch": lambda out, *_: out / (1 + out.std()),
    "in place": lambda out, q, k, v: out + v.mul_(0.5),
    "random": lambda out, *_: out + torch.rand(()),
    "the future": lambda out, q, k, v: out + v.flip(2),
    "the length": lambda out, q, k, v: out / v.shape[2],
    "on another device": lambda out, *_: out.to("meta"),
}
BLOCK_ROWS: dict[str, Callable[..., Any]] = {
    "None": lambda out, *_: None,
    "wrong width": lambda out, *_: out[..., :-1],
    "NaN": lambda out, *_: out * math.nan,
    "mixes sequences": lambda out, *_: out.flip(0),
    "random": lambda out, *_: out + torch.rand(()),
    "another precision": lambda out, *_: (
        out.double() if out.dtype == torch.float32 else out.float()
    ),
}
RETURNS: list[tuple[str, str, str, Callable[..., Any]]] = [
    *(("prior", "forward", why, change) for why, change in LAWS.items()),
    *(("guide", "posterior", why, change) for why, change in LAWS.items()),
    *(("mechanisms", "forward", why, change) for why, change in ROWS.items()),
    *(("block", "look", why, change) for why, change in BLOCK_ROWS.items()),
    ("depth", "posterior", "None", lambda dist, *_: None),
    ("depth", "posterior", "a number", lambda dist, *_: 0.5),
    ("depth", "posterior", "an event", lambda dist, *_: dist.to_event(1)),
    ("depth", "posterior", "NaN", lambda dist, *_: Beta(
        dist.concentration1 * math.nan, dist.concentration0, validate_args=False)),
    ("depth", "posterior", "one number", lambda dist, *_: Beta(1.0, 1.0)),
    ("block", "advance", "None", lambda stream, *_: None),
    ("block", "advance", "a tensor", lambda stream, *_: stream.state),
    ("block", "advance", "NaN", lambda stream, *_: Stream(stream.state * math.nan)),
    ("block", "advance", "wrong width", lambda stream, *_: Stream(stream.state[..., 1:])),
    ("block", "advance", "the future", lambda stream, *_: Stream(stream.state.flip(1))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("option", "method", "why", "change"),
    RETURNS,
    ids=[f"{option}-{method}-{why.replace(' ', '-')}" for option, method, why, _ in RETURNS],
)
def test_what_gives_something_else_is_refused_by_name(
    option: str, method: str, why: str, change: Callable[..., Any]
) -> None:
    line = refusal(**{option: changed(PLAIN[option], method, change)})
    assert line.startswith(f"{option}: Mine"), line
    assert ("NaN" in line) == (why in ("NaN", "infinite")), line
    if why in ("None", "words"):
        assert why.replace("words", "'Dirichlet'") in line
    if why == "choices":
        assert "of_choices = True" in line


class Keeps(PlainMechanism):
    """A running sum."""

    total = 0.0

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.total = self.total + float(v.mean())
        return super().forward(q, k, v) + self.total


class Normalises(PlainMechanism):
    """Batch normalisation: right in evaluation, and over everybody in training."""

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)
        self.norm = nn.BatchNorm1d(head_width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = super().forward(q, k, v)
        return self.norm(out.flatten(0, 2)).view(out.shape)


class NormalisesFeatures(PlainGuide):
    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.norm = nn.BatchNorm1d(model.network.shape.width)

    def posterior(self, layer: int, features: Any) -> Any:
        normed = self.norm(features.normed.flatten(0, 1)).view(features.normed.shape)
        return super().posterior(layer, features._replace(normed=normed))


class Hides(PlainGuide):
    """Its networks are in a plain list."""

    def __init__(self, model: Any) -> None:
        Guide.__init__(self, model)
        self.nets = [nn.Linear(model.network.shape.width, 3) for _ in range(2)]


class Recurrent(PlainGuide):
    """Declared to look at its own token, which it does not."""

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        width = model.network.shape.width
        self.recurrent = nn.GRU(width, width, batch_first=True)

    @of_own_token
    def posterior(self, layer: int, features: Any) -> Any:
        seen = self.recurrent(features.normed)[0]
        return super().posterior(layer, features._replace(normed=4 * seen))


class Serves(PlainMechanism):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v)

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Any) -> Tensor:
        return q


class Decodes(PlainMechanism):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v)

    def decode(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q


class Resumes(PlainMechanism):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v)

    def state_of(self, k: Tensor, v: Tensor, past: Any, is_token: Any) -> Tensor:
        return v.sum(2)

    def resume(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
        return q


class GivesNothing(PlainGuide):
    def forward(self, tokens: Tensor, targets: Any = None) -> Any:
        super().forward(tokens, targets)


class TakesFeaturesAlone(PlainGuide):
    def posterior(self, features: Any) -> Any:  # type: ignore[override]
        return None


class TakesNoPositions(PlainPrior):
    def forward(self, layer: int) -> Any:  # type: ignore[override]
        return None


class TakesTwo(PlainMechanism):
    def forward(self, q: Tensor, k: Tensor) -> Any:  # type: ignore[override]
        return q


class TakesNothing(PlainMechanism):
    def __init__(self) -> None:
        super().__init__(8, 4)


class NotBegun(PlainGuide):
    def __init__(self, model: Any) -> None:
        self.hidden = 3


class PriorNotBegun(PlainPrior):
    def __init__(self, network: Any) -> None:
        nn.Module.__init__(self)


class BegunTooLate(PlainGuide):
    def __init__(self, model: Any) -> None:
        self.net = nn.Linear(3, 3)
        super().__init__(model)


class InPlaceForTheGradient(PlainMechanism):
    """Its gradient cannot be computed."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        weights = (q * k).sigmoid()
        out = weights * v
        weights += 1.0
        return out


class HasNoMean(PlainGuide):
    def posterior(self, layer: int, features: Any) -> Any:
        class Meanless(Dirichlet):
            @property
            def mean(self) -> Tensor:
                raise NotImplementedError

        return Meanless(super().posterior(layer, features).concentration)


CASES: dict[type, tuple[str, str]] = {
    Keeps: ("mechanisms", "something is kept from call to call"),
    Normalises: ("mechanisms", "in training mode, a sequence is read otherwise beside others"),
    NormalisesFeatures: ("guide", "in training mode, the posterior of a sequence depends on"),
    Hides: ("guide", "Hides.nets holds 4 parameters that are not registered"),
    Recurrent: ("guide", "declared of_own_token"),
    Serves: ("mechanisms", "serve() gives other rows than forward()"),
    Decodes: ("mechanisms", "decode() gives"),
    Resumes: ("mechanisms", "resume() after state_of() gives"),
    GivesNothing: ("guide", "forward() of GivesNothing returned NoneType"),
    TakesFeaturesAlone: ("guide", "it is called as posterior(layer, features)"),
    TakesNoPositions: ("prior", "it is called as forward(layer, positions)"),
    TakesTwo: ("mechanisms", "it is called as forward(q, k, v)"),
    TakesNothing: ("mechanisms", "got an unexpected keyword argument 'head_width'"),
    NotBegun: ("guide", "does not call super().__init__"),
    PriorNotBegun: ("prior", "does not call super().__init__"),
    BegunTooLate: ("guide", "BegunTooLate.__init__(model=LanguageModel) failed at"),
    InPlaceForTheGradient: ("mechanisms", "modified by an inplace operation"),
    HasNoMean: ("guide", "has no mean"),
}


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_a_mistake_of_the_page_is_refused_for_what_it_is(kind: type) -> None:
    option, message = CASES[kind]
    line = refusal(**{option: kind})
    assert message in line and kind.__name__ in line, line


# -- what is raised -------------------------------------------------------------------------------


class ManyLines(Exception):
    def __init__(self) -> None:
        super().__init__("first\n  second\n\nthird")


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise KeyError("no words")


class TwoWords(RuntimeError):
    """Cannot be made anew of its message, as Pyro tries."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one + other)


class Foreign(BaseException):
    """No `Exception`."""


def recurse() -> None:
    recurse()


def leave() -> None:
    sys.exit(0)


def raising(error: Callable[[], BaseException]) -> Callable[[], None]:
    def act() -> None:
        raise error()

    return act


ACTS: dict[str, Callable[[], None]] = {
    "RecursionError": recurse,
    "sys.exit": leave,
    "ManyLines": raising(ManyLines),
    "Unspeakable": raising(Unspeakable),
    "TwoWords": raising(lambda: TwoWords("a", "b")),
    "Foreign": raising(Foreign),
    **{
        kind.__name__: raising(lambda kind=kind: kind("boom"))
        for kind in (
            KeyError, IndexError, RuntimeError, StopIteration, TypeError, ValueError, OSError,
            AttributeError, AssertionError, NotImplementedError, ZeroDivisionError, LookupError,
            FileNotFoundError, UserWarning, Exception,
        )
    },
}  # fmt: skip
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "prior": ("prior", ("__init__", "forward")),
    "guide": ("guide", ("__init__", "posterior", "forward")),
    "mechanism": ("mechanisms", ("__init__", "forward", "macs", "serve", "decode", "kick")),
    "block": ("block", ("__init__", "begin", "look", "advance")),
    "depth": ("depth", ("__init__", "posterior")),
}


def acting(option: str, method: str, act: Callable[[], None], after: int = 0) -> type:
    """A plain class, one of whose methods acts from the call `after` so many on."""
    base = PLAIN[option]
    calls = 0

    def count() -> None:
        nonlocal calls
        calls += 1
        if calls > after:
            act()

    space: dict[str, Any] = {"count": count, "base": base}
    arguments = {
        ("prior", "__init__"): "network", ("prior", "forward"): "layer, positions",
        ("guide", "__init__"): "model", ("guide", "posterior"): "layer, features",
        ("guide", "forward"): "tokens, targets=None",
        ("mechanisms", "__init__"): "head_width, window",
        ("mechanisms", "forward"): "q, k, v", ("mechanisms", "macs"): "position",
        ("mechanisms", "serve"): "q, k, v, queries", ("mechanisms", "decode"): "q, k, v",
        ("mechanisms", "kick"): "q, v, momentum, layer, attend",
        ("block", "__init__"): "shape, mechanisms, layer", ("block", "begin"): "state",
        ("block", "look"): "stream", ("block", "advance"): "stream, attended",
        ("depth", "__init__"): "model, start=3.0", ("depth", "posterior"): "layer, features",
    }[option, method]  # fmt: skip
    names = re.sub(r"=[^,]*", "", arguments)
    own = (
        ""
        if method in ("forward", "__init__") or option != "mechanisms"
        else ("    def forward(self, q, k, v):\n        return super().forward(q, k, v)\n")
    )
    source = (
        f"class Acts(base):\n{own}    def {method}(self, {arguments}):\n"
        f"        count()\n        return super().{method}({names})\n"
    )
    file = f"{__file__}.own"
    exec(compile(source, file, "exec"), space | {"__name__": "own_module"}, space)
    kind: type = space["Acts"]
    kind.__module__ = "own_module"
    for function in vars(kind).values():
        if isinstance(function, types.FunctionType):
            function.__globals__.update(space)
    return kind


WAYS = [
    (option, method, act)
    for option, methods in PLACES.values()
    for method in methods
    for act in ACTS
]


def require_told(option: str, method: str, act: str) -> None:
    line = refusal(**{option: acting(option, method, ACTS[act])})
    assert f"Acts.{method}(" in line, line
    assert "test_own_classes.py" in line, "the file where it was raised"
    if act == "sys.exit":
        assert "sys.exit() was called" in line
    else:
        assert re.search(rf"\b{act}\b", line), line


@settings(max_examples=60, derandomize=True)
@given(st.sampled_from(WAYS))
def test_whatever_a_class_raises_is_one_line_with_class_call_and_place(
    way: tuple[str, str, str],
) -> None:
    require_told(*way)


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS, ids=lambda way: "-".join(way))
def test_all_that_a_class_may_raise(way: tuple[str, str, str]) -> None:
    require_told(*way)


def test_ctrl_c_and_lack_of_memory_pass() -> None:
    for error in (KeyboardInterrupt, MemoryError):
        with pytest.raises(error):
            admit(guide=acting("guide", "posterior", raising(error)))


def test_our_own_bugs_are_nobody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of ours, met beside an own class, does not name that class."""
    model, guide = config_of(guide=PlainGuide).build(13)
    objective = Objective(model, guide)
    tokens = torch.zeros(2, 8, dtype=torch.long)
    monkeypatch.setattr("pyro_meta.inference.elbo.divergence", None)
    with pytest.raises(TypeError) as caught:
        objective(tokens, tokens)
    assert blame(caught.value) is None


def test_what_is_raised_in_the_middle_of_training_is_told(text_file: Path, tmp_path: Path) -> None:
    class OwnFrame(PlainGuide):
        steps = 0

        def posterior(self, layer: int, features: Any) -> Any:
            if self.training and self.model.temperature != 1.0 and torch.is_grad_enabled():
                type(self).steps += 1
                if self.steps > 8:
                    raise KeyError("late")
            return super().posterior(layer, features)

    module = types.ModuleType("own_module")
    sys.modules["own_module"] = module
    OwnFrame.__module__, OwnFrame.__qualname__ = "own_module", "OwnFrame"
    module.OwnFrame = OwnFrame  # type: ignore[attr-defined]
    with pytest.raises(KeyError) as caught:
        train(*MOMENT, "--guide=own_module.OwnFrame", "--kl.weight=0.5", f"--data.path={text_file}",
              f"--out={tmp_path / 'run'}")  # fmt: skip
    line = blame(caught.value)
    assert line is not None
    assert line.startswith("OwnFrame.posterior(layer=0, features=Features(tokens=Tensor [4, 16]")
    assert "KeyError: 'late'" in line and "batch [B, T], event [K]" in line


def test_own_code_that_is_no_method_is_told() -> None:
    class NoDraw(Dirichlet):
        def rsample(self, sample_shape: Any = ()) -> Tensor:
            raise LookupError("no draw")

    line = refusal(
        guide=changed(PlainGuide, "posterior", lambda dist, *_: NoDraw(dist.concentration), "Mine")
    )
    assert line.startswith("guide: Mine: ") and "NoDraw.rsample(" in line


# -- every door -----------------------------------------------------------------------------------

MINE = """
import torch
from pyro.distributions import Dirichlet
from torch import nn
from pyro_meta import Data, Guide, Prior

class Mine(Guide):
    def __init__(self, model, hidden: int = 3):
        super().__init__(model)
        width = model.network.shape.width
        self.net = nn.ModuleList(nn.Linear(width, 3) for _ in range(model.network.shape.layers))

    def posterior(self, layer, features):
        return Dirichlet(self.net[layer](features).exp())

class NoPrior(Prior):
    def forward(self, layer, positions):
        return None

class Fails(Prior):
    def __init__(self, network, rate: float = 1.0):
        super().__init__(network)
        raise LookupError("a\\nb")

    def forward(self, layer, positions):
        return None

class NoData(Data):
    def corpus(self):
        return [][0]

class NoDataAtAll(Data):
    def __init__(self, size: int = 3):
        raise LookupError("none")

    def corpus(self):
        return None
"""


@pytest.fixture
def own_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine_file.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine_file", None)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("--guide=mine_file.Mine", "Mine.posterior(layer=0, features=Features("),
        ("--guide=mine_file.Mine", "at mine_file.py:14: TypeError: linear():"),
        (
            "--prior=mine_file.NoPrior",
            "prior: NoPrior.forward() gives None; a Distribution is needed",
        ),
        ("--prior=mine_file.Fails", "Fails.__init__(network=Transformer, rate=1.0) failed at"),
        ("--data=mine_file.NoData", "NoData.corpus() failed at mine_file.py:30: IndexError"),
        ("--data=mine_file.NoDataAtAll", "NoDataAtAll.__init__(size=3) failed at mine_file.py:34"),
    ],
)
def test_training_refuses_it_in_one_line_before_there_is_a_folder(
    own_file: Path, text_file: Path, word: str, told: str
) -> None:
    path = [] if word.startswith("--data") else [f"--data.path={text_file}"]
    line = error_line(run_here("train", *MOMENT, word, *path))
    assert told in line, line
    assert not (own_file / "runs").exists()


def test_a_study_and_a_run_that_is_read_say_the_same(own_file: Path, text_file: Path) -> None:
    base = {"context": 16, "width": 16, "layers": 2, "heads": 2, "window": 4,
            "data": {"class_path": "Text", "init_args": {"path": str(text_file)}}}  # fmt: skip
    for name, told in (("Mine", "Mine.posterior("), ("Fails", "Fails.__init__(")):
        option = "guide" if name == "Mine" else "prior"
        study = Study(base=[base | {option: f"mine_file.{name}"}], seeds=[0])
        with pytest.raises(UsageError, match=re.escape(told)):
            expand(study)
    assert train(*MOMENT, f"--data.path={text_file}", "--out=run") == 0
    options = own_file / "run" / "config.yaml"
    assert "pyro_meta.LoadCategorical" in options.read_text()
    model_of = Run.open(Path("run")).config
    config = model_of()
    config.prior = __import__("mine_file").Fails
    with pytest.raises(UsageError, match=r"Fails.__init__\("):
        config.build(13)


def test_the_contract_says_it_once(own_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError, match=r"Mine\.posterior\(.*at mine_file\.py:14: TypeError"):
        contracts_main(["mine_file.Mine"])
    assert "FAILED" not in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"Fails cannot be built: Fails\.__init__"):
        contracts_main(["mine_file.Fails"])


def test_a_class_of_the_same_name_does_not_hide_ours(text_file: Path) -> None:
    """As a notebook has them, whose cells are run again and again."""
    kept = [type("CostDirichlet", (CostDirichlet,), {"__module__": "cell"}) for _ in range(2)]
    words = [f"--data.path={text_file}", "--prior=CostDirichlet", "--prior.rate=2"]
    written = read_options(words)[1]
    assert "class_path: pyro_meta.CostDirichlet" in written and len(kept) == 2


def test_the_console_script_finds_classes_where_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `python -m` does; where that is asked not to, neither does it."""
    monkeypatch.chdir(tmp_path)
    elsewhere = [folder for folder in sys.path if folder not in ("", str(tmp_path))]
    seen: list[str] = []
    monkeypatch.setattr("pyro_meta.__main__.run_command", lambda main: seen.append(sys.path[0]))
    for path in (elsewhere, ["", *elsewhere]):
        monkeypatch.setattr(sys, "path", list(path))
        pyro_meta.__main__.run()
    assert seen == [str(tmp_path), ""]
