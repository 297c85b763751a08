"""The tables of a dataset in memory, whatever version wrote them, and the rules they must keep.

The strict reader stops at the first broken rule; `check` goes on and lists them all. Both run this code.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Float64, Int64

from actwam.data.info import COPY_AGAIN, Info
from actwam.data.problem import Problem, Reporter, reported
from actwam.data.shelf import HERE, Shelf
from actwam.data.video import index_video

REWRITE = "write the dataset again with its recording tool"


@dataclass(frozen=True, slots=True)
class Span:
    """Where the frames of one episode begin in a video file, in seconds, as the episode table says. In v2.x, where
    a file holds one episode, that is 0."""

    path: Path
    from_timestamp: float


@dataclass(frozen=True, slots=True)
class EpisodeRow:
    """One row of the episode table: rows `start` to `start + length` of the dataset are in `data_file`. `tasks` are the
    sentences that the list of v2.x gives it."""

    index: int
    length: int
    start: int
    data_file: Path
    spans: Mapping[str, Span]
    tasks: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Rows:
    """The n rows of one data file, in file order."""

    state: Float32[np.ndarray, "n S"]
    action: Float32[np.ndarray, "n A"]
    confidence: Float32[np.ndarray, "n c"]
    """One column, or none where no action was inferred."""
    timestamp: Float64[np.ndarray, "n"]
    frame_index: Int64[np.ndarray, "n"]
    episode_index: Int64[np.ndarray, "n"]
    index: Int64[np.ndarray, "n"]
    task_index: Int64[np.ndarray, "n"]


@dataclass(frozen=True, eq=False)
class Tables:
    """All tables. `tasks` is None, or a data file absent from `rows`, only if that was reported, or if no data file was
    to be read.
    """

    episode_file: Path
    tasks: Mapping[int, str] | None
    episodes: tuple[EpisodeRow, ...]
    rows: Mapping[Path, Rows]


@dataclass(frozen=True, slots=True)
class Clip:
    """The frames of one episode in a video file: `first_frame` and those that follow."""

    path: Path
    first_frame: int


def examine(tables: Tables, info: Info, report: Reporter) -> None:
    """Report every broken rule of structure: order, counts, lengths, indexes, tasks."""
    examine_episodes(tables, info, report)
    for file, members in data_files(tables):
        if file in tables.rows:
            examine_file(file, members, tables.rows[file], tables.tasks, report)


def data_files(tables: Tables) -> Iterator[tuple[Path, list[EpisodeRow]]]:
    """Every data file with its episodes, both in the order of the rows."""
    members: dict[Path, list[EpisodeRow]] = {}
    for episode in tables.episodes:
        members.setdefault(episode.data_file, []).append(episode)
    yield from members.items()


def examine_file(
    file: Path, members: Sequence[EpisodeRow], rows: Rows, tasks: Mapping[int, str] | None, report: Reporter
) -> None:
    """Report every broken rule in the rows of one data file."""
    announced = sum(episode.length for episode in members)
    if announced != len(rows.index):
        what = f"file has {len(rows.index)} rows, its {len(members)} episodes announce {announced}"
        report(Problem(file=file, what=what, fix=REWRITE))
    for episode, part in _parts(members, rows):
        _examine_rows(episode, file, part, tasks, report)


def episode_rows(tables: Tables) -> Iterator[tuple[EpisodeRow, Path, Rows]]:
    """Every episode whose data file could be read, with its rows, fewer if the file is too short."""
    for file, members in data_files(tables):
        if file in tables.rows:
            for episode, part in _parts(members, tables.rows[file]):
                yield episode, file, part


def _parts(members: Sequence[EpisodeRow], rows: Rows) -> Iterator[tuple[EpisodeRow, Rows]]:
    first = 0
    for episode in members:
        last = first + episode.length
        yield episode, Rows(**{name: array[first:last] for name, array in vars(rows).items()})
        first = last


def locate_clips(tables: Tables, info: Info, report: Reporter, shelf: Shelf = HERE) -> dict[int, dict[str, Clip]]:
    """For every episode and camera (by name), where its frames are. An episode comes after all earlier ones.

    The frame number is the sum of the earlier lengths in the same file. If the time stamp disagrees, the
    count of frames in the file decides: a sum that uses them all is right and the stamp has drifted.
    """
    clips: dict[int, dict[str, Clip]] = {episode.index: {} for episode in tables.episodes}
    for camera in info.cameras:
        used: dict[Path, int] = {}
        owner: dict[Path, int] = {}
        moved: dict[Path, tuple[EpisodeRow, int]] = {}
        for episode in tables.episodes:
            span = episode.spans[camera.name]
            first = used.get(span.path, 0)
            used[span.path] = first + episode.length
            owner.setdefault(span.path, episode.index)
            clips[episode.index][camera.name] = Clip(span.path, first)
            if round(span.from_timestamp * info.fps) != first:
                moved.setdefault(span.path, (episode, first))
        for path, first_episode in owner.items():
            if not shelf.holds(path):
                what = "video file is missing"
                report(Problem(file=path, key=camera.name, episode=first_episode, what=what, fix=COPY_AGAIN))
        for path, (episode, first) in moved.items():
            if shelf.holds(path):
                shelf.bring(path)
                with reported(report, key=camera.name, episode=episode.index):
                    _settle(path, camera.name, episode, first, used[path], info.fps, report)
    return clips


def in_episode(problem: Problem, camera: str, parts: Sequence[tuple[int, int]], default: int) -> Problem:
    """Translate a frame number of a video file to an episode and its own frame number.

    `parts` lists episode and first frame of all clips in the file, in order. A problem without a frame
    concerns the whole file: it is blamed on the episode `default`.
    """
    if problem.frame is None:
        return replace(problem, key=camera, episode=default)
    episode, first = parts[max(bisect_right([first for _, first in parts], problem.frame) - 1, 0)]
    return replace(problem, key=camera, episode=episode, frame=problem.frame - first)


def _settle(path: Path, camera: str, episode: EpisodeRow, first: int, total: int, fps: int, report: Reporter) -> None:
    """A time stamp and the sum of lengths disagree: harmless drift, or frames of another episode?"""
    frames = index_video(path).frames
    stamp = episode.spans[camera].from_timestamp
    report(
        Problem(
            file=path,
            key=camera,
            episode=episode.index,
            severity="warning" if frames == total else "error",
            what=f"from_timestamp {stamp:g} s is frame {round(stamp * fps)}, earlier lengths say {first}, "
            f"and the file has {frames} frames for {total}",
            fix=REWRITE,
        )
    )


def examine_episodes(tables: Tables, info: Info, report: Reporter) -> None:
    """Report every broken rule in the list of episodes."""
    file, start = tables.episode_file, 0
    for position, episode in enumerate(tables.episodes):
        if episode.index != position:
            what = f"row {position} holds episode {episode.index}: episodes must be contiguous from 0"
            report(Problem(file=file, episode=episode.index, what=what, fix=REWRITE))
        if episode.length < 1:
            what = f"length is {episode.length}"
            report(Problem(file=file, episode=episode.index, what=what, fix="drop the empty episode"))
        if episode.start != start:
            what = f"dataset_from_index is {episode.start}, the earlier lengths add up to {start}"
            report(Problem(file=file, episode=episode.index, what=what, fix=REWRITE))
        start += episode.length
    for name, told, found in (
        ("total_episodes", info.total_episodes, len(tables.episodes)),
        ("total_frames", info.total_frames, start),
    ):
        if told != found:
            report(Problem(file=info.file, what=f"{name} is {told}, the episodes give {found}", fix=REWRITE))


def _examine_rows(
    episode: EpisodeRow, file: Path, rows: Rows, tasks: Mapping[int, str] | None, report: Reporter
) -> None:
    if len(rows.index) != episode.length:
        what = f"episode has {len(rows.index)} rows, its length is {episode.length}"
        report(Problem(file=file, episode=episode.index, what=what, fix=REWRITE))
    steps = np.arange(len(rows.index))
    for key, found, expected in (
        ("episode_index", rows.episode_index, np.full_like(steps, episode.index)),
        ("frame_index", rows.frame_index, steps),
        ("index", rows.index, episode.start + steps),
        ("task_index", rows.task_index, rows.task_index[:1].repeat(len(steps))),
    ):
        wrong = np.flatnonzero(found != expected)
        if len(wrong):
            frame = int(wrong[0])
            what = f"{key} is {found[frame]}, expected {expected[frame]}, in {len(wrong)} rows"
            report(Problem(file=file, episode=episode.index, frame=frame, key=key, what=what, fix=REWRITE))
    if tasks is not None and len(steps) and int(rows.task_index[0]) not in tasks:
        what = f"task_index {rows.task_index[0]} is not among the {len(tasks)} tasks"
        report(Problem(file=file, episode=episode.index, key="task_index", what=what, fix=REWRITE))
