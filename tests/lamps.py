"""Data of which an inverse dynamics model can read the action: the colour of every picture is where three joints stand,
and their action is how far they go, up or down, which one picture does not tell.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import tiny

from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.loader import Window
from actwam.data.writer import DatasetWriter
from actwam.objective import ObjectiveConfig
from actwam.sampler import Sampling
from actwam.tokens import VIDEO_FIRST
from actwam.train.config import Recipe, SourceConfig
from actwam.types import Mode

ROBOT = tiny.robot(0)
DARK = slice(8, 18)
"""Frames of every third episode that show nothing: there a model can only guess, and should say so."""
WINDOW = Window(action_horizon=tiny.HORIZON, future_offsets=(1, 2, 3, 4))


def walk(seed: int, length: int = 20) -> Episode:
    """Three joints that swing between 0.15 and 0.85, out of step; the action is how far one goes, in units of 0.1."""
    random = np.random.default_rng(seed)
    turns = np.arange(length + 1)[:, None] / random.uniform(12, 20, 3) + random.uniform(size=3)
    state = (0.5 + 0.35 * np.sin(2 * np.pi * turns)).astype(np.float32)
    colours = (30 + 190 * state[:-1]).round().astype(np.uint8)
    if seed % 3 == 2:
        colours[DARK] = 10
    pictures = np.broadcast_to(colours[:, None, None], (length, *ROBOT.image_size, 3)).copy()
    images = dict.fromkeys(ROBOT.cameras.values(), pictures)
    return Episode(images, state[:-1], np.diff(state, axis=0) * 10, tiny.INSTRUCTIONS[seed % 2])


def write(folder: Path, seeds: range, robot: Embodiment = ROBOT, length: int = 20) -> Path:
    """Episodes of lengths that differ. A robot without state or action names gives a dataset without them."""
    with DatasetWriter(folder, robot) as writer:
        for seed in seeds:
            made = walk(seed, length + seed % 3)
            state, action = made.state[:, : len(robot.state_names)], made.action[:, : len(robot.action_names)]
            writer.add_episode(replace(made, state=state, action=action))
    return folder


def video_only() -> Embodiment:
    return replace(ROBOT, state_names=(), action_names=(), delta_mask=())


def recipe(steps: int = 300, **changes: Any) -> Recipe:
    """An inverse dynamics model of the tiny size."""
    fields: dict[str, Any] = {
        "table": VIDEO_FIRST,
        "window": WINDOW,
        "future_as_change": True,
        "model": tiny.config(embodiments=1, precondition=True),
        "sampling": Sampling(num_steps=4, action_shift=1.0, future_shift=1.0),
        **changes,
    }
    stage = tiny.stage(
        "inverse",
        sources=(SourceConfig(dataset="labelled", mode=Mode.INVERSE),),
        steps=steps,
        batch_size=32,
        learning_rate=1e-2,
        warmup_steps=10,
        ema_decay=0.9,
        log_every=50,
        checkpoint_every=1000,
        objective=ObjectiveConfig(action_weight=1.0, action_shift=1.0, state_dropout=0.5),
    )
    return tiny.recipe(stage, **fields)
