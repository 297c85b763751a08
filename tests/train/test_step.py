"""A step teaches what the released trainers' step teaches, and does less for it."""

from __future__ import annotations

import numpy as np
import pytest
import tiny
import torch
from plain_step import plain_losses

from actwam.checkpoint import Checkpoint
from actwam.objective import ObjectiveConfig, add_noise
from actwam.tokens import TABLES, Table
from actwam.train.step import forward_losses
from actwam.types import Batch, Mode

B = 5


def pictures() -> torch.Tensor:
    frames = 1 + len(tiny.OFFSETS)
    clips = [tiny.squares(tiny.LAYOUT.height, tiny.LAYOUT.width, frames, seed) for seed in range(B)]
    return torch.from_numpy(np.stack(clips))


def batch(checkpoint: Checkpoint) -> Batch:
    """One sample has no state, the last one no future left, and it stands at the end of its episode."""
    latents = checkpoint.future.normalize(checkpoint.codec.encode(pictures()).numpy())
    action_valid = torch.ones(B, tiny.HORIZON, 3, dtype=torch.bool)
    action_valid[-1, 2:] = False
    return Batch(
        modes=(Mode.POLICY,) * B,
        history=torch.zeros(B, tiny.CHANNELS, 0, 2, 4),
        history_valid=torch.ones(B, 0, dtype=torch.bool),
        state_valid=torch.arange(B) != 2,
        future_valid=(torch.arange(B) != B - 1)[:, None].expand(-1, len(tiny.OFFSETS)),
        latents=torch.from_numpy(latents),
        state=tiny.noise_of(1, B, 3),
        action=tiny.noise_of(2, B, tiny.HORIZON, 3) * action_valid,
        action_valid=action_valid,
        instructions=tuple(tiny.INSTRUCTIONS[i % 2] for i in range(B)),
        embodiment=tiny.embodiments(B),
    )


@pytest.mark.parametrize("table", [t for t in TABLES.values() if t.name != "ACTION_ONLY"], ids=lambda t: t.name)
@pytest.mark.parametrize("experts", ["one", "two"])
def test_the_plain_step_has_the_same_losses_and_gradients(table: Table, experts: str) -> None:
    checkpoint = tiny.checkpoint(experts, table=table)
    model, objective, seen = checkpoint.model, ObjectiveConfig(), batch(checkpoint)
    plain = plain_losses(checkpoint, objective, seen, pictures(), tiny.draws(3, seen), None)
    expected = torch.autograd.grad(plain["loss"], list(model.parameters()), allow_unused=True)
    noisy = add_noise(seen, objective, tiny.draws(3, seen)).without_absent()
    lesson = tiny.lesson(noisy, seen, checkpoint.text)
    ours = forward_losses(tiny.stage(objective=objective), model, table, lesson, None)
    found = torch.autograd.grad(ours["loss"], list(model.parameters()), allow_unused=True)
    assert all(ours[name].item() == pytest.approx(plain[name].item(), rel=1e-5) for name in plain)
    for a, b in zip(found, expected, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or torch.allclose(a, b, atol=1e-5, rtol=1e-4)
