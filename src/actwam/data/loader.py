"""Batches for training: windows of episodes, drawn from several sources by weight.

A batch is a pure function of (seed, step). So a resumed run sees exactly what an uninterrupted one would have
seen, and there is no sampler state to store.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int

from actwam.data.dataset import Footage, LeRobotDataset
from actwam.data.info import CONFIDENCE
from actwam.data.latents import Latents
from actwam.data.transforms import FutureTransform, RobotTransform
from actwam.types import Batch, Mode

BLOCK = 1 << 22
"""Numbers of actions that are in memory at once while statistics are taken."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """What a sample spans: the next `action_horizon` actions, the pictures `future_offsets` steps ahead, and those
    `history_offsets` (negative) steps ago.

    A codec that compresses time makes one latent frame of `time_stride` future pictures; each past one stands alone.
    History is evenly spaced, its last picture one spacing ago: a policy that looks every so many steps has it at hand.
    """

    action_horizon: int
    future_offsets: tuple[int, ...]
    history_offsets: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.action_horizon < 1:
            raise ValueError(f"action_horizon must be at least 1, not {self.action_horizon}")
        if list(self.future_offsets) != sorted(set(self.future_offsets)) or min(self.future_offsets, default=1) < 1:
            raise ValueError(f"future_offsets must be positive and rising, not {self.future_offsets}")
        spacing, moments = self.history_spacing, len(self.history_offsets)
        evenly = tuple(-spacing * n for n in range(moments, 0, -1))
        if spacing < min(moments, 1) or self.history_offsets != evenly:
            raise ValueError(f"history_offsets must be evenly spaced up to the present, not {self.history_offsets}")

    @property
    def history_spacing(self) -> int:
        """Steps from one picture of history to the next, and from the last to the present; 0 without history."""
        return -self.history_offsets[-1] if self.history_offsets else 0

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
class Windows:
    """Where the W windows of E episodes begin: some numbers for each episode, and none for each row.

    Window w lies in the first episode that ends behind it, when the windows of the episodes are counted one after
    another. Where only `some` rows begin one, these are listed.
    """

    first: Int[np.ndarray, "E"]
    """The first row of every episode."""
    last: Int[np.ndarray, "E"]
    """Its last row."""
    ends: Int[np.ndarray, "E"]
    """How many windows there are up to its end."""
    some: Int[np.ndarray, "W"] | None = None

    @classmethod
    def of(cls, dataset: Footage, reach: int, least: int = 0, trusted: Bool[np.ndarray, "N"] | None = None) -> Windows:
        """One for each row that is followed by `reach` others of its episode, if that has `least` rows, and of them
        those that are trusted.
        """
        first = np.array([episode.start for episode in dataset.episodes], np.int64)
        lengths = np.array([episode.length for episode in dataset.episodes], np.int64)
        counts = np.where(lengths >= least, np.maximum(lengths - reach, 0), 0)
        windows = cls(first, first + lengths - 1, np.cumsum(counts))
        if trusted is None:
            return windows
        rows = np.concatenate([np.arange(start, start + n) for start, n in zip(first, counts, strict=True)])
        return cls(first, windows.last, windows.ends, rows[trusted[rows]])

    def __len__(self) -> int:
        return int(self.ends[-1]) if self.some is None else len(self.some)

    def find(
        self, windows: Int[np.ndarray, "B"]
    ) -> tuple[Int[np.ndarray, "B"], Int[np.ndarray, "B"], Int[np.ndarray, "B"]]:
        """The row that each begins at, the last row of its episode, and the number of its episode."""
        if self.some is not None:
            rows = self.some[windows]
            episodes = np.searchsorted(self.first, rows, "right") - 1
        else:
            episodes = np.searchsorted(self.ends, windows, "right")
            before = np.where(episodes > 0, self.ends[episodes - 1], 0)
            rows = self.first[episodes] + windows - before
        return rows, self.last[episodes], episodes


@dataclass(frozen=True, eq=False)
class Source:
    """One dataset, the latents of its pictures, and what its samples teach.

    VIDEO samples have pictures and instructions only, whatever else the dataset holds: of `transform` they take the
    widths of the model. The state of a dataset that has none is not valid.

    Raises ValueError when an episode is shorter than the action horizon (but for VIDEO) or too short for any future
    frame, unless such are left out (`leave_short`), and when the future of the window does not fill the latent frames
    of the codec.

    Windows whose inferred actions are trusted less than `min_confidence` on average are left out. Raises ValueError
    when nothing is left then, and on recorded actions, which have no confidence.
    """

    dataset: Footage
    latents: Latents
    transform: RobotTransform
    window: Window
    mode: Mode
    weight: float = 1.0
    future: FutureTransform = FutureTransform()
    min_confidence: float = 0.0
    leave_short: bool = False
    _windows: Windows = field(init=False)

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise ValueError(f"{self.dataset.folder}: the weight of a source must be positive, not {self.weight}")
        if self.mode is not Mode.POLICY and not self.window.future_offsets:
            raise ValueError(f"{self.dataset.folder}: {self.mode} samples need a window with future frames")
        stride = self.latents.time_stride
        least = frames_needed(self.window, {self.mode}, stride)
        if not self.leave_short:
            require_lengths(self.dataset, self.window, {self.mode}, stride)
        reach = 0 if self.mode is Mode.POLICY else self.window.pictures_needed(stride) - 1
        trusted = None
        if self.min_confidence:
            trusted = trusted_rows(self.dataset, self.window, self.min_confidence)
        windows = Windows.of(self.dataset, reach, least, trusted)
        if not len(windows):
            trust = f" and a confidence of {self.min_confidence:g}" if trusted is not None else ""
            raise ValueError(f"{self.dataset.folder}: no window has {least} frames{trust}: leave the dataset out")
        object.__setattr__(self, "_windows", windows)

    def __len__(self) -> int:
        """How many windows there are: one for every frame that has something to teach."""
        return len(self._windows)

    def remembered(self, count: int, random: np.random.Generator) -> Int[np.ndarray, "B"] | None:
        """How much of its history each of `count` samples is shown, from nothing to all: a policy's memory, which
        grows from call to call and is cut when it is full, has every length anywhere in an episode.
        """
        longest = len(self.window.history_offsets)
        return random.integers(longest + 1, size=count) if longest else None

    def batch(self, windows: Int[np.ndarray, "B"], moments: Int[np.ndarray, "B"] | None = None) -> Batch:
        """These windows as tensors. Rows past the end of an episode repeat its last one and are not valid.

        Of the history all is valid that there is, or the newest `moments` of it.
        """
        start, last, episodes = self._windows.find(windows)
        left = (last - start)[:, None]
        stride, offsets = self.latents.time_stride, self.window.future_offsets
        ends = np.array(offsets[stride - 1 :: stride], int)  # the last picture of every latent frame
        latents = self.latents.window(start, last, offsets)
        past = start[:, None] + np.array(self.window.history_offsets, int)
        first = self._windows.first[episodes][:, None]
        if moments is not None:
            first = np.maximum(first, start[:, None] - moments[:, None] * self.window.history_spacing)
        return Batch(
            modes=(self.mode,) * len(windows),
            history=torch.from_numpy(self.latents.single(np.maximum(past, first))),
            history_valid=torch.from_numpy(past >= first),
            latents=torch.from_numpy(self.future.normalize(latents)),
            future_valid=torch.from_numpy(ends <= left),
            instructions=tuple(self.dataset.episodes[i].instruction for i in episodes),
            **{name: torch.from_numpy(values) for name, values in self._numbers(start, left).items()},
        )

    def places(self, windows: Int[np.ndarray, "n"]) -> list[str]:
        """Where windows begin, for people."""
        rows, _, episodes = (found.tolist() for found in self._windows.find(windows))
        where, starts = self.dataset.where, [self.dataset.episodes[i].start for i in episodes]
        return [f"{where(i)}: frame {row - start}" for row, i, start in zip(rows, episodes, starts, strict=True)]

    def _numbers(self, start: Int[np.ndarray, "B"], left: Int[np.ndarray, "B 1"]) -> dict[str, np.ndarray]:
        """What of these windows is no picture: zeros and nothing valid for VIDEO. `left` rows follow in the episode."""
        B, K, widths = len(start), self.window.action_horizon, self.transform
        action_valid = np.zeros((B, K, widths.action_width), bool)
        state, action = np.zeros((B, widths.state_width), np.float32), action_valid.astype(np.float32)
        felt, robot = self.mode is not Mode.VIDEO and bool(self.dataset.state_names), self.transform.embodiment
        if felt:
            state = self.transform.model_state(self.dataset.state[start])
        if self.mode is not Mode.VIDEO:
            steps = np.arange(K)
            taken = self.dataset.action[start[:, None] + np.minimum(steps, left)]
            action = self.transform.model_action(taken, self.dataset.state[start])
            action_valid[:] = (steps <= left)[:, :, None]
            action_valid[:, :, len(robot.action_names) :] = False
        return {
            "state": state,
            "state_valid": np.full(B, felt),
            "action": action,
            "action_valid": action_valid,
            "embodiment": np.full(B, 0 if self.mode is Mode.VIDEO else robot.index),
        }


@dataclass(frozen=True)
class Mixture:
    """Batches of `batch_size` windows, each from a source drawn by weight, then evenly from its windows."""

    sources: Sequence[Source]
    batch_size: int
    seed: int

    def batch(self, step: int, rows: Collection[int] | None = None) -> Batch:
        """The batch of this step, the same every time, or those samples that are `rows` of it."""
        return join([source.batch(windows, moments) for source, windows, moments in self._drawn(step, rows)])

    def places(self, step: int, rows: Collection[int]) -> list[str]:
        """Where the samples come from that are `rows` of a batch, for people."""
        return [place for source, windows, _ in self._drawn(step, rows) for place in source.places(windows)]

    def _drawn(
        self, step: int, rows: Collection[int] | None
    ) -> Iterator[tuple[Source, Int[np.ndarray, "n"], Int[np.ndarray, "n"] | None]]:
        """Sources, the windows that are drawn from each, and how much of their history is shown."""
        random = np.random.default_rng((self.seed, step))
        weights = np.array([source.weight for source in self.sources])
        counts = random.multinomial(self.batch_size, weights / weights.sum()).tolist()
        wanted, first = np.arange(self.batch_size) if rows is None else np.array(sorted(rows), int), 0
        for source, count in zip(self.sources, counts, strict=True):
            windows, moments = random.integers(len(source), size=count), source.remembered(count, random)
            own = wanted[(wanted >= first) & (wanted < first + count)] - first
            first += count
            if len(own):
                yield source, windows[own], None if moments is None else moments[own]


def join(parts: Sequence[Batch]) -> Batch:
    """Batches one after another as one."""
    tensors: dict[str, Any] = {
        name: torch.cat([getattr(part, name) for part in parts])
        for name, value in vars(parts[0]).items()
        if isinstance(value, torch.Tensor)
    }
    return Batch(
        modes=tuple(mode for part in parts for mode in part.modes),
        instructions=tuple(text for part in parts for text in part.instructions),
        **tensors,
    )


def frames_needed(window: Window, modes: Collection[Mode], time_stride: int = 1) -> int:
    """What an episode must have: one latent frame of future and, where any of the modes knows actions, one chunk."""
    actions = 0 if set(modes) <= {Mode.VIDEO} else window.action_horizon
    return max(actions, window.pictures_needed(time_stride))


def require_lengths(dataset: Footage, window: Window, modes: Collection[Mode], time_stride: int = 1) -> None:
    """Raises ValueError when an episode has fewer than `frames_needed`."""
    needed = frames_needed(window, modes, time_stride)
    for episode in dataset.episodes:
        if episode.length < needed:
            raise ValueError(
                f"{dataset.where(episode.index)} has {episode.length} frames, fewer than the {needed} of "
                "one window; drop it or choose a shorter horizon"
            )


def action_chunks(
    dataset: Footage, window: Window, episodes: range | None = None
) -> Iterator[tuple[Float32[np.ndarray, "n s"], Float32[np.ndarray, "n K a"]]]:
    """State and the actions that follow it, for every row whose whole chunk lies in its episode, of some episodes or
    all: what the statistics of a normaliser are computed on, in blocks of about `BLOCK` numbers.
    """
    K, chosen = window.action_horizon, dataset.episodes
    if episodes is not None:
        chosen = chosen[episodes.start : episodes.stop]
    starts = np.concatenate([np.arange(e.start, e.start + e.length - K + 1) for e in chosen])
    size = max(1, BLOCK // (K * max(1, dataset.action.shape[1])))
    for first in range(0, len(starts), size):
        rows = starts[first : first + size]
        yield dataset.state[rows], dataset.action[rows[:, None] + np.arange(K)]


def trusted_rows(dataset: Footage, window: Window, least: float) -> Bool[np.ndarray, "N"]:
    """Which rows begin an action chunk that was inferred with a confidence of at least `least`, on average over the
    actions that are in the episode.

    Raises ValueError when there is none, and on recorded actions, which have no confidence.
    """
    if not isinstance(dataset, LeRobotDataset) or dataset.confidence is None:
        raise ValueError(f"{dataset.folder}: has no {CONFIDENCE}, which only `actwam label` writes: set no minimum")
    total = np.concatenate([[0.0], np.cumsum(dataset.confidence, dtype=np.float64)])
    starts = np.arange(len(dataset.confidence))
    last = np.concatenate([np.full(e.length, e.start + e.length) for e in dataset.episodes])
    ends = np.minimum(starts + window.action_horizon, last)
    mean = (total[ends] - total[starts]) / (ends - starts)
    if not (mean >= least).any():
        raise ValueError(
            f"{dataset.folder}: no window has a confidence of {least:g}, the best has {mean.max():.3g}: lower "
            "min_confidence"
        )
    return mean >= least
