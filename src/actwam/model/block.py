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

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actwam.model.config import ExpertConfig, TransformerConfig
from actwam.model.layers import FeedForward, attend, layer_norm, modulate, rms_norm, rotate


@dataclass(frozen=True)
class Stream:
    """The tokens of one expert: the residual stream, the modulations and rotary angles of its runs of tokens.

    `runs` lists (number of tokens, modulation (B, 1 or n, 6, D)): tokens of one group share one noise level.
    """

    expert: int
    x: Float[Tensor, "B n D"]
    runs: tuple[tuple[int, Float[Tensor, "B _ 6 D"]], ...]
    rope: Tensor

    def with_x(self, x: Float[Tensor, "B n D"]) -> Stream:
        return Stream(self.expert, x, self.runs, self.rope)


Run = tuple[int, tuple[Float[Tensor, "B _ _"], ...]]
"""How many tokens, and their (shift, scale, gate, shift', scale', gate')."""


def by_run(
    apply: Callable[..., Tensor], runs: Sequence[Run], *streams: Float[Tensor, "B n D"]
) -> Float[Tensor, "B n D"]:
    """`apply(modulation, *parts)` for every run of tokens that share a modulation, parts being its tokens."""
    if len(runs) == 1:
        return apply(runs[0][1], *streams)
    lengths = [length for length, _ in runs]
    parts = zip(runs, *(stream.split(lengths, dim=1) for stream in streams), strict=True)
    return torch.cat([apply(modulation, *part) for (_, modulation), *part in parts], dim=1)


TextPair = tuple[Float[Tensor, "B N M G"], Float[Tensor, "B N M G"]]
"""Keys and values of the instruction."""


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

    def modulate_runs(self, stream: Stream) -> tuple[Run, ...]:
        """The runs of a stream with this block's table added to their modulations, in float32."""
        return tuple((n, (self.table + modulation.float()).unbind(2)) for n, modulation in stream.runs)

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

    def project(self, streams: Sequence[Stream], runs: Sequence[tuple[Run, ...]]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all streams in order, (B, N, L, G) each."""
        parts = [self._expert(s).project(s, r) for s, r in zip(streams, runs, strict=True)]
        q, k, v = (torch.cat(side, dim=2) if len(side) > 1 else side[0] for side in zip(*parts, strict=True))
        return q, k, v

    def keys_values(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor]:
        """Keys and values alone: all that is wanted of the last block when groups are encoded."""
        _, k, v = self.project(streams, [self._expert(s).modulate_runs(s) for s in streams])
        return k, v

    def forward(
        self,
        streams: Sequence[Stream],
        text: Sequence[TextPair],
        context: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "..."] | None,
    ) -> tuple[list[Stream], Tensor, Tensor]:
        """New streams, and the keys and values of their tokens. `text` holds one pair for each expert."""
        runs = [self._expert(s).modulate_runs(s) for s in streams]
        q, new_k, new_v = self.project(streams, runs)
        k, v = new_k, new_v
        if context is not None:
            k, v = torch.cat([context[0], k], dim=2), torch.cat([context[1], v], dim=2)
        attended = join_heads(attend(q, k, v, mask)).split([s.x.shape[1] for s in streams], dim=1)
        finished = [
            self._expert(s).finish(s, r, part, text[s.expert])
            for s, r, part in zip(streams, runs, attended, strict=True)
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
