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
    """What a sample spans: the next `action_horizon` actions, and the frames `future_offsets` steps ahead."""

    action_horizon: int
    future_offsets: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.action_horizon < 1:
            raise ValueError(f"action_horizon must be at least 1, not {self.action_horizon}")
        if list(self.future_offsets) != sorted(set(self.future_offsets)) or min(self.future_offsets, default=1) < 1:
            raise ValueError(f"future_offsets must be positive and rising, not {self.future_offsets}")


@dataclass(frozen=True, eq=False)
class Source:
    """One dataset, the latents of its pictures, and what its samples teach.

    Raises ValueError when an episode is shorter than the action horizon, or too short for any future frame.
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
        reach = 0 if self.mode is Mode.POLICY else min(self.window.future_offsets)
        starts, lasts, episodes = [], [], []
        for episode in self.dataset.episodes:
            require_length(self.dataset, episode.index, self.window)
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
        start, last = self._starts[windows, None], self._lasts[windows, None]
        frames = start + np.array([0, *self.window.future_offsets])
        steps = start + np.arange(self.window.action_horizon)
        robot = self.transform.embodiment
        state = self.dataset.state[start[:, 0]]
        action = self.transform.model_action(self.dataset.action[np.minimum(steps, last)], state)
        used = np.arange(self.transform.action_width) < len(robot.action_names)
        latents = self.latents.window(np.minimum(frames, last).ravel()).astype(np.float32)
        latents = latents.reshape(*frames.shape, *latents.shape[1:]).swapaxes(1, 2)
        return Batch(
            modes=(self.mode,) * len(windows),
            latents=torch.from_numpy(np.ascontiguousarray(self.future.normalize(latents))),
            future_valid=torch.from_numpy(frames[:, 1:] <= last),
            state=torch.from_numpy(self.transform.model_state(state)),
            action=torch.from_numpy(action),
            action_valid=torch.from_numpy((steps <= last)[:, :, None] & used),
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


def require_length(dataset: LeRobotDataset, index: int, window: Window) -> None:
    """Raises ValueError when this episode cannot hold one action chunk and one future frame."""
    length = dataset.episodes[index].length
    needed = max(window.action_horizon, 1 + min(window.future_offsets, default=0))
    if length < needed:
        raise ValueError(
            f"{dataset.folder}: episode {index} has {length} frames, fewer than the {needed} of one window; "
            "drop it or choose a shorter horizon"
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
