"""What each way of running hard routes costs on this machine: what dispatch judges by.

A mechanism that runs on all tokens works at the speed of PyTorch's kernels. Serving chosen queries
alone spares work, and does the rest in many small calls, which are slower by multiply-accumulate
and take some time for each sequence. A masked call meets keys in vain, and needs a mask. By how
much is a matter of the processor: a `Profile` says it (`pyro_meta.attention.ways` asks).

The profile of this machine is measured once and kept in `profile/` of the cache folder; remove the
file, or set PYRO_META_REFRESH_PROFILE=1, to have it measured again. The commands take it when they
are about to execute routes; elsewhere, and with PYRO_META_PROFILE=default, it is `DEFAULT`. It
decides which way is taken and nothing else: results agree up to rounding. Two machines that must
agree to the last bit take `DEFAULT` on both.
"""

import math
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pyro_meta.attention.clock import ratio
from pyro_meta.attention.masked_trials import HEADS, SIZES, WIDTH, WINDOW, MaskedTimes, tried_masked
from pyro_meta.attention.mechanisms import Full, Linear, Mechanism, Window
from pyro_meta.attention.ops.masked import met_pairs
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.prices import macs_at
from pyro_meta.errors import UsageError
from pyro_meta.folders import kept_once
from pyro_meta.terminal.machine import hardware

VARIABLE, REFRESH = "PYRO_META_PROFILE", "PYRO_META_REFRESH_PROFILE"
LEAST_COST, LEAST_SEQUENCE_MACS, LEAST_MASK_MACS = 0.1, 1.0, 0.1  # of a fit


class Work(NamedTuple):
    """What is to be done for the queries that chose a mechanism, in MACs."""

    everyone: float
    """Running the mechanism on all tokens."""
    own: float
    """Its own queries alone, gathered."""
    on_keys: float
    """What serving them does on keys and values all the same, however few they are."""
    sequences: int

    @classmethod
    def of(cls, mechanism: Mechanism, queries: Queries, q: Tensor, block: float) -> "Work":
        """Of `queries` among all of q [B, H, T, d], `block` as `Profile.gathered_block`.

        Counted are the MACs that are asked for, and those of keys that a query meets only since it
        stands in a block with later ones: half a block, on average.
        """
        B, H, T, d = q.shape
        all_ = everyone(mechanism, B, H, T, d)
        own = _work(mechanism, queries.position, H, T, d, block)
        return cls(all_, own, mechanism.of_keys * all_, B)


def everyone(mechanism: Mechanism, B: int, H: int, T: int, d: int) -> float:
    """MACs of a mechanism that runs on all tokens."""
    return B * _work(mechanism, torch.arange(T), H, T, d, mechanism.block)


def _work(mechanism: Mechanism, position: Tensor, H: int, T: int, d: int, block: float) -> float:
    """MACs of queries at `position` in blocks of neighbours."""
    unseen = len(position) * min(block, T) / 2
    return H * (float(macs_at(mechanism, position.float()).sum()) + 2 * d * unseen)


class MaskedWork(NamedTuple):
    """What one masked call does for all tokens, whichever softmax mechanism they chose."""

    macs: float
    """On all keys that meet a query, seen or not."""
    numbers: float
    """Of the masks, which all heads share."""

    @classmethod
    def of(cls, sequences: int, heads: int, length: int, width: int) -> "MaskedWork":
        pairs = met_pairs(sequences, length)
        return cls(2.0 * width * heads * pairs, float(pairs))


@dataclass(frozen=True)
class Profile:
    """What `ways` weighs; the unit of time is that of one multiply-accumulate (MAC) of a
    mechanism that runs on all tokens. Beside each other, mechanisms are weighed by `unit`."""

    gathered_cost: float = 1.4
    """A MAC on gathered queries, where no gradient is asked for."""
    gathered_cost_with_gradients: float = 2.8
    """Likewise, forward and backward."""
    gathered_block: float = 200.0
    """As `Mechanism.block`, of gathered queries: how many positions lie between the first and the
    last that meet their keys together. A matter of how they are laid out, rather than of the
    machine, and not measured."""
    sequence_macs: float = 1.5e6
    """What gathering from one more sequence costs, in MACs."""
    masked_cost: float = 1.3
    """A MAC of a masked call, where no gradient is asked for."""
    masked_cost_with_gradients: float = 1.2
    """Likewise, forward and backward."""
    mask_macs: float = 25.0
    """What a number of a mask costs, in MACs."""
    window_cost: float = 2.8
    """A MAC of window attention on all tokens, with gradients or without: in small products."""
    placed_macs: float = 150.0
    """What it takes to gather a number of q, and to put what it attends to in its place, where
    mechanisms run apart. A rough estimate, not measured."""
    launch_macs: float = 2e10
    """MACs in the time in which the kernels that gather a mechanism's queries are launched. On CUDA
    alone; a rough estimate, not measured."""

    def serving(self, work: Work, with_gradients: bool) -> float:
        """What serving its own queries alone takes on a CPU, in MACs of a run on all."""
        cost = self.gathered_cost_with_gradients if with_gradients else self.gathered_cost
        return work.on_keys + cost * work.own + self.sequence_macs * work.sequences

    def unit(self, mechanism: Mechanism) -> float:
        """What a MAC of `mechanism` takes over one of full attention, both on all tokens."""
        return self.window_cost if isinstance(mechanism, Window) else 1.0

    def masking(self, work: MaskedWork, with_gradients: bool) -> float:
        """What one masked call takes on a CPU, in MACs of full attention on all tokens."""
        cost = self.masked_cost_with_gradients if with_gradients else self.masked_cost
        return cost * work.macs + self.mask_macs * work.numbers


DEFAULT = Profile()
"""Measured on one processor, and good enough on others."""
_current: ContextVar[Profile] = ContextVar("profile", default=DEFAULT)


@contextmanager
def profiled(profile: Profile) -> Iterator[None]:
    """Dispatch by `profile` meanwhile."""
    token = _current.set(profile)
    try:
        yield
    finally:
        _current.reset(token)


def current() -> Profile:
    """What dispatch judges by."""
    return _current.get()


def require_known_profile() -> None:
    """Refuse an unknown PYRO_META_PROFILE with a `UsageError`; `measured` and `default` are known.

    `of_this_machine` does so, too. A command that makes a folder first asks here before it does.
    """
    if _wanted() not in ("measured", "default"):
        raise UsageError(f"{VARIABLE}: {_wanted()!r} given; measured and default are allowed")


def _wanted() -> str:
    return os.environ.get(VARIABLE) or "measured"


def of_this_machine(device: torch.device | str = "cpu") -> Profile:
    """The profile of this machine, read or measured: for commands, once their options are known.

    On CUDA it is `DEFAULT`. So it is, with a line on stderr, where measuring fails or its result
    cannot be kept.

    Raises
    ------
    UsageError
        As `require_known_profile` says.
    """
    require_known_profile()
    if _wanted() == "default" or torch.device(device).type != "cpu":
        return DEFAULT

    def find_out() -> dict[str, Any]:
        return {"profile": asdict(measure())}

    conditions = {
        "device": hardware()["cpu"],
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    refresh = os.environ.get(REFRESH, "") not in ("", "0")
    try:
        kept = kept_once("profile", conditions, find_out, _is_whole, refresh)
    except (UsageError, RuntimeError) as error:
        _say(f"hard routes are dispatched by the profile of another machine: {error}")
        return DEFAULT
    return Profile(**kept["profile"])


@cache
def _say(what: str) -> None:
    """On stderr, once."""
    print(what, file=sys.stderr)


def _is_whole(kept: dict[str, Any]) -> bool:
    profile = Profile(**kept["profile"])
    if asdict(profile).keys() != kept["profile"].keys():
        return False  # of a version that measured less
    return all(math.isfinite(value) and value > 0 for value in asdict(profile).values())


class Trial(NamedTuple):
    """Tokens of B sequences, of which a share, drawn at random, chose a mechanism."""

    mechanism: Mechanism
    sequences: int
    length: int
    share: float


def trials() -> list[Trial]:
    """Long sequences and short ones, around the shares at which gathering begins to pay."""
    full, window, linear = Full(WIDTH, WINDOW), Window(WIDTH, WINDOW), Linear(WIDTH, WINDOW)
    return [
        *(Trial(full, 1, 1024, share) for share in (0.1, 0.3, 0.6)),
        *(Trial(full, 8, 128, share) for share in (0.2, 0.5)),
        *(Trial(window, 1, 2048, share) for share in (0.1, 0.4)),
        Trial(window, 8, 256, 0.2),
        Trial(linear, 2, 1024, 0.3),
    ]


def measure() -> Profile:
    """Time some trials on a CPU and fit a profile to them: some four seconds on two cores.

    With as many threads as PyTorch is set to. Both ways of a trial are timed by turns, and what
    counts is the median of their ratios. Fields that are not measured are those of `DEFAULT`.
    """
    found = [tried(trial) for trial in trials()]
    works, ratios = zip(*found, strict=True)
    plain, traced = ([ratio[way] for ratio in ratios] for way in (0, 1))
    cost, sequence = fit(works, plain)
    cost_with_gradients, _ = fit(works, traced, sequence)
    masked, masked_with_gradients, mask = fit_masked(SIZES, [tried_masked(*size) for size in SIZES])
    return replace(
        DEFAULT,
        gathered_cost=cost,
        gathered_cost_with_gradients=cost_with_gradients,
        sequence_macs=sequence,
        masked_cost=masked,
        masked_cost_with_gradients=masked_with_gradients,
        mask_macs=mask,
        window_cost=statistics.fmean(tried_window(*size) for size in SIZES),
    )


def fit(
    works: Sequence[Work], ratios: Sequence[float], sequence: float | None = None
) -> tuple[float, float]:
    """The cost of a gathered MAC, and of a sequence unless it is known: least squares.

    ratio * everyone = on_keys + cost * own + sequence * B, with errors over `everyone`: those that
    decide whether gathering pays. Neither is below its `LEAST`.
    """
    own = [work.own / work.everyone for work in works]
    each = [work.sequences / work.everyone for work in works]
    left = [r - work.on_keys / work.everyone for r, work in zip(ratios, works, strict=True)]
    if sequence is None:
        squares, both = _dot(own, own) * _dot(each, each), _dot(own, each)
        slope = _dot(own, own) * _dot(each, left) - both * _dot(own, left)
        sequence = max(slope / (squares - both**2), LEAST_SEQUENCE_MACS)
    rest = [y - sequence * x for y, x in zip(left, each, strict=True)]
    return max(_dot(own, rest) / _dot(own, own), LEAST_COST), sequence


def fit_masked(
    sizes: Sequence[tuple[int, int]], times: Sequence[MaskedTimes]
) -> tuple[float, float, float]:
    """The cost of a masked MAC, the same with gradients, and the MACs that a mask's number takes.

    Of trials of some sequences and their length. mask * everyone = mask_macs * numbers, and what
    that leaves of a masked call is cost * macs: least squares, with errors over `everyone`. None is
    below its `LEAST`.
    """
    full = Full(WIDTH, WINDOW)
    works = [MaskedWork.of(B, HEADS, T, WIDTH) for B, T in sizes]
    of_all = [everyone(full, B, HEADS, T, WIDTH) for B, T in sizes]
    numbers = [work.numbers / all_ for work, all_ in zip(works, of_all, strict=True)]
    macs = [work.macs / all_ for work, all_ in zip(works, of_all, strict=True)]
    mask = max(_dot(numbers, [one.mask for one in times]) / _dot(numbers, numbers), LEAST_MASK_MACS)

    def cost(ratios: Sequence[float]) -> float:
        rest = [y - mask * x for y, x in zip(ratios, numbers, strict=True)]
        return max(_dot(macs, rest) / _dot(macs, macs), LEAST_COST)

    return cost([one.plain for one in times]), cost([one.traced for one in times]), mask


def _dot(x: Sequence[float], y: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True))


def tried_window(B: int, T: int) -> float:
    """What a MAC of window attention takes over one of full attention, both on all tokens.

    The mean of forward, and of forward and backward.
    """
    full, window = Full(WIDTH, WINDOW), Window(WIDTH, WINDOW)
    draw = torch.Generator().manual_seed(0)
    read = list(torch.randn((3, B, HEADS, T, WIDTH), generator=draw, dtype=torch.float32))
    with torch.no_grad():
        plain = ratio(lambda: window(*read), lambda: full(*read))
    with torch.enable_grad():
        read = [x.requires_grad_() for x in read]
        traced = ratio(
            lambda: torch.autograd.grad(window(*read).sum(), read),
            lambda: torch.autograd.grad(full(*read).sum(), read),
        )
    of_full, of_window = (everyone(one, B, HEADS, T, WIDTH) for one in (full, window))
    return (plain + traced) / 2 * of_full / of_window


def tried(trial: Trial) -> tuple[Work, tuple[float, float]]:
    """The work of a trial, and how long serving takes over running on all: without gradients, and
    with them."""
    mechanism, B, T, share = trial
    draw = torch.Generator().manual_seed(0)
    shape = (3, B, HEADS, T, WIDTH)
    q, k, v = torch.randn(shape, generator=draw, dtype=torch.float32)
    own = (torch.rand(B * T, generator=draw) < share).nonzero()[:, 0]
    queries = Queries(torch.div(own, T, rounding_mode="floor"), own % T)

    def serve(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mechanism.serve(queries.of(q), k, v, queries)

    def run_on_all(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return mechanism(q, k, v).transpose(1, 2).flatten(0, 1).index_select(0, own)

    with torch.no_grad():
        plain = ratio(lambda: serve(q, k, v), lambda: run_on_all(q, k, v))
    with torch.enable_grad():
        read = [x.requires_grad_() for x in (q, k, v)]
        traced = ratio(
            lambda: torch.autograd.grad(serve(*read).sum(), read),
            lambda: torch.autograd.grad(run_on_all(*read).sum(), read),
        )
    return Work.of(mechanism, queries, q, DEFAULT.gathered_block), (plain, traced)
