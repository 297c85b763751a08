"""Reads the tables of LeRobotDataset v2.0 and v2.1: for every episode one parquet file, and one video per camera.

The two differ in their statistics only: v2.0 has those of the whole dataset, like v3.0, v2.1 those of every
episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

from actwam.data.info import ACTION, MAX_FRAMES, STATE, Info, read_lines
from actwam.data.parquet import read_rows
from actwam.data.problem import Problem, Reporter, reported
from actwam.data.tables import REWRITE, EpisodeRow, Rows, Span, Tables


@dataclass(frozen=True)
class _Listed:
    """One line of `episodes.jsonl`."""

    index: int
    length: int
    tasks: tuple[str, ...]


def plan(info: Info, report: Reporter) -> Tables | None:
    """All tables but the rows of the data files, with the lengths that the list of episodes gives, or None when that
    list cannot be read, which was then reported.
    """
    list_file = info.folder / "meta" / "episodes.jsonl"
    tasks, listed = None, None
    with reported(report):
        tasks = _read_tasks(info.folder / "meta" / "tasks.jsonl")
    with reported(report):
        listed = _read_episodes(list_file, info.total_episodes)
    if listed is None:
        return None
    episodes: list[EpisodeRow] = []
    start = 0
    for one in listed:
        place = {"episode_chunk": one.index // info.chunks_size, "episode_index": one.index}
        videos = {c.name: info.path_of(info.video_path, video_key=c.key, **place) for c in info.cameras}
        episodes.append(
            EpisodeRow(
                index=one.index,
                length=one.length,
                start=start,
                data_file=info.path_of(info.data_path, **place),
                spans={camera: Span(video, from_timestamp=0.0) for camera, video in videos.items()},
                tasks=one.tasks,
            )
        )
        start += one.length
    return Tables(episode_file=list_file, tasks=tasks, episodes=tuple(episodes), rows={})


def read_file(tables: Tables, info: Info, members: Sequence[EpisodeRow], report: Reporter) -> Rows | None:
    """The rows of the data file of one episode, or None if it cannot be read; that, and where the list of episodes
    contradicts them, is reported.
    """
    (one,), rows = members, None
    with reported(report, episode=one.index):
        rows = read_rows(one.data_file, info)
        _compare(one, tables.episode_file, rows, tables.tasks, report)
    return rows


def read_tables(info: Info, report: Reporter) -> Tables | None:
    """All tables of the dataset, or None when the list of episodes cannot be read, which was then reported.

    Where the list and a file disagree about the length of an episode, that is reported and the length of the
    file is used: with the other one, every later episode would seem to begin at a wrong row.
    """
    planned = plan(info, report)
    if planned is None:
        return None
    episodes: list[EpisodeRow] = []
    rows: dict[Path, Rows] = {}
    start = 0
    for one in planned.episodes:
        found = read_file(planned, info, [one], report)
        if found is not None:
            rows[one.data_file] = found
        episodes.append(replace(one, length=one.length if found is None else len(found.index), start=start))
        start += episodes[-1].length
    return replace(planned, episodes=tuple(episodes), rows=rows)


def read_stats(path: Path) -> dict[int, dict[str, Any]]:
    """What `episodes_stats.jsonl` says of state and action, by episode.

    Raises ValueError if the file is missing, or with the number of the line that is not understood.
    """
    stats: dict[int, dict[str, Any]] = {}
    for line, index, data in _entries(path, "episode_index"):
        told = data.get("stats")
        if not isinstance(told, dict):
            raise _wrong(path, line, "stats", told, "a table of features")
        stats[index] = {key: told[key] for key in (STATE, ACTION) if key in told}
    return stats


def _compare(one: EpisodeRow, list_file: Path, rows: Rows, tasks: Mapping[int, str] | None, report: Reporter) -> None:
    """Report where the list contradicts the rows; a `task_index` without a sentence is for `examine`."""
    if len(rows.index) != one.length:
        what = f"file has {len(rows.index)} rows, {list_file.name} says {one.length}"
        report(Problem(file=one.data_file, episode=one.index, what=what, fix=REWRITE))
    sentence = (tasks or {}).get(int(rows.task_index[0])) if len(rows.index) else None
    if sentence is not None and sentence not in one.tasks:
        what = f"tasks are {str(list(one.tasks))[:80]}, the rows of the episode say {sentence!r}"
        report(Problem(file=list_file, episode=one.index, key="tasks", what=what, fix=REWRITE))


def _read_tasks(path: Path) -> dict[int, str]:
    tasks: dict[int, str] = {}
    for line, index, data in _entries(path, "task_index"):
        sentence = data.get("task")
        if not isinstance(sentence, str):
            raise _wrong(path, line, "task", sentence, "a sentence")
        tasks[index] = sentence
    return tasks


def _read_episodes(path: Path, total: int) -> list[_Listed]:
    """In order of their numbers, at least one. Whether any is missing is for `examine`."""
    episodes: list[_Listed] = []
    for line, index, data in _entries(path, "episode_index"):
        length, tasks = data.get("length"), data.get("tasks")
        if not _whole(length) or length == 0:
            raise _wrong(path, line, "length", length, "a number of frames")
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise _wrong(path, line, "tasks", tasks, "a list of sentences")
        if len(episodes) == total:
            what = f"line {line}: one episode more than the {total} of info.json"
            raise ValueError(Problem(file=path, what=what, fix=REWRITE))
        episodes.append(_Listed(index, length, tuple(tasks)))
    if not episodes:
        raise ValueError(Problem(file=path, what="no episode is listed", fix=REWRITE))
    return sorted(episodes, key=lambda one: one.index)


def _entries(path: Path, key: str) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Every line of a file: its number, the number that it has under `key`, which comes once only, and the rest."""
    seen: set[int] = set()
    for line, data in read_lines(path):
        index = data.get(key)
        if not _whole(index):
            raise _wrong(path, line, key, index, "a whole number")
        if index in seen:
            raise ValueError(Problem(file=path, what=f"line {line}: {key} {index} comes twice", fix=REWRITE))
        seen.add(index)
        yield line, index, data


def _whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_FRAMES


def _wrong(path: Path, line: int, key: str, value: Any, expected: str) -> ValueError:
    what = f"line {line}: {key} is {repr(value)[:80]}, expected {expected}"
    return ValueError(Problem(file=path, what=what, fix=REWRITE))
