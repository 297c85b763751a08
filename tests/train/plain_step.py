"""A training step as the released trainers take it, written plainly: the slow twin of `train.step.train_step`.

Pictures are encoded in the step, the present one twice: alone, and as the first frame of its clip. Every token has a
noise level of its own, which the model embeds and projects token by token. Self-attention goes through one dense
additive mask of floating-point numbers, (B, N, L, L), made in every block. Every sample's instruction is embedded.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from actwam.checkpoint import Checkpoint
from actwam.draws import Draws
from actwam.model import block
from actwam.model.layers import Sight
from actwam.model.transformer import GroupInput
from actwam.objective import ObjectiveConfig, add_noise, losses
from actwam.types import Batch


def plain_losses(
    checkpoint: Checkpoint,
    objective: ObjectiveConfig,
    batch: Batch,
    pictures: UInt8[Tensor, "B T H W 3"],
    draws: Draws,
    autocast: torch.dtype | None,
) -> dict[str, Tensor]:
    """The losses of a batch whose latents are not there yet, but the pictures that they are of."""
    model, codec = checkpoint.model, checkpoint.codec
    present, clip = codec.encode(pictures[:, :1]), codec.encode(pictures)
    clip = torch.from_numpy(checkpoint.future.normalize(clip.cpu().numpy()))
    latents = torch.cat([present, clip[:, :, 1:].to(present.device)], dim=2)
    noisy = add_noise(replace(batch, latents=latents), objective, draws, model.config.noisy_padding).without_absent()
    with torch.autocast(latents.device.type, autocast, enabled=autocast is not None), _dense_attention():
        text = model.text_context(checkpoint.text.encode(batch.instructions).to(latents.device))
        inputs = [GroupInput(group, value, noisy.sigmas[group][:, None]) for group, value in noisy.values.items()]
        per_token = [replace(item, sigma=item.sigma.expand(-1, model.tokens([item]))) for item in inputs]
        velocities = model(per_token, text, batch.embodiment, checkpoint.table, valid=noisy.present)
        return losses(velocities, noisy, objective)


@contextmanager
def _dense_attention() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(block, "attend_within", _attend)
        yield


def _attend(q: Tensor, k: Tensor, v: Tensor, sight: Sight) -> Float[Tensor, "B N L G"]:
    B, N, L, _ = q.shape
    hidden = torch.ones(B, 1, L, L, dtype=torch.bool, device=q.device)
    start = 0
    for row in sight.rows:
        for first, stop in row.keys:
            hidden[:, :, start : start + row.length, first:stop] = False
        start += row.length
    if sight.present is not None:
        hidden |= ~sight.present
    mask = torch.zeros(B, N, L, L, dtype=q.dtype, device=q.device).masked_fill(hidden, float("-inf"))
    out: Any = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out
