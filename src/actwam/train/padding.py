"""Projectors of weights that were trained with other robots, or with noise where this one has nothing."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from actwam.data.embodiment import Embodiment
from actwam.model.transformer import WorldActionTransformer


@torch.no_grad()
def silence_padding(model: WorldActionTransformer, robots: Sequence[Embodiment]) -> None:
    """Set to zero, in place, all weights between the model and the dimensions that its robots lack.

    What stands in padding then changes nothing that a robot uses, its velocity is zero, and so are its gradients as
    long as training and acting leave it at zero: without this, weights that were trained with noise there
    (`noisy_padding`) or with another robot would move it away from zero while acting. Robots of one index share its
    dimensions; a dimension that any of them has is left alone. So is, where the action encoder serves the state too,
    one that is padding for only one of the two.
    """
    for index in {robot.index for robot in robots}:
        members = [robot for robot in robots if robot.index == index]
        state = max(len(robot.state_names) for robot in members)
        action = max(len(robot.action_names) for robot in members)
        if model.state_encoder is None:
            model.action_encoder.first.weight[index, max(state, action) :] = 0
        else:
            model.action_encoder.first.weight[index, action:] = 0
            model.state_encoder.first.weight[index, state:] = 0
        model.action_decoder.last.weight[index, :, action:] = 0
        model.action_decoder.last.bias[index, action:] = 0
