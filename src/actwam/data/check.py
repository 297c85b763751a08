"""Reads a whole dataset and lists every problem in it, before a training run finds them one by one.

Nothing on disk is changed. The rules of structure are those of the reader (`tables.examine`), those of content stand in
`check_rows` (each row), `check_episodes` (episodes against each other), `check_videos` and `check_pictures`; here are
those of the stored statistics. `docs/guides/check.md` lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from sys import float_info
from typing import Any

import numpy as np

from actwam.data import check_rows
from actwam.data.check_episodes import check_duplicates, check_grippers, check_units, find_duplicates
from actwam.data.check_pictures import Looks, alike, check_black, check_frozen, check_swapped
from actwam.data.check_rows import Parts, features
from actwam.data.check_videos import Clips, Decode, check_videos
from actwam.data.clips import find_clips, holds_clips, picked_frames
from actwam.data.dataset import read_tables
from actwam.data.embodiment import Embodiment
from actwam.data.info import Info, read_info, read_json
from actwam.data.normalize import Constant
from actwam.data.problem import Problem, Reporter, reported
from actwam.data.stats import feature_stats
from actwam.data.tables import Rows, Tables, episode_rows, examine, locate_clips
from actwam.data.v21 import read_stats
from actwam.data.video import index_video, iterate_frames, read_frames

STATS_TOLERANCE = 1e-3
"""Share of a dimension's largest magnitude by which stored statistics may differ from the data."""


@dataclass(frozen=True)
class Report:
    """What was read, and all problems, in the order of info, tables, rows, episodes, videos, statistics."""

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


@dataclass(frozen=True, eq=False)
class Examined:
    """A report on a LeRobot dataset, and what it was made from, as far as that could be read."""

    report: Report
    info: Info | None = None
    tables: Tables | None = None
    parts: Parts = ()
    clips: Clips | None = None
    looks: Looks | None = None


def check(
    folder: Path,
    *,
    action_horizon: int | None = None,
    decode: Decode = "all",
    constant: Constant = "error",
    fps: int | None = None,
    robot: Embodiment | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Report:
    """Examine the dataset in `folder`; problems are listed, not raised.

    `decode="all"` decodes every frame, which alone shows what cameras saw; "ends" counts the frames of every file and
    decodes the first and last of each episode; "none" reads only what files announce at their ends, in less than a
    second for a hundred episodes. `constant` is the normaliser's policy on a dimension that never moves: with "center"
    it is a warning. `robot` says the units of state and action. `progress(decoded, total)` is called with numbers of
    frames, all cameras together.

    Of a folder of video files every clip is an episode; `fps` is the rate at which it will be read, which tells how
    many rows a clip has: without it, each has as many as frames.
    """
    if holds_clips(folder):
        return _check_clips(folder, action_horizon, decode, fps, progress)
    return examined(
        folder, action_horizon=action_horizon, decode=decode, constant=constant, robot=robot, progress=progress
    ).report


def examined(
    folder: Path,
    *,
    action_horizon: int | None,
    decode: Decode,
    constant: Constant,
    robot: Embodiment | None,
    progress: Callable[[int, int], None],
) -> Examined:
    """`check` of a LeRobot dataset, with what it read."""
    problems: list[Problem] = []
    report: Reporter = problems.append
    info, tables = None, None
    with reported(report):
        info = read_info(folder)
    if info is not None:
        with reported(report):
            tables = read_tables(info, report)
    if info is None or tables is None:
        return Examined(Report(folder, 0, 0, 0.0, 0, tuple(problems)), info)
    examine(tables, info, report)
    parts = tuple(part for part in episode_rows(tables) if len(part[2].index))
    check_rows.check_finite(parts, info, report)
    check_rows.check_time(parts, info, report)
    check_rows.check_length(tables, action_horizon, report)
    check_rows.check_range(parts, info, constant, report)
    check_rows.check_outliers(parts, info, report)
    check_rows.check_idle(parts, info, report)
    check_grippers(parts, info, report)
    check_units(parts, info, robot, report)
    clips = locate_clips(tables, info, report)
    decoded, looks = check_videos(tables, info, clips, decode, report, progress)
    check_duplicates(parts, _drawn_again(parts, looks), report)
    check_black(looks, clips, report)
    check_frozen(looks, clips, parts, info, report)
    check_swapped(looks, clips, parts, info, report)
    _check_stats(tables, info, report)
    frames = sum(len(rows.index) for rows in tables.rows.values())
    found = Report(folder, len(tables.episodes), frames, frames / info.fps, decoded, tuple(problems))
    return Examined(found, info, tables, parts, clips, looks)


def _drawn_again(parts: Parts, looks: Looks) -> dict[tuple[int, int], bool]:
    """Of episodes with the same rows whether they look the same, where both were decoded."""
    pairs = find_duplicates(parts).items()
    seen = [(one, other) for one, other in pairs if looks[one] and looks[one].keys() == looks[other].keys()]
    return {(one, other): alike(looks[one], looks[other]) for one, other in seen}


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
    most = {"all": max((index.frames for index in indexes), default=0), "ends": 2, "none": 0}[decode]
    lengths = [min(index.frames, most) for index in indexes]
    decoded = 0
    for number, ((path, _), index) in enumerate(zip(found, indexes, strict=True)):
        rows = index.frames if fps is None else len(picked_frames(path, fps))
        if action_horizon is not None and rows < action_horizon:
            at = "frames" if fps is None else f"rows at {fps} fps"
            what = f"{rows} {at} are fewer than the {action_horizon} of one window"
            fix = "drop the clip, or train with a shorter horizon"
            problems.append(Problem(kind="length", file=path, what=what, fix=fix))
        with reported(problems.append):
            ends = np.unique([0, index.frames - 1])[: lengths[number]]
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


def _check_stats(tables: Tables, info: Info, report: Reporter) -> None:
    """Warnings: other tools train on stored statistics, and rows that were changed behind them are told by them."""
    path = info.folder / "meta" / ("episodes_stats.jsonl" if info.version == "v2.1" else "stats.json")
    fix = "compute the statistics again with LeRobot; actwam trains on its own"
    about: dict[str, Any] = {"kind": "statistics", "severity": "warning", "file": path, "fix": fix}
    if not path.is_file():
        report(Problem(what="file is missing", **about))
        return
    with reported(report, kind="statistics"):
        for episode, stored, parts in _stored_stats(path, tables, info):
            together = [rows for rows in parts if len(rows.index)]
            for key, names, field in features(info) if together else ():
                values = np.concatenate([getattr(rows, field) for rows in together])
                place: dict[str, Any] = {"episode": episode, "key": key, **about}
                if not isinstance(stored.get(key), dict):
                    report(Problem(what="statistics are missing", **place))
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
