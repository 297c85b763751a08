"""Rules about video files: there, whole, of the size and with the frames that the tables announce, and decodable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

import numpy as np

from actwam.data.check_pictures import Look, Watch
from actwam.data.info import Camera, Info
from actwam.data.problem import Problem, Reporter, reported
from actwam.data.tables import REWRITE, Clip, EpisodeRow, Tables, in_episode
from actwam.data.video import Header, index_video, iterate_frames, read_frames, read_header

Decode = Literal["all", "ends", "none"]
Clips = Mapping[int, Mapping[str, Clip]]


@dataclass(frozen=True)
class Footage:
    """A video file of one camera: its episodes in order, each with the frame at which it begins."""

    path: Path
    camera: Camera
    members: Sequence[tuple[EpisodeRow, int]]

    @property
    def frames(self) -> int:
        return sum(episode.length for episode, _ in self.members)


def footage(tables: Tables, info: Info, clips: Clips) -> Iterator[Footage]:
    """Every video file that is there; a missing one has been reported."""
    for camera in info.cameras:
        files: dict[Path, list[tuple[EpisodeRow, int]]] = {}
        for episode in tables.episodes:
            clip = clips[episode.index][camera.name]
            files.setdefault(clip.path, []).append((episode, clip.first_frame))
        yield from (Footage(path, camera, members) for path, members in files.items() if path.is_file())


def check_videos(
    tables: Tables,
    info: Info,
    clips: Clips,
    decode: Decode,
    report: Reporter,
    progress: Callable[[int, int], None],
) -> tuple[int, dict[int, dict[str, Look]]]:
    """How many frames were decoded, and with "all" how each episode looks that was decoded to its end."""
    files = list(footage(tables, info, clips))
    lengths = [max(episode.length, 0) for file in files for episode, _ in file.members]
    total = sum(lengths) if decode == "all" else sum(min(length, 2) for length in lengths)
    decoded = 0
    looks: dict[int, dict[str, Look]] = {episode.index: {} for episode in tables.episodes}
    for file in files:
        parts = [(episode.index, first) for episode, first in file.members]

        def place(problem: Problem, name: str = file.camera.name, parts: list[tuple[int, int]] = parts) -> None:
            report(in_episode(problem, name, parts, parts[0][0]))

        with reported(place, kind="video"):
            _check_header(file, decode, place)
            for watched in _decoded(file, info, decode, place):
                if isinstance(watched, int):
                    decoded += watched
                    progress(decoded, total)
                else:
                    index, look = watched
                    looks[index][file.camera.name] = look
    return decoded, looks


def _check_header(file: Footage, decode: Decode, place: Reporter) -> None:
    """Raises ValueError on a file that is not whole."""
    header = read_header(file.path)
    if decode != "none" or header.frames != file.frames:  # a header may count frames that are never shown
        index = index_video(file.path)
        header = Header(index.height, index.width, index.frames)
    camera, frames = file.camera, header.frames or 0
    if (header.height, header.width) != (camera.height, camera.width):
        what = f"pictures are {header.height}x{header.width}, info.json says {camera.height}x{camera.width}"
        place(Problem(kind="video", file=file.path, what=what, fix=REWRITE))
    if frames != file.frames:
        whose = "its episode has" if len(file.members) == 1 else f"its {len(file.members)} episodes have"
        what = f"video has {frames} frames, {whose} {file.frames}"
        first_lost = frames if frames < file.frames else None
        fix = "copy the file again, or record again"
        place(Problem(kind="video", file=file.path, frame=first_lost, what=what, fix=fix))


def _decoded(file: Footage, info: Info, decode: Decode, place: Reporter) -> Iterator[int | tuple[int, Look]]:
    """The numbers of frames that were decoded, and what was seen of every whole episode. A damaged one is reported, and
    the next is gone on with.
    """
    frames = index_video(file.path).frames if decode != "none" else 0
    if decode == "ends":
        ends = {n for episode, first in file.members for n in (first, first + episode.length - 1) if 0 <= n < frames}
        for _ in read_frames(file.path, np.array(sorted(ends), int)):
            yield 1
    pictures = iterate_frames(file.path) if decode == "all" else iter(())
    for episode, first in file.members if decode == "all" else ():
        with reported(place, kind="video"):
            watch, seen = Watch(info.fps), 0
            try:
                for picture in islice(pictures, max(episode.length, 0)):
                    watch.see(picture)
                    seen += 1
                    yield 1
            except ValueError:
                pictures = iterate_frames(file.path, first + episode.length)
                raise
            if seen == episode.length > 0:
                yield episode.index, watch.look()
