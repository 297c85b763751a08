"""Kinds of faults of datasets, each put into a good one at a random place by a function of a random generator."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actwam.data.dataset import LeRobotDataset
from actwam.data.episode import Episode
from actwam.data.info import ACTION, STATE
from actwam.data.writer import DatasetWriter
from actwam.sim.robot import CONTROL_RATE, metaworld_embodiment

GRIPPER = 3
"""Its dimension in state and action; those before are where the hand is, in metres."""
IDLE_SECONDS = 1.5
FROZEN_SECONDS, MOVED = 0.75, 0.35
"""How long a camera freezes, and by which share of its range the hand moves meanwhile."""


@dataclass(frozen=True)
class Injected:
    """The problem that must be named: `file` below the folder; what is None may be anything; a beginning that shows
    only after some rows may be `slack` rows off. `repaired` tells whether a copy can be made good.
    """

    kind: str
    file: str
    episode: int | None = None
    frame: int | None = None
    key: str | None = None
    slack: int = 0
    repaired: bool = True


@dataclass(frozen=True)
class Good:
    """A good dataset in memory, and how it is laid out in files: one for each episode, or all episodes in one."""

    episodes: Sequence[Episode]
    image_size: tuple[int, int]
    single: bool

    @property
    def limits(self) -> dict[str, int]:
        """Of the writer, in bytes: a file is closed at the first end of an episode past it."""
        return {"data_file_bytes": 1, "video_file_bytes": 1} if self.single else {}

    def write(self, folder: Path) -> Path:
        with DatasetWriter(folder, metaworld_embodiment(self.image_size), **self.limits) as writer:
            for episode in self.episodes:
                writer.add_episode(episode)
        return folder

    def with_episode(self, index: int, **changes: object) -> Good:
        episodes = list(self.episodes)
        episodes[index] = replace(episodes[index], **changes)  # type: ignore[arg-type]
        return replace(self, episodes=episodes)

    def data(self, index: int) -> str:
        return f"data/chunk-000/file-{index if self.single else 0:03d}.parquet"

    def video(self, camera: str, index: int) -> str:
        return f"videos/observation.images.{camera}/chunk-000/file-{index if self.single else 0:03d}.mp4"

    def row(self, index: int, frame: int) -> int:
        """Its number in the data file."""
        return frame + (0 if self.single else sum(len(episode.state) for episode in self.episodes[:index]))


Fault = Callable[[Good, Path, np.random.Generator], Injected]


def _somewhere(good: Good, rng: np.random.Generator) -> tuple[int, int, str]:
    """An episode, a frame that is not among its first, and a camera."""
    index = int(rng.integers(len(good.episodes)))
    frame = int(rng.integers(5, len(good.episodes[index].state) - 5))
    return index, frame, str(rng.choice(sorted(good.episodes[0].images)))


def _edit(path: Path, column: str, change: Callable[[np.ndarray], None]) -> None:
    """Change a column of a parquet file in place."""
    table = pq.read_table(path)
    values = np.array(table.column(column).to_pylist())
    change(values)
    kind = table.schema.field(column).type
    arrow = pa.array(list(values) if values.ndim > 1 else values, kind)
    pq.write_table(table.set_column(table.schema.names.index(column), column, arrow), path)


def _set(good: Good, folder: Path, index: int, key: str, place: tuple[int, int], value: float) -> None:
    def change(values: np.ndarray) -> None:
        values[good.row(index, place[0]), place[1]] = value

    _edit(good.write(folder) / good.data(index), key, change)


def not_finite(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, frame, _ = _somewhere(good, rng)
    key = str(rng.choice([STATE, ACTION]))
    _set(good, folder, index, key, (frame, int(rng.integers(4))), float(rng.choice([np.nan, np.inf, -np.inf])))
    return Injected("finite", good.data(index), index, frame, key)


def outlier(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, frame, _ = _somewhere(good, rng)
    key = str(rng.choice([STATE, ACTION]))
    _set(good, folder, index, key, (frame, int(rng.integers(3))), float(rng.choice([-1, 1]) * rng.uniform(20, 1e4)))
    return Injected("outlier", good.data(index), index, frame, key)


def zero_range(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    dimension = int(rng.integers(4))
    episodes = []
    for episode in good.episodes:
        action = episode.action.copy()
        action[:, dimension] = 0.25
        episodes.append(replace(episode, action=action))
    replace(good, episodes=episodes).write(folder)
    return Injected("range", "meta/info.json", key=ACTION, repaired=False)


def _timed(good: Good, folder: Path, index: int, change: Callable[[np.ndarray], None]) -> None:
    """Change the time stamps of one episode."""
    rows = slice(good.row(index, 0), good.row(index, 0) + len(good.episodes[index].state))
    _edit(good.write(folder) / good.data(index), "timestamp", lambda values: change(values[rows]))


def time_jumps(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, frame, _ = _somewhere(good, rng)
    seconds = float(rng.choice([-1, 1]) * rng.uniform(0.1, 2))

    def change(time: np.ndarray) -> None:
        time[frame:] += seconds

    _timed(good, folder, index, change)
    return Injected("time", good.data(index), index, frame, "timestamp")


def time_starts_late(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, _, _ = _somewhere(good, rng)
    seconds = float(rng.uniform(0.01, 1000))

    def change(time: np.ndarray) -> None:
        time += seconds

    _timed(good, folder, index, change)
    return Injected("time", good.data(index), index, 0, "timestamp")


def time_jitters(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, frame, _ = _somewhere(good, rng)
    late = rng.uniform(0.1, 0.4, 1000) / CONTROL_RATE

    def change(time: np.ndarray) -> None:
        time[frame:] += late[: len(time) - frame]

    _timed(good, folder, index, change)
    return Injected("time", good.data(index), index, frame, "timestamp")


def wrong_length(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    """The episode table says another length than the rows of the last episode."""
    good.write(folder)
    last, path = len(good.episodes) - 1, folder / "meta/episodes/chunk-000/file-000.parquet"
    more = int(rng.integers(1, 20))

    def change(values: np.ndarray) -> None:
        values[last] += more

    _edit(path, "length", change)
    return Injected("format", good.data(last), last)


def frame_count(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    """The end of a video is missing: of any episode where each has its file, else of the last."""
    index, frame, camera = _somewhere(good, rng)
    index = index if good.single else len(good.episodes) - 1
    frame = min(frame, len(good.episodes[index].state) - 5)
    good.write(folder)
    other = folder.with_name("shorter")
    robot = replace(metaworld_embodiment(good.image_size), cameras={camera: camera})
    with DatasetWriter(other, robot, **good.limits) as writer:
        for number, episode in enumerate(good.episodes):
            rows = slice(0, frame if number == index else None)
            images = {camera: episode.images[camera][rows]}
            writer.add_episode(replace(episode, images=images, state=episode.state[rows], action=episode.action[rows]))
    os.replace(other / good.video(camera, index), folder / good.video(camera, index))
    return Injected("video", good.video(camera, index), index, frame, camera)


def damaged_picture(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    """The bytes of one encoded picture are overwritten."""
    index, frame, camera = _somewhere(good, rng)
    path = good.write(folder) / good.video(camera, index)
    with av.open(str(path)) as container:
        packets = [packet for packet in container.demux(container.streams.video[0]) if packet.size]
    packet = packets[good.row(index, frame)]
    with path.open("r+b") as file:
        file.seek(packet.pos)
        file.write(bytes(packet.size))
    return Injected("video", good.video(camera, index), index, frame, camera)


def video_without_footer(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, _, camera = _somewhere(good, rng)
    path = good.write(folder) / good.video(camera, index)
    os.truncate(path, int(path.stat().st_size * rng.uniform(0.02, 0.9)))
    place = index if good.single else 0
    return Injected("video", good.video(camera, index), place, None, camera, repaired=good.single)


def data_without_footer(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, _, _ = _somewhere(good, rng)
    path = good.write(folder) / good.data(index)
    os.truncate(path, int(path.stat().st_size * rng.uniform(0, 0.99)))
    return Injected("format", good.data(index), repaired=good.single)


def drifted_statistics(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    path = good.write(folder) / "meta/stats.json"
    stats, key = json.loads(path.read_text()), str(rng.choice([STATE, ACTION]))
    values, i = stats[key][str(rng.choice(["min", "max", "mean", "std"]))], int(rng.integers(4))
    values[i] += float(rng.choice([-1, 1]) * rng.uniform(0.05, 1))
    path.write_text(json.dumps(stats))
    return Injected("statistics", "meta/stats.json", key=key)


def swapped_cameras(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, _, camera = _somewhere(good, rng)
    images = dict(good.episodes[index].images)
    other = str(rng.choice(sorted(images.keys() - {camera})))
    images[camera], images[other] = images[other], images[camera]
    good.with_episode(index, images=images).write(folder)
    return Injected("swapped", good.video(camera, index), index, 0, camera)


def black_camera(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    """From a frame on, or in all of them."""
    index, frame, camera = _somewhere(good, rng)
    images = good.episodes[index].images
    first = int(rng.choice([0, min(frame, len(images[camera]) - 45)]))
    dark = images[camera].copy()
    dark[first:] = rng.integers(0, 8, dark[first:].shape, np.uint8)
    good.with_episode(index, images={**images, camera: dark}).write(folder)
    return Injected("black", good.video(camera, index), index, first, camera)


def frozen_camera(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    """For a while in which the hand moves."""
    index, _, camera = _somewhere(good, rng)
    count = round(FROZEN_SECONDS * CONTROL_RATE)
    state = good.episodes[index].state[:, :GRIPPER]
    range_of = np.ptp(np.concatenate([each.state[:, :GRIPPER] for each in good.episodes]), axis=0)
    moved = [(np.ptp(state[first : first + count], axis=0) / range_of).max() for first in range(len(state) - count)]
    first = int(rng.choice(np.flatnonzero(np.array(moved) >= min(MOVED, max(moved)))))
    images = good.episodes[index].images
    frozen = images[camera].copy()
    frozen[first : first + count] = frozen[first]
    good.with_episode(index, images={**images, camera: frozen}).write(folder)
    return Injected("frozen", good.video(camera, index), index, first, camera, slack=8)


def idle_rows(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    """The robot waits before it begins, after its last motion, or in between, which a copy cannot mend."""
    index, frame, _ = _somewhere(good, rng)
    episode, count = good.episodes[index], round(IDLE_SECONDS * CONTROL_RATE)
    first = int(rng.choice([0, frame, len(episode.state) - 1]))
    order = np.insert(np.arange(len(episode.state)), first, np.full(count, first))
    action = episode.action[order].copy()
    action[first : None if first == len(episode.state) - 1 else first + count, :GRIPPER] = 0
    images = {camera: frames[order] for camera, frames in episode.images.items()}
    good.with_episode(index, images=images, state=episode.state[order], action=action).write(folder)
    return Injected("idle", good.data(index), index, first, slack=8, repaired=first != frame)


def mirrored_gripper(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, _, _ = _somewhere(good, rng)
    action = good.episodes[index].action.copy()
    action[:, GRIPPER] *= -1
    good.with_episode(index, action=action).write(folder)
    return Injected("gripper", good.data(index), index, key=ACTION)


def other_units(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    """Millimetres instead of metres."""
    index, _, _ = _somewhere(good, rng)
    state = good.episodes[index].state.copy()
    state[:, :GRIPPER] *= 1000
    good.with_episode(index, state=state).write(folder)
    return Injected("units", good.data(index), index, key=STATE)


def duplicate(good: Good, folder: Path, rng: np.random.Generator) -> Injected:
    index, _, _ = _somewhere(good, rng)
    again = int(rng.integers(index + 1, len(good.episodes) + 1))
    episodes = list(good.episodes)
    episodes.insert(again, episodes[index])
    replace(good, episodes=episodes).write(folder)
    return Injected("duplicate", good.data(again), again)


KINDS: dict[str, Fault] = {
    "NaN or Inf": not_finite,
    "outlier": outlier,
    "zero range": zero_range,
    "time jumps": time_jumps,
    "time does not start at 0": time_starts_late,
    "time jitters": time_jitters,
    "wrong length": wrong_length,
    "missing frames": frame_count,
    "damaged picture": damaged_picture,
    "mp4 without footer": video_without_footer,
    "parquet without footer": data_without_footer,
    "drifted statistics": drifted_statistics,
    "swapped cameras": swapped_cameras,
    "black camera": black_camera,
    "frozen camera": frozen_camera,
    "idle rows": idle_rows,
    "mirrored gripper": mirrored_gripper,
    "other units": other_units,
    "duplicate": duplicate,
}


def read_good(folder: Path, single: bool) -> Good:
    dataset = LeRobotDataset.open(folder)
    episodes = []
    for each in dataset.episodes:
        rows = slice(each.start, each.start + each.length)
        images = {camera.name: dataset.video(camera.name, each.index) for camera in dataset.cameras}
        episodes.append(Episode(images, dataset.state[rows], dataset.action[rows], each.instruction))
    camera = dataset.cameras[0]
    return Good(episodes, (camera.height, camera.width), single)
