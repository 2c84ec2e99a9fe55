"""A run as the analysis sees it: its posterior, metrics and summary, read from files."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyro_meta import checksums
from pyro_meta.analysis import documents, options, stored_posterior
from pyro_meta.analysis.collapse import Check, Verdict, checks, collapse_verdicts, split
from pyro_meta.analysis.depth_gates import Depth
from pyro_meta.analysis.diversity import (
    Array,
    Choices,
    Mask,
    effective_number,
    entropy,
    routing_information,
    shares_of,
)
from pyro_meta.analysis.json_values import plain
from pyro_meta.analysis.posterior_file import layout
from pyro_meta.errors import UsageError
from pyro_meta.terminal.consoles import printable

SHOWN = ("val_nll_soft", "val_nll_hard", "cost_nominal_hard", "cost_macs_hard", "hard_fraction")
BY_TOKEN = (
    "nll_soft", "nll_hard", "nll_averaged", "top_probability", "top_is_right",
    "top_probability_averaged", "top_is_right_averaged",
)  # fmt: skip
SHOWN_IF_THERE = (
    "executed", "depth", "truth", "seed", "parameters", "versions", "device", "finished",
)  # fmt: skip
"""Depth and truth are not shown on the page."""
EXECUTED = (
    "macs_per_token_attention", "macs_ratio_attention", "macs_per_token_model", "macs_ratio_model",
    "tokens_per_second_routed", "length",
)  # fmt: skip
FULL = ("tokens_per_second_full", "speed_up_model", "speed_up_attention", "clock_noise")
"""Figures beside full attention: None where it is not among the mechanisms, or was not timed."""
GATED = ("passed_by", "speed_up_depth")
"""Those of depth gates, where there are any."""
BY_STEP = ("step", "hard_share", "kl_weight", "kl")
DAMAGE = (
    OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, ArithmeticError,
)  # fmt: skip
"""What HDF5, JSON and numpy raise of files that are not what they should be."""


def require_finished(folder: Path) -> None:
    """Raise `UsageError` unless there is a run, and it has finished."""
    for name in ("config.yaml", "summary.json"):
        if not (folder / name).is_file():
            state = "has not finished" if name == "summary.json" else "is not a run"
            raise UsageError(f"{folder} {state}: it has no {name}")


DECIDED = 1e-6
"""Expected entropy of draws, in nats, below which each is one mechanism."""


@dataclass(frozen=True)
class Blocks:
    """Terms of importance weights of short blocks of tokens; S draws, R blocks."""

    length: Choices
    """Tokens in each block, [R]."""
    position: Choices
    """Position of its first token, [R]."""
    log_likelihood: Array
    """log p(y | alpha), [S, R]."""
    expected_log_likelihood: Array
    """The same, expected for y as the deployed route predicts it, [S, R]."""
    log_ratio: Array
    """log p(alpha) - log q(alpha | x), [S, R]."""

    def of_length(self, length: int) -> "Blocks":
        """Those blocks alone."""
        kept = self.length == length
        return Blocks(
            self.length[kept],
            self.position[kept],
            self.log_likelihood[:, kept],
            self.expected_log_likelihood[:, kept],
            self.log_ratio[:, kept],
        )


MOST_ROWS = 24
"""Of layers and groups that a picture shows one below the other."""


@dataclass(frozen=True)
class Reading:
    """What a run left behind.

    L layers (of several groups of heads, each group of each layer is one), N validation tokens, M
    drawn ones (the first of them), K mechanisms, S draws, B drawn sequences.
    """

    folder: Path
    draws: Array
    """Posterior draws of the routes, [S, L, M, K]."""
    log_likelihood: Array
    """log p(y | alpha) of drawn sequences, [S, B], nats."""
    log_prior: Array
    """log p(alpha) of drawn sequences, [S, B], nats, price of compute and loads included; NaN
    without a density."""
    prior_draw_shares: Array
    """Mean route of the drawn tokens in draws of the prior, [S, L, K]."""
    predicted: Choices
    """y drawn from p(y | alpha), [S, M]."""
    costs: Array
    """Cost of each mechanism at the drawn tokens, full attention = 1, [M, K]."""
    targets: Choices
    """y of the drawn tokens, [M]."""
    means: Array
    """Posterior means along the deployed route, [L, N, K]."""
    prior_means: Array
    """Prior means, [L, N, K]."""
    choice: Choices
    """Mechanism that runs once it is hard, [L, N]; -1 where a mixture does."""
    concentration: Array
    """a_0 of the posterior, [L, N]; NaN unless it is a Dirichlet."""
    prior_concentration: Array
    """a_0 of the prior, likewise."""
    total: Array
    """H(E alpha), [L, N], nats."""
    expected: Array
    """E H(alpha), [L, N], nats."""
    epistemic: Array
    """total - expected, [L, N], nats."""
    kl: Array
    """KL(q || p), [L, N], nats."""
    depth: Depth | None
    """Depth gates; None: there are none, and every token runs every layer."""
    tokens: dict[str, Array]
    """Figures by token, [N]: losses and top predictions under their names in the file."""
    blocks: Blocks
    sequence: Choices
    """Which sequence a token is of, [N]."""
    position: Choices
    """Its place there, [N]."""
    ids: Choices
    """Token ids, [N]."""
    mechanisms: list[str]
    text: list[str]
    """What each token adds to the text, [N]."""
    kl_weight: float
    """w at the end of training: what the posterior is tempered by."""
    facts: dict[str, Any]
    """Guide, prior, context, groups of heads and the like."""
    steps: Array
    """Training steps, [M]."""
    entropy_by_step: Array
    """H(m) / log K of the posterior means at each training step, [M, L]."""
    hard_share: Array
    """Share of tokens executed hard at each training step, [M]."""
    kl_weight_by_step: Array
    """Weight of the KL at each training step, [M]."""
    kl_by_step: Array
    """KL(q || p) over all layers at each training step, [M], nats per token."""
    sequence_losses: dict[str, Any]
    """sequences.json: losses by validation sequence, and which sequences these are."""
    summary: dict[str, Any]
    """The figures of summary.json that are shown."""
    options: dict[str, str] = field(default_factory=dict)
    """config.yaml, under dotted names."""

    @property
    def layer_names(self) -> list[str]:
        """What people call each layer; of several groups of heads, each group of each layer."""
        groups = int(self.facts["groups"])
        if groups == 1:
            return [f"layer {row}" for row in range(len(self.means))]
        pairs = (divmod(row, groups) for row in range(len(self.means)))
        return [f"layer {layer}, heads {group}" for layer, group in pairs]

    @property
    def has_many_rows(self) -> bool:
        """Whether layers and groups are too many for a row of their own in a picture."""
        return len(self.means) > MOST_ROWS

    @property
    def rows(self) -> list[int]:
        """Layers and groups in the order that they are shown in.

        That is their own; of many, those come first whose tokens are routed the most unlike.
        """
        if not self.has_many_rows:
            return list(range(len(self.means)))
        mixed = (self.shares * np.log(np.maximum(self.shares, 1e-12))).sum(-1)
        return [int(row) for row in np.argsort(mixed, kind="stable")]

    @classmethod
    def of(cls, folder: Path) -> "Reading":
        """Read the run in `folder`.

        Raises
        ------
        UsageError
            It is no run, has not finished, or is damaged: a file is not what was written, or, if
            its checksums were made to fit, no such file is ever written.
        """
        require_finished(folder)
        if said := checksums.damage(folder):
            remedy = ""
            if said.startswith("posterior.nc"):
                remedy = f"; python -m pyro_meta.report --reread true {folder} writes it anew"
            raise UsageError(f"{folder} is damaged: {said}{remedy}")
        try:
            return cls._read(folder)
        except stored_posterior.OtherVersion as error:
            raise UsageError(
                f"{folder / 'posterior.nc'} is of another version: {error}; "
                f"python -m pyro_meta.report --reread true {folder} writes it anew"
            ) from error
        except DAMAGE as error:
            raise UsageError(f"{folder} is damaged: {error or type(error).__name__}") from error

    @classmethod
    def _read(cls, folder: Path) -> "Reading":
        summary = _summary(folder / "summary.json")
        metrics = list(_metrics(folder / "metrics.jsonl"))
        try:
            stored = stored_posterior.load(folder / "posterior.nc")
        except stored_posterior.OtherVersion:
            raise
        except DAMAGE as error:
            raise ValueError(f"posterior.nc: {error or type(error).__name__}") from error
        stats = {
            name: _by_row(name, values, stored.facts["groups"])
            for name, values in stored.groups["tokens"].items()
        }
        blocks, drawn = stored.groups["blocks"], stored.groups["constant_data"]
        L, N, K = stats["posterior_mean"].shape
        losses = _sequence_losses(folder / "sequences.json")
        _agree(
            {
                "mechanisms": (stored.mechanisms, list(summary["load"])),
                "layers": (L, len(metrics[0]["entropy_by_layer"]) * stored.facts["groups"]),
                "validation sequences": (int(stats["sequence"].max()) + 1, len(losses["hard"])),
            }
        )
        if not 1 / documents.MOST <= stored.facts["kl_weight"] <= documents.MOST:
            raise ValueError(f"posterior.nc: kl_weight is {stored.facts['kl_weight']}")
        _require_below("choice", stats["choice"], K)
        _require_below("position", stats["position"], N)
        _require_below("sequence", stats["sequence"], N)

        def by_step(name: str) -> Array:
            return np.array([record[name] for record in metrics])

        sequence = drawn["sequence"]
        log_likelihood = _by_draw(stored.groups["log_likelihood"]["next_token"])
        return cls(
            folder=folder,
            draws=_by_draw(
                _by_row("route", stored.groups["posterior"]["route"], stored.facts["groups"])
            ),
            log_likelihood=_by_sequence(log_likelihood, sequence),
            log_prior=_log_prior(stored.groups["log_prior"], sequence),
            prior_draw_shares=_by_draw(stored.groups["prior"]["route"]).reshape(-1, L, K),
            predicted=_by_draw(stored.groups["posterior_predictive"]["next_token"]),
            costs=drawn["cost"],
            targets=stored.groups["observed_data"]["next_token"],
            means=stats["posterior_mean"],
            prior_means=stats["prior_mean"],
            choice=stats["choice"],
            concentration=stats["concentration"],
            prior_concentration=stats["prior_concentration"],
            total=stats["entropy_total"],
            expected=stats["entropy_expected"],
            epistemic=stats["entropy_epistemic"],
            kl=stats["kl"],
            depth=Depth.of(stats),
            tokens={name: stats[name] for name in BY_TOKEN},
            blocks=Blocks(
                blocks["length"],
                blocks["position"],
                blocks["log_likelihood"],
                blocks["expected_log_likelihood"],
                blocks["log_ratio"],
            ),
            sequence=stats["sequence"],
            position=stats["position"],
            ids=stats["input_token"],
            mechanisms=stored.mechanisms,
            text=stored.text,
            kl_weight=stored.facts["kl_weight"],
            facts=plain(stored.facts),
            steps=by_step("step"),
            entropy_by_step=by_step("entropy_by_layer"),
            hard_share=by_step("hard_share"),
            kl_weight_by_step=by_step("kl_weight"),
            kl_by_step=by_step("kl"),
            sequence_losses=losses,
            summary={key: summary[key] for key in SHOWN}
            | {key: summary[key] for key in SHOWN_IF_THERE if key in summary},
            options=options.read(folder / "config.yaml"),
        )

    @property
    def name(self) -> str:
        """The folder's own name, as it can be shown."""
        return printable(self.folder.resolve().name or str(self.folder))

    @cached_property
    def runs(self) -> Mask:
        """Which tokens run a layer once they are hard, [L, N]; all, where there are no gates."""
        if self.depth is None:
            return np.ones(self.kl.shape, dtype=bool)
        return self.depth.runs.astype(bool)

    def shares_among(self, mask: Mask) -> Array:
        """Share of tokens that run each mechanism, of those of `mask` [N] that run the layer, [K].

        Layers together.
        """
        if self.depth is None:
            return shares_of(self.choice[:, mask], self.means[:, mask]).mean(0)
        runs = self.runs[:, mask]
        return shares_of(self.choice[:, mask][runs], self.means[:, mask][runs])

    @cached_property
    def shares(self) -> Array:
        """Share of tokens that run each mechanism, of those that run the layer, [L, K].

        Of all tokens where nobody runs it.
        """
        if self.depth is None:
            return shares_of(self.choice, self.means)
        rows = []
        for layer, runs in enumerate(self.runs):
            among = runs if runs.any() else np.ones_like(runs)
            rows.append(
                shares_of(self.choice[layer, None][:, among], self.means[layer, None][:, among])
            )
        return np.concatenate(rows)

    @cached_property
    def prior_shares(self) -> Array:
        """Mean of the prior over all tokens, [L, K]."""
        return self.prior_means.mean(1, dtype=float)

    @property
    def log_k(self) -> float:
        """log K, the most that an entropy can be; 1 where there is a single mechanism."""
        return float(np.log(len(self.mechanisms))) if len(self.mechanisms) > 1 else 1.0

    @property
    def is_of_choices(self) -> bool:
        """Whether every draw is one mechanism, so that only the posterior can be unsure."""
        return float(self.expected.max(initial=0.0)) < DECIDED

    @property
    def uncertainty(self) -> Array:
        """By which a token turns hard, as a share of log K, [L, N]: of weights how mixed draws are,
        of choices how mixed their mean is."""
        return (self.total if self.is_of_choices else self.expected) / self.log_k

    def verdicts(self) -> list[Verdict]:
        """The collapses of the whole router, as studies compare them."""
        return collapse_verdicts(self.means, self.kl, self.shares)

    @cached_property
    def checks(self) -> list[Check]:
        """The collapses, asked of every layer and group."""
        return checks(self.means, self.kl, self.choice, self.runs, self.sequence)

    def diversity(self) -> list[dict[str, float]]:
        """By layer: effective numbers of mechanisms, information, entropies and KL.

        The KL is that of information and the marginal one (see `collapse.split`).
        """
        information = routing_information(self.means)  # [L]
        marginal = split(self.kl.mean(1, dtype=float), information)
        return [
            {
                "effective_by_load": float(effective_number(self.shares[layer])),
                "effective_by_mean": float(effective_number(means.mean(0, dtype=float))),
                "effective_per_token": float(np.exp(entropy(means).mean(dtype=float))),
                "information": float(information[layer]),
                "marginal_kl": float(marginal[layer]),
                "entropy": float(entropy(means).mean(dtype=float) / self.log_k),
                "total": float(self.total[layer].mean(dtype=float)),
                "expected": float(self.expected[layer].mean(dtype=float)),
                "epistemic": float(self.epistemic[layer].mean(dtype=float)),
                "kl": float(self.kl[layer].mean(dtype=float)),
            }
            for layer, means in enumerate(self.means)
        ]


def _by_row(name: str, values: NDArray[Any], groups: int) -> NDArray[Any]:
    """Values of a variable with layers and groups of heads joined in one axis, if it has any.

    What is of the layer is so for each of its groups.
    """
    dims = layout(True, True)["posterior" if name == "route" else "tokens"][name].dims
    if "layer" not in dims:
        return values
    at = dims.index("layer")
    if "group" not in dims:
        return values.repeat(groups, at)
    return values.reshape(*values.shape[:at], -1, *values.shape[at + 2 :])


def _by_sequence(values: Array, sequence: Choices) -> Array:
    """Sums [S, B] over the tokens of each sequence, of values [S, M] in their order."""
    starts = np.flatnonzero(np.diff(sequence, prepend=-1))
    return np.add.reduceat(values.astype(float), starts, axis=1)


def _log_prior(parts: dict[str, Array], sequence: Choices) -> Array:
    """Log prior of the routes, gates and loads that sequences have, [S, B]."""
    of_tokens = [_by_draw(values) for name, values in parts.items() if name != "load"]
    total = _by_sequence(np.sum(of_tokens, axis=0), sequence)
    return total + _by_draw(parts["load"])[:, None] if "load" in parts else total


def _by_draw(values: NDArray[Any]) -> NDArray[Any]:
    """Values with chains and draws joined in the first axis."""
    return values.reshape(-1, *values.shape[2:])


def _summary(path: Path) -> dict[str, Any]:
    """summary.json, with every figure that is shown."""
    summary, name = documents.read(path), path.name
    for key in SHOWN:
        documents.number(summary, key, name)
    if not isinstance(summary.get("load"), dict):
        raise ValueError(f"{name} has no load by mechanism")
    _check_circumstances(summary, name)
    if "executed" in summary:
        _check_executed(summary["executed"], f"{name}, executed")
    return summary


def _check_circumstances(summary: dict[str, Any], name: str) -> None:
    """When, where and by what it was trained, as far as it says so."""
    versions = summary.get("versions", {})
    if not isinstance(versions, Mapping) or not all(isinstance(v, str) for v in versions.values()):
        raise ValueError(f"{name}: versions are no names with a text each")
    for key in ("device", "finished"):
        if not isinstance(summary.get(key, ""), str):
            raise ValueError(f"{name}: {key} is no text")
    if "finished" in summary:
        moment = datetime.fromisoformat(summary["finished"])
        if moment.tzinfo is None or not 1970 < moment.year < 9000:
            raise ValueError(f"{name}: finished is {moment.isoformat()}, no moment of a time zone")
    if "parameters" in summary:
        documents.number(summary, "parameters", name)


def _check_executed(executed: Any, where: str) -> None:
    if not isinstance(executed, dict):
        raise ValueError(f"{where} holds no object")
    needed = [*EXECUTED, *(GATED if "passed_by" in executed else ())]
    needed += [key for key in FULL if executed.get(key) is not None]
    if executed.get("tokens_per_second_full") is not None:
        needed.append("speed_up_model")
    for key in needed:
        documents.number(executed, key, where)
    if "speed_up_attention" not in executed or "tokens_per_second_full" not in executed:
        raise ValueError(f"{where} says nothing of full attention")


def _metrics(path: Path) -> Iterator[dict[str, Any]]:
    """The records of metrics.jsonl, one of every step from the first to the last."""
    lines = documents.read_text(path).splitlines()
    if not lines:
        raise ValueError(f"{path.name} is empty")
    layers: int | None = None
    for step, line in enumerate(lines, start=1):
        where = f"{path.name}, line {step}"
        record = documents.parse(line, where)
        for key in BY_STEP:
            documents.number(record, key, where)
        by_layer = documents.numbers(record, "entropy_by_layer", where)
        layers = len(by_layer) if layers is None else layers
        if record["step"] != step or len(by_layer) != layers:
            raise ValueError(f"{where}: step {step} of {layers} layers was to be there")
        yield record


def _sequence_losses(path: Path) -> dict[str, Any]:
    """sequences.json: as many losses along soft routes as along hard ones."""
    losses, name = documents.read(path), path.name
    if not isinstance(losses.get("windows"), str):
        raise ValueError(f"{name} does not say which sequences it is of")
    soft, hard = (documents.numbers(losses, key, name) for key in ("soft", "hard"))
    if len(soft) != len(hard) or losses.get("count") != len(hard):
        raise ValueError(f"{name} has {len(soft)} and {len(hard)} losses, not as many as it says")
    return losses


def _agree(pairs: dict[str, tuple[Any, Any]]) -> None:
    """Files of one run say the same."""
    for what, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise ValueError(
                f"summary.json, metrics.jsonl, sequences.json and posterior.nc are not of one run: "
                f"{what} {printable(str(ours))} and {printable(str(theirs))}"
            )


def _require_below(name: str, values: Choices, most: int) -> None:
    if int(values.max()) >= most:
        raise ValueError(f"posterior.nc: {name} holds {values.max()}, which is not below {most}")
