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
from einops import rearrange
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


def by_run(
    apply: Callable[..., Tensor], runs: Sequence[tuple[int, Tensor]], *streams: Float[Tensor, "B n D"]
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
        self.heads = heads
        self.q, self.kv = nn.Linear(width, inner), nn.Linear(width, 2 * inner)
        self.out = nn.Linear(inner, width)
        self.norm_q, self.norm_k = nn.RMSNorm(inner, eps), nn.RMSNorm(inner, eps)

    def encode(self, text: Float[Tensor, "B M D"]) -> tuple[Tensor, Tensor]:
        """Keys and values of the embedded instruction, (B, N, M, G) each."""
        k, v = self.kv(text).chunk(2, dim=-1)
        return split_heads(rms_norm(k, self.norm_k).type_as(v), self.heads), split_heads(v, self.heads)

    def forward(self, x: Float[Tensor, "B n D"], k: Tensor, v: Tensor) -> Float[Tensor, "B n D"]:
        q = split_heads(rms_norm(self.q(x), self.norm_q).type_as(v), self.heads)
        return self.out(join_heads(attend(q, k, v, None)))


class ExpertBlock(nn.Module):
    """The parameters of one expert in one block."""

    def __init__(self, config: TransformerConfig, expert: ExpertConfig) -> None:
        super().__init__()
        width, inner, eps = expert.width, config.heads * config.head_width, config.eps
        self.heads = config.heads
        self.table = nn.Parameter(torch.randn(6, width) / width**0.5)
        self.norm_self = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.qkv = nn.Linear(width, 3 * inner)
        self.out = nn.Linear(inner, width)
        self.norm_q, self.norm_k = nn.RMSNorm(inner, eps), nn.RMSNorm(inner, eps)
        self.norm_cross = nn.LayerNorm(width, eps)
        self.cross = CrossAttention(width, config.heads, config.head_width, eps)
        self.norm_ffn = nn.LayerNorm(width, eps, elementwise_affine=False)
        self.ffn = FeedForward(width, expert.ffn_width)

    def modulated(self, stream: Stream) -> tuple[tuple[int, Tensor], ...]:
        """The runs of a stream with this block's table added to their modulations, in float32."""
        return tuple((length, self.table + modulation.float()) for length, modulation in stream.runs)

    def project(self, stream: Stream, runs: tuple[tuple[int, Tensor], ...]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of this expert's tokens, (B, N, n, G) each."""
        h = by_run(lambda m, x: modulate(x, m[:, :, 1], m[:, :, 0]), runs, self.norm_self(stream.x))
        q, k, v = self.qkv(h.to(self.qkv.weight.dtype)).chunk(3, dim=-1)
        q = rotate(split_heads(rms_norm(q, self.norm_q), self.heads), stream.rope).type_as(v)
        k = rotate(split_heads(rms_norm(k, self.norm_k), self.heads), stream.rope).type_as(v)
        return q, k, split_heads(v, self.heads)

    def finish(
        self, stream: Stream, runs: tuple[tuple[int, Tensor], ...], attended: Tensor, text: tuple[Tensor, Tensor]
    ) -> Stream:
        """Add self-attention, cross-attention and feed forward to the residual stream."""
        dtype = self.qkv.weight.dtype
        x = by_run(lambda m, x, o: torch.addcmul(x, o, m[:, :, 2]), runs, stream.x, self.out(attended))
        x = x + self.cross(layer_norm(x, self.norm_cross).to(dtype), *text)
        h = by_run(lambda m, x: modulate(x, m[:, :, 4], m[:, :, 3]), runs, self.norm_ffn(x))
        x = by_run(lambda m, x, o: torch.addcmul(x, o, m[:, :, 5]), runs, x, self.ffn(h.to(dtype)))
        return stream.with_x(x)


class Block(nn.Module):
    """One or two experts that share one self-attention."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.experts = nn.ModuleList(ExpertBlock(config, expert) for expert in config.experts)

    def project(self, streams: Sequence[Stream]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of all streams in order, (B, N, L, G) each."""
        parts = [self._expert(s).project(s, self._expert(s).modulated(s)) for s in streams]
        q, k, v = (torch.cat(side, dim=2) if len(side) > 1 else side[0] for side in zip(*parts, strict=True))
        return q, k, v

    def forward(
        self,
        streams: Sequence[Stream],
        text: Sequence[tuple[Tensor, Tensor]],
        context: tuple[Tensor, Tensor] | None,
        mask: Bool[Tensor, "..."] | None,
    ) -> tuple[list[Stream], Tensor, Tensor]:
        """New streams, and the keys and values of their tokens. `text` holds one pair for each expert."""
        q, new_k, new_v = self.project(streams)
        k, v = new_k, new_v
        if context is not None:
            k, v = torch.cat([context[0], k], dim=2), torch.cat([context[1], v], dim=2)
        attended = join_heads(attend(q, k, v, mask)).split([s.x.shape[1] for s in streams], dim=1)
        finished = [
            self._expert(s).finish(s, self._expert(s).modulated(s), part, text[s.expert])
            for s, part in zip(streams, attended, strict=True)
        ]
        return finished, new_k, new_v

    def _expert(self, stream: Stream) -> ExpertBlock:
        expert = self.experts[stream.expert]
        assert isinstance(expert, ExpertBlock)
        return expert


def split_heads(x: Float[Tensor, "B n i"], heads: int) -> Float[Tensor, "B N n G"]:
    return rearrange(x, "b n (h g) -> b h n g", h=heads)


def join_heads(x: Float[Tensor, "B N n G"]) -> Float[Tensor, "B n i"]:
    return rearrange(x, "b h n g -> b n (h g)")
