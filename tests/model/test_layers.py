"""The layers against formulas written a second time, in other words."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from actwam.model.layers import (
    NoiseEmbedding,
    Sight,
    attend,
    attend_by_products,
    attend_within,
    modulate,
    rms_norm,
    rotate,
    rotate_written_out,
    step_rope,
    visual_rope,
)
from actwam.tokens import TABLES, Segment, Table, attention_mask, rows_of
from actwam.types import Group

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def queries_keys_values(dtype: torch.dtype) -> tuple[Tensor, ...]:
    shapes = ((2, 3, 5, 16), (2, 3, 9, 16), (2, 3, 9, 16))
    return tuple(draw(*shape, seed=i).to(dtype).requires_grad_() for i, shape in enumerate(shapes))


def some_mask(kind: str) -> Tensor | None:
    shared = draw(5, 9, seed=7) > -0.3
    shared[:, 0] = True  # everybody sees somebody
    per_sample = shared & (draw(2, 1, 1, 9, seed=8) > -0.5)
    per_sample[..., 0] = True
    return {"none": None, "shared": shared, "per sample": per_sample}[kind]


@pytest.mark.parametrize("kind", ["none", "shared", "per sample"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_attention_by_products_is_the_fused_kernel(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    mask, weight = some_mask(kind), draw(2, 3, 5, 16, seed=9)
    results = []
    for attention in (attend_by_products, F.scaled_dot_product_attention):
        q, k, v = queries_keys_values(dtype)
        out = attention(q, k, v, mask)
        assert out.dtype == dtype
        results.append((out, *torch.autograd.grad((out.float() * weight).sum(), (q, k, v))))
    scale = 1.0 if dtype is torch.float32 else 4.0  # bfloat16 gradients are sums of rounded products
    for ours, fused in zip(*results, strict=True):
        assert torch.allclose(ours.float(), fused.float(), atol=scale * tolerance, rtol=scale * tolerance)


def test_products_serve_bfloat16_on_a_cpu_and_the_kernel_float32() -> None:
    for dtype, twin in (
        (torch.bfloat16, attend_by_products),
        (torch.float32, F.scaled_dot_product_attention),
    ):
        q, k, v = queries_keys_values(dtype)
        assert torch.equal(attend(q, k, v, None), twin(q, k, v, None))


def test_a_masked_key_has_no_influence_and_no_gradient() -> None:
    for attention in (attend_by_products, attend):
        q, k, v = queries_keys_values(torch.float32)
        mask = torch.ones(5, 9, dtype=torch.bool)
        mask[:, 4:] = False
        out = attention(q, k, v, mask)
        grads = torch.autograd.grad(out.sum(), (k, v))
        assert all(torch.equal(grad[:, :, 4:], torch.zeros(2, 3, 5, 16)) for grad in grads)
        assert torch.allclose(out, attention(q, k[:, :, :4], v[:, :, :4], None), atol=1e-6)


@pytest.mark.parametrize("table", TABLES.values(), ids=lambda table: table.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.bfloat16, 5e-2)])
@pytest.mark.parametrize("lacking", ["nothing", "groups", "moments"])
def test_attention_in_runs_is_attention_under_the_mask(
    table: Table, dtype: torch.dtype, tolerance: float, lacking: str
) -> None:
    segments = [Segment(Group.HISTORY, 6, moments=3), *(Segment(group, 4) for group in table.groups[1:])]
    mask = attention_mask(table, segments)
    L, present = len(mask), None
    if lacking != "nothing":
        present = (draw(2, 1, 1, L, seed=8) > -0.5) | torch.eye(L, dtype=torch.bool)
    if lacking == "groups":
        present = torch.ones(2, 1, 1, L, dtype=torch.bool)
        present[1, :, :, 6:8] = False
    results = []
    for sight in (Sight(rows_of(mask), present), mask if present is None else mask & present):
        q, k, v = (draw(2, 3, L, 16, seed=i).to(dtype).requires_grad_() for i in range(3))
        out = attend_within(q, k, v, sight) if isinstance(sight, Sight) else attend(q, k, v, sight)
        results.append((out, *torch.autograd.grad((out.float() * draw(2, 3, L, 16, seed=9)).sum(), (q, k, v))))
    for ours, masked in zip(*results, strict=True):
        assert torch.allclose(ours.float(), masked.float(), atol=tolerance, rtol=tolerance)


def rotate_in_real_numbers(x: Tensor, positions: list[tuple[float, ...]], widths: tuple[int, ...]) -> Tensor:
    """Slow twin: pair (2j, 2j+1) of an axis of width w turns by position * 10000^(-2j/w)."""
    out = torch.empty_like(x)
    for token, place in enumerate(positions):
        channel = 0
        for position, width in zip(place, widths, strict=True):
            for j in range(width // 2):
                angle = position * 10_000.0 ** (-2 * j / width)
                a, b = x[..., token, channel], x[..., token, channel + 1]
                out[..., token, channel] = a * math.cos(angle) - b * math.sin(angle)
                out[..., token, channel + 1] = a * math.sin(angle) + b * math.cos(angle)
                channel += 2
        assert channel == x.shape[-1]
    return out


def test_rotation_of_steps_is_the_formula() -> None:
    x = draw(2, 3, 4, 10)
    expected = rotate_in_real_numbers(x, [(1.0,), (2.0,), (3.0,), (4.0,)], (10,))
    assert torch.allclose(rotate(x, step_rope(1, 4, 10, CPU)), expected, atol=1e-5)


@pytest.mark.parametrize(("head_width", "widths"), [(128, (44, 42, 42)), (12, (4, 4, 4)), (64, (24, 20, 20))])
def test_rotation_of_a_grid_is_the_formula_with_the_split_of_wan(head_width: int, widths: tuple[int, ...]) -> None:
    x = draw(1, 2, 2 * 2 * 3, head_width)
    grid = [(float(t), float(y), float(z)) for t in (1, 2) for y in range(2) for z in range(3)]
    expected = rotate_in_real_numbers(x, grid, widths)
    assert torch.allclose(rotate(x, visual_rope(1, 2, 2, 3, head_width, CPU)), expected, atol=1e-5)


def test_the_past_stands_before_the_present() -> None:
    x = draw(1, 1, 2, 12)
    expected = rotate_in_real_numbers(x, [(-2.0, 0.0, 0.0), (-1.0, 0.0, 0.0)], (4, 4, 4))
    assert torch.allclose(rotate(x, visual_rope(-2, 2, 1, 1, 12, CPU)), expected, atol=1e-6)


@pytest.mark.parametrize("offset", [1, 7])
def test_scores_depend_on_the_distance_only(offset: int) -> None:
    """Moving all tokens along time, or along the steps, changes no product of a query and a key."""

    def scores(rope: Tensor) -> Tensor:
        return rotate(draw(1, 2, len(rope), 24), rope) @ rotate(draw(1, 2, len(rope), 24, seed=1), rope).mT

    assert torch.allclose(scores(step_rope(0, 6, 24, CPU)), scores(step_rope(offset, 6, 24, CPU)), atol=1e-4)
    grids = (visual_rope(first, 3, 2, 2, 24, CPU) for first in (0, offset))
    still, moved = (scores(grid) for grid in grids)
    assert torch.allclose(still, moved, atol=1e-4)
    stretched = scores(visual_rope(0, 3, 2, 2, 24, CPU)[torch.arange(12).flip(0)])
    assert not torch.allclose(still, stretched, atol=1e-1)  # the other way round is another distance


def test_rotation_keeps_lengths_and_position_zero_changes_nothing() -> None:
    x = draw(2, 2, 5, 12)
    turned = rotate(x, step_rope(0, 5, 12, CPU))
    assert torch.allclose(turned.norm(dim=-1), x.norm(dim=-1), atol=1e-5)
    assert torch.equal(turned[:, :, 0], x[:, :, 0])
    assert rotate(x.bfloat16(), step_rope(0, 5, 12, CPU)).dtype == torch.float32


def test_rotation_written_out_is_the_same() -> None:
    x, rope = draw(2, 2, 6, 24), visual_rope(0, 1, 2, 3, 24, CPU)
    assert torch.allclose(rotate(x, rope), rotate_written_out(x, rope), atol=1e-6)


def test_angles_first_made_while_acting_serve_training() -> None:
    with torch.inference_mode():
        rope = step_rope(1001, 3, 12, CPU)  # positions that no other test uses
    x = draw(1, 1, 3, 12).requires_grad_()
    rotate(x, rope).sum().backward()
    assert x.grad is not None


def test_rms_norm_is_the_formula_over_the_full_width_in_float32() -> None:
    norm = nn.RMSNorm(12, 1e-6)
    nn.init.normal_(norm.weight, generator=torch.Generator().manual_seed(0))
    x = draw(2, 5, 12)
    expected = x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt() * norm.weight
    assert torch.allclose(rms_norm(x, norm.weight, norm.eps), expected, atol=1e-6)
    assert rms_norm(x.bfloat16(), norm.weight.bfloat16(), norm.eps).dtype == torch.float32
    still = torch.zeros(1, 12, requires_grad=True)
    rms_norm(still, norm.weight, norm.eps).sum().backward()
    assert still.grad is not None
    assert still.grad.isfinite().all()


def test_modulation_is_the_formula_for_one_level_and_for_one_per_token() -> None:
    x, scale, shift = draw(2, 5, 8), draw(2, 5, 8, seed=1), draw(2, 5, 8, seed=2)
    assert torch.allclose(modulate(x, 1 + scale, shift), x * (1 + scale) + shift, atol=1e-6)
    one = modulate(x, 1 + scale[:, :1], shift[:, :1])
    assert torch.allclose(one, x * (1 + scale[:, :1]) + shift[:, :1], atol=1e-6)


def noise_embedding(dtype: torch.dtype = torch.float32) -> NoiseEmbedding:
    torch.manual_seed(0)
    return NoiseEmbedding(24, 256).to(dtype)


def test_the_noise_level_is_embedded_as_wan_embeds_its_timestep() -> None:
    layer, sigma = noise_embedding(), torch.tensor([[0.37], [0.9]])
    angles = torch.outer(1000 * sigma[:, 0], 10_000.0 ** (-torch.arange(128) / 128))
    expected = layer.embed(torch.cat([angles.cos(), angles.sin()], dim=1))
    embedded, modulation = layer(sigma)
    assert torch.allclose(embedded[:, 0], expected, atol=1e-4)
    assert modulation.shape == (2, 1, 6, 24)
    assert torch.allclose(modulation[:, 0], layer.project(F.silu(expected)).unflatten(-1, (6, 24)), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_timesteps_one_apart_differ_whatever_the_weights_are(dtype: torch.dtype) -> None:
    layer = noise_embedding(dtype)
    waves: list[Tensor] = []
    layer.embed[0].register_forward_pre_hook(lambda _, inputs: waves.append(inputs[0]))
    timesteps = torch.tensor([[0.996], [0.997], [0.998], [0.999], [1.0]])
    embedded, _ = layer(timesteps)
    assert all(not torch.equal(a, b) for a, b in pairwise(waves[0]))
    assert all(float((a - b).float().abs().max()) > 0.05 for a, b in pairwise(waves[0]))
    assert all(not torch.equal(a, b) for a, b in pairwise(embedded))
