"""The backbone: a pre-norm transformer in which every token mixes attention mechanisms.

    h'  = h  + W_o sum_k alpha_k g_k A_k(q, k, v)        q, k, v from norm(h), shared by all k
    h'' = h' + MLP(norm(h'))

or another block, in which tokens may carry more than h (see `pyro_meta.network.blocks`). Where the
weights alpha come from is not its business: `forward(tokens, route)` asks `route(layer, features)`
for them. With every route pinned to `full` and the residual block it is an ordinary transformer. A
route that answers with the index of one mechanism for every token is hard: each token then runs its
own mechanism and no other (see `pyro_meta.attention.dispatch`). It may also gate depth: a token
goes on with g of what a block adds instead of all, or skips the whole block.

With a cache, `forward(tokens, route, cache)` reads the tokens that follow those read before, and a
new token pays for its own route only (see `pyro_meta.attention.cache`).

Shapes: B sequences, T tokens, S new ones, L layers, G groups of heads, K mechanisms, D width, V
vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_meta.attention import (
    NO_TOKEN,
    Cache,
    Mechanism,
    is_choice,
    one_for_all,
    routed_attention,
)
from pyro_meta.attention.rotary import rotation
from pyro_meta.errors import UsageError
from pyro_meta.network.asking import asked, asked_of_new, require_call
from pyro_meta.network.blocks import Block, Surroundings, find_block
from pyro_meta.network.macs import dense_macs
from pyro_meta.network.protocol import Network
from pyro_meta.network.route import Decision, Features, Route
from pyro_meta.network.shape import Shape
from pyro_meta.own_classes import made
from pyro_meta.terminal.naming import public_name


class Transformer(nn.Module):
    """A causal language model whose layers ask a route how each token attends.

    Parameters
    ----------
    shape
        Sizes.
    mechanisms
        Names of built-in mechanisms, or import paths of a user's own.
    block
        Name of a built-in block, import path of a user's own, or what makes one.
    separators
        Tokens that separate sentences, for mechanisms that ask for them (`chunk_sentence`).

    Raises
    ------
    UsageError
        An unknown mechanism or block, sizes that do not fit, or no separators where they are
        asked for.
    """

    is_separator: Tensor

    def __init__(
        self,
        shape: Shape,
        mechanisms: Sequence[str] = ("full", "window", "linear"),
        block: str | Callable[[Shape, Sequence[str], int], Block] = "residual",
        separators: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.shape = shape
        self.embedding = nn.Embedding(shape.vocabulary, shape.width)
        self.dropout = nn.Dropout(shape.dropout)
        make = find_block(block) if isinstance(block, str) else block
        self.blocks = nn.ModuleList(
            made(Block, "mlp", "block", make, shape, mechanisms, layer)
            for layer in range(shape.layers)
        )
        self._block = public_name(type(self.layers[0]))  # FSDP gives a block another class
        self._ask_separators(separators)
        self.final_norm = nn.LayerNorm(shape.width)
        # Not tied with the embedding: what a token is asked for would be learned against the noise
        # of predicting when it comes.
        self.readout = nn.Linear(shape.width, shape.vocabulary, bias=False)
        self._initialise()

    def _ask_separators(self, separators: Sequence[int]) -> None:
        """Keep the separators, with the weights, if a mechanism reads them."""
        asking = [one.name for one in self.mechanisms if one.reads_separators]
        self._reads_separators = bool(asking)
        if asking and not separators:
            raise UsageError(
                f"mechanisms: {asking[0]} needs tokens that separate sentences, and the vocabulary "
                "has none that ends in . ! ? or an end of line"
            )
        if asking:
            is_separator = torch.zeros(self.shape.vocabulary, dtype=torch.bool)
            is_separator[list(separators)] = True
            self.register_buffer("is_separator", is_separator)

    def _surroundings(self, tokens: Tensor, cos: Tensor, sin: Tensor) -> Surroundings:
        # as wide as `rotate` computes, once for all layers
        wide = torch.promote_types(self.embedding.weight.dtype, torch.float32)
        cos, sin = cos.to(wide), sin.to(wide)
        is_asked = self._reads_separators
        is_separator = self.is_separator[tokens][:, None, :, None] if is_asked else None
        return Surroundings(cos, sin, is_separator)

    def _initialise(self) -> None:
        """N(0, 1 / inputs), and residual outputs smaller by sqrt(2 L).

        GPT-2's constant .02 is this at a width of 2500; at small widths it leaves attention near
        uniform for a long time.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                is_residual = name.endswith("project_out")
                scale = (2 * self.shape.layers) ** -0.5 if is_residual else 1.0
                nn.init.normal_(module.weight, std=module.weight.shape[1] ** -0.5 * scale)

    @property
    def layers(self) -> list[Block]:
        """The blocks, from the first to the last."""
        return [cast(Block, block) for block in self.blocks]

    @property
    def mechanisms(self) -> list[Mechanism]:
        """The mechanisms in the order of the weights (those of the first layer)."""
        return [cast(Mechanism, one) for one in self.layers[0].attention.mechanisms]

    @property
    def mechanism_names(self) -> list[str]:
        return [mechanism.name for mechanism in self.mechanisms]

    @property
    def leading_mechanisms(self) -> list[tuple[str, ...]]:
        """`full` in the first layer, for look-ups have to be learned somewhere before their price
        is felt, with `window` close behind, for where none are needed; `window` in the others."""
        return [("full", "window"), *[("window",)] * (self.shape.layers - 1)]

    @property
    def shows_near(self) -> bool:
        """No: queries and keys are made after the route was asked."""
        return False

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    def describe(self) -> dict[str, Any]:
        """What has to agree for weights to mean the same: mechanisms, block and sizes."""
        return {
            "mechanisms": self.mechanism_names,
            "block": self._block,
            "shape": asdict(self.shape),
        }

    def dense_macs(self, skipped: float = 0.0) -> float:
        """MACs of one token outside attention and router, see `macs.dense_macs`."""
        return dense_macs(self.shape, skipped)

    def compile_blocks(self) -> None:
        """Compile every block in place; the routes, and so all of Pyro, stay outside.

        So does the dispatch of hard routes, whose shapes follow the data. Every length is compiled
        for itself: with symbolic lengths the compiler fails on the views of window attention
        (torch 2.13, "Exponent must be non-negative").
        """
        for block in self.layers:
            block.attention.dispatch = torch.compiler.disable(routed_attention)
            block.compile(dynamic=False)

    def new_cache(self, rows: int, keeps_features: bool = True) -> Cache:
        """An empty cache for texts in `rows` rows.

        `keeps_features` may be false where the route of a token looks at that token's own features
        alone, which is faster.
        """
        layers = [
            [cast(Mechanism, one) for one in block.attention.mechanisms] for block in self.layers
        ]
        return Cache(layers, rows, keeps_features, self.shape.groups)

    def forward(
        self,
        tokens: Tensor,
        route: Route,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """Logits of the next token, [B, T, V], for tokens [B, T].

        `route` is called once per layer, outside autocast and with features in at least float32, so
        that distributions over routes never meet half precision.

        Parameters
        ----------
        tokens
            Token ids. With a cache, those that follow the ones it has read, which it takes in.
        route
            Gives weights or choices.
        cache
            Of `new_cache`. Then no gradients are kept. If a layer or a route raises, the cache is
            as it was.
        lengths
            Only with a cache: how many tokens of each row are no padding, which stands on the
            right, gets logits without meaning and leaves no trace.

        Raises
        ------
        ValueError
            Tokens, lengths or what the route gave have another shape.
        """
        return self.readout(self.states(tokens, route, cache, lengths))

    def states(
        self,
        tokens: Tensor,
        route: Route,
        cache: Cache | None = None,
        lengths: Sequence[int] | None = None,
    ) -> Tensor:
        """What `readout` turns into logits, [B, T, D]; arguments as of `forward`."""
        require_call(tokens, cache, lengths)
        if cache is not None:
            with torch.no_grad():
                return self._extended(tokens, route, cache, lengths)
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        at = self._surroundings(tokens, *rotation(positions, self.shape.head_width))
        stream = self.layers[0].begin(self.dropout(self.embedding(tokens)))  # [B, T, D]
        for layer, block in enumerate(self.layers):
            normed = block.look(stream)
            features = Features(tokens, stream.state, normed, positions)
            chosen, gate = asked(route, layer, features, self.shape.of_groups)
            stream = block(stream, normed, chosen, at, gate)
        return self.final_norm(stream.state)

    def _extended(
        self, tokens: Tensor, route: Route, cache: Cache, lengths: Sequence[int] | None
    ) -> Tensor:
        """`states` of tokens that follow those in `cache`."""
        span = cache.span(tokens.shape[1], lengths)
        positions = span.positions(tokens.device)
        is_token = span.is_token(tokens.device)
        cos, sin = rotation(positions.flatten(), self.shape.head_width)
        if positions.dim() == 2:  # rows are at different positions
            cos, sin = (x.view(len(tokens), 1, span.size, -1) for x in (cos, sin))
        at = self._surroundings(tokens, cos, sin)
        state = self.dropout(self.embedding(tokens))
        if not span.rows:  # nothing but padding
            return state
        stream = self.layers[0].begin(state)
        for layer, block in enumerate(self.layers):
            normed = block.look(stream)
            features = Features(tokens, stream.state, normed, positions)
            chosen, gate = asked_of_new(route, layer, features, cache, span, self.shape.of_groups)
            if is_token is not None and is_choice(chosen):
                is_here = is_token if chosen.dim() == 2 else is_token[..., None]
                chosen = chosen.masked_fill(~is_here, NO_TOKEN)
            past = cache.layers[layer]
            stream = block.extend(stream, normed, chosen, at, past, span, gate)
        state = self.final_norm(stream.state)
        cache.commit(span)
        return state


def pinned(network: Network, name: str) -> Route:
    """A route that sends every token to the mechanism called `name`."""
    index = network.mechanism_names.index(name)
    one_hot = F.one_hot(torch.tensor(index), len(network.mechanisms))

    def route(layer: int, features: Features) -> Decision:
        weights = one_hot.to(features.state)
        return Decision(weights.expand(*features.tokens.shape, *network.shape.of_groups, -1))

    return route


def chosen_by_all(network: Network, name: str) -> Route:
    """A hard route that gives every token the mechanism called `name`; it asks no router."""
    index = network.mechanism_names.index(name)

    def route(layer: int, features: Features) -> Decision:
        tokens = features.tokens
        like = tokens.new_empty(*tokens.shape, *network.shape.of_groups)
        return Decision(one_for_all(like, index))

    return route
