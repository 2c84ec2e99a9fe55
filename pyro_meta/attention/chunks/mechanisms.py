"""The mechanisms `chunk`, `chunk_sliding`, `chunk_sentence` and `chunk_learned`.

Near tokens are read one by one, older ones in chunks (see `pyro_meta.attention.chunks.attention`);
they differ in where chunks begin. Parameters are the same for all heads of a layer, which costs
nothing: a head may turn its own queries and keys so that they fit.

Shapes: B sequences, R rows (B, or 1 where all sequences agree), H heads, T tokens, M chunks, d head
width, C chunk length.
"""

import re
from typing import ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pyro_meta.attention.auxiliary_losses import are_collected, report_penalty
from pyro_meta.attention.chunks.attention import (
    QUERIES,
    Digest,
    chunk_attention,
    chunk_attention_of,
    log_sizes,
    reach_of_all,
    summaries,
)
from pyro_meta.attention.chunks.memory import ChunkMemory
from pyro_meta.attention.chunks.starts import (
    boundary_probability,
    bounded_starts,
    ratio_loss,
    regular_starts,
)
from pyro_meta.attention.mechanisms import Mechanism
from pyro_meta.attention.memory import Memory
from pyro_meta.attention.ops.queries import Queries
from pyro_meta.attention.rotary import unturned
from pyro_meta.attention.sizes import CHUNK, Sizes
from pyro_meta.errors import UsageError


class Chunk(Mechanism):
    """One's own chunk of C tokens, up to oneself, and a summary of each earlier chunk.

    2 d (t mod C + 1 + floor(t / C)) MACs per head, and 2.5 d to enter a token into its summary.

    Parameters
    ----------
    head_width
        d, at least 4.
    window
        Not read: it is an argument of every mechanism.
    chunk
        C.
    recent
        How many of the last tokens are read one by one at least, oneself included; the chunks that
        they are in are read one by one as a whole. By default one's own chunk alone.
    """

    nominal_cost = 0.10
    block = QUERIES

    def __init__(
        self, head_width: int, window: int, chunk: int = CHUNK, recent: int | None = None
    ) -> None:
        super().__init__(head_width, window)
        recent = self._recent_unless_given(chunk) if recent is None else recent
        for name, value in (("chunk", chunk), ("recent", recent)):
            if value < 1:
                raise UsageError(f"{name}: {value} given; at least 1 is allowed")
        width = unturned(torch.empty(head_width)).numel()
        if not width:
            raise UsageError(
                f"{self.name}: heads {head_width} wide given, in which every channel turns with "
                "position; at least 4 is allowed"
            )
        self.chunk, self.recent = chunk, recent
        self.scorer = nn.Parameter(torch.zeros(width))  # u

    @classmethod
    def of_sizes(cls, sizes: Sizes) -> Self:
        return cls(head_width=sizes.head_width, window=sizes.window, chunk=sizes.chunk)

    @property
    def name(self) -> str:
        """The class's name in lower case, with _ between its words: `chunk_learned`."""
        return re.sub(r"(?<=.)(?=[A-Z])", "_", type(self).__name__).lower()

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # shapes follow the text
    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, is_separator: Tensor | None = None
    ) -> Tensor:
        """Also of [B, 1, T, 1]: which tokens are separators, where the mechanism reads them."""
        return chunk_attention(q, k, v, self._digest(k, v, is_separator), self.recent)

    def serve(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        queries: Queries,
        is_separator: Tensor | None = None,
    ) -> Tensor:
        digest = self._digest(k, v, is_separator)
        return chunk_attention_of(q, k, v, digest, self.recent, queries)

    def new_memory(self, rows: int) -> Memory:
        return ChunkMemory(self.starts, self._summaries, self.recent, rows)

    def macs(self, position: Tensor) -> Tensor:
        furthest = (position - (self.recent - 1)).clamp(min=0)
        finished = torch.div(furthest, self.stride, rounding_mode="floor")
        alone = position + 1 - self.stride * finished
        return 2.0 * self.head_width * (alone + finished) + self._entering

    def starts(self, k: Tensor, is_separator: Tensor | None = None) -> Tensor:
        """Where chunks begin, [R, M]: positions from 0 on, T or more where a row has fewer.

        Whether a token begins a chunk must depend on the keys [B, G, T, d] of tokens up to itself
        and behind the start of the chunk before, and on nothing else: cut at a start, the rest of a
        text has the same starts.
        """
        return regular_starts(k.shape[2], self.stride, k.device)

    @property
    def stride(self) -> int:
        """Tokens from one start to the next; about as many, where lengths differ."""
        return self.chunk

    @property
    def longest(self) -> int:
        """The most tokens that a summary is made of."""
        return self.chunk

    @property
    def _entering(self) -> float:
        """MACs per head by which a token enters the summaries that it is part of."""
        shares = self.longest / self.stride
        return len(self.scorer) + 2 * self.head_width * shares

    def _recent_unless_given(self, chunk: int) -> int:
        return 1

    def _stretches(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        """What the summaries of all chunks but the last are made of: first, and behind the last."""
        return starts[:, :-1], starts[:, 1:]

    def _digest(self, k: Tensor, v: Tensor, is_separator: Tensor | None) -> Digest:
        starts = self.starts(k, is_separator)
        wide = torch.promote_types(v.dtype, torch.float32)
        return Digest(starts, *self._summaries(k, v, starts), log_sizes(starts, wide))

    def _summaries(self, k: Tensor, v: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Of all chunks but the last."""
        longest = min(self.longest, k.shape[2])
        return summaries(k, v, *self._stretches(starts), self.scorer, longest)


class ChunkSliding(Chunk):
    """The last C tokens one by one, and before them overlapping stretches of C tokens.

    A stretch ends every s = ceil(C / 2) tokens. It is summed over C tokens, but stands for its last
    s alone (log n_m = log s), so that old tokens are counted once though they are summed twice. The
    tokens read one by one are the last C and those before them up to a multiple of s; no stretch
    reaches into them.
    """

    nominal_cost = 0.20

    @property
    def stride(self) -> int:
        return -(-self.chunk // 2)

    def _recent_unless_given(self, chunk: int) -> int:
        return chunk

    def _stretches(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        return (starts[:, 1:] - self.longest).clamp(min=0), starts[:, 1:]


class ChunkSentence(Chunk):
    """Chunks that begin behind separators, such as full stops and ends of lines.

    A chunk has ceil(C / 2) to 2 C - 1 tokens: a separator that comes sooner is passed over, and
    without one a chunk ends all the same. So a query reads at most 2 C - 1 tokens and t / (C / 2)
    summaries. `macs` is what chunks of C tokens cost on average over the query's place in its own;
    `macs_of` counts.
    """

    reads_separators = True

    @property
    def least(self) -> int:
        """The fewest tokens of a chunk that is finished."""
        return -(-self.chunk // 2)

    @property
    def longest(self) -> int:
        return 2 * self.chunk - 1

    def starts(self, k: Tensor, is_separator: Tensor | None = None) -> Tensor:
        if is_separator is None:
            return regular_starts(k.shape[2], self.longest, k.device)
        wanted = F.pad(is_separator[:, 0, :-1, 0], (1, 0))
        return bounded_starts(wanted, self.least, self.longest)

    def macs(self, position: Tensor) -> Tensor:
        alone = torch.minimum(position + 1, torch.full_like(position, self.recent + self.chunk / 2))
        finished = (position + 1 - alone) / self.chunk
        return 2.0 * self.head_width * (alone + finished) + self._entering

    @torch.no_grad()
    def macs_of(self, position: Tensor, k: Tensor, *more: Tensor) -> Tensor:
        where = position.to(k.device).long()
        finished, lowest = reach_of_all(self.starts(k, *more), where, self.recent)
        keys = (where - lowest + 1 + finished).to(position.dtype)
        return 2.0 * self.head_width * keys + self._entering

    @property
    def _entering(self) -> float:
        return len(self.scorer) + 2.0 * self.head_width


class ChunkLearned(ChunkSentence):
    """Chunks that begin where a token's key is unlike the key before it.

    p_t = (1 - cos(W_q k_{t-1}, W_k k_t)) / 2, of the channels that do not turn; a chunk begins
    where p_t > .5, within the same bounds as a sentence. W_q and W_k begin as the identity. Cached
    and uncached decoding decide alike unless p_t is within rounding of .5.

    Decisions that the bounds left open get a gradient straight through: p - detached(p), which is
    0, is added to the logit of a summary for the token that ended its chunk, and taken from that of
    a token that might have begun a chunk for its own p. In training a ratio loss asks for chunks of
    C tokens on average (`penalties`).
    """

    reads_separators = False
    ratio_weight: ClassVar[float] = 0.03
    """Nats per token by which the ratio loss weighs."""

    def __init__(
        self, head_width: int, window: int, chunk: int = CHUNK, recent: int | None = None
    ) -> None:
        super().__init__(head_width, window, chunk, recent)
        width = len(self.scorer)
        self.to_query, self.to_key = nn.Parameter(torch.eye(width)), nn.Parameter(torch.eye(width))

    def starts(self, k: Tensor, is_separator: Tensor | None = None) -> Tensor:
        return self._starts_where(self._probability(k))

    def _digest(self, k: Tensor, v: Tensor, is_separator: Tensor | None) -> Digest:
        probability = self._probability(k)
        starts = self._starts_where(probability)
        digest = Digest(
            starts, *self._summaries(k, v, starts), log_sizes(starts, probability.dtype)
        )
        if probability.requires_grad:
            is_start, is_free = self._decided(starts, probability.shape[1])
            nudge = torch.where(is_free, probability - probability.detach(), 0.0)
            ended_by = starts[:, 1:].clamp(max=k.shape[2] - 1)
            digest = digest._replace(
                nudges=(nudge.gather(1, ended_by), -nudge.masked_fill(is_start, 0.0))
            )
            if self.training and self.chunk > 1 and are_collected():
                loss = ratio_loss(probability, is_start, self.chunk)
                report_penalty(self.ratio_weight * loss)
        return digest

    @property
    def _entering(self) -> float:
        """And by which a token is compared with the one before it."""
        return super()._entering + 2.0 * len(self.scorer) ** 2

    def _probability(self, k: Tensor) -> Tensor:
        return boundary_probability(unturned(k), self.to_query, self.to_key)

    def _starts_where(self, probability: Tensor) -> Tensor:
        return bounded_starts(probability > 0.5, self.least, self.longest)

    def _decided(self, starts: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Which tokens [B, T] begin a chunk, and which might have decided otherwise."""
        position = torch.arange(length, device=starts.device).expand(len(starts), -1)
        is_start = F.pad(torch.zeros_like(position), (0, 1)).scatter(1, starts.clamp(max=length), 1)
        is_start = is_start[:, :-1] > 0
        begun = position.masked_fill(~is_start, 0).cummax(1).values
        age = position - F.pad(begun[:, :-1], (1, 0))  # of the chunk that the token before is in
        return is_start, (age >= self.least) & (age < self.longest)
