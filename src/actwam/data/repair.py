"""A new copy of a dataset in which what can be mended is mended; the original is only read.

Nothing is invented: an episode that cannot be used is dropped, a number is changed only where one explanation fits, and
pictures are taken over as they are encoded wherever the file allows it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from actwam.data.check import Examined, Report, check, examined
from actwam.data.check_episodes import Mirrored, Scaled, find_duplicates, find_mirrored, find_scaled
from actwam.data.check_pictures import find_swapped
from actwam.data.check_rows import Idle, evenly_timed, find_idle
from actwam.data.check_videos import Footage, footage
from actwam.data.clips import holds_clips
from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.info import ACTION, CONFIDENCE, STATE, Info, read_json
from actwam.data.normalize import Constant
from actwam.data.problem import Problem
from actwam.data.remux import common_format
from actwam.data.tables import Clip, EpisodeRow, Rows, Tables
from actwam.data.video import index_video, read_frames
from actwam.data.writer import DatasetWriter

SHEET = "repair.json"
KEPT_SECONDS = 0.25
"""Of an idle end, so that the first motion and the rest after the last one are whole."""
DROPPED = ("finite", "length", "outlier", "black", "frozen")
"""Kinds of problems whose episode is left out."""
_CARRIED = {STATE, ACTION, CONFIDENCE, "timestamp", "frame_index", "episode_index", "index", "task_index"}

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Repair:
    """What was found, what was done to which episode of the original (None: to all of it), and what the copy has."""

    folder: Path
    original: Report
    done: tuple[tuple[int | None, str], ...]
    copy: Report

    @property
    def ok(self) -> bool:
        return self.copy.ok

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "ok": self.ok,
            "done": [{"episode": episode, "what": what} for episode, what in self.done],
            "original": self.original.to_json(),
            "copy": self.copy.to_json(),
        }


@dataclass
class _Plan:
    """One episode of the copy: rows `first` to `end` of the original, and by camera the clip that it is cut out of."""

    episode: EpisodeRow
    rows: Rows
    clips: dict[str, Clip]
    first: int
    end: int
    done: list[str] = field(default_factory=list)

    def values(self, key: str) -> np.ndarray:
        return self.rows.state if key == STATE else self.rows.action


def repair(
    folder: Path,
    out: Path,
    *,
    action_horizon: int | None = None,
    constant: Constant = "error",
    robot: Embodiment | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Repair:
    """Write `out`, a LeRobot v3.0 dataset that must not exist and appears whole or not at all, and check it.

    The options are those of `check`. Raises ValueError on a folder of clips, and when nothing can be kept.
    """
    if holds_clips(folder):
        raise ValueError(f"{folder}: is a folder of videos, and only datasets are repaired: delete what check names")
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another folder or delete this one")
    found = examined(
        folder,
        action_horizon=action_horizon,
        decode="all",
        constant=constant,
        robot=robot,
        progress=lambda done, total: progress("check", done, total),
    )
    info, tables = found.info, found.tables
    if info is None or tables is None or tables.tasks is None:
        raise ValueError(next(problem for problem in found.report.problems if problem.severity == "error"))
    dropped = _unusable(found, info, tables)
    plans = [
        _Plan(e, rows, dict(_clips_of(found, e)), 0, e.length) for e, _, rows in found.parts if e.index not in dropped
    ]
    mends = _Mends.of(found, info)
    for plan in list(plans):
        if why := _mend(plan, mends, info):
            dropped[plan.episode.index] = why
            plans.remove(plan)
    if not plans:
        raise ValueError(f"{folder}: no episode can be kept: {next(iter(dropped.values()))}; see actwam check")
    done: list[tuple[int | None, str]] = [(index, f"dropped: {why}") for index, why in dropped.items()]
    done += [(plan.episode.index, what) for plan in plans for what in plan.done]
    done = sorted(done, key=lambda each: -1 if each[0] is None else each[0])
    done = [*((None, what) for what in _about_all(found, info)), *done]
    _write(folder, out, info, tables.tasks, plans, done, progress)
    copy = check(
        out,
        action_horizon=action_horizon,
        constant=constant,
        robot=robot,
        progress=lambda each, total: progress("check the copy", each, total),
    )
    return Repair(out, found.report, tuple(done), copy)


def _clips_of(found: Examined, episode: EpisodeRow) -> Mapping[str, Clip]:
    assert found.clips is not None  # the tables could be read
    return found.clips[episode.index]


def _unusable(found: Examined, info: Info, tables: Tables) -> dict[int, str]:
    """The episodes that are dropped, and why."""
    why: dict[int, str] = {}
    known = {episode.index for episode, _, _ in found.parts}
    for episode in tables.episodes:
        if episode.index not in known or episode.length < 1:
            why.setdefault(episode.index, "its rows cannot be read" if episode.length else "it is empty")
        missing = [name for name, clip in _clips_of(found, episode).items() if not clip.path.is_file()]
        if missing:
            why.setdefault(episode.index, f"the video of {', '.join(missing)} is missing")
    for file in footage(tables, info, found.clips or {}):
        for index, what in _unusable_footage(file, info):
            why.setdefault(index, f"{file.camera.name}: {what}")
    even = {episode.index for episode, _, rows in found.parts if evenly_timed(rows.timestamp, info.fps)}
    for problem in found.report.problems:
        if problem.episode is not None and _drops(problem, tables, even):
            why.setdefault(problem.episode, f"{problem.key}: {problem.what}" if problem.key else problem.what)
    twins = find_duplicates(found.parts)
    for problem in found.report.problems:
        if problem.kind == "duplicate" and problem.episode is not None and twins[problem.episode] not in why:
            why.setdefault(problem.episode, problem.what)
    return why


def _drops(problem: Problem, tables: Tables, even: Set[int]) -> bool:
    """Whether a problem of an episode makes it unusable, and not only what is written anew anyway."""
    if problem.kind == "time":
        return problem.episode not in even
    if problem.kind == "video":
        return problem.frame is not None
    rows_disagree = problem.kind == "format" and problem.file in tables.rows and problem.key != "index"
    return problem.kind in DROPPED or rows_disagree


def _unusable_footage(file: Footage, info: Info) -> Iterator[tuple[int, str]]:
    """Episodes whose pictures are not all in this file, or not surely theirs."""
    try:
        index = index_video(file.path)
    except ValueError as error:
        for episode, _ in file.members:
            yield episode.index, error.args[0].what
        return
    if (index.height, index.width) != (file.camera.height, file.camera.width):
        for episode, _ in file.members:
            yield episode.index, f"pictures are {index.height}x{index.width}"
        return
    if index.frames == file.frames:
        return
    stamps = [round(episode.spans[file.camera.name].from_timestamp * info.fps) for episode, _ in file.members]
    moved = [number for number, (_, first) in enumerate(file.members) if stamps[number] != first]
    odd = max((moved[0] if moved else len(stamps)) - 1, 0)  # frames are missing, or too many, in the one before
    for number, (episode, first) in enumerate(file.members):
        if number >= odd or first + episode.length > index.frames:
            yield episode.index, f"its video has {index.frames} frames for {file.frames}"


@dataclass(frozen=True)
class _Mends:
    """What is sure enough to be changed."""

    uneven: Set[int]
    mirrored: Sequence[Mirrored]
    scaled: Sequence[Scaled]
    swapped: Mapping[int, Mapping[str, str]]
    idle: Sequence[Idle]

    @classmethod
    def of(cls, found: Examined, info: Info) -> _Mends:
        return cls(
            uneven={each.episode for each in found.report.problems if each.kind == "time" and each.episode is not None},
            mirrored=[each for each in find_mirrored(found.parts, info) if each.certain],
            scaled=[each for each in find_scaled(found.parts, info) if each.certain],
            swapped=find_swapped(found.looks or {}, found.parts, info),
            idle=list(find_idle(found.parts, info)),
        )


def _mend(plan: _Plan, mends: _Mends, info: Info) -> str | None:
    """Change the plan of one episode; or why it is to be dropped."""
    index = plan.episode.index
    plan.rows = replace(plan.rows, state=plan.rows.state.copy(), action=plan.rows.action.copy())
    if index in mends.uneven:
        plan.done.append(f"time stamps made regular, from 0 on at {info.fps} fps")
    for mirrored in mends.mirrored:
        if mirrored.episode == index:
            column = plan.values(mirrored.key)[:, mirrored.dimension]
            column[:] = mirrored.about - column
            plan.done.append(f"{mirrored.key}: {mirrored.what}: subtracted from {mirrored.about:g}")
    for scaled in mends.scaled:
        if scaled.episode == index:
            plan.values(scaled.key)[:, list(scaled.dimensions)] /= scaled.factor
            plan.done.append(f"{scaled.key}: {scaled.what}: divided by {scaled.factor:.4g}")
    if index in mends.swapped:
        exchanged = mends.swapped[index]
        plan.clips |= {shown: plan.clips[name] for name, shown in exchanged.items()}
        plan.done.append(f"cameras {', '.join(exchanged)} exchanged")
    return _trim(plan, mends, info)


def _trim(plan: _Plan, mends: _Mends, info: Info) -> str | None:
    """Leave out idle ends, but for `KEPT_SECONDS` and up to a keyframe of all cameras; or why to drop the episode."""
    kept = round(KEPT_SECONDS * info.fps)
    for idle in mends.idle:
        if idle.episode.index == plan.episode.index:
            if idle.first == 0 and idle.end == plan.episode.length:
                return "nothing moves in it"
            if idle.first == 0:
                plan.first = _entered(plan, max(idle.end - kept, 0))
            elif idle.end == plan.episode.length:
                plan.end = min(idle.first + kept, plan.episode.length)
    if plan.first:
        plan.done.append(f"{plan.first} idle rows cut off at its start")
    if plan.end < plan.episode.length:
        plan.done.append(f"{plan.episode.length - plan.end} idle rows cut off at its end")
    return None


def _entered(plan: _Plan, first: int) -> int:
    """The last frame up to `first` that is a keyframe in all videos, so that none has to be encoded again."""
    keyframes = [{n - clip.first_frame for n in index_video(clip.path).keyframes} for clip in plan.clips.values()]
    return next(n for n in range(first, -1, -1) if n == 0 or all(n in numbers for numbers in keyframes))


def _about_all(found: Examined, info: Info) -> list[str]:
    """What was done to all of the dataset."""
    kinds = {problem.kind for problem in found.report.problems}
    lost = [key for key, each in read_json(info.file)["features"].items() if key not in _CARRIED | _cameras(info)]
    return [
        *(["statistics computed anew"] if "statistics" in kinds else []),
        *([f"written as LeRobot v3.0, was {info.version}"] if info.version != "v3.0" else []),
        *([f"left out, since it is not read: {', '.join(lost)}"] if lost else []),
    ]


def _cameras(info: Info) -> set[str]:
    return {camera.key for camera in info.cameras}


def _write(
    folder: Path,
    out: Path,
    info: Info,
    tasks: Mapping[int, str],
    plans: list[_Plan],
    done: list[tuple[int | None, str]],
    progress: Progress,
) -> None:
    sizes = {(camera.height, camera.width) for camera in info.cameras}
    if len(sizes) > 1:
        raise ValueError(f"{folder}: cameras have pictures of several sizes {sorted(sizes)}: a copy cannot be written")
    robot = Embodiment(
        name=info.robot_type,
        index=0,
        fps=info.fps,
        cameras={camera.name: camera.name for camera in info.cameras},
        image_size=sizes.pop() if sizes else (2, 2),
        state_names=info.state_names,
        action_names=info.action_names,
        delta_mask=(False,) * len(info.action_names),
    )
    cut = [
        {name: Clip(clip.path, clip.first_frame + plan.first) for name, clip in plan.clips.items()} for plan in plans
    ]
    formats = {camera.name: common_format(clips[camera.name] for clips in cut) for camera in info.cameras}
    copied = {name: video for name, video in formats.items() if video is not None}
    with DatasetWriter(out, robot, copied=copied) as writer:
        for number, (plan, clips) in enumerate(zip(plans, cut, strict=True)):
            frames = np.arange(plan.end - plan.first)
            rows, part = plan.rows, slice(plan.first, plan.end)
            episode = Episode(
                images={name: read_frames(clip.path, clip.first_frame + frames) for name, clip in clips.items()},
                state=rows.state[part],
                action=rows.action[part],
                instruction=tasks[int(rows.task_index[0])],
                confidence=rows.confidence[part, 0] if info.has_confidence else None,
            )
            writer.add_episode(episode, clips)
            progress("repair", number + 1, len(plans))
        said = [{"episode": index, "what": what} for index, what in done]
        origin = {"folder": str(folder), "episodes": [plan.episode.index for plan in plans]}
        writer.write_json(SHEET, {"original": origin, "done": said})
