"""Good demonstrations without a simulator: MetaWorld's robot as a bright square before the background of each camera.

It moves in every row, closes its gripper half way, and never does the same twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from actwam.data.episode import Episode
from actwam.data.writer import DatasetWriter
from actwam.sim.robot import CAMERA_NAMES, metaworld_embodiment

SIDE = 32
SQUARE = 6
CLOSING = 10
"""Rows that the gripper takes to close."""


def episode(number: int, length: int = 100) -> Episode:
    rng = np.random.default_rng(number)
    time = np.linspace(0, 1, length)
    sizes, bends = rng.uniform(0.15, 0.2, 3), rng.uniform(-0.2, 0.2, 3)
    home = np.array([0.05, 0.6, 0.25])
    place = home + sizes * (time[:, None] + bends * np.sin(np.pi * time[:, None]))
    closes = int(rng.integers(40, 60))
    opening = 1 - 0.7 * np.clip((np.arange(length) - closes) / CLOSING, 0, 1)
    speed = np.gradient(place, axis=0)
    action = np.column_stack([speed / np.abs(speed).max(), np.where(np.arange(length) < closes, -1.0, 1.0)])
    state = np.column_stack([place, opening])
    images = {name: pictures(name, place, home) for name in CAMERA_NAMES}
    return Episode(images, state.astype(np.float32), action.astype(np.float32), "reach and grasp")


def pictures(camera: str, place: np.ndarray, home: np.ndarray) -> np.ndarray:
    """(T, H, W, 3)"""
    blocks = np.random.default_rng(CAMERA_NAMES.index(camera)).integers(60, 160, (8, 8, 3), np.uint8)
    background = blocks.repeat(SIDE // 8, axis=0).repeat(SIDE // 8, axis=1)
    frames = np.repeat(background[None], len(place), axis=0)
    corners = np.clip((place - home) / 0.25, 0, 1)[:, :2] * (SIDE - SQUARE)
    for frame, (top, left) in zip(frames, corners.round().astype(int), strict=True):
        frame[top : top + SQUARE, left : left + SQUARE] = 230
    return frames


def episodes(count: int = 5) -> list[Episode]:
    return [episode(number) for number in range(count)]


def write(folder: Path, chosen: Sequence[Episode], **limits: Any) -> Path:
    with DatasetWriter(folder, metaworld_embodiment((SIDE, SIDE)), **limits) as writer:
        for each in chosen:
            writer.add_episode(each)
    return folder
