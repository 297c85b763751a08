"""How long the policies of a study take to act. That hangs on their sizes and tables and not on what they learned, so
untrained ones are timed, which need no data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from actwam.bench.latency import Latency, time_policies
from actwam.checkpoint import Checkpoint
from actwam.data.transforms import RobotTransform, fit_normalizers
from actwam.model.codec import PatchPCACodec
from actwam.model.transformer import WorldActionTransformer
from actwam.policy import Policy
from actwam.train.config import Recipe
from actwam.types import Observation

INSTRUCTION = "do something"


def acting_latency(
    recipes: Mapping[str, Recipe], *, device: str = "cpu", repeats: int = 50, warmup: int = 10
) -> dict[str, Latency]:
    """Time one robot's policies of these recipes, which take turns, on the same random pictures."""
    policies = {name: untrained(recipe, device) for name, recipe in recipes.items()}
    robot = next(iter(recipes.values())).robots[0]
    random = np.random.default_rng(0)
    size = (*robot.image_size, 3)
    observation = Observation(
        images={camera: random.integers(0, 256, size, np.uint8) for camera in robot.cameras.values()},
        state=random.normal(size=len(robot.state_names)).astype(np.float32),
        instruction=INSTRUCTION,
    )
    return time_policies(policies, observation, repeats=repeats, warmup=warmup)


def untrained(recipe: Recipe, device: str = "cpu") -> Policy:
    """The first robot's policy with random weights, and a codec and statistics fitted on noise.

    Raises ValueError for a recipe that starts from a checkpoint.
    """
    if recipe.codec is None or recipe.text is None:
        raise ValueError(f"recipe {recipe.name} starts from a checkpoint: time that")
    robot, layout = recipe.robots[0], recipe.layouts[0]
    random = np.random.default_rng(0)
    state = random.normal(size=(64, len(robot.state_names))).astype(np.float32)
    chunks = random.normal(size=(64, recipe.window.action_horizon, len(robot.action_names))).astype(np.float32)
    pictures = torch.from_numpy(random.integers(0, 256, (256, layout.height, layout.width, 3), np.uint8))
    normalizers = fit_normalizers(state, chunks, robot, mode=recipe.normalize)
    transform = RobotTransform(robot, layout, *normalizers, recipe.model.state_width, recipe.model.action_width)
    place = torch.device(device)
    codec = PatchPCACodec.fit(pictures, patch=recipe.codec.patch, channels=recipe.codec.channels)
    torch.manual_seed(0)
    checkpoint = Checkpoint(
        model=WorldActionTransformer(recipe.model).eval().to(place),
        codec=codec.to(place),
        text=recipe.text,
        table=recipe.table,
        robots=(transform,),
        window=recipe.window,
        sampling=recipe.sampling,
        trained={"recipe": recipe.name, "stage": None, "step": 0},
    )
    return Policy(checkpoint, transform, recipe.table, place)
