"""Reads a whole dataset and lists every problem in it, before a training run finds them one by one.

Nothing on disk is changed. The rules of structure are those of the reader (`tables.examine`); here are the
rules of content: finite numbers, dimensions that move, regular time, videos that decode, statistics that
fit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import float_info
from typing import Any, Literal

import numpy as np

from actwam.data.clips import find_clips, holds_clips, picked_frames
from actwam.data.dataset import read_tables
from actwam.data.info import ACTION, STATE, Camera, Info, read_info, read_json
from actwam.data.normalize import CONSTANT_RANGE, Constant
from actwam.data.problem import Problem, Reporter, reported
from actwam.data.stats import feature_stats
from actwam.data.tables import (
    REWRITE,
    Clip,
    Rows,
    Tables,
    episode_rows,
    examine,
    in_episode,
    locate_clips,
)
from actwam.data.v21 import read_stats
from actwam.data.video import VideoIndex, index_video, iterate_frames, read_frames

Decode = Literal["all", "ends"]
TIME_TOLERANCE = 1e-4
"""Seconds. LeRobot refuses time stamps that are further off."""
STATS_TOLERANCE = 1e-3
"""Share of a dimension's largest magnitude by which stored statistics may differ from the data."""


@dataclass(frozen=True)
class Report:
    """What was read, and all problems, in the order of info, tables, numbers, videos, statistics."""

    folder: Path
    episodes: int
    frames: int
    seconds: float
    decoded: int
    problems: tuple[Problem, ...]

    @property
    def ok(self) -> bool:
        """True without errors; warnings are allowed."""
        return not any(problem.severity == "error" for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "episodes": self.episodes,
            "frames": self.frames,
            "seconds": self.seconds,
            "decoded": self.decoded,
            "problems": [problem.to_json() for problem in self.problems],
        }


def check(
    folder: Path,
    *,
    action_horizon: int | None = None,
    decode: Decode = "all",
    constant: Constant = "error",
    fps: int | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Examine the dataset in `folder`; problems are listed, not raised.

    `decode="all"` decodes every frame, "ends" counts the frames of every file and decodes the first and last
    of each episode. `constant` is the normaliser's policy on a dimension that never moves: with "center" it
    is a warning. `progress(decoded, total)` is called with numbers of frames, all cameras together.

    Of a folder of video files every clip is an episode; `fps` is the rate at which it will be read, which tells how
    many rows a clip has: without it, each has as many as frames.
    """
    if holds_clips(folder):
        return _check_clips(folder, action_horizon, decode, fps, progress)
    problems: list[Problem] = []
    report: Reporter = problems.append
    info, tables, decoded = None, None, 0
    with reported(report):
        info = read_info(folder)
    if info is not None:
        with reported(report):
            tables = read_tables(info, report)
    if info is not None and tables is not None:
        examine(tables, info, report)
        _check_numbers(tables, info, report)
        _check_horizon(tables, action_horizon, report)
        _check_ranges(tables, info, constant, report)
        decoded = _check_videos(tables, info, decode, report, progress)
        _check_stats(tables, info, report)
    frames = sum(len(rows.index) for rows in tables.rows.values()) if tables else 0
    return Report(
        folder=folder,
        episodes=len(tables.episodes) if tables else 0,
        frames=frames,
        seconds=frames / info.fps if info else 0.0,
        decoded=decoded,
        problems=tuple(problems),
    )


def _check_clips(
    folder: Path,
    action_horizon: int | None,
    decode: Decode,
    fps: int | None,
    progress: Callable[[int, int], None],
) -> Report:
    problems: list[Problem] = []
    found = find_clips(folder, problems.append)
    indexes = [index_video(path) for path, _ in found]
    lengths = [index.frames if decode == "all" else min(index.frames, 2) for index in indexes]
    decoded = 0
    for (path, _), index in zip(found, indexes, strict=True):
        rows = index.frames if fps is None else len(picked_frames(path, fps))
        if action_horizon is not None and rows < action_horizon:
            at = "frames" if fps is None else f"rows at {fps} fps"
            what = f"{rows} {at} are fewer than the {action_horizon} of one window"
            problems.append(Problem(file=path, what=what, fix="drop the clip, or train with a shorter horizon"))
        with reported(problems.append):
            ends = np.unique([0, index.frames - 1])
            for _ in iterate_frames(path) if decode == "all" else read_frames(path, ends):
                decoded += 1
                progress(decoded, sum(lengths))
    return Report(
        folder=folder,
        episodes=len(found),
        frames=sum(index.frames for index in indexes),
        seconds=sum((index.seconds for index in indexes), start=0.0),
        decoded=decoded,
        problems=tuple(problems),
    )


def _check_numbers(tables: Tables, info: Info, report: Reporter) -> None:
    """NaN and Inf, one problem per episode and dimension, and time stamps other than frame / fps."""
    for episode, file, rows in episode_rows(tables):
        for key, values, names in (
            (STATE, rows.state, info.state_names),
            (ACTION, rows.action, info.action_names),
        ):
            bad = ~np.isfinite(values)
            for i in np.flatnonzero(bad.any(0)):
                frame = int(bad[:, i].argmax())
                what = f"{names[i]} is {values[frame, i]} in {bad[:, i].sum()} rows"
                fix = "drop the episode, or record it again"
                report(Problem(file=file, episode=episode.index, frame=frame, key=key, what=what, fix=fix))
        time = rows.timestamp
        expected = np.arange(len(time)) / info.fps
        rounding = np.spacing(expected.astype(np.float32))
        wrong = np.flatnonzero(~(np.abs(time - expected) <= TIME_TOLERANCE + rounding))
        if len(wrong):
            frame = int(wrong[0])
            back = "; time runs backwards" if (np.diff(time) <= 0).any() else ""
            what = f"timestamp is {time[frame]:g} s, expected {expected[frame]:g} at {info.fps} fps{back}"
            fix = "record at a constant rate, or resample the episode"
            report(Problem(file=file, episode=episode.index, frame=frame, key="timestamp", what=what, fix=fix))


def _check_horizon(tables: Tables, action_horizon: int | None, report: Reporter) -> None:
    for episode in tables.episodes:
        if action_horizon is not None and 1 <= episode.length < action_horizon:
            what = f"{episode.length} frames are fewer than the action horizon of {action_horizon}"
            fix = "drop the episode, or train with a shorter horizon"
            report(Problem(file=tables.episode_file, episode=episode.index, what=what, fix=fix))


def _features(parts: Iterable[Rows], info: Info) -> Iterator[tuple[str, tuple[str, ...], np.ndarray]]:
    """State and action of these rows, as far as there are any."""
    parts = [rows for rows in parts if len(rows.index)]
    for key, names, field in ((STATE, info.state_names, "state"), (ACTION, info.action_names, "action")):
        if names and parts:
            yield key, names, np.concatenate([getattr(rows, field) for rows in parts])


def _check_ranges(tables: Tables, info: Info, constant: Constant, report: Reporter) -> None:
    for key, names, values in _features(tables.rows.values(), info):
        for i, name in enumerate(names):
            column = values[:, i][np.isfinite(values[:, i])].astype(np.float64)
            if len(column) and np.ptp(column) <= CONSTANT_RANGE * np.abs(column).max():
                report(
                    Problem(
                        file=info.file,
                        key=key,
                        severity="error" if constant == "error" else "warning",
                        what=f"{name} is {column[0]:g} in all {len(column)} rows: zero range",
                        fix='record motion in it, drop it, or normalise with constant="center"',
                    )
                )


def _check_videos(
    tables: Tables, info: Info, decode: Decode, report: Reporter, progress: Callable[[int, int], None]
) -> int:
    """Returns how many frames were decoded."""
    placed = locate_clips(tables, info, report)
    most = info.total_frames if decode == "all" else 2
    total = sum(min(max(episode.length, 0), most) for episode in tables.episodes) * len(info.cameras)
    decoded = 0
    for camera in info.cameras:
        files: dict[Path, list[tuple[int, Clip, int]]] = {}
        for episode in tables.episodes:
            clip = placed[episode.index][camera.name]
            files.setdefault(clip.path, []).append((episode.index, clip, episode.length))
        for path, members in files.items():
            parts = [(index, clip.first_frame) for index, clip, _ in members]

            def place(problem: Problem, camera: Camera = camera, parts: list[tuple[int, int]] = parts) -> None:
                report(in_episode(problem, camera.name, parts, parts[0][0]))

            if path.is_file():  # a missing one has been reported
                with reported(place):
                    index = index_video(path)
                    _check_counts(path, index, camera, members, place)
                    for _ in _frames(path, index, members, decode):
                        decoded += 1
                        progress(decoded, total)
    return decoded


def _check_counts(
    path: Path, index: VideoIndex, camera: Camera, members: list[tuple[int, Clip, int]], place: Reporter
) -> None:
    if (index.height, index.width) != (camera.height, camera.width):
        what = f"pictures are {index.height}x{index.width}, info.json says {camera.height}x{camera.width}"
        place(Problem(file=path, what=what, fix=REWRITE))
    wanted = sum(length for _, _, length in members)
    if index.frames != wanted:
        whose = "its episode has" if len(members) == 1 else f"its {len(members)} episodes have"
        what = f"video has {index.frames} frames, {whose} {wanted}"
        first_lost = min(index.frames, wanted) if index.frames < wanted else None
        place(Problem(file=path, frame=first_lost, what=what, fix="copy the file again, or record again"))


def _frames(
    path: Path, index: VideoIndex, members: list[tuple[int, Clip, int]], decode: Decode
) -> Iterable[np.ndarray]:
    if decode == "all":
        return iterate_frames(path)
    ends = {frame for _, clip, length in members for frame in (clip.first_frame, clip.first_frame + length - 1)}
    return read_frames(path, np.array(sorted(frame for frame in ends if 0 <= frame < index.frames), int))


def _check_stats(tables: Tables, info: Info, report: Reporter) -> None:
    path = info.folder / "meta" / ("episodes_stats.jsonl" if info.version == "v2.1" else "stats.json")
    fix = "compute the statistics again with LeRobot; actwam trains on its own"
    if not path.is_file():
        report(Problem(file=path, severity="warning", what="file is missing", fix=fix))
        return
    with reported(report):
        for episode, stored, parts in _stored_stats(path, tables, info):
            for key, names, values in _features(parts, info):
                place: dict[str, Any] = {"file": path, "episode": episode, "key": key, "fix": fix}
                if not isinstance(stored.get(key), dict):
                    report(Problem(what="statistics are missing", severity="warning", **place))
                elif np.isfinite(values).all():  # else that was reported, and no statistics can fit
                    for what in _misfits(stored[key], names, values):
                        report(Problem(what=what, **place))


def _stored_stats(
    path: Path, tables: Tables, info: Info
) -> Iterator[tuple[int | None, Mapping[str, Any], Iterable[Rows]]]:
    """Statistics and the rows they are of: in v2.1 those of every episode, else those of the whole dataset."""
    if info.version != "v2.1":
        yield None, read_json(path), tables.rows.values()
        return
    stored = read_stats(path)
    for episode, _, rows in episode_rows(tables):
        yield episode.index, stored.get(episode.index, {}), [rows]


def _misfits(found: Mapping[str, Any], names: tuple[str, ...], values: np.ndarray) -> Iterator[str]:
    """Quantiles are not compared: LeRobot merges them to bounds, so they seldom fit."""
    expected = feature_stats(values)
    allowed = STATS_TOLERANCE * np.maximum(np.abs(values).max(0), 1e-6)
    for name in ("min", "max", "mean", "std"):
        told = found.get(name)
        if not isinstance(told, list) or len(told) != len(names) or not all(_is_number(n) for n in told):
            yield f"{name} is {str(told)[:80]}, expected {len(names)} numbers"
            continue
        for i in np.flatnonzero(~(np.abs(np.array(told) - expected[name]) <= allowed)):
            yield f"{name} of {names[i]} is {told[i]:g}, the data give {expected[name][i]:g}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= float_info.max
