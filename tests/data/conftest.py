"""A tiny robot and a dataset of moving squares: three cameras, four episodes, small pictures.

And a robot with two arms, whose three episodes are in LeRobot v2.0, v2.1 and v3.0: these are read only.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import v21_files

from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.writer import DatasetWriter

LENGTHS = (24, 31, 20, 25)
INSTRUCTIONS = ("push the square", "pull the square", "push the square", "lift the square")
FPS = 10


@pytest.fixture(scope="session")
def robot() -> Embodiment:
    return Embodiment(
        name="square_bot",
        index=0,
        fps=FPS,
        cameras={"head": "front", "left": "wrist_left", "right": "wrist_right"},
        image_size=(32, 48),
        state_names=("x", "y", "gripper"),
        action_names=("dx", "dy"),
        delta_mask=(False, False),
    )


def square(height: int, width: int, length: int, seed: int) -> np.ndarray:
    """A square whose place gives away the frame and whose colour gives away the episode and the camera."""
    colour = np.random.default_rng(seed).integers(60, 255, 3)
    frames = np.full((length, height, width, 3), 30, np.uint8)
    for t in range(length):
        top, left = (t // 8) * 4 % (height - 8), t % 8 * 4
        frames[t, top : top + 8, left : left + 8] = colour
    return frames


@pytest.fixture(scope="session")
def make_episode(robot: Embodiment) -> Callable[..., Episode]:
    """`make_episode(number, **changes)`: episode `number`, with fields replaced, valid or not."""

    def make(number: int, **changes: object) -> Episode:
        rng = np.random.default_rng(number)
        length = LENGTHS[number % len(LENGTHS)]
        fields = {
            "images": {
                camera: square(*robot.image_size, length, 10 * number + i)
                for i, camera in enumerate(robot.cameras.values())
            },
            "state": rng.normal(size=(length, 3)).astype(np.float32),
            "action": rng.normal(size=(length, 2)).astype(np.float32),
            "instruction": INSTRUCTIONS[number % len(LENGTHS)],
            "seed": 100 + number,
            **changes,
        }
        episode = object.__new__(Episode)  # the shape checks of the tests would not let a bad one exist
        for name, value in fields.items():
            object.__setattr__(episode, name, value)
        return episode

    return make


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory, robot: Embodiment, make_episode) -> Path:
    """The dataset of all four episodes. Read only: take `dataset_folder` to change something."""
    folder = tmp_path_factory.mktemp("written") / "squares"
    with DatasetWriter(folder, robot) as writer:
        for number in range(len(LENGTHS)):
            writer.add_episode(make_episode(number))
    return folder


@pytest.fixture
def dataset_folder(written: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "squares"))


@pytest.fixture(scope="session")
def rewrite() -> Callable[..., None]:
    """`rewrite(folder, "data" or "episodes", column, change)`: a column becomes `change(column)`."""

    def edit(folder: Path, table: str, column: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
        path = folder / ("data" if table == "data" else "meta/episodes") / "chunk-000/file-000.parquet"
        old = pq.read_table(path)
        values = np.array(old.column(column).to_pylist())
        new = change(values.copy()).astype(values.dtype)
        kind = old.schema.field(column).type
        arrow = pa.array(list(new) if new.ndim > 1 else new, kind)
        pq.write_table(old.set_column(old.schema.names.index(column), column, arrow), path)

    return edit


@pytest.fixture(scope="session")
def arms() -> Embodiment:
    return v21_files.two_arms()


@pytest.fixture(scope="session")
def episodes() -> list[Episode]:
    return [v21_files.make_episode(number, length) for number, length in enumerate(v21_files.LENGTHS)]


@pytest.fixture(scope="session")
def v21(tmp_path_factory: pytest.TempPathFactory, arms: Embodiment, episodes: list[Episode]) -> Path:
    return v21_files.write_v2(tmp_path_factory.mktemp("v21") / "d", arms, episodes)


@pytest.fixture(scope="session")
def v20(tmp_path_factory: pytest.TempPathFactory, arms: Embodiment, episodes: list[Episode], v21: Path) -> Path:
    """With the videos of the other one."""
    folder = v21_files.write_v2(tmp_path_factory.mktemp("v20") / "d", arms, episodes, version="v2.0")
    shutil.copytree(v21 / "videos", folder / "videos", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def v30(tmp_path_factory: pytest.TempPathFactory, arms: Embodiment, episodes: list[Episode], v21: Path) -> Path:
    """With one episode to a video file, and there the very files of v2.1: no frame may differ by a single value."""
    folder = tmp_path_factory.mktemp("v30") / "d"
    with DatasetWriter(folder, arms, video_file_bytes=1) as writer:
        for episode in episodes:
            writer.add_episode(episode)
    for camera in v21_files.CAMERAS:
        for number in range(3):
            file = folder / f"videos/observation.images.{camera}/chunk-000/file-{number:03d}.mp4"
            assert file.is_file()
            shutil.copy(v21 / v21_files.video_file(camera, number), file)
    return folder
