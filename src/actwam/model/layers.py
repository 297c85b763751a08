"""The parts of a Wan 2.2 block: embeddings of place and noise, attention, feed forward, modulation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from actwam.flow import TRAINING_LEVELS
from actwam.tokens import Rows

ROPE_THETA = 10_000.0


@cache  # never forgotten: a CUDA graph reads them where they lie, and they are small
@torch.inference_mode(False)  # kept for training too, wherever it was first needed
def visual_rope(
    first_frame: int, frames: int, height: int, width: int, head_width: int, device: torch.device
) -> Tensor:
    """3-D rotary embedding of a grid of visual tokens, frame by frame, row by row: cosines and sines,
    (F*h*w, head_width / 2, 2).

    The head is split over time, row and column in the ratio of Wan: `head_width - 4 * (head_width // 6)` for time and
    `2 * (head_width // 6)` each for row and column. The present frame stands at time 0, the past before it.
    """
    side = 2 * (head_width // 6)
    axes = (torch.arange(first_frame, first_frame + frames), torch.arange(height), torch.arange(width))
    grid = torch.cartesian_prod(*axes).double()
    widths = (head_width - 2 * side, side, side)
    return torch.cat([_turns(place, n) for place, n in zip(grid.T, widths, strict=True)], dim=1).to(device)


@cache
@torch.inference_mode(False)
def step_rope(first_step: int, steps: int, head_width: int, device: torch.device) -> Tensor:
    """1-D rotary embedding over the whole head. The state stands at step 0, actions at 1..K: (n, head_width / 2, 2)."""
    return _turns(torch.arange(first_step, first_step + steps).double(), head_width).to(device)


def _turns(place: Float[Tensor, "n"], width: int) -> Float[Tensor, "n _ 2"]:
    """Cosines and sines (n, width / 2, 2) of the angles place / theta^(2i / width), computed in float64."""
    angle = torch.outer(place, ROPE_THETA ** -(torch.arange(0, width, 2, dtype=torch.float64) / width))
    return torch.stack([angle.cos(), angle.sin()], dim=-1).float()


def rotate(x: Float[Tensor, "... G"], rope: Float[Tensor, "... g 2"]) -> Float[Tensor, "... G"]:
    """Turn neighbouring pairs of channels by the angles of `rope` (..., G/2, 2), in float32.

    A product of complex numbers: eager PyTorch multiplies them faster than it does the same written out. Compilers and
    exporters know none, and are given it written out.
    """
    if torch.compiler.is_compiling():
        return rotate_written_out(x, rope)
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * torch.view_as_complex(rope)).flatten(-2)


def rotate_written_out(x: Float[Tensor, "... G"], rope: Float[Tensor, "... g 2"]) -> Float[Tensor, "... G"]:
    """The same turn in real numbers: every channel by its cosine, and the other one of its pair by the sine."""
    x, (cos, sin) = x.float(), rope.unbind(-1)
    other = torch.arange(x.shape[-1], device=x.device).unflatten(-1, (-1, 2)).flip(-1).flatten()
    both = torch.stack([cos, cos], dim=-1).flatten(-2), torch.stack([-sin, sin], dim=-1).flatten(-2)
    return x * both[0] + x.index_select(-1, other) * both[1]


def rms_norm(x: Float[Tensor, "... i"], weight: Float[Tensor, "... i"], eps: float) -> Float[Tensor, "... i"]:
    """x / sqrt(mean(x^2) + eps) * weight, in float32 whatever x is: the angles that follow want float32.

    Written with a vector norm, which is one pass forward and one backward; PyTorch's own takes four on a CPU.
    """
    x = x.float()
    mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
    return x * torch.rsqrt(mean_square + eps) * weight


def layer_norm(x: Float[Tensor, "... D"], norm: nn.LayerNorm) -> Float[Tensor, "... D"]:
    """`norm` in float32, also when its weights are bfloat16."""
    return F.layer_norm(x.float(), norm.normalized_shape, norm.weight.float(), norm.bias.float(), norm.eps)


def attend(
    q: Float[Tensor, "B N Q G"],
    k: Float[Tensor, "B N L G"],
    v: Float[Tensor, "B N L G"],
    attention_mask: Bool[Tensor, "..."] | None,
) -> Float[Tensor, "B N Q G"]:
    """Scaled dot-product attention; the mask is (Q, L) or (B, 1, Q, L).

    bfloat16 on a CPU goes through two matrix products: there the backward pass of the fused kernel is three times
    slower than they are. Everything else uses the fused kernel. `tests/model/test_layers.py` holds both to one
    result.
    """
    if q.device.type == "cpu" and q.dtype is torch.bfloat16:
        return attend_by_products(q, k, v, attention_mask)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=attention_mask)


def attend_by_products(q: Tensor, k: Tensor, v: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The same attention, written out."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -math.inf)
    return scores.softmax(-1).type_as(v) @ v


@dataclass(frozen=True)
class Sight:
    """Who attends to whom: the rows of the group mask, and, where samples lack tokens, which of those there are."""

    rows: tuple[Rows, ...]
    present: Bool[Tensor, "B 1 _ L"] | None = None


def attend_within(
    q: Float[Tensor, "B N Q G"], k: Float[Tensor, "B N L G"], v: Float[Tensor, "B N L G"], sight: Sight
) -> Float[Tensor, "B N Q G"]:
    """Attention of every run of rows to what it may see, and no product with anything else. Nothing is masked but what
    samples lack: the fastest kernels know no masks.
    """
    parts, start = [], 0
    for row, part in zip(sight.rows, q.split([row.length for row in sight.rows], dim=2), strict=True):
        lacking = sight.present
        if lacking is not None:
            here = lacking if lacking.shape[2] == 1 else lacking[:, :, start : start + row.length]
            lacking = _seen(here, row.keys, dim=3)
        parts.append(attend(part, _seen(k, row.keys, dim=2), _seen(v, row.keys, dim=2), lacking))
        start += row.length
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def _seen(x: Tensor, keys: Sequence[tuple[int, int]], dim: int) -> Tensor:
    parts = [x.narrow(dim, start, stop - start) for start, stop in keys]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class FeedForward(nn.Sequential):
    """Linear, GELU (tanh form), Linear: also the shape of Wan's text embedder."""

    def __init__(self, width: int, hidden: int, out: int | None = None) -> None:
        super().__init__(nn.Linear(width, hidden), nn.GELU("tanh"), nn.Linear(hidden, out or width))


@cache
@torch.inference_mode(False)
def _frequencies(n: int, device: torch.device) -> Float[Tensor, "n"]:
    """theta^(-i / n) in float32, rounded as diffusers rounds it: a timestep of 1000 turns the last bit of a frequency
    into an angle of 1e-4.
    """
    return torch.exp(-math.log(ROPE_THETA) * torch.arange(n, dtype=torch.float32) / n).to(device)


class NoiseEmbedding(nn.Module):
    """A noise level as a vector, and as the six modulations of a block.

    Wan embeds the timestep 1000 * sigma by cosines and sines of falling frequency, then Linear, SiLU, Linear. The
    timestep stays in float32 whatever the weights are: bfloat16 would round it to multiples of 4.
    """

    def __init__(self, width: int, frequencies: int) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.embed = nn.Sequential(nn.Linear(frequencies, width), nn.SiLU(), nn.Linear(width, width))
        self.project = nn.Linear(width, 6 * width)

    def forward(self, sigma: Float[Tensor, "B n"]) -> tuple[Float[Tensor, "B n D"], Float[Tensor, "B n 6 D"]]:
        timestep = (TRAINING_LEVELS * sigma).float()  # rounded once, also from float64
        angle = timestep[..., None] * _frequencies(self.frequencies // 2, sigma.device)
        waves = torch.cat([angle.cos(), angle.sin()], dim=-1).to(self.project.weight.dtype)
        embedded = self.embed(waves)
        return embedded, self.project(F.silu(embedded)).unflatten(-1, (6, -1))


def modulate(
    x: Float[Tensor, "B n D"], factor: Float[Tensor, "_ m D"], shift: Float[Tensor, "_ m D"]
) -> Float[Tensor, "B n D"]:
    """AdaLN: x * factor + shift with factor = 1 + scale, for one noise level (m = 1) or one per token (m = n)."""
    return torch.addcmul(shift, x, factor)
