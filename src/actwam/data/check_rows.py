"""Rules about rows: finite numbers, regular time, dimensions that move without glitches, episodes that are not idle."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from actwam.data.info import ACTION, STATE, Info
from actwam.data.normalize import CONSTANT_RANGE, Constant
from actwam.data.problem import Problem, Reporter
from actwam.data.tables import EpisodeRow, Rows, Tables

Parts = Sequence[tuple[EpisodeRow, Path, Rows]]
"""All episodes that have at least one row, with the file that holds them."""

TIME_TOLERANCE = 1e-4
"""Seconds. LeRobot refuses time stamps that are further off."""
LONGEST_STEP = 1.5
"""Periods from one row to the next: beyond it a row is missing, however much the clock jitters."""
TAIL, FEWEST_TAIL = 0.01, 5
"""Share of the rows, and how many at least, that are left out at either end of a dimension for its usual range."""
OUTLIER_RANGES = 5.0
"""Usual ranges beyond the usual range. Our demonstrations stay within 1; quantile normalisation makes this 11."""
OUTLIER_ROWS = 5
"""A stretch of more rows is a motion, not a glitch."""
IDLE_RANGE = 0.01
"""Share of its usual motion within which a dimension that stands still may wander: sensors are not quiet."""
IDLE_SECONDS = 1.0
"""A stretch without motion that is reported. Scripted demonstrations pause for 0.3 s, people before they begin for
seconds; a policy learns from it to wait."""


def features(info: Info) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """State and action, as far as the dataset has them: key, names, and what `Rows` calls it."""
    for key, names, field in ((STATE, info.state_names, "state"), (ACTION, info.action_names, "action")):
        if names:
            yield key, names, field


def pooled(parts: Parts, field: str) -> Float[np.ndarray, "n D"]:
    """One feature of all episodes, without the rows that hold a NaN or Inf."""
    values = np.concatenate([getattr(rows, field) for _, _, rows in parts]).astype(np.float64)
    return values[np.isfinite(values).all(1)]


def usual_range(values: Float[np.ndarray, "n D"]) -> tuple[Float[np.ndarray, "D"], Float[np.ndarray, "D"]]:
    """The lowest and highest number of each dimension but for the `TAIL` at either end, which glitches cannot move.
    Equal for a dimension that moves less than that often, or of too few rows.
    """
    tail = max(FEWEST_TAIL, int(np.ceil(TAIL * len(values))))
    if len(values) <= 2 * tail:
        middle = np.median(values, axis=0) if len(values) else np.zeros(values.shape[1])
        return middle, middle
    ends = np.partition(values, (tail, len(values) - 1 - tail), axis=0)
    return ends[tail], ends[len(values) - 1 - tail]


def usual_motion(parts: Parts, field: str) -> Float[np.ndarray, "D"]:
    """How far each dimension goes in the median episode, or, if that leaves it alone, in all of them together. A few
    episodes with glitches or in another unit do not change it.
    """
    values = [getattr(rows, field).astype(np.float64) for _, _, rows in parts]
    spans = np.array([np.ptp(each, axis=0) for each in values if np.isfinite(each).all()])
    if not len(spans):
        return np.zeros(values[0].shape[1])
    median = np.median(spans, axis=0)
    return np.where(moves(np.zeros_like(median), median), median, np.ptp(pooled(parts, field), axis=0))


def moves(low: Float[np.ndarray, "D"], high: Float[np.ndarray, "D"]) -> Bool[np.ndarray, "D"]:
    """Where a range is more than float32 rounding."""
    return high - low > CONSTANT_RANGE * np.maximum(np.abs(low), np.abs(high))


def runs(flags: Bool[np.ndarray, "n"]) -> list[tuple[int, int]]:
    """First row and the one behind the last of every stretch of True."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False]))))
    return [(int(first), int(end)) for first, end in edges.reshape(-1, 2)]


def check_finite(parts: Parts, info: Info, report: Reporter) -> None:
    """NaN and Inf, one problem per episode and dimension."""
    for episode, file, rows in parts:
        for key, names, field in features(info):
            values = getattr(rows, field)
            bad = ~np.isfinite(values)
            for i in np.flatnonzero(bad.any(0)):
                frame = int(bad[:, i].argmax())
                what = f"{names[i]} is {values[frame, i]} in {bad[:, i].sum()} rows"
                fix = "drop the episode, or record it again"
                place: dict[str, Any] = {"file": file, "episode": episode.index, "frame": frame, "key": key}
                report(Problem(kind="finite", what=what, fix=fix, **place))


def check_time(parts: Parts, info: Info, report: Reporter) -> None:
    """Time stamps other than frame / fps, one problem per episode: the first one, and what it looks like."""
    for episode, file, rows in parts:
        time = rows.timestamp
        expected = np.arange(len(time)) / info.fps
        rounding = np.spacing(expected.astype(np.float32))
        wrong = np.flatnonzero(~(np.abs(time - expected) <= TIME_TOLERANCE + rounding))
        if len(wrong):
            frame = int(wrong[0])
            what = f"timestamp is {time[frame]:g} s, expected {expected[frame]:g} at {info.fps} fps{_clock(time, info)}"
            fix = "record at a constant rate, or resample the episode"
            place: dict[str, Any] = {"file": file, "episode": episode.index, "frame": frame, "key": "timestamp"}
            report(Problem(kind="time", what=what, fix=fix, **place))


def _clock(time: Float[np.ndarray, "n"], info: Info) -> str:
    """What the time stamps of an episode look like, as the end of a sentence."""
    steps = np.diff(time) * info.fps
    if not np.isfinite(time).all():
        return ""
    if (steps <= 0).any():
        return "; time runs backwards"
    if len(steps) > 1 and np.ptp(steps) < 0.1 and not evenly_timed(time, info.fps):
        return f"; the rows come at {info.fps / np.median(steps):.4g} fps"
    if (steps > LONGEST_STEP).any():
        return f"; time jumps by {steps.max() / info.fps:g} s at frame {int(steps.argmax()) + 1}"
    if abs(time[0]) > TIME_TOLERANCE:
        return "; time does not start at 0"
    return "; time is irregular"


def evenly_timed(time: Float[np.ndarray, "n"], fps: int) -> bool:
    """Whether a clock that is late, early or jitters told the time of rows that were taken one period after the other:
    no row is missing or came twice, and the whole episode took as long as it should, to a tenth.
    """
    steps = np.diff(time) * fps
    if not np.isfinite(time).all() or (steps <= 0).any() or (steps > LONGEST_STEP).any():
        return False
    return len(steps) == 0 or abs(float(steps.mean()) - 1) < 0.1


def check_length(tables: Tables, action_horizon: int | None, report: Reporter) -> None:
    for episode in tables.episodes:
        if action_horizon is not None and 1 <= episode.length < action_horizon:
            what = f"{episode.length} frames are fewer than the action horizon of {action_horizon}"
            fix = "drop the episode, or train with a shorter horizon"
            report(Problem(kind="length", file=tables.episode_file, episode=episode.index, what=what, fix=fix))


def check_range(parts: Parts, info: Info, constant: Constant, report: Reporter) -> None:
    """Dimensions that never move in the whole dataset."""
    for key, names, field in features(info) if parts else ():
        values = np.concatenate([getattr(rows, field) for _, _, rows in parts])
        for i, name in enumerate(names):
            column = values[:, i][np.isfinite(values[:, i])].astype(np.float64)
            if len(column) and np.ptp(column) <= CONSTANT_RANGE * np.abs(column).max():
                report(
                    Problem(
                        kind="range",
                        file=info.file,
                        key=key,
                        severity="error" if constant == "error" else "warning",
                        what=f"{name} is {column[0]:g} in all {len(column)} rows: zero range",
                        fix='record motion in it, drop it, or normalise with constant="center"',
                    )
                )


def check_outliers(parts: Parts, info: Info, report: Reporter) -> None:
    """A few rows in a row that are far beyond all others: what an encoder or a cable says when it fails."""
    for key, names, field in features(info) if parts else ():
        low, high = usual_range(pooled(parts, field))
        far = np.where(moves(low, high), OUTLIER_RANGES * (high - low), np.inf)
        for episode, file, rows in parts:
            values = getattr(rows, field)
            beyond = np.isfinite(values) & ((values > high + far) | (values < low - far))
            for i in np.flatnonzero(beyond.any(0)):
                glitches = [(first, end) for first, end in runs(beyond[:, i]) if end - first <= OUTLIER_ROWS]
                if glitches:
                    frame = glitches[0][0]
                    usual = f"elsewhere it is {low[i]:.4g} to {high[i]:.4g}"
                    what = f"{names[i]} is {values[frame, i]:.4g}, {usual}, in {sum(e - f for f, e in glitches)} rows"
                    place: dict[str, Any] = {"file": file, "episode": episode.index, "frame": frame, "key": key}
                    fix = "look at the recording; drop the episode if it is no motion"
                    report(Problem(kind="outlier", severity="warning", what=what, fix=fix, **place))


@dataclass(frozen=True)
class Idle:
    """Rows `first` to `end` of an episode, in which nothing moves."""

    episode: EpisodeRow
    file: Path
    first: int
    end: int

    @property
    def place(self) -> str:
        """Where it is in the episode of so many rows."""
        if (self.first, self.end) == (0, self.episode.length):
            return "from its start to its end"
        ends = {self.first == 0: "at its start", self.end == self.episode.length: "at its end"}
        return ends.get(True, "inside")


def find_idle(parts: Parts, info: Info) -> Iterator[Idle]:
    """Stretches of at least `IDLE_SECONDS` in which no dimension of state or action moves by `IDLE_RANGE` of what is
    usual. Without a state nobody knows: an action that stays the same may be a velocity.
    """
    if not parts or not info.state_names:
        return
    fields = [field for _, _, field in features(info)]
    width = np.concatenate([usual_motion(parts, field) for field in fields])
    window = int(np.ceil(IDLE_SECONDS * info.fps)) + 1
    for episode, file, rows in parts:
        values = np.concatenate([getattr(rows, field) for field in fields], axis=1).astype(np.float64)
        if len(values) < window or not np.isfinite(values).all():
            continue
        spread = _windowed(values, window, np.maximum) - _windowed(values, window, np.minimum)
        still = (spread <= IDLE_RANGE * width).all(1)
        for first, end in runs(still):
            yield Idle(episode, file, first, end + window - 1)


def check_idle(parts: Parts, info: Info, report: Reporter) -> None:
    for idle in find_idle(parts, info):
        count = idle.end - idle.first
        what = f"nothing moves in {count} rows ({count / info.fps:.1f} s) {idle.place}"
        place: dict[str, Any] = {"file": idle.file, "episode": idle.episode.index, "frame": idle.first}
        report(Problem(kind="idle", severity="warning", what=what, fix="cut it off, or record again", **place))


def _windowed(values: Float[np.ndarray, "n D"], window: int, pick: Callable[..., Any]) -> Float[np.ndarray, "m D"]:
    """`pick`, a maximum or a minimum, of every `window` rows in a row, in about log2(window) passes."""
    size = 1
    while size < window:
        step = min(size, window - size)
        values = pick(values[:-step], values[step:])
        size += step
    return values
