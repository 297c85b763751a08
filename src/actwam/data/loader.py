"""Batches for training: windows of episodes, drawn from several sources by weight.

A batch is a pure function of (seed, step). So a resumed run sees exactly what an uninterrupted one would have
seen, and there is no sampler state to store.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int

from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Latents
from actwam.data.transforms import FutureTransform, RobotTransform
from actwam.types import Batch, Mode


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a sample spans: the next `action_horizon` actions, and the pictures `future_offsets` steps ahead.

    A codec that compresses time makes one latent frame of `time_stride` such pictures.
    """

    action_horizon: int
    future_offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.action_horizon < 1:
            raise ValueError(f"action_horizon must be at least 1, not {self.action_horizon}")
        if list(self.future_offsets) != sorted(set(self.future_offsets)) or min(self.future_offsets, default=1) < 1:
            raise ValueError(f"future_offsets must be positive and rising, not {self.future_offsets}")

    def latent_frames(self, time_stride: int) -> int:
        """How many latent frames the future has. Raises ValueError unless its pictures fill them."""
        pictures = len(self.future_offsets)
        if pictures % time_stride:
            raise ValueError(
                f"future_offsets are {pictures} pictures, and the codec makes a latent frame of every {time_stride}: "
                f"choose a multiple of {time_stride}"
            )
        return pictures // time_stride

    def pictures_needed(self, time_stride: int) -> int:
        """Frames from the present to the end of the first latent frame of the future."""
        return 1 + (self.future_offsets[time_stride - 1] if self.latent_frames(time_stride) else 0)


@dataclass(frozen=True, eq=False)
class Source:
    """One dataset, the latents of its pictures, and what its samples teach.

    Raises ValueError when an episode is shorter than the action horizon or too short for any future frame, and when
    the future of the window does not fill the latent frames of the codec.
    """

    dataset: LeRobotDataset
    latents: Latents
    transform: RobotTransform
    window: Window
    mode: Mode
    weight: float = 1.0
    future: FutureTransform = FutureTransform()
    _starts: Int[np.ndarray, "W"] = field(init=False)
    _lasts: Int[np.ndarray, "W"] = field(init=False)
    _episodes: Int[np.ndarray, "W"] = field(init=False)

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"{self.dataset.folder}: the weight of a source must be positive, not {self.weight}")
        if self.mode is not Mode.POLICY and not self.window.future_offsets:
            raise ValueError(f"{self.dataset.folder}: {self.mode} samples need a window with future frames")
        stride = self.latents.time_stride
        require_lengths(self.dataset, self.window, stride)
        reach = 0 if self.mode is Mode.POLICY else self.window.pictures_needed(stride) - 1
        starts, lasts, episodes = [], [], []
        for episode in self.dataset.episodes:
            rows = np.arange(episode.start, episode.start + episode.length - reach)
            starts.append(rows)
            lasts.append(np.full(len(rows), episode.start + episode.length - 1))
            episodes.append(np.full(len(rows), episode.index))
        for name, parts in (("_starts", starts), ("_lasts", lasts), ("_episodes", episodes)):
            object.__setattr__(self, name, np.concatenate(parts))

    def __len__(self) -> int:
        """How many windows there are: one for every frame that has something to teach."""
        return len(self._starts)

    def batch(self, windows: Int[np.ndarray, "B"]) -> Batch:
        """These windows as tensors. Rows past the end of an episode repeat its last one and are not valid."""
        start, last = self._starts[windows], self._lasts[windows]
        left = (last - start)[:, None]
        steps = np.arange(self.window.action_horizon)
        stride, offsets = self.latents.time_stride, self.window.future_offsets
        ends = np.array(offsets[stride - 1 :: stride], int)  # the last picture of every latent frame
        robot = self.transform.embodiment
        state = self.dataset.state[start]
        action = self.transform.model_action(self.dataset.action[start[:, None] + np.minimum(steps, left)], state)
        used = np.arange(self.transform.action_width) < len(robot.action_names)
        latents = self.latents.window(start, last, offsets)
        return Batch(
            modes=(self.mode,) * len(windows),
            latents=torch.from_numpy(self.future.normalize(latents)),
            future_valid=torch.from_numpy(ends <= left),
            state=torch.from_numpy(self.transform.model_state(state)),
            action=torch.from_numpy(action),
            action_valid=torch.from_numpy((steps <= left)[:, :, None] & used),
            instructions=tuple(self.dataset.episodes[i].instruction for i in self._episodes[windows]),
            embodiment=torch.full((len(windows),), robot.index),
        )


@dataclass(frozen=True)
class Mixture:
    """Batches of `batch_size` windows, each from a source drawn by weight, then evenly from its windows."""

    sources: Sequence[Source]
    batch_size: int
    seed: int

    def batch(self, step: int) -> Batch:
        """The batch of this step, the same every time."""
        random = np.random.default_rng((self.seed, step))
        weights = np.array([source.weight for source in self.sources])
        counts = random.multinomial(self.batch_size, weights / weights.sum())
        parts = [
            source.batch(random.integers(len(source), size=count))
            for source, count in zip(self.sources, counts, strict=True)
            if count
        ]
        return join(parts)


def join(parts: Sequence[Batch]) -> Batch:
    """Batches one after another as one."""
    tensors = ("latents", "future_valid", "state", "action", "action_valid", "embodiment")
    return Batch(
        modes=tuple(mode for part in parts for mode in part.modes),
        instructions=tuple(text for part in parts for text in part.instructions),
        **{name: torch.cat([getattr(part, name) for part in parts]) for name in tensors},
    )


def require_lengths(dataset: LeRobotDataset, window: Window, time_stride: int = 1) -> None:
    """Raises ValueError when an episode cannot hold one action chunk and one latent frame of future."""
    needed = max(window.action_horizon, window.pictures_needed(time_stride))
    for episode in dataset.episodes:
        if episode.length < needed:
            raise ValueError(
                f"{dataset.folder}: episode {episode.index} has {episode.length} frames, fewer than the {needed} of "
                "one window; drop it or choose a shorter horizon"
            )


def action_chunks(dataset: LeRobotDataset, window: Window) -> tuple[np.ndarray, np.ndarray]:
    """State (N, s) and the actions that follow it (N, K, a), for every row whose whole chunk lies in its
    episode.

    What the statistics of a normaliser are computed on.
    """
    rows = [
        np.arange(e.start, e.start + e.length - window.action_horizon + 1)
        for e in dataset.episodes
        if e.length >= window.action_horizon
    ]
    start = np.concatenate(rows)
    return dataset.state[start], dataset.action[start[:, None] + np.arange(window.action_horizon)]
