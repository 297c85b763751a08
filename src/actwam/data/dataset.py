"""What training reads, and a LeRobot dataset as it is used: rows of state and action as arrays, in memory or mapped
from a cache, video decoded on demand.

The view does not depend on the version on disk, v2.0, v2.1 or v3.0; `info`, `v21` and `v30` do. Nothing is
written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, UInt8

from actwam.data import v21, v30
from actwam.data.digest import digest_of
from actwam.data.embodiment import Embodiment
from actwam.data.info import COPY_AGAIN, Camera, Info, read_info
from actwam.data.numbers import read_numbers
from actwam.data.problem import Problem, Reporter, refuse, reported
from actwam.data.shelf import HERE, Shelf
from actwam.data.tables import Clip, Tables, in_episode, locate_clips
from actwam.data.video import iterate_frames, read_frames

Videos = Iterator[tuple[int, UInt8[np.ndarray, "T H W 3"]]]
"""Some frames of an episode after another, each with its number."""


def read_tables(info: Info, report: Reporter) -> Tables | None:
    """All tables, whichever version wrote them, or None when there is no list of episodes, which was reported."""
    return v30.read_tables(info, report) if info.version == "v3.0" else v21.read_tables(info, report)


@dataclass(frozen=True, slots=True)
class EpisodeInfo:
    """One episode: rows `start` to `start + length` of `state` and `action`, and a clip per camera name."""

    index: int
    length: int
    instruction: str
    start: int
    clips: Mapping[str, Clip]


def pieces_of(episodes: Sequence[EpisodeInfo], rows: int) -> list[range]:
    """Episodes after another in pieces of about so many rows, or one episode where that is longer."""
    number = np.array([episode.start // rows for episode in episodes])
    firsts = np.flatnonzero(np.diff(number, prepend=-1)).tolist()
    return [range(first, end) for first, end in zip(firsts, [*firsts[1:], len(episodes)], strict=True)]


@runtime_checkable
class Footage(Protocol):
    """What training reads: E episodes of N rows together, `fps` rows a second, their pictures by the name of the
    camera, and state and action of every row.

    A feature that it lacks has no names and width 0. The height and width of a camera are 0 where they differ from
    episode to episode.
    """

    @property
    def folder(self) -> Path: ...

    @property
    def fps(self) -> int: ...

    @property
    def robot_type(self) -> str: ...

    @property
    def cameras(self) -> tuple[Camera, ...]: ...

    @property
    def state_names(self) -> tuple[str, ...]: ...

    @property
    def action_names(self) -> tuple[str, ...]: ...

    @property
    def episodes(self) -> tuple[EpisodeInfo, ...]: ...

    @property
    def state(self) -> Float32[np.ndarray, "N S"]: ...

    @property
    def action(self) -> Float32[np.ndarray, "N A"]: ...

    @property
    def digest(self) -> str:
        """Changes with the pictures: what a cache of anything derived from them is keyed by."""

    def where(self, episode: int) -> str:
        """What an error about this episode begins with."""

    def frames(self, camera: str, episode: int, indices: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]:
        """Some frames of one episode, numbered from its start, in the order asked for."""

    def videos(self, camera: str, most: int | None = None, episodes: range | None = None) -> Videos:
        """The episodes of a range, or all, in order with all their frames, `most` at once: what is in memory does not
        grow with their length. What is needed of each file is decoded once. Cameras of one episode give pieces of the
        same lengths.
        """


@dataclass(frozen=True, eq=False)
class LeRobotDataset:
    """E episodes of N rows together. `cameras` are in the order of the file; look them up by name, never by
    place.

    A feature that the dataset lacks, such as the action of a video-only one, has no names and width 0.
    """

    folder: Path
    fps: int
    robot_type: str
    cameras: tuple[Camera, ...]
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    episodes: tuple[EpisodeInfo, ...]
    state: Float32[np.ndarray, "N S"]
    action: Float32[np.ndarray, "N A"]
    confidence: Float32[np.ndarray, "N"] | None = None
    """How far each action can be trusted, from 0 to 1, where actions were inferred from video; None where recorded."""
    shelf: Shelf = HERE
    """Has the video files."""
    cache: Path | None = None
    """What was found out about files that have not changed since."""

    @classmethod
    def open(
        cls,
        folder: Path,
        *,
        cameras: Collection[str] | None = None,
        shelf: Shelf = HERE,
        cache: Path | None = None,
    ) -> LeRobotDataset:
        """Read all tables and find every video file of `cameras`, or of all; decodes nothing.

        With a folder for a `cache`, state and action are mapped from arrays there, which are written when the dataset
        is first opened and again when it changes: what is in memory does not grow with the number of rows.

        Raises ValueError, one line with file, episode and what to do, on an unknown version or storage
        format, a missing or unfinished file, or tables that contradict each other. NaN and damaged pictures
        are found by `check`, and by whoever meets them.
        """
        info = read_info(folder)
        if cameras is not None:
            info = replace(info, cameras=tuple(camera for camera in info.cameras if camera.name in cameras))
        version = v30 if info.version == "v3.0" else v21
        tables = version.plan(info, refuse)
        assert tables is not None  # `refuse` has raised otherwise
        assert tables.tasks is not None
        numbers = read_numbers(tables, info, version.read_file, cache)
        clips = locate_clips(tables, info, refuse, shelf)
        return cls(
            folder=folder,
            fps=info.fps,
            robot_type=info.robot_type,
            cameras=info.cameras,
            state_names=info.state_names,
            action_names=info.action_names,
            episodes=tuple(
                EpisodeInfo(
                    index=episode.index,
                    length=episode.length,
                    instruction=tables.tasks[task],
                    start=episode.start,
                    clips=clips[episode.index],
                )
                for episode, task in zip(tables.episodes, numbers.tasks, strict=True)
            ),
            state=numbers.state,
            action=numbers.action,
            confidence=numbers.confidence,
            shelf=shelf,
            cache=cache,
        )

    def camera(self, name: str) -> Camera:
        """Raises ValueError that lists the names there are."""
        for camera in self.cameras:
            if camera.name == name:
                return camera
        raise ValueError(f"{self.folder}: no camera {name!r}; there are {[camera.name for camera in self.cameras]}")

    def where(self, episode: int) -> str:
        """What an error about this episode begins with."""
        return f"{self.folder}: episode {episode}"

    def video(self, camera: str, episode: int) -> UInt8[np.ndarray, "T H W 3"]:
        """All frames of one episode, seen by the camera of this name. Raises ValueError as `frames` does."""
        return self.frames(camera, episode, np.arange(self._episode(episode).length))

    def frames(self, camera: str, episode: int, indices: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]:
        """Some frames of one episode, numbered from its start, in the order asked for.

        Raises ValueError with file, camera, episode and frame on an index outside the episode and on a
        missing, truncated or damaged video.
        """
        found, size = self._episode(episode), self.camera(camera)
        if len(indices) and not 0 <= indices.min() <= indices.max() < found.length:
            raise ValueError(f"{self.folder}: episode {episode} has no frames {indices}; it has {found.length}")
        clip = found.clips[camera]
        self.shelf.bring(clip.path)
        with self._located(camera, found):
            frames = read_frames(clip.path, indices + clip.first_frame)
            _require_size(frames, clip.path, size)
        return frames

    def videos(self, camera: str, most: int | None = None, episodes: range | None = None) -> Videos:
        """The episodes of a range, or all, in order with all their frames, `most` at once if given. Each video file is
        opened once, and decoded from the first frame that is needed.

        Raises ValueError as `frames` does, and when a file goes on after its last episode.
        """
        size, wanted = self.camera(camera), range(len(self.episodes)) if episodes is None else episodes
        chosen = self.episodes[wanted.start : wanted.stop]
        decoders: dict[Path, Iterator[np.ndarray]] = {}
        with self.shelf.in_turn(list(dict.fromkeys(episode.clips[camera].path for episode in chosen))) as done:
            for episode in chosen:
                clip = episode.clips[camera]
                for piece in _pieces(episode.length, most):
                    if clip.path not in decoders:
                        self.shelf.bring(clip.path)
                        decoders[clip.path] = iterate_frames(clip.path, clip.first_frame)
                    with self._located(camera, episode):
                        frames = _take(decoders[clip.path], clip, piece, episode.length, size)
                        is_last = piece.stop == episode.length and self._last[camera][clip.path] == episode.index
                        if is_last and next(decoders.pop(clip.path), None) is not None:
                            what, fix = "video goes on after its last episode", "write the dataset again"
                            raise ValueError(Problem(file=clip.path, what=what, fix=fix))
                    if is_last:
                        done(clip.path)
                    yield episode.index, frames

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the dataset: what a cache of anything derived from it is keyed by.

        Files under meta/ and data/ are read whole, videos at their ends (`digest_of`), so that a dataset of 100 GB is
        still opened in a second. A flipped bit in the middle is for `check`. Where the shelf has a name for all that,
        as for a commit of the Hub, that is enough.
        """
        if self.shelf.identity is not None:
            return hashlib.sha256(self.shelf.identity.encode()).hexdigest()
        videos = {clip.path for episode in self.episodes for clip in episode.clips.values()}
        whole = {path for part in ("meta", "data") for path in (self.folder / part).rglob("*") if path.is_file()}
        return digest_of(self.folder, sorted(videos | whole), whole, self.cache)

    @cached_property
    def _last(self) -> Mapping[str, Mapping[Path, int]]:
        """The last episode of every video file, by the name of the camera."""
        names = [camera.name for camera in self.cameras]
        return {name: {episode.clips[name].path: episode.index for episode in self.episodes} for name in names}

    def _episode(self, index: int) -> EpisodeInfo:
        if not 0 <= index < len(self.episodes):
            raise ValueError(f"{self.folder}: no episode {index}; there are {len(self.episodes)}")
        return self.episodes[index]

    @contextmanager
    def _located(self, camera: str, episode: EpisodeInfo) -> Iterator[None]:
        """Name camera, episode and frame in a problem that knows only the file and its frame."""
        path = episode.clips[camera].path

        def blame(problem: Problem) -> None:
            parts = [(e.index, e.clips[camera].first_frame) for e in self.episodes if e.clips[camera].path == path]
            refuse(in_episode(problem, camera, parts, episode.index))

        with reported(blame):
            yield


def _pieces(length: int, most: int | None) -> Iterator[range]:
    """The numbers from 0 to `length`, at most so many together."""
    step = length if most is None else most
    return (range(first, min(first + step, length)) for first in range(0, length, step))


def _take(
    decoder: Iterator[np.ndarray], clip: Clip, piece: range, length: int, size: Camera
) -> UInt8[np.ndarray, "T H W 3"]:
    """The next frames of an episode of this length, those with the numbers of `piece`."""
    frames = np.empty((len(piece), size.height, size.width, 3), np.uint8)
    for row, number in enumerate(piece):
        picture = next(decoder, None)
        if picture is None:
            what = f"video ends here, the episode has {length} frames"
            raise ValueError(Problem(file=clip.path, frame=clip.first_frame + number, what=what, fix=COPY_AGAIN))
        _require_size(picture[None], clip.path, size)
        frames[row] = picture
    return frames


def _require_size(frames: np.ndarray, path: Path, size: Camera) -> None:
    if frames.shape[1:3] != (size.height, size.width):
        what = f"pictures are {frames.shape[1:3]} (height, width), info.json says {(size.height, size.width)}"
        raise ValueError(Problem(file=path, what=what, fix="write the dataset again"))


def require_embodiment(dataset: Footage, embodiment: Embodiment, *, needs_state: bool = True) -> None:
    """Raises ValueError, naming both sides of every difference, unless they fit. Cameras that the robot has no slot for
    are left alone. Without `needs_state`, a dataset without state fits a robot that learns no action relative to it.
    """
    relative = [name for name, delta in zip(embodiment.action_names, embodiment.delta_mask, strict=True) if delta]
    stateless = not needs_state and not dataset.state_names
    if stateless and relative:
        raise ValueError(
            f"{dataset.folder}: has no state, and embodiment {embodiment.name} learns {', '.join(relative)} relative "
            "to it: use mode video, or an embodiment without delta dimensions"
        )
    wanted = dict.fromkeys(embodiment.cameras.values(), tuple(embodiment.image_size))
    cameras = {camera.name: (camera.height, camera.width) for camera in dataset.cameras}
    cameras = cameras if wanted.keys() - cameras.keys() else {name: cameras[name] for name in wanted}
    sides = (
        ("robot_type", dataset.robot_type, embodiment.name),
        ("fps", dataset.fps, embodiment.fps),
        ("cameras (height, width)", cameras, wanted),
        ("state", embodiment.state_names if stateless else dataset.state_names, embodiment.state_names),
        ("action", dataset.action_names, embodiment.action_names),
    )
    differences = [f"{what} is {found} here, {other} there" for what, found, other in sides if found != other]
    if differences:
        raise ValueError(
            f"{dataset.folder}: not recorded on embodiment {embodiment.name}: {'; '.join(differences)}; "
            "use the embodiment it was recorded on, or map its cameras and dimensions in a new one"
        )
