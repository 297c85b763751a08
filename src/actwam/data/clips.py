"""Video without actions: folders of plain video files, and the pictures of datasets at another rate.

The frame of a row is found by its time: row i is the frame nearest to i / fps seconds, be the rate of the file what
it may. A clip has an instruction, as an episode has: in NAME.txt beside NAME.mp4, in a line of `captions.jsonl` in the
folder, {"file": NAME, "instruction": SENTENCE}, or, for all clips that have neither, in its `caption.txt`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, Int, UInt8

from actwam.data.dataset import EpisodeInfo, Footage, Videos
from actwam.data.digest import digest_of, fingerprint, write_whole
from actwam.data.info import Camera, read_json, read_lines
from actwam.data.problem import Problem, Reporter, refuse, reported
from actwam.data.tables import Clip
from actwam.data.video import index_video, iterate_frames, quarter_turns, read_frames

ENDINGS = (".mkv", ".mov", ".mp4", ".webm")
CAMERA = "video"
"""The camera of a folder of video files."""
CAPTIONS, CAPTION = "captions.jsonl", "caption.txt"
MAX_GAP = 2
"""Seconds from one frame of a file to the next; over a longer pause a picture without motion would be repeated."""
MAX_CAPTION_BYTES = 2**16


@runtime_checkable
class Recording(Protocol):
    """What pictures are taken from, by the number that they have there."""

    @property
    def digest(self) -> str: ...

    def where(self, episode: int) -> str: ...

    def frames(self, camera: str, episode: int, indices: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]: ...

    def videos(self, camera: str, most: int | None = None, episodes: range | None = None) -> Videos: ...


@dataclass(frozen=True, eq=False)
class Clips:
    """Footage that has pictures and instructions only. `picked(episode)` are the frames of the recording that its rows
    show, in rising order: found anew each time, since of thousands of hours they are too many to keep.
    """

    folder: Path
    fps: int
    robot_type: str
    cameras: tuple[Camera, ...]
    episodes: tuple[EpisodeInfo, ...]
    recording: Recording
    picked: Callable[[int], Int[np.ndarray, "_"]]
    state_names: tuple[str, ...] = ()
    action_names: tuple[str, ...] = ()

    @property
    def state(self) -> Float32[np.ndarray, "N S"]:
        last = self.episodes[-1]
        return np.empty((last.start + last.length, 0), np.float32)

    @property
    def action(self) -> Float32[np.ndarray, "N A"]:
        return self.state

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the pictures and their rate. Instructions do not enter: correcting one encodes nothing again."""
        return hashlib.sha256(f"{self.recording.digest} at {self.fps} fps".encode()).hexdigest()

    def where(self, episode: int) -> str:
        """What an error about this episode begins with."""
        return self.recording.where(episode)

    def frames(self, camera: str, episode: int, indices: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]:
        """As `Footage`. Raises ValueError on a row that does not exist, and with file and frame on a damaged video."""
        picked = self.picked(episode)
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(picked):
            raise ValueError(f"{self.where(episode)}: has no rows {indices}; it has {len(picked)} at {self.fps} fps")
        return self.recording.frames(camera, episode, picked[indices])

    def videos(self, camera: str, most: int | None = None, episodes: range | None = None) -> Videos:
        """As `Footage`. Raises ValueError with file and frame on a damaged video."""
        current, seen, picked = -1, 0, np.empty(0, int)
        for episode, frames in self.recording.videos(camera, most, episodes):
            if episode != current:
                current, seen, picked = episode, 0, self.picked(episode)
            first, end = np.searchsorted(picked, (seen, seen + len(frames)))
            step = most or max(end - first, 1)
            for row in range(first, end, step):
                yield episode, frames[picked[row : min(row + step, end)] - seen]
            seen += len(frames)


@dataclass(frozen=True, eq=False)
class _Files:
    """Video files, one for each episode, which all cameras see."""

    folder: Path
    paths: tuple[Path, ...]
    cache: Path | None

    @cached_property
    def digest(self) -> str:
        return digest_of(self.folder, self.paths, cache=self.cache)

    def where(self, episode: int) -> str:
        return str(self.paths[episode])

    def frames(self, camera: str, episode: int, indices: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]:
        path = self.paths[episode]
        return _turned(read_frames(path, indices), quarter_turns(path))

    def videos(self, camera: str, most: int | None = None, episodes: range | None = None) -> Videos:
        for episode in range(len(self.paths)) if episodes is None else episodes:
            path = self.paths[episode]
            frames, turns = iterate_frames(path), quarter_turns(path)
            while piece := list(islice(frames, most)):
                yield episode, _turned(np.stack(piece), turns)


def open_clips(folder: Path, fps: int, cache: Path | None = None) -> Clips:
    """The video files below a folder, in the order of their names, at `fps` rows a second; pictures may be of any size.

    With a folder for a `cache`, files that have not changed since are not read again.

    Raises ValueError, one line with the file and what to do, on a folder without videos, a clip without instruction,
    and a file that holds no video, begins with no decodable picture or pauses for longer than `MAX_GAP`.
    """
    paths = _sorted_files(folder)
    known = None if cache is None else cache / "clips" / fingerprint(folder, paths, f"at {fps} fps")
    lengths = read_json(known)["rows"] if known is not None and known.is_file() else None
    found = find_clips(folder, refuse, known=lengths is not None)
    camera, files = Camera(CAMERA, CAMERA, 0, 0), _Files(folder, tuple(path for path, _ in found), cache)

    def picked(episode: int) -> Int[np.ndarray, "_"]:
        return picked_frames(files.paths[episode], fps)

    if lengths is None:
        lengths = [len(picked(episode)) for episode in range(len(found))]
    if known is not None and not known.is_file():
        known.parent.mkdir(parents=True, exist_ok=True)
        write_whole(known, json.dumps({"rows": lengths}))
    episodes = [
        EpisodeInfo(number, length, text, 0, {CAMERA: Clip(path, 0)})
        for number, ((path, text), length) in enumerate(zip(found, lengths, strict=True))
    ]
    return _clips(folder, fps, "", (camera,), episodes, files, picked)


def at_rate(dataset: Footage, fps: int) -> Clips:
    """The pictures and instructions of a dataset at another rate."""
    lengths = [episode.length for episode in dataset.episodes]

    def picked(episode: int) -> Int[np.ndarray, "_"]:
        return nearest(range(lengths[episode]), Fraction(1, dataset.fps), fps)

    episodes = [replace(episode, length=len(picked(episode.index))) for episode in dataset.episodes]
    return _clips(dataset.folder, fps, dataset.robot_type, dataset.cameras, episodes, dataset, picked)


def _clips(
    folder: Path,
    fps: int,
    robot_type: str,
    cameras: tuple[Camera, ...],
    episodes: Sequence[EpisodeInfo],
    recording: Recording,
    picked: Callable[[int], Int[np.ndarray, "_"]],
) -> Clips:
    """With the starts that the lengths give."""
    starts = np.cumsum([0, *(episode.length for episode in episodes)]).tolist()
    placed = tuple(replace(episode, start=start) for episode, start in zip(episodes, starts[:-1], strict=True))
    return Clips(folder, fps, robot_type, cameras, placed, recording, picked)


def holds_clips(folder: Path) -> bool:
    """Whether this is a folder of video files, and not a LeRobot dataset, which has a folder `meta`."""
    return not (folder / "meta").exists() and any(_video_files(folder))


def find_clips(folder: Path, report: Reporter, *, known: bool = False) -> list[tuple[Path, str]]:
    """Files and their instructions, without those that have a problem, which was reported. Files that are `known` to be
    whole are not looked into.
    """
    paths = _sorted_files(folder)
    if not paths:
        what, fix = f"no file ends in {', '.join(ENDINGS)}", "give the folder that holds the videos"
        report(Problem(file=folder, what=what, fix=fix))
    listed = _listed_captions(folder, paths, report)
    found = []
    for path in paths:
        problems: list[Problem] = []
        with reported(problems.append):
            if not known:
                require_clip(path)
        instruction = ""
        with reported(problems.append):
            instruction = _instruction(path, folder, listed)
        for problem in problems:
            report(problem)
        if not problems:
            found.append((path, instruction))
    return found


def require_clip(path: Path) -> None:
    """Raises ValueError on a file that holds no video, begins with no decodable picture, or pauses too long."""
    index = index_video(path)
    quarter_turns(path)
    gaps = np.diff(index.stamps) * float(index.tick)
    if len(gaps) and gaps.max() > MAX_GAP:
        frame = int(gaps.argmax()) + 1
        what = f"comes {gaps.max():.1f} s after the frame before it, more than {MAX_GAP}"
        raise ValueError(Problem(file=path, frame=frame, what=what, fix="cut the clip in two there"))


def picked_frames(path: Path, fps: int) -> Int[np.ndarray, "T"]:
    """The frames of a file that its rows show."""
    index = index_video(path)
    return nearest(index.stamps, index.tick, fps)


def nearest(stamps: Sequence[int], tick: Fraction, fps: int) -> Int[np.ndarray, "T"]:
    """The numbers of the frames nearest to 0, 1 / fps, 2 / fps ... seconds after the first one, up to the last one.

    `stamps` rise, and count seconds of `tick`; of two frames equally near it is the earlier. What is computed is
    whole numbers, so that equal is equal. The last stamp may be rounded: half a tick later is still in time.
    """
    scale, unit = tick.numerator * fps, tick.denominator  # a stamp is at row stamp * scale / unit
    rows = (2 * (stamps[-1] - stamps[0]) + 1) * scale // (2 * unit) + 1
    times = np.array([stamp - stamps[0] for stamp in stamps], np.int64)
    return np.searchsorted((times[:-1] + times[1:]) * scale, 2 * unit * np.arange(rows, dtype=np.int64))


def _turned(frames: UInt8[np.ndarray, "T H W 3"], turns: int) -> UInt8[np.ndarray, "T h w 3"]:
    return np.ascontiguousarray(np.rot90(frames, turns, axes=(1, 2)))


def _sorted_files(folder: Path) -> list[Path]:
    return sorted(_video_files(folder), key=lambda path: path.relative_to(folder).as_posix())


def _video_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix.lower() in ENDINGS and not hidden and path.is_file():
            yield path


def _listed_captions(folder: Path, paths: Sequence[Path], report: Reporter) -> Mapping[Path, str]:
    """What `captions.jsonl` says, for files that there are."""
    file, fix = folder / CAPTIONS, 'write lines of {"file": NAME, "instruction": SENTENCE}, one for each clip'
    known, found = set(paths), dict[Path, str]()
    if not file.is_file():
        return found
    with reported(report):
        for number, line in read_lines(file):
            name, instruction = line.get("file"), line.get("instruction")
            if not isinstance(name, str) or not isinstance(instruction, str):
                raise ValueError(Problem(file=file, what=f"line {number}: no file or no instruction", fix=fix))
            path = folder / name
            if path not in known or path in found:
                what = f"line {number}: {name!r} {'stands twice' if path in found else 'is no video of this folder'}"
                raise ValueError(Problem(file=file, what=what, fix=fix))
            found[path] = instruction
    return found


def _instruction(path: Path, folder: Path, listed: Mapping[Path, str]) -> str:
    own, common = path.with_suffix(".txt"), folder / CAPTION
    if own.is_file() and own != common and path in listed:
        raise ValueError(
            Problem(file=path, what=f"both {own.name} and {CAPTIONS} have its instruction", fix="keep one")
        )
    if path in listed:
        instruction = listed[path]
    elif own.is_file() or common.is_file():
        instruction = _sentence(own if own.is_file() else common)
    else:
        fix = f"write {own.name} beside it, a line of {CAPTIONS}, or {CAPTION} for all clips of the folder"
        raise ValueError(Problem(file=path, what="has no instruction", fix=fix))
    if not instruction.strip():
        raise ValueError(Problem(file=path, what="its instruction is empty", fix="write what is done in the clip"))
    return instruction.strip()


def _sentence(path: Path) -> str:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_CAPTION_BYTES + 1)
    except UnicodeDecodeError as error:
        raise ValueError(Problem(file=path, what="is not UTF-8 text", fix="save it as UTF-8")) from error
    if len(text) > MAX_CAPTION_BYTES:
        raise ValueError(Problem(file=path, what="is no sentence: too long", fix="write what is done in the clip"))
    return " ".join(text.split())
