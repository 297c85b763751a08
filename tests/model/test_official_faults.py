"""What the released code gets wrong is right here: with the official weights, in both models."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
import torch
from torch import Tensor

from actwam.model.layers import NoiseEmbedding
from actwam.model.official import read_official
from actwam.model.transformer import GroupInput, WorldActionTransformer
from actwam.model.weights import ActionSide
from actwam.objective import ObjectiveConfig, add_noise, losses
from actwam.tokens import ACTION_CENTERED
from actwam.types import Batch, Group, Mode

FIXTURES = Path(__file__).parents[1] / "fixtures"
WIDTH, USED, STEPS = 8, 5, 6
"""The model's action width, the dimensions that the robot has, and the actions of a chunk."""


@pytest.fixture(params=["gwp0", "gwp05"])
def model(request: pytest.FixtureRequest) -> WorldActionTransformer:
    return read_official(FIXTURES / request.param, text_tokens=5, actions=ActionSide(width=WIDTH)).model


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def batch(B: int = 2) -> Batch:
    """The last three steps of the second sample lie past the end of its episode."""
    valid = (torch.arange(WIDTH) < USED).expand(B, STEPS, WIDTH).clone()
    valid[1, 3:] = False
    return Batch(
        modes=(Mode.POLICY,) * B,
        history=torch.zeros(B, 4, 0, 4, 6),
        history_valid=torch.ones(B, 0, dtype=torch.bool),
        state_valid=torch.ones(B, dtype=torch.bool),
        future_valid=torch.ones(B, 1, dtype=torch.bool),
        latents=noise(0, B, 4, 2, 4, 6),
        state=noise(1, B, WIDTH),
        action=noise(2, B, STEPS, WIDTH) * valid,
        action_valid=valid,
        instructions=("open",) * B,
        embodiment=torch.arange(B) % 2,
    )


def train_step(model: WorldActionTransformer) -> dict[Group, Tensor]:
    """Gradients into the parameters, and those of the loss with respect to the velocities, which are returned."""
    config = ObjectiveConfig()
    noisy = add_noise(batch(), config, tiny.draws(3, batch()), model.config.noisy_padding).without_absent()
    inputs = [GroupInput(group, value, noisy.sigmas[group][:, None]) for group, value in noisy.values.items()]
    text = model.text_context(noise(4, 2, 5, 16))
    velocities = model(inputs, text, batch().embodiment, ACTION_CENTERED, valid=noisy.present)
    for velocity in velocities.values():
        velocity.retain_grad()
    losses(velocities, noisy, config)["loss"].backward()
    return {group: velocity.grad for group, velocity in velocities.items() if velocity.grad is not None}


def test_every_parameter_learns_the_text_path_too(model: WorldActionTransformer) -> None:
    """GWP-0.5 detaches the keys and values of its instructions, so that their projections never learn."""
    train_step(model)
    still = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert still == []


def test_padding_and_what_lies_past_the_end_teach_nothing(model: WorldActionTransformer) -> None:
    """The released trainers average the loss over all 32 dimensions of all 48 steps."""
    gradient = train_step(model)[Group.ACTION]
    valid = batch().action_valid
    assert not gradient[~valid].any()
    assert (gradient[valid] != 0).all()


def test_padding_carries_noise_as_the_official_weights_had_it(model: WorldActionTransformer) -> None:
    values = [
        add_noise(batch(), ObjectiveConfig(), tiny.draws(3, batch()), noisy_padding=on).values[Group.ACTION]
        for on in (model.config.noisy_padding, False)
    ]
    assert (values[0][:, :, USED:] != 0).all()
    assert not values[1][:, :, USED:].any()
    assert torch.equal(values[0][0, :, :USED], values[1][0, :, :USED])


@torch.inference_mode()
def test_the_embodiment_changes_the_actions(model: WorldActionTransformer) -> None:
    """GWP-0 ignores it everywhere, GWP-0.5 in acting."""
    inputs = [
        GroupInput(Group.OBSERVATION, noise(0, 2, 4, 1, 4, 6), torch.zeros(2, 1)),
        GroupInput(Group.STATE, noise(1, 2, 1, WIDTH), torch.zeros(2, 1)),
        GroupInput(Group.ACTION, noise(2, 2, STEPS, WIDTH), torch.full((2, 1), 0.7)),
    ]
    text = model.text_context(noise(4, 2, 5, 16))
    first, second = (model(inputs, text, torch.tensor(ids), ACTION_CENTERED)[Group.ACTION] for ids in ([0, 0], [0, 1]))
    assert torch.equal(first[0], second[0])
    assert (first[1] - second[1]).abs().max() > 0.1


def test_bfloat16_does_not_round_the_noise_level() -> None:
    """In bfloat16 a timestep above 512 is a multiple of 4: the released trainers store it so."""
    torch.manual_seed(0)
    embedding = NoiseEmbedding(32, 64).bfloat16()
    sigma = torch.tensor([[0.900, 0.901]])
    assert (1000 * sigma).bfloat16().unique().numel() == 1, "these two would be one"
    embedded, _ = embedding(sigma)
    exact, _ = embedding.float()(sigma)
    between = (exact[0, 0] - exact[0, 1]).abs().max()
    assert (embedded.float() - exact).abs().max() < between / 4
