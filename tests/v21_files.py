"""Writes a dataset of LeRobot v2.0 or v2.1 by hand, from the description of the format and by no code of the reader.

The package itself writes v3.0 only. Three episodes of a robot with two arms stand here to be written.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.video import write_video

INDEXES = ("frame_index", "episode_index", "index", "task_index")
EPISODES, TASK_LIST, STATS = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl"

LENGTHS = (40, 45, 34)
TASKS = ("stack the cubes", "fold the towel", "stack the cubes")
JOINTS = tuple(f"{arm}_{i}" for arm in ("left", "right") for i in range(7))
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")


def data_file(episode: int) -> str:
    return f"data/chunk-000/episode_{episode:06d}.parquet"


def video_file(camera: str, episode: int) -> str:
    return f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"


def two_arms() -> Embodiment:
    return Embodiment(
        name="two_arms",
        index=0,
        fps=30,
        cameras=dict(zip(("head", "left", "right"), CAMERAS, strict=True)),
        image_size=(32, 48),
        state_names=JOINTS,
        action_names=JOINTS,
        delta_mask=(True,) * 14,
    )


def make_episode(number: int, length: int) -> Episode:
    """Smooth motion of 14 joints; frames grow brighter, 46 times at most, in a tint of the camera and the episode."""
    rng = np.random.default_rng(number)
    motion = np.cumsum(rng.normal(size=(length + 1, 14)), 0).astype(np.float32)
    ramp = np.arange(length)[:, None, None] % 46 * 4 + np.add.outer(np.arange(32), np.arange(48)) // 2
    images = {camera: (ramp[..., None] + rng.integers(0, 30, 3)).astype(np.uint8) for camera in CAMERAS}
    return Episode(images=images, state=motion[:-1], action=motion[1:], instruction=TASKS[number], seed=number)


def write_v2(folder: Path, robot: Embodiment, episodes: Sequence[Episode], *, version: str = "v2.1") -> Path:
    """One parquet file per episode, one mp4 per episode and camera, JSON lines; 1000 episodes to a folder."""
    tasks = list(dict.fromkeys(episode.instruction for episode in episodes))
    start, listed, stats = 0, [], []
    for number, episode in enumerate(episodes):
        steps = np.arange(len(episode.state))
        columns = {
            "observation.state": episode.state,
            "action": episode.action,
            "timestamp": (steps / robot.fps).astype(np.float32),
            "frame_index": steps,
            "episode_index": np.full_like(steps, number),
            "index": start + steps,
            "task_index": np.full_like(steps, tasks.index(episode.instruction)),
        }
        path = folder / data_file(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({key: arrow(values) for key, values in columns.items()}), path)
        for camera, frames in episode.images.items():
            write_video(folder / video_file(camera, number), frames, robot.fps)
        listed.append({"episode_index": number, "tasks": [episode.instruction], "length": len(steps)})
        stats.append({"episode_index": number, "stats": {key: statistics(values) for key, values in columns.items()}})
        start += len(steps)
    write_lines(folder / TASK_LIST, [{"task_index": i, "task": task} for i, task in enumerate(tasks)])
    write_lines(folder / EPISODES, listed)
    (folder / "meta/info.json").write_text(json.dumps(info(robot, version, len(listed), start, len(tasks)), indent=4))
    if version == "v2.1":
        write_lines(folder / STATS, stats)
    else:
        whole = {
            "observation.state": np.concatenate([episode.state for episode in episodes]),
            "action": np.concatenate([episode.action for episode in episodes]),
        }
        found = {key: statistics(values) for key, values in whole.items()}
        (folder / "meta/stats.json").write_text(json.dumps(found))
    return folder


def info(robot: Embodiment, version: str, episodes: int, frames: int, tasks: int) -> dict:
    height, width = robot.image_size
    video = {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channel"],
        "info": {"video.fps": float(robot.fps), "video.codec": "h264", "video.is_depth_map": False, "has_audio": False},
    }
    return {
        "codebase_version": version,
        "robot_type": robot.name,
        "total_episodes": episodes,
        "total_frames": frames,
        "total_tasks": tasks,
        "total_videos": episodes * len(robot.cameras),
        "total_chunks": 1,
        "chunks_size": 1000,
        "fps": float(robot.fps),
        "splits": {"train": f"0:{episodes}"},
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
        "features": {
            "observation.state": {
                "dtype": "float32",
                "shape": [len(robot.state_names)],
                "names": {"motors": list(robot.state_names)},
            },
            "action": {"dtype": "float32", "shape": [len(robot.action_names)], "names": list(robot.action_names)},
            **{f"observation.images.{camera}": video for camera in robot.cameras.values()},
            "timestamp": {"dtype": "float32", "shape": [1], "names": None},
            **{key: {"dtype": "int64", "shape": [1], "names": None} for key in INDEXES},
        },
    }


def arrow(values: np.ndarray) -> pa.Array:
    if values.ndim == 1:
        return pa.array(values)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), values.shape[1])


def statistics(values: np.ndarray) -> dict[str, list]:
    """Without quantiles, which came with v3.0."""
    rows = values.reshape(len(values), -1).astype(np.float64)
    found = {"min": rows.min(0), "max": rows.max(0), "mean": rows.mean(0), "std": rows.std(0)}
    return {**{name: row.tolist() for name, row in found.items()}, "count": [len(rows)]}


def write_lines(path: Path, objects: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(data) + "\n" for data in objects))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def change_info(**changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage
