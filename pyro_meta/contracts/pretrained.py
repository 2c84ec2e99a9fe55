"""What holds of any model of transformers that is wrapped or converted.

With all routes full nothing is lost: logits and gradients are the model's own. Along any routes
nothing leaks: no token sees what follows it, rows do not meet, padding changes nothing, and a cache
gives what no cache gives. Texts are made of random tokens, several windows long.
"""

import warnings
from collections.abc import Callable
from functools import wraps
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pyro_meta.contracts.checks import applies, require
from pyro_meta.guides import CategoricalGuide, Guide
from pyro_meta.models import CostCategorical, LanguageModel
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.network.transformer import chosen_by_all
from pyro_meta.pretrained import PretrainedNetwork, convert, restore, wrap

WINDOW, SINKS = 4, 2
LENGTH, PROMPT, NEW = 19, 12, 7  # tokens
SHARE = 1e-5  # of the largest logit: rounding in single precision
CUTS = (1, 6, 13)
PADDING = 5
GRADIENTS = 1e-4  # of the largest: rounding, over many layers


class PretrainedSubject:
    """A model in single precision, made for one clause, which may change it."""

    def __init__(self, made: PreTrainedModel) -> None:
        self.made = made.eval().requires_grad_(False)

    @property
    def vocabulary(self) -> int:
        found: int = self.made.config.get_text_config(decoder=True).vocab_size
        return found

    def text(self, rows: int = 2, length: int = LENGTH, seed: int = 0) -> Tensor:
        """Random tokens [rows, length], the first few of the vocabulary left out."""
        draw = torch.Generator().manual_seed(seed)
        tokens = torch.randint(3, self.vocabulary, (rows, length), generator=draw)
        return tokens.to(self.made.device)

    def logits(self, tokens: Tensor, **more: Any) -> Tensor:
        with torch.no_grad():
            out: Tensor = self.made(input_ids=tokens, **{"use_cache": False, **more}).logits
        return out

    def wrapped(self) -> PretrainedNetwork:
        return wrap(self.made, window=WINDOW, sinks=SINKS)

    def guide(self) -> Guide:
        """One of random weights, whose choices are mixed."""
        network = self.wrapped()
        model = LanguageModel(network, CostCategorical(network))
        guide = CategoricalGuide(model, hidden=16, reads_near=True)
        torch.manual_seed(3)
        for parameter in guide.parameters():
            nn.init.normal_(parameter)
        return guide.to(self.made.device)

    def routed(self) -> PreTrainedModel:
        """Converted by it."""
        return convert(self.made, self.guide(), checks=False)

    def all_full(self) -> PreTrainedModel:
        """Converted by a guide of which every choice is `full`."""
        guide = self.guide()
        network = guide.model.network
        full = network.mechanism_names.index("full")
        with torch.no_grad():
            for head in guide.heads:
                head[-1].weight.zero_()
                head[-1].bias.view(network.shape.groups, -1).zero_()[:, full] = 50.0
        return convert(self.made, guide, checks=False)

    def written(self, tokens: Tensor, **more: Any) -> tuple[Tensor, Tensor]:
        """What `generate` writes: new tokens [B, T], and their logits [B, T, V]."""
        options = {"attention_mask": torch.ones_like(tokens), "do_sample": False, **more}
        with torch.no_grad():
            out: Any = self.made.generate(
                tokens, max_new_tokens=NEW, min_new_tokens=NEW, output_logits=True,
                return_dict_in_generate=True, **options,
            )  # fmt: skip
        return out.sequences[:, tokens.shape[1] :], torch.stack(out.logits, 1)

    def require_close(self, found: Tensor, wanted: Tensor, what: str) -> None:
        """Raise `Broken` unless logits are equal but for rounding."""
        __tracebackhide__ = True
        most = SHARE * float(wanted.abs().max())
        gap = float((found - wanted).abs().max())
        require(gap <= most, f"{what}: logits differ by {gap:.2g}; up to {most:.2g} is rounding")

    def require_equal(self, found: Tensor, wanted: Tensor, what: str) -> None:
        """Raise `Broken` unless they are equal to the last bit."""
        __tracebackhide__ = True
        gap = float((found - wanted).abs().max())
        require(torch.equal(found, wanted), f"{what}: they differ by {gap:.2g}")


def padded(texts: list[Tensor]) -> dict[str, Tensor]:
    """Rows [T] of several lengths behind padding, with mask and positions as `generate` has."""
    longest, device = max(map(len, texts)), texts[0].device
    rows = [torch.cat([one.new_zeros(longest - len(one)), one]) for one in texts]
    holds = torch.tensor([[0] * (longest - len(one)) + [1] * len(one) for one in texts])
    places = (holds.cumsum(1) - 1).clamp(min=0)
    rows_, holds, places = torch.stack(rows), holds.to(device), places.to(device)
    return {"input_ids": rows_, "attention_mask": holds, "position_ids": places}


def ragged(subject: PretrainedSubject) -> tuple[Tensor, Tensor]:
    """A prompt of two rows, the second behind padding, and its mask."""
    tokens = subject.text(2, PROMPT)
    holds = torch.ones_like(tokens)
    tokens[1, :PADDING], holds[1, :PADDING] = 0, 0
    return tokens, holds


def scattered(network: PretrainedNetwork, is_hard: bool) -> Route:
    """Random routes of layer, group, token and position: such as no look at the text explains."""
    K, G = len(network.mechanisms), network.shape.groups
    table = torch.randn(97, K, generator=torch.Generator().manual_seed(0))

    def route(layer: int, features: Features) -> Decision:
        index = features.tokens * 5 + features.positions * 7 + 31 * layer
        if G > 1:
            index = index[..., None] + 17 * torch.arange(G, device=index.device)
        scores = table.to(index.device)[index % len(table)]
        return Decision(scores.argmax(-1) if is_hard else (3 * scores).softmax(-1))

    return route


# -- nothing is lost -----------------------------------------------------------------------------


def wrapping_changes_nothing(subject: PretrainedSubject) -> None:
    tokens = subject.text()
    plain = subject.logits(tokens)
    network = subject.wrapped()
    subject.require_equal(subject.logits(tokens), plain, "of a model that is wrapped")
    with torch.no_grad():
        full = network(tokens, chosen_by_all(network, "full"))
        near = network(tokens, chosen_by_all(network, "window"))
    subject.require_close(full, plain, "with all routes full")
    apart = float((near - plain).abs().max() / plain.abs().max())
    require(apart > 100 * SHARE, "with all routes a window, logits are those of full ones")


def all_routes_full_give_the_models_logits(subject: PretrainedSubject) -> None:
    tokens = subject.text()
    plain = subject.logits(tokens)
    subject.all_full()
    subject.require_equal(subject.logits(tokens), plain, "without a cache")
    subject.require_equal(subject.logits(tokens, use_cache=True), plain, "with a cache")


def all_routes_full_behind_padding(subject: PretrainedSubject) -> None:
    rows = padded([subject.text(1, length)[0] for length in (4, LENGTH, 11)])
    with torch.no_grad():
        plain = subject.made(**rows).logits
        subject.all_full()
        subject.require_equal(subject.made(**rows).logits, plain, "behind padding")


def _writes_the_same(name: str, **options: Any) -> Callable[[PretrainedSubject], None]:
    def clause(subject: PretrainedSubject) -> None:
        tokens, holds = ragged(subject)
        plain = subject.written(tokens, attention_mask=holds, **options)
        subject.all_full()
        found = subject.written(tokens, attention_mask=holds, **options)
        require(torch.equal(found[0], plain[0]), "another text is written")
        subject.require_close(found[1], plain[1], "logits of what is written")

    clause.__name__ = f"all_routes_full_write_the_same_{name}"
    return clause


WAYS_OF_WRITING = (
    _writes_the_same("text"),
    _writes_the_same("without_a_cache", use_cache=False),
    _writes_the_same("by_beams", num_beams=3),
    _writes_the_same("with_a_static_cache", cache_implementation="static"),
    _writes_the_same("after_chunked_prefill", prefill_chunk_size=5),
)


def all_routes_full_give_the_models_gradients(subject: PretrainedSubject) -> None:
    """In training mode without dropout, also under gradient checkpointing."""
    tokens, made = subject.text(), subject.made
    applies(made.supports_gradient_checkpointing, "it has no gradient checkpointing")

    def learned(checkpoints: bool) -> tuple[Tensor, list[Tensor]]:
        made.requires_grad_(True).train()
        for module in made.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        if checkpoints:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of another name that is to come
                made.gradient_checkpointing_enable({"use_reentrant": False})
        out = made(input_ids=tokens, labels=tokens, use_cache=False)
        weights = list(made.parameters())
        return out.logits.detach(), list(torch.autograd.grad(out.loss, weights))

    plain, gradients = learned(False)
    subject.all_full()
    for checkpoints in (False, True):
        found, ours = learned(checkpoints)
        when = "under gradient checkpointing" if checkpoints else "in training"
        subject.require_equal(found, plain, f"logits {when}")
        for one, other in zip(ours, gradients, strict=True):
            gap = float((one - other).abs().max())
            most = GRADIENTS * float(other.abs().max())
            require(gap <= most, f"gradients {when} differ by {gap:.2g}")


def all_routes_full_compiled_in_one_graph(subject: PretrainedSubject) -> None:
    """The guide with it, which cannot check its distributions there."""
    tokens = subject.text()
    plain = subject.logits(tokens)
    made = subject.all_full()
    with pyro.validation_enabled(False), torch.no_grad():
        torch.compiler.reset()
        compiled = torch.compile(made, backend="eager", fullgraph=True)
        found = compiled(input_ids=tokens, use_cache=False).logits
        torch.compiler.reset()
    subject.require_close(found, plain, "compiled")


# -- nothing leaks -------------------------------------------------------------------------------


def _sees_no_later_token(
    subject: PretrainedSubject, run: Callable[[Tensor], Tensor], plain: Tensor | None
) -> None:
    tokens = subject.text()
    with torch.no_grad():
        whole = run(tokens)
        for end in CUTS:
            cut = run(tokens[:, :end])
            subject.require_close(cut, whole[:, :end], f"of the first {end} tokens alone")
            other = (tokens[:, end:] + 1) % subject.vocabulary
            moved = run(torch.cat([tokens[:, :end], other], 1))[:, :end]
            subject.require_close(moved, whole[:, :end], f"with others from token {end} on")
    if plain is not None:
        apart = float((whole - plain).abs().max() / plain.abs().max())
        require(apart > 100 * SHARE, "along mixed routes, logits are those of full ones")


def hard_routes_see_no_later_token(subject: PretrainedSubject) -> None:
    plain = subject.logits(subject.text())
    network = subject.wrapped()
    route = scattered(network, is_hard=True)
    _sees_no_later_token(subject, lambda tokens: network(tokens, route), plain)


def soft_routes_see_no_later_token(subject: PretrainedSubject) -> None:
    plain = subject.logits(subject.text())
    network = subject.wrapped()
    route = scattered(network, is_hard=False)
    _sees_no_later_token(subject, lambda tokens: network(tokens, route), plain)


def a_converted_model_sees_no_later_token(subject: PretrainedSubject) -> None:
    plain = subject.logits(subject.text())
    subject.routed()
    _sees_no_later_token(subject, subject.logits, plain)


def rows_and_padding_change_nothing(subject: PretrainedSubject) -> None:
    subject.routed()
    texts = [subject.text(1, length, seed=length)[0] for length in (4, LENGTH, 11, 1)]
    with torch.no_grad():
        found = subject.made(**padded(texts)).logits
    for row, one in enumerate(texts):
        alone = subject.logits(one[None])[0]
        subject.require_close(found[row, -len(one) :], alone, f"of row {row} behind padding")


def every_cache_writes_what_no_cache_writes(subject: PretrainedSubject) -> None:
    """Padded rows among them, and each row alone."""
    subject.routed()
    tokens, holds = ragged(subject)
    slow = subject.written(tokens, attention_mask=holds, use_cache=False)
    for options in (
        {},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 5},
        {"prefill_chunk_size": 5, "cache_implementation": "static"},
    ):
        found = subject.written(tokens, attention_mask=holds, **options)
        told = f"with {options or 'a cache'}"
        require(torch.equal(found[0], slow[0]), f"{told}: another text is written")
        subject.require_close(found[1], slow[1], told)
    for row in range(2):
        one = tokens[row : row + 1, int((holds[row] == 0).sum()) :]
        alone = subject.written(one)
        require(torch.equal(alone[0][0], slow[0][row]), f"row {row} alone writes another text")
        subject.require_close(alone[1][0], slow[1][row], f"row {row} alone")


def beams_are_the_same_with_every_cache(subject: PretrainedSubject) -> None:
    subject.routed()
    tokens, holds = ragged(subject)
    beams: dict[str, Any] = {"attention_mask": holds, "num_beams": 3}
    slow, _ = subject.written(tokens, use_cache=False, **beams)
    for more in ({}, {"cache_implementation": "static"}, {"prefill_chunk_size": 5}):
        found, _ = subject.written(tokens, **beams, **more)
        require(torch.equal(found, slow), f"with {more or 'a cache'} other beams win")


def what_is_restored_is_as_it_was(subject: PretrainedSubject) -> None:
    tokens = subject.text()
    plain, names = subject.logits(tokens), list(subject.made.state_dict())
    subject.routed()
    restore(subject.made)
    subject.require_equal(subject.logits(tokens), plain, "of a model that was restored")
    require(list(subject.made.state_dict()) == names, "the weights have other names")


def _of_a_fresh_model(
    clause: Callable[[PretrainedSubject], None],
) -> Callable[[Callable[[], PreTrainedModel]], None]:
    @wraps(clause)
    def of_a_fresh_model(make: Callable[[], PreTrainedModel]) -> None:
        clause(PretrainedSubject(make()))

    return of_a_fresh_model


CLAUSES = tuple(map(_of_a_fresh_model, (
    wrapping_changes_nothing,
    all_routes_full_give_the_models_logits,
    all_routes_full_behind_padding,
    *WAYS_OF_WRITING,
    all_routes_full_give_the_models_gradients,
    all_routes_full_compiled_in_one_graph,
    hard_routes_see_no_later_token,
    soft_routes_see_no_later_token,
    a_converted_model_sees_no_later_token,
    rows_and_padding_change_nothing,
    every_cache_writes_what_no_cache_writes,
    beams_are_the_same_with_every_cache,
    what_is_restored_is_as_it_was,
)))  # fmt: skip
"""Each takes what makes the model."""
