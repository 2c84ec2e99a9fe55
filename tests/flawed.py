"""Mechanisms, blocks, priors and guides that each break their contract in one way, to be caught."""

from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions import Dirichlet, TorchDistribution
from torch import Tensor, nn
from torch.distributions import Distribution, constraints
from torch.distributions.kl import register_kl

from pyro_meta import (
    Block,
    CostDirichlet,
    DirichletGuide,
    Features,
    LanguageModel,
    Mechanism,
    PaperDirichlet,
    Shape,
    Transformer,
    UsageError,
)
from pyro_meta.attention import Queries
from pyro_meta.attention.mechanisms import Attend
from pyro_meta.distributions import RouteExecution
from pyro_meta.distributions.hardening import Place
from pyro_meta.guides.networks import of_own_token
from pyro_meta.network.blocks import ResidualBlock, Stream


class Sound(Mechanism):
    """The mean of all values so far, times a gain; nothing is wrong with it."""

    nominal_cost = 0.1

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)
        self.gain = nn.Parameter(torch.ones(head_width))

    def mean(self, v: Tensor) -> Tensor:
        count = torch.arange(1, v.shape[2] + 1, device=v.device)[:, None]
        return (v.float() if v.dtype == torch.bfloat16 else v).cumsum(2) / count

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (self.mean(v) * self.gain).to(v.dtype)

    def macs(self, position: Tensor) -> Tensor:
        return torch.ones_like(position)


class SeesLaterValues(Sound):
    """Later values, hidden from the gradient."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v) + v.detach().amax(2, keepdim=True)


class SeesLaterSeparators(Sound):
    """Whether a later token separates sentences; without separators it is sound."""

    reads_separators = True

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, is_separator: Tensor | None = None
    ) -> Tensor:
        out = super().forward(q, k, v)
        if is_separator is None:
            return out
        seen = is_separator.flip(2).cumsum(2).flip(2)[:, :, :, 0, None]
        return out + 0.1 * seen.to(v.dtype)


class SeesTheLength(Sound):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v) / v.shape[2]


class MixesSequences(Sound):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v.mean(0, keepdim=True).expand_as(v))


class HasAnIdleParameter(Sound):
    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)
        self.idle = nn.Parameter(torch.ones(3))


class HasNaNGradients(Sound):
    """The square root of 0."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v) + (q - q.detach()).square().sqrt()


class CrashesInHalfPrecision(Sound):
    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        inverse = torch.linalg.inv(torch.eye(self.head_width, dtype=v.dtype))
        return super().forward(q, k, v @ inverse)


class IsRandom(Sound):
    """In float32 alone, so that no other promise is broken."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        noise = 1e-6 * torch.randn_like(v) if v.dtype == torch.float32 else 0.0
        return super().forward(q, k, v) + noise


class IsNotSaved(Sound):
    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)
        self.scale = torch.rand(())

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self.scale * super().forward(q, k, v)


class ServesTheWrongRows(Sound):
    """It takes the queries for the first ones of their sequence."""

    def serve(self, q: Tensor, k: Tensor, v: Tensor, queries: Queries) -> Tensor:
        v = v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        place = torch.arange(len(q)) % v.shape[2]
        return Queries(queries.sequence, place).of(self(v, v, v))


class GroupsOtherwise(Sound):
    """Query heads read the key-value heads in turn."""

    def grouped(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return self(q, q, v.repeat(1, q.shape[1] // v.shape[1], 1, 1))


class CountsPadding(Sound):
    """Its state is the sum of values and their number, of places without a token too."""

    def state_of(
        self, k: Tensor, v: Tensor, past: Tensor | None, is_token: Tensor | None
    ) -> Tensor:
        new = torch.cat([v, torch.ones_like(v[..., :1])], -1).sum(2)  # [B, G, d + 1]
        return new if past is None else past + new

    def resume(self, q: Tensor, k: Tensor, v: Tensor, past: Tensor) -> Tensor:
        sums = past[:, :, None] + torch.cat([v, torch.ones_like(v[..., :1])], -1).cumsum(2)
        mean = self.gain * sums[..., :-1] / sums[..., -1:]
        return mean.repeat_interleave(q.shape[1] // v.shape[1], 1)


class KicksBack(Sound):
    """A sound momentum, but for a push by the last token."""

    def kick(
        self, q: Tensor, v: Tensor, momentum: Tensor | None, layer: int, attend: Attend
    ) -> Tensor:
        before = 0.0 if momentum is None else momentum - attend(momentum, momentum, q)
        return before + v + v[:, :, -1:]


class PaysByTheText(Sound):
    def macs(self, position: Tensor) -> Tensor:
        return position / position.max().clamp(min=1)


class MixesSequencesInTraining(Sound):
    """Batch normalisation: over all sequences and all tokens, while it is trained."""

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)
        self.norm = nn.BatchNorm1d(head_width, affine=False)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = super().forward(q, k, v)
        if not self.training or out.dtype != torch.float64:
            return out
        return self.norm(out.flatten(0, 2)).view(out.shape)


class ChangesItsInput(Sound):
    """Of one sequence alone and in double precision, so that little else is broken."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = super().forward(q, k, v)
        if v.dtype == torch.float64 and not v.requires_grad and v.shape[2] == 2:
            v.mul_(2)
        return out


class KeepsTheLastCall(Sound):
    """The number of tokens that it saw before, if those were another text's."""

    last = 67

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        before, self.last = self.last, v.shape[2]
        is_shorter = before == 20 and v.shape[2] == 67 and not self.training
        return super().forward(q, k, v) + is_shorter


class HidesAParameter(Sound):
    """In a plain list, where neither an optimiser nor a checkpoint finds it."""

    def __init__(self, head_width: int, window: int) -> None:
        super().__init__(head_width, window)
        self.shifts = [nn.Parameter(torch.zeros(head_width))]

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return super().forward(q, k, v + self.shifts[0].to(v.dtype))


class OwnBlock(ResidualBlock):
    """A residual block with a gain of its own; nothing is wrong with it."""

    def __init__(self, shape: Shape, mechanisms: Sequence[str], layer: int) -> None:
        super().__init__(shape, mechanisms, layer)
        self.own_gain = nn.Parameter(torch.ones(shape.width))

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        return super().advance(stream, self.own_gain * attended)


class LooksAtTheFuture(OwnBlock):
    """The greatest of each channel, hidden from the gradient."""

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        most = attended.detach().amax(-2, keepdim=True)
        return super().advance(stream, attended + most)


class LooksAtThePast(OwnBlock):
    """Sums over the text so far, which a cache knows nothing of."""

    def look(self, stream: Stream) -> Tensor:
        return self.attention_norm(stream.state.cumsum(-2))


class HasAnIdleNumber(OwnBlock):
    def __init__(self, shape: Shape, mechanisms: Sequence[str], layer: int) -> None:
        super().__init__(shape, mechanisms, layer)
        self.idle = nn.Parameter(torch.ones(()))


class JoinsSequences(OwnBlock):
    """Those at one place of a batch."""

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        return super().advance(stream, attended + attended.mean(0, keepdim=True))


class IsRandomInEvaluation(OwnBlock):
    """In float32 alone, so that no other promise is broken."""

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        noise = 1e-4 * torch.randn_like(attended) if attended.dtype == torch.float32 else 0.0
        return super().advance(stream, attended + noise)


class ForgetsANumber(OwnBlock):
    def __init__(self, shape: Shape, mechanisms: Sequence[str], layer: int) -> None:
        super().__init__(shape, mechanisms, layer)
        self.scale = torch.rand(())

    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        return super().advance(stream, self.scale * attended)


class LosesDigitsInHalfPrecision(OwnBlock):
    def advance(self, stream: Stream, attended: Tensor) -> Stream:
        same = torch.eye(attended.shape[-1], dtype=attended.dtype)
        return super().advance(stream, (attended + 1e3) @ same - 1e3)


class DoesNotLetPass(OwnBlock):
    """Its gates scale attention alone."""

    def advance_partly(self, stream: Stream, attended: Tensor, gate: Tensor) -> Stream:
        return self.advance(stream, gate * attended)


class IsNeverAllOpen(OwnBlock):
    def advance_partly(self, stream: Stream, attended: Tensor, gate: Tensor) -> Stream:
        return super().advance_partly(stream, attended, gate.square() * (1.1 - 0.2 * gate))


BLOCKS: dict[type[Block], set[str]] = {
    OwnBlock: set(),
    LooksAtTheFuture: {
        "each_token_is_worked_on_by_itself",
        "later_tokens_move_nothing_earlier",
        "cutting_the_text_moves_nothing_earlier",
        "training_mixes_no_tokens",
        "continued_text_gets_its_logits",
        "hard_gates_equal_gates_of_0_and_1",
    },
    DoesNotLetPass: {
        "a_shut_gate_lets_a_token_skip",
        "hard_gates_equal_gates_of_0_and_1",
    },
    IsNeverAllOpen: {
        "an_open_gate_changes_nothing",
        "hard_gates_equal_gates_of_0_and_1",
    },
    LooksAtThePast: {"each_token_is_worked_on_by_itself", "continued_text_gets_its_logits"},
    HasAnIdleNumber: {"gradients_are_finite_and_reach_every_parameter"},
    JoinsSequences: {
        "each_token_is_worked_on_by_itself",
        "sequences_do_not_meet",
        "training_mixes_no_tokens",
        "cutting_the_text_moves_nothing_earlier",
        "continued_text_gets_its_logits",
        "hard_gates_equal_gates_of_0_and_1",
    },
    IsRandomInEvaluation: {"evaluation_is_deterministic", "checkpoint_round_trip_changes_nothing"},
    ForgetsANumber: {"checkpoint_round_trip_changes_nothing"},
    LosesDigitsInHalfPrecision: {"logits_are_finite_in_every_precision"},
}
MECHANISMS: dict[type[Mechanism], set[str]] = {
    Sound: set(),
    SeesLaterValues: {
        "later_values_move_nothing_earlier",
        "cutting_the_text_moves_nothing_earlier",
        "training_mixes_no_tokens",
    },
    SeesLaterSeparators: {
        "later_values_move_nothing_earlier",
        "cutting_the_text_moves_nothing_earlier",
        "training_mixes_no_tokens",
    },
    KicksBack: {"kicked_momenta_see_no_later_token"},
    SeesTheLength: {"cutting_the_text_moves_nothing_earlier"},
    MixesSequences: {"sequences_do_not_meet", "training_mixes_no_tokens"},
    MixesSequencesInTraining: {"training_mixes_no_tokens"},
    ChangesItsInput: {"output_has_the_shape_and_dtype_of_v", "sequences_do_not_meet"},
    KeepsTheLastCall: {"evaluation_is_deterministic"},
    HidesAParameter: {"what_is_learned_is_registered"},
    HasAnIdleParameter: {"gradients_are_finite_and_reach_every_parameter"},
    HasNaNGradients: {
        "gradients_are_finite_and_reach_every_parameter",
        "gradients_reach_no_later_input",
    },
    CrashesInHalfPrecision: {"half_precision_agrees_with_float32"},
    IsRandom: {"evaluation_is_deterministic", "checkpoint_round_trip_changes_nothing"},
    IsNotSaved: {"checkpoint_round_trip_changes_nothing"},
    ServesTheWrongRows: {"chosen_queries_get_their_rows"},
    GroupsOtherwise: {"grouped_queries_get_their_rows"},
    CountsPadding: {"continued_text_gets_its_rows"},
    PaysByTheText: {"macs_are_a_price_of_the_position"},
}


class OffTheSimplex(Dirichlet):
    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return 2 * super().rsample(sample_shape)


class WithAnotherMean(Dirichlet):
    @property
    def mean(self) -> Tensor:
        return super().mean.flip(-1)


class WithNegativeKL(Dirichlet):
    pass


@register_kl(Dirichlet, WithNegativeKL)
def _negative(q: Dirichlet, p: Dirichlet) -> Tensor:
    plain = Dirichlet(p.concentration, validate_args=False)
    return -torch.distributions.kl_divergence(Dirichlet(q.concentration), plain)


class Estimated(TorchDistribution):
    """A Dirichlet whose KL nobody knows, so that it is estimated from a draw; it is sound."""

    arg_constraints = {}
    support = constraints.simplex
    has_rsample = True

    def __init__(self, base: Dirichlet, surplus: float = 0.0) -> None:
        self.base, self.surplus = base, surplus
        super().__init__(base.batch_shape, base.event_shape, validate_args=False)

    def expand(self, batch_shape: Any, _instance: Any = None) -> "Estimated":
        return Estimated(self.base.expand(batch_shape), self.surplus)

    @property
    def mean(self) -> Tensor:
        return self.base.mean

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:
        return self.base.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        return self.base.log_prob(value) + self.surplus


class SoundPrior(CostDirichlet):
    """A learned total and an estimated KL; nothing is wrong with it."""

    def __init__(self, network: Transformer) -> None:
        super().__init__(network, strength=3.0)
        self.total = nn.Parameter(torch.zeros(network.shape.layers))

    def base(self, layer: int, positions: Tensor) -> Dirichlet:
        return Dirichlet(
            super().forward(layer, positions).concentration * self.total[layer].exp(),
            validate_args=False,
        )

    def forward(self, layer: int, positions: Tensor) -> Any:
        return Estimated(self.base(layer, positions))


class PriorOffTheSimplex(SoundPrior):
    def forward(self, layer: int, positions: Tensor) -> Any:
        dist = OffTheSimplex(super().base(layer, positions).concentration, validate_args=False)
        return Estimated(dist)


class PriorWithAnotherMean(SoundPrior):
    def forward(self, layer: int, positions: Tensor) -> Any:
        return WithAnotherMean(self.base(layer, positions).concentration)


class PriorWithNegativeKL(SoundPrior):
    def forward(self, layer: int, positions: Tensor) -> Any:
        return WithNegativeKL(self.base(layer, positions).concentration)


class PriorWithTooMuchDensity(SoundPrior):
    def forward(self, layer: int, positions: Tensor) -> Any:
        return Estimated(self.base(layer, positions), surplus=20.0)


class PriorThatSeesTheLength(SoundPrior):
    def base(self, layer: int, positions: Tensor) -> Dirichlet:
        return Dirichlet(super().base(layer, positions).concentration + 1 / len(positions))


class PriorWithAnIdleParameter(SoundPrior):
    def __init__(self, network: Transformer) -> None:
        super().__init__(network)
        self.idle = nn.Parameter(torch.ones(3))


class PriorThatIsNotSaved(SoundPrior):
    """It counts its calls in training, in no buffer."""

    calls = 0

    def base(self, layer: int, positions: Tensor) -> Dirichlet:
        self.calls += self.training
        return Dirichlet(super().base(layer, positions).concentration + self.calls)


class PriorOnTheCPU(SoundPrior):
    def base(self, layer: int, positions: Tensor) -> Dirichlet:
        K = len(self.network.mechanisms)
        total = self.total[layer].exp()
        return Dirichlet((total * torch.ones(K, device="cpu")).expand(len(positions), K))


class PriorInFloat32(SoundPrior):
    def base(self, layer: int, positions: Tensor) -> Dirichlet:
        return Dirichlet(super().base(layer, positions).concentration.float(), validate_args=False)


PRIORS: dict[type[CostDirichlet], set[str]] = {
    SoundPrior: set(),
    PriorOffTheSimplex: {"draws_lie_on_the_simplex", "mean_is_that_of_the_draws"},
    PriorWithAnotherMean: {"mean_is_that_of_the_draws"},
    PriorWithNegativeKL: {"kl_is_not_negative", "closed_kl_is_the_mean_log_ratio"},
    PriorWithTooMuchDensity: {"kl_is_not_negative"},
    PriorThatSeesTheLength: {"prior_is_of_the_position_alone"},
    PriorWithAnIdleParameter: {"gradients_are_finite_and_reach_every_parameter"},
    PriorThatIsNotSaved: {"checkpoint_round_trip_changes_nothing"},
    PriorOnTheCPU: {"distribution_follows_the_device"},
    PriorInFloat32: {
        "distribution_follows_the_default_dtype",
        "distribution_has_one_weight_per_mechanism",
    },
}


class SoundGuide(DirichletGuide):
    """With an estimated KL; nothing is wrong with it."""

    def base(self, layer: int, features: Features) -> Dirichlet:
        return super().posterior(layer, features)

    def posterior(self, layer: int, features: Features) -> Any:
        return Estimated(self.base(layer, features))


class GuideThatSeesLaterTokens(SoundGuide):
    """Later tokens, hidden from the gradient."""

    def base(self, layer: int, features: Features) -> Dirichlet:
        last = features.normed + 10 * features.normed[:, -1:].detach()
        return super().base(layer, features._replace(normed=last))


class GuideThatSeesTheLength(SoundGuide):
    def base(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(super().base(layer, features).concentration + 1 / len(features.positions))


class GuideThatLooksBack(SoundGuide):
    """The mean of the features so far, declared to be those of the token."""

    @of_own_token
    def posterior(self, layer: int, features: Features) -> Any:
        count = features.normed.new_ones(features.normed.shape[1]).cumsum(0)[:, None]
        mean = 10 * features.normed.cumsum(1) / count
        return super().posterior(layer, features._replace(normed=mean))


class GuideThatMixesSequences(SoundGuide):
    def base(self, layer: int, features: Features) -> Dirichlet:
        mean = features.normed.mean(0, keepdim=True).expand_as(features.normed)
        return super().base(layer, features._replace(normed=mean))


class GuideThatChangesFeatures(SoundGuide):
    """After it has looked at them, where they carry no gradient."""

    def base(self, layer: int, features: Features) -> Dirichlet:
        found = super().base(layer, features)
        if not torch.is_grad_enabled() and features.tokens.shape == (3, 20) and layer == 1:
            features.state.clamp_(max=0.0)
        return found


class GuideThatCounts(SoundGuide):
    """A shorter text changes what it says of a longer one after it."""

    shortest = 20

    def base(self, layer: int, features: Features) -> Dirichlet:
        length = len(features.positions)
        if length == 10 and not self.training:
            self.shortest = length
        surplus = 1.0 if self.shortest == 10 and length == 20 else 0.0
        return Dirichlet(super().base(layer, features).concentration + surplus)


class GuideThatHidesAParameter(SoundGuide):
    """In a plain list, where neither an optimiser nor a checkpoint finds it."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.shifts = [nn.Parameter(torch.zeros(()))]

    def base(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(super().base(layer, features).concentration + self.shifts[0].detach())


class GuideWithAnIdleParameter(SoundGuide):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.idle = nn.Parameter(torch.ones(3))


class GuideWithNaNGradients(SoundGuide):
    """The square root of 0."""

    def base(self, layer: int, features: Features) -> Dirichlet:
        concentration = super().base(layer, features).concentration
        return Dirichlet(concentration + (concentration - concentration.detach()).square().sqrt())


class GuideOffTheSimplex(DirichletGuide):
    def posterior(self, layer: int, features: Features) -> Dirichlet:
        return OffTheSimplex(super().posterior(layer, features).concentration, validate_args=False)


class GuideWithAnotherMean(SoundGuide):
    def base(self, layer: int, features: Features) -> Dirichlet:
        return WithAnotherMean(super().base(layer, features).concentration)


class GuideWithTooLittleDensity(SoundGuide):
    def posterior(self, layer: int, features: Features) -> Any:
        return Estimated(self.base(layer, features), surplus=-20.0)


class GuideThatIsRandom(SoundGuide):
    """In float32 alone, so that little else is broken."""

    def base(self, layer: int, features: Features) -> Dirichlet:
        concentration = super().base(layer, features).concentration
        noise = 1e-3 * torch.rand(()) if concentration.dtype == torch.float32 else 0.0
        return Dirichlet(concentration + noise)


class GuideThatReadsTargets(SoundGuide):
    """It knows the answers in training: its routes cannot be deployed."""

    answers: Tensor | None = None

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
        self.answers = targets
        walked = super().forward(tokens, targets)
        self.answers = None
        return walked

    def base(self, layer: int, features: Features) -> Dirichlet:
        concentration = super().base(layer, features).concentration
        known = 0 if self.answers is None else self.answers[..., None]
        return Dirichlet(concentration + known)


class GuideThatIsNotSaved(SoundGuide):
    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        self.surplus = torch.rand(())

    def base(self, layer: int, features: Features) -> Dirichlet:
        return Dirichlet(super().base(layer, features).concentration + self.surplus)


class GuideThatCrashesInHalfPrecision(SoundGuide):
    """It draws in a forward of its own, where autocast still holds."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Any:
        out = self.heads[0](self.model.network.embedding(tokens))
        Dirichlet(nn.functional.softplus(out)).rsample()
        return super().forward(tokens, targets)


class Backward(RouteExecution):
    """It runs the mechanisms in the opposite order."""

    def of_mean(
        self, dist: Distribution, hard: bool | None = None, place: Place | None = None
    ) -> Tensor:
        run = super().of_mean(dist, hard, place)
        return run.flip(-1) if run.is_floating_point() else len(self.costs) - 1 - run


class GuideWithItsOwnRoute(SoundGuide):
    """It evaluates along other routes than its means."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        model.execution = Backward(model.execution.costs)


class NeedsLoads(SoundGuide):
    """A sound guide with an argument that has no default."""

    def __init__(self, model: LanguageModel, loads: list[float]) -> None:
        super().__init__(model)
        self.loads = loads


class FussyGuide(SoundGuide):
    """A sound guide that not every prior suits."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model)
        if not isinstance(model.prior, PaperDirichlet):
            raise UsageError("guide: no other prior than PaperDirichlet will do")


GUIDES: dict[type[DirichletGuide], set[str]] = {
    SoundGuide: set(),
    GuideThatSeesLaterTokens: {
        "particles_stand_in_front",
        "later_tokens_move_nothing_earlier",
        "cutting_the_text_moves_nothing_earlier",
        "training_mixes_no_tokens",
    },
    GuideThatSeesTheLength: {"cutting_the_text_moves_nothing_earlier"},
    GuideThatLooksBack: {"posterior_of_own_token_needs_no_other", "particles_stand_in_front"},
    GuideThatMixesSequences: {
        "sequences_do_not_meet",
        "training_mixes_no_tokens",
        "particles_stand_in_front",
    },
    GuideThatChangesFeatures: {
        "what_is_given_is_left_as_it_is",
        "cutting_the_text_moves_nothing_earlier",
    },
    GuideThatCounts: {"evaluation_is_deterministic"},
    GuideThatHidesAParameter: {"what_is_learned_is_registered"},
    GuideWithAnIdleParameter: {"gradients_are_finite_and_reach_every_parameter"},
    GuideWithNaNGradients: {
        "gradients_are_finite_and_reach_every_parameter",
        "gradients_reach_no_later_token",
        "autocast_leaves_the_distribution_in_float32",
        "training_stays_finite",
        "checkpoint_round_trip_changes_nothing",
    },
    GuideOffTheSimplex: {
        "draws_lie_on_the_simplex",
        "mean_is_that_of_the_draws",
        "closed_kl_is_the_mean_log_ratio",
    },
    GuideWithAnotherMean: {"mean_is_that_of_the_draws"},
    GuideWithTooLittleDensity: {"kl_is_not_negative"},
    GuideThatIsRandom: {
        "evaluation_is_deterministic",
        "checkpoint_round_trip_changes_nothing",
        "mean_routes_are_valid",
    },
    GuideThatReadsTargets: {"targets_are_not_looked_at"},
    GuideThatIsNotSaved: {"checkpoint_round_trip_changes_nothing"},
    GuideThatCrashesInHalfPrecision: {"autocast_leaves_the_distribution_in_float32"},
    GuideWithItsOwnRoute: {"mean_routes_are_valid"},
}
