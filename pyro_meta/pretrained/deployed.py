"""Routes at work inside a model: what its layers do once it is converted.

The model is called as ever, with its own cache, padding, beams. Each layer asks the guide about its
new tokens, and what every key-value head's tokens have chosen runs:

* a text read at once, without padding, by the dispatch of hard routes;
* one new token by the keys that its choice sees;
* all else, such as padded rows and training with dropout, by one call of attention with a mask in
  which every row of every head has its own reach: correct, and nothing saved.

Shapes: B sequences, T new tokens, S keys, H query heads, G key-value heads, n groups of heads, d
head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_meta.attention import Full, Window, is_choice
from pyro_meta.attention.dispatch import folded, unfolded
from pyro_meta.attention.mixing import mixed_attention
from pyro_meta.attention.newest import attend_newest
from pyro_meta.attention.ops.precision import without_autocast
from pyro_meta.attention.ways import attend
from pyro_meta.guides import Guide
from pyro_meta.network.route import Raised
from pyro_meta.pretrained.interface import Call, Site
from pyro_meta.pretrained.network import PretrainedNetwork, inputs_of, near_of_text


@dataclass
class Deployed:
    """Routes every forward pass of a model along a guide's posterior means, hard.

    Attributes
    ----------
    guide
        Whose posteriors look at each token's own features.
    forced
        The name of a mechanism that all tokens take instead, for checks; None: the guide decides.
    tokens
        Those of the pass, [B, T]; None where the model was given embeddings.
    device
        Where the guide is; None: nobody has looked yet.
    """

    guide: Guide
    forced: str | None = None
    tokens: Tensor | None = None
    device: torch.device | None = None

    def __post_init__(self) -> None:
        network = self.guide.model.network
        assert isinstance(network, PretrainedNetwork)
        self.network = network
        self._mechanisms = [network.mechanisms_of(layer) for layer in range(network.shape.layers)]
        names = network.mechanism_names
        self._full = names.index("full") if "full" in names else None

    def attend(self, site: Site, call: Call) -> Tensor:
        """What a layer's new tokens attend to, [B, T, H, d]."""
        if site.layer is None:
            return call.plain()[0]
        call = call.without_room()
        if self.forced == "full":
            return call.plain()[0]
        with torch.no_grad():
            route = self.decide(site, call)
        if torch.is_grad_enabled():  # what a guide has read has no gradient, and what runs may
            call.near = None
        return self.execute(site, call, route)

    def decide(self, site: Site, call: Call) -> Tensor:
        """Choices of the new tokens [B, T, n], or weights [B, T, n, K] of a mixture."""
        B, _, T, _ = call.query.shape
        groups, device = self.network.shape.groups, call.query.device
        if self.forced is not None:
            index = self.network.mechanism_names.index(self.forced)
            return torch.full((B, T, groups), index, device=device)
        guide = self._guide_on(device)
        assert site.normed is not None and site.layer is not None
        state = site.normed if site.state is None else site.state
        tokens = self.tokens
        if tokens is None:
            tokens = torch.zeros(B, T, dtype=torch.long, device=device)
        places = self._places(call)
        # Rows stand at positions of their own: they are one row of tokens, side by side.
        layer = site.layer
        features = Raised(
            tokens.reshape(1, B * T),
            state.reshape(1, B * T, -1),
            site.normed.reshape(1, B * T, -1),
            places.reshape(B * T),
            lambda: self._asked_near(layer, call).reshape(1, B * T, -1),
        )
        with without_autocast(device):
            if guide.is_mixture:
                route = guide.routes(site.layer, features).mean
            else:
                route = guide.decided(site.layer, features)
        return route.reshape(B, T, groups, *route.shape[3 - (groups == 1) :])

    def _asked_near(self, layer: int, call: Call) -> Tensor:
        """What window attention gives the new tokens, [B, T, H, d], noted in the call."""
        call.near = self._near(layer, call)
        return call.near

    def _near(self, layer: int, call: Call) -> Tensor:
        network = self.network
        window = self._mechanisms[layer][network.window_index]
        T, S = call.query.shape[2], call.key.shape[2]
        if call.mask is None and not torch.compiler.is_compiling():
            if T == 1:
                q, k, v = inputs_of(call)[:3]
                return window.decode(q, k, v).transpose(1, 2)
            if T == S:
                near = near_of_text(network, layer, inputs_of(call))
                return near.unflatten(-1, (network.shape.heads, -1))
        return _attended(call, _reach(window, _seen(call)))

    def along(self, site: Site, call: Call, route: Tensor) -> Tensor:
        """All the attention that a route takes, with what the guide reads of it: [B, T, H, d]."""
        assert site.layer is not None
        if self.guide.reads_near:
            self._asked_near(site.layer, call)
        return self.execute(site, call, route)

    def execute(self, site: Site, call: Call, route: Tensor) -> Tensor:
        """What tokens attend to, [B, T, H, d], along a route as `decide` gives it."""
        T, S = call.query.shape[2], call.key.shape[2]
        is_plain = call.mask is None and not call.dropout and not torch.compiler.is_compiling()
        if is_plain and T == 1 and is_choice(route):
            out = self._newest(site, call, route)
        elif not torch.compiler.is_compiling() and self._is_full(route):
            return call.plain()[0]
        elif is_plain and T == S and call.near is not None and is_choice(route):
            out = self._beside_near(site, call, call.near, route)
        elif is_plain and T == S:
            out = self._whole(site, call, route)
        else:
            out = self._masked(site, call, route)
        return out.to(call.value.dtype)

    def _is_full(self, route: Tensor) -> bool:
        """Whether every token and group has chosen `full`."""
        if self._full is None or not is_choice(route):
            return False
        return bool((route == self._full).all())

    def _guide_on(self, device: torch.device) -> Guide:
        """The guide, where the layer is: a model may have been moved."""
        if self.device != device:
            self.guide.to(device)
            self.guide.model.execution.to(device)
            self.device = device
        return self.guide

    def _places(self, call: Call) -> Tensor:
        """Positions of the new tokens, [B, T]: as the model has them, else by what they see."""
        B, _, T, _ = call.query.shape
        given = call.options.get("position_ids")
        if given is not None and given.dim() <= 2:
            return given.expand(B, T)
        return (_seen(call)[:, 0].sum(-1) - 1).clamp(min=0)

    def _whole(self, site: Site, call: Call, route: Tensor) -> Tensor:
        """A whole text, by the dispatch of hard routes."""
        network = self.network
        assert site.layer is not None
        shape, inputs = network.shape, inputs_of(call)
        of_layer = route if shape.groups > 1 else route[:, :, 0]
        out = mixed_attention(
            self._mechanisms[site.layer],
            network.gain.to(inputs.v),
            of_layer,
            inputs,
            shape.groups,
        )
        return out.unflatten(-1, (shape.heads, -1))

    def _beside_near(self, site: Site, call: Call, near: Tensor, route: Tensor) -> Tensor:
        """A whole text whose windows were run already: what else was chosen takes their place."""
        network = self.network
        assert site.layer is not None
        shape, inputs = network.shape, inputs_of(call)
        choice, inputs = folded(route if shape.groups > 1 else route[:, :, 0], inputs, shape.groups)
        B, T, H, d = near.shape
        out = near.view(B, T, shape.groups, -1).transpose(1, 2).flatten(0, 2)  # [B n T, D / n]
        for index, mechanism in enumerate(self._mechanisms[site.layer]):
            own = (choice.flatten() == index).nonzero()[:, 0]
            if index != network.window_index and len(own):
                rows = attend(mechanism, inputs.read_by(mechanism), own)
                out = out.index_copy(0, own, rows.flatten(1).to(out))
        return unfolded(out.view(B * shape.groups, T, -1), shape.groups).view(B, T, H, d)

    def _newest(self, site: Site, call: Call, route: Tensor) -> Tensor:
        """One new token in each row: each group by what it has chosen, like ones at once."""
        network = self.network
        assert site.layer is not None
        mechanisms = self._mechanisms[site.layer]
        q, k, v = inputs_of(call)[:3]
        B, H, _, d = q.shape
        n, S = network.shape.groups, k.shape[2]
        chosen = route.flatten().tolist()  # [B n], as the groups of each row follow each other
        near = network.window_index if call.near is not None else None
        rows = [row for row, one in enumerate(chosen) if one != near]
        if not rows:
            assert call.near is not None
            return call.near
        if len(rows) == chosen.count(chosen[0]) == B * n:
            return mechanisms[chosen[0]].decode(q, k, v).transpose(1, 2)
        q, k, v = (x.unflatten(1, (n, -1)).flatten(0, 1) for x in (q, k, v))
        asked = [mechanisms[chosen[row]] for row in rows]
        found = attend_newest(asked, q, k, v, rows, [S] * len(rows))  # [N, H / n, d]
        if call.near is not None and len(rows) < B * n:
            out = call.near.reshape(B * n, H // n, d).clone()
            found = out.index_copy_(0, torch.tensor(rows, device=out.device), found.to(out))
        return found.view(B, 1, H, d)

    def _masked(self, site: Site, call: Call, route: Tensor) -> Tensor:
        """By one call of attention for choices, in which every row has its own reach."""
        network = self.network
        assert site.layer is not None
        seen = _seen(call)  # [B, 1, T, S]
        reaches = [_reach(one, seen) for one in self._mechanisms[site.layer]]
        heads = call.query.shape[1] // network.shape.groups
        if is_choice(route):
            choice = route.transpose(1, 2)[..., None]  # [B, n, T, 1]
            mask = torch.zeros_like(choice, dtype=torch.bool)
            for index, reach in enumerate(reaches):
                mask = mask | ((choice == index) & reach)
            return _attended(call, mask.repeat_interleave(heads, 1), call.dropout)
        weights = route.repeat_interleave(heads, 2)  # [B, T, H, K]
        ways = [_attended(call, one, call.dropout) for one in reaches]
        parts = [weights[..., index, None] * way for index, way in enumerate(ways)]
        return torch.stack(parts).sum(0)


def _attended(call: Call, mask: Tensor, dropout: float = 0.0) -> Tensor:
    """Attention to the keys of a mask [B, 1 or H, T, S]: [B, T, H, d]."""
    q, k, v = call.query, call.key, call.value
    shared = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
    out = F.scaled_dot_product_attention(q, k, v, mask, dropout, scale=call.scaling)
    return out.transpose(1, 2)


def _seen(call: Call) -> Tensor:
    """Which keys a query sees by full attention, booleans [B, 1, T, S]."""
    B, _, T, _ = call.query.shape
    S, mask = call.key.shape[2], call.mask
    if mask is None:
        place = torch.arange(S - T, S, device=call.query.device)[:, None]
        return (torch.arange(S, device=place.device) <= place).expand(B, 1, T, S)
    if mask.dtype == torch.bool:
        return mask.expand(B, 1, T, S)
    return (mask > torch.finfo(mask.dtype).min / 2).expand(B, 1, T, S)


def _reach(mechanism: torch.nn.Module, seen: Tensor) -> Tensor:
    """Which of the keys that are `seen` [B, 1, T, S] a mechanism looks at."""
    if isinstance(mechanism, Full):
        return seen
    assert isinstance(mechanism, Window)
    key = torch.arange(seen.shape[-1], device=seen.device)
    own = (seen * key).amax(-1, keepdim=True)  # the newest key that is seen is one's own
    begins = seen.to(torch.int8).argmax(-1, keepdim=True)  # past padding, and texts packed before
    is_near = key > own - mechanism.window
    return seen & (is_near | (key < begins + mechanism.sinks))
