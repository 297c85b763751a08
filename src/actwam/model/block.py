"""One transformer block: joint self-attention over the streams of all experts, the rest for each expert alone.

    h = LN(x) * (1 + scale) + shift;   x = x + gate * self_attention(h)
    x = x + cross_attention(LN_affine(x), text)
    h = LN(x) * (1 + scale') + shift'; x = x + gate' * feed_forward(h)

with (shift, scale, gate, shift', scale', gate') = table + projection of the noise level (Wan 2.2). Norms, modulation
and the residual stream are float32; products run in the precision of the weights or of autocast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from actwam.model.config import ExpertConfig, TransformerConfig
from actwam.model.context import Past, TextPair, Told
from actwam.model.layers import FeedForward, Sight, attend, attend_within, layer_norm, modulate, rms_norm, rotate

Modulation = tuple[Float[Tensor, "_ _ _"], ...]
"""(shift, 1 + scale, gate, shift', 1 + scale', gate') of a block, in float32."""
Run = tuple[int, Modulation]
"""How many tokens, and their modulation."""
Runs = tuple[tuple[int, Tensor | Modulation], ...]
"""How many tokens, and their modulation or the projected noise level that a block makes it of."""


@dataclass(frozen=True)
class Level:
    """A noise level as one expert takes it, for a whole group (m = 1) or for each of its tokens (m = n).

    `blocks` holds the modulation of every block where that was made beforehand; else each block makes its own.
    """

    sigma: Float[Tensor, "_ m"]
    embedded: Float[Tensor, "_ m D"]
    projected: Float[Tensor, "_ m 6 D"]
    blocks: tuple[Modulation, ...] = ()


@dataclass(frozen=True)
class Stream:
    """The tokens of one expert: the residual stream, and the noise levels and rotary angles of its runs of tokens.

    `runs` lists (number of tokens, their noise level): tokens of one group share one.
    """

    expert: int
    x: Float[Tensor, "B n D"]
    runs: tuple[tuple[int, Level], ...]
    rope: Float[Tensor, "n _ 2"]

    def with_x(self, x: Float[Tensor, "B n D"]) -> Stream:
        return Stream(self.expert, x, self.runs, self.rope)

    def runs_in(self, block: int) -> Runs:
        """The runs as a block takes them: with its modulation, or with what it makes that of."""
        return tuple((n, level.blocks[block] if level.blocks else level.projected) for n, level in self.runs)


def by_run(
    apply: Callable[..., Tensor], runs: Sequence[Run], *streams: Float[Tensor, "B n D"]
) -> Float[Tensor, "B n D"]:
    """`apply(modulation, *parts)` for every run of tokens that share a modulation, parts being its tokens."""
    if len(runs) == 1:
        return apply(runs[0][1], *streams)
    lengths = [length for length, _ in runs]
    parts = zip(runs, *(stream.split(lengths, dim=1) for stream in streams), strict=True)
    return torch.cat([apply(modulation, *part) for (_, modulation), *part in parts], dim=1)


class CrossAttention(nn.Module):
    """From one expert's tokens to the instruction."""

    def __init__(self, width: int, heads: int, head_width: int, eps: float) -> None:
        super().__init__()
        inner = heads * head_width
        self.heads, self.eps = heads, eps
        self.q, self.kv = nn.Linear(width, inner), nn.Linear(width, 2 * inner)
        self.norm_q, self.norm_k = nn.Parameter(torch.ones(inner)), nn.Parameter(torch.ones(inner))
        self.out = nn.Linear(inner, width)

    def encode(self, text: Float[Tensor, "B M D"]) -> TextPair:
        """Keys and values of the embedded instruction."""
        k, v = self.kv(text).chunk(2, dim=-1)
        k = rms_norm(k, self.norm_k, self.eps).to(v.dtype)
        # kept as long as the instruction: as a view, v would keep the keys before the norm too
        return split_heads(k, self.heads), split_heads(v.contiguous(), self.heads)

    def forward(self, x: Float[Tensor, "B n D"], k: Tensor, v: Tensor) -> Float[Tensor, "B n D"]:
        q = rms_norm(self.q(x), self.norm_q, self.eps).to(v.dtype)
        return self.out(join_heads(attend(split_heads(q, self.heads), k, v, None)))


class ExpertBlock(nn.Module):
    """The parameters of one expert in one block. `norm_qk` holds the RMS norms of queries and keys as two rows."""

    def __init__(self, config: TransformerConfig, expert: ExpertConfig) -> None:
        super().__init__()
        width, inner, eps = expert.width, config.heads * config.head_width, config.eps
        self.heads, self.eps = config.heads, eps
        self.table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.norm_self = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * inner)
        self.norm_qk = nn.Parameter(torch.ones(2, inner))
        self.out = nn.Linear(inner, width)
        self.norm_cross = nn.LayerNorm(width, eps)
        self.cross = CrossAttention(width, config.heads, config.head_width, eps)
        self.norm_ffn = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.ffn = FeedForward(width, expert.ffn_width)

    def modulation(self, projected: Float[Tensor, "_ m 6 D"]) -> Modulation:
        """This block's table added to a projected noise level."""
        shift, scale, gate, *rest = (self.table + projected.float()).unbind(2)
        return shift, 1 + scale, gate, rest[0], 1 + rest[1], rest[2]

    def modulated(self, runs: Runs) -> tuple[Run, ...]:
        """The runs with this block's modulations, which may have been made beforehand."""
        return tuple((n, m if isinstance(m, tuple) else self.modulation(m)) for n, m in runs)

    def project(self, stream: Stream, runs: tuple[Run, ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this expert's tokens, (B, N, n, G) each."""
        h = by_run(lambda m, x: modulate(x, m[1], m[0]), runs, self.norm_self(stream.x))
        qkv = self.qkv(h.to(self.qkv.weight.dtype)).unflatten(-1, (3, -1))
        qk = rms_norm(qkv[:, :, :2], self.norm_qk, self.eps).unflatten(-1, (self.heads, -1))
        q, k = rotate(qk, stream.rope[:, None, None]).to(qkv.dtype).permute(2, 0, 3, 1, 4)
        return q, k, split_heads(qkv[:, :, 2], self.heads)

    def finish(self, stream: Stream, runs: tuple[Run, ...], attended: Tensor, text: TextPair) -> Stream:
        """Add self-attention, cross-attention and feed forward to the residual stream."""
        dtype = self.qkv.weight.dtype
        x = by_run(lambda m, x, o: torch.addcmul(x, o, m[2]), runs, stream.x, self.out(attended))
        x = x + self.cross(layer_norm(x, self.norm_cross).to(dtype), *text)
        h = by_run(lambda m, x: modulate(x, m[4], m[3]), runs, self.norm_ffn(x))
        x = by_run(lambda m, x, o: torch.addcmul(x, o, m[5]), runs, x, self.ffn(h.to(dtype)))
        return stream.with_x(x)


class Block(nn.Module):
    """One or two experts that share one self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(ExpertBlock(config, expert) for expert in config.experts)

    def text_pairs(self, embedded: Sequence[Tensor], rows: Int[Tensor, "B"] | None = None) -> tuple[TextPair, ...]:
        """Keys and values of instructions, which each expert has in its width, or those of the given `rows` of them."""
        experts = zip(cast("Sequence[ExpertBlock]", self.experts), embedded, strict=True)
        pairs = (expert.cross.encode(text) for expert, text in experts)
        return tuple(pairs) if rows is None else tuple((k[rows], v[rows]) for k, v in pairs)

    def project(self, streams: Sequence[Stream], runs: Sequence[tuple[Run, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all streams in order, (B, N, L, G) each."""
        parts = [self._expert(s).project(s, r) for s, r in zip(streams, runs, strict=True)]
        q, k, v = (torch.cat(side, dim=2) if len(side) > 1 else side[0] for side in zip(*parts, strict=True))
        return q, k, v

    def keys_values(self, streams: Sequence[Stream], runs: Sequence[Runs]) -> tuple[Tensor, Tensor]:
        """Keys and values alone: all that is wanted of the last block when groups are encoded."""
        _, k, v = self.project(streams, [self._expert(s).modulated(r) for s, r in zip(streams, runs, strict=True)])
        return k, v

    def forward(
        self,
        streams: Sequence[Stream],
        runs: Sequence[Runs],
        text: tuple[TextPair, ...] | Told,
        past: Past | None,
        sight: Sight,
    ) -> tuple[list[Stream], Tensor, Tensor]:
        """New streams, and the keys and values of their tokens. `runs` holds, for each stream, how many tokens have
        which modulation, made or to be made (`Stream.runs_in`), `text` one pair for each expert, or what pairs are made
        of.
        """
        pairs = text if isinstance(text, tuple) else self.text_pairs(text.embedded, text.rows)
        modulated = [self._expert(s).modulated(r) for s, r in zip(streams, runs, strict=True)]
        q, new_k, new_v = self.project(streams, modulated)
        k, v = (new_k, new_v) if past is None else past.with_new(new_k, new_v)
        attended = join_heads(attend_within(q, k, v, sight)).split([s.x.shape[1] for s in streams], dim=1)
        finished = [
            self._expert(s).finish(s, r, part, pairs[s.expert])
            for s, r, part in zip(streams, modulated, attended, strict=True)
        ]
        return finished, new_k, new_v

    def _expert(self, stream: Stream) -> ExpertBlock:
        expert = self.experts[stream.expert]
        assert isinstance(expert, ExpertBlock)
        return expert


def split_heads(x: Float[Tensor, "B n i"], heads: int) -> Float[Tensor, "B N n G"]:
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def join_heads(x: Float[Tensor, "B N n G"]) -> Float[Tensor, "B n i"]:
    return x.transpose(1, 2).flatten(-2)
