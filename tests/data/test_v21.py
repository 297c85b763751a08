"""v2.0 and v2.1 give the same view as v3.0 of the same episodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from v21_files import (
    CAMERAS,
    EPISODES,
    LENGTHS,
    STATS,
    TASK_LIST,
    TASKS,
    change_info,
    data_file,
    make_episode,
    read_lines,
    video_file,
    write_lines,
    write_v2,
)

from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset, require_embodiment
from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.info import read_info
from actwam.data.loader import Window, action_chunks
from actwam.data.problem import refuse
from actwam.data.v21 import read_tables

STARTS = (0, 40, 85)


@pytest.fixture
def folder(v21: Path, tmp_path: Path) -> Path:
    """A copy of the v2.1 dataset that a test may damage."""
    return Path(shutil.copytree(v21, tmp_path / "d"))


@pytest.fixture(params=["v2.0", "v2.1"])
def either(request: pytest.FixtureRequest, v20: Path, v21: Path) -> Path:
    return v21 if request.param == "v2.1" else v20


def test_everything_comes_back(either: Path, arms: Embodiment, episodes: list[Episode]) -> None:
    dataset = LeRobotDataset.open(either)
    require_embodiment(dataset, arms)
    assert tuple(camera.name for camera in dataset.cameras) == CAMERAS
    assert [(e.index, e.start, e.length) for e in dataset.episodes] == list(zip(range(3), STARTS, LENGTHS, strict=True))
    for number, (found, episode) in enumerate(zip(dataset.episodes, episodes, strict=True)):
        rows = slice(found.start, found.start + found.length)
        assert found.instruction == episode.instruction
        assert np.array_equal(dataset.state[rows], episode.state)
        assert np.array_equal(dataset.action[rows], episode.action)
        for camera in CAMERAS:
            frames = dataset.video(camera, number)
            assert frames.shape == episode.images[camera].shape
            difference = np.abs(frames.astype(int) - episode.images[camera]).mean((1, 2, 3))
            assert difference.max() < 2.5  # to the next frame it is 4
            assert np.array_equal(dataset.frames(camera, number, np.array([9, 2, 33])), frames[[9, 2, 33]])


def test_the_same_episodes_in_v30_are_the_same_dataset(either: Path, v30: Path) -> None:
    old, new = LeRobotDataset.open(either), LeRobotDataset.open(v30)
    assert np.array_equal(old.state, new.state)
    assert np.array_equal(old.action, new.action)
    for name in ("fps", "robot_type", "cameras", "state_names", "action_names"):
        assert getattr(old, name) == getattr(new, name), name
    for before, after in zip(old.episodes, new.episodes, strict=True):
        assert (before.index, before.length, before.instruction, before.start) == (
            after.index,
            after.length,
            after.instruction,
            after.start,
        )
    window = Window(action_horizon=16, future_offsets=(8, 16))
    for mine, other in zip(action_chunks(old, window), action_chunks(new, window), strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, other, strict=True))
    for camera in CAMERAS:
        for (number, mine), (_, other) in zip(old.videos(camera), new.videos(camera), strict=True):
            assert np.array_equal(mine, other)
            assert np.array_equal(mine, old.video(camera, number))


def test_check_finds_nothing(either: Path) -> None:
    report = check(either, action_horizon=16)
    assert report.problems == ()
    assert (report.episodes, report.frames, report.decoded) == (3, 119, 357)
    assert check(either, decode="ends").decoded == 18


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_lerobot_doctor_takes_what_is_read_here_for_a_dataset(tmp_path: Path, arms: Embodiment, version: str) -> None:
    """It looks for the statistics of the whole dataset in v2.1 too, where they are not."""
    folder = write_v2(tmp_path / "d", arms, [make_episode(number, 110) for number in range(3)], version=version)
    command = [sys.executable, "-m", "lerobot_doctor.cli", "check", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout)
    messages = [message for part in report["checks"] for message in part["messages"] if message["severity"] != "PASS"]
    assert report["total_episodes"] == 3
    assert report["overall_severity"] == ("PASS" if version == "v2.0" else "WARN"), report
    assert all("stats.json" in message["message"] for message in messages)
    assert check(folder).problems == ()


def test_digest_follows_the_content(v21: Path, folder: Path) -> None:
    digest = LeRobotDataset.open(v21).digest
    assert LeRobotDataset.open(folder).digest == digest
    with (folder / video_file("cam_high", 1)).open("r+b") as file:
        file.seek(-40, os.SEEK_END)
        file.write(b"\0")
    changed = LeRobotDataset.open(folder).digest
    assert changed != digest
    write_lines(folder / TASK_LIST, [{"task_index": 0, "task": TASKS[0]}, {"task_index": 1, "task": TASKS[1], "x": 0}])
    assert LeRobotDataset.open(folder).digest not in (digest, changed)


def test_lines_in_any_order_and_blank_ones(folder: Path, v21: Path) -> None:
    for name in (EPISODES, TASK_LIST, STATS):
        write_lines(folder / name, reversed(read_lines(folder / name)))
        with (folder / name).open("a") as file:
            file.write("\n\n")
    assert check(folder, decode="ends").problems == ()
    opened = LeRobotDataset.open(folder)
    assert [episode.instruction for episode in opened.episodes] == list(TASKS)
    assert np.array_equal(opened.state, LeRobotDataset.open(v21).state)


def test_episodes_lie_in_folders_of_chunks_size(folder: Path) -> None:
    """Two files to a folder: the third episode is in the second one."""
    for path in (folder / data_file(2), *(folder / video_file(camera, 2) for camera in CAMERAS)):
        moved = Path(str(path).replace("chunk-000", "chunk-001"))
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.rename(moved)
    change_info(chunks_size=2)(folder)
    assert check(folder, decode="ends").problems == ()
    assert LeRobotDataset.open(folder).video("cam_high", 2).shape == (34, 32, 48, 3)


def test_a_dataset_without_cameras_or_actions(folder: Path) -> None:
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    kept = {key: value for key, value in features.items() if key != "action" and value["dtype"] != "video"}
    change_info(features=kept, video_path=None, fps=30)(folder)
    dataset = LeRobotDataset.open(folder)
    assert dataset.cameras == ()
    assert dataset.action.shape == (119, 0)
    assert check(folder).problems == ()


def test_every_file_is_opened_once(v21: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = pq.ParquetFile
    monkeypatch.setattr("actwam.data.parquet.pq.ParquetFile", lambda path: opened.append(path) or real(path))
    read_tables(read_info(v21), refuse)
    assert opened == [v21 / data_file(episode) for episode in range(3)]
