from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from actwam.data.dataset import LeRobotDataset, require_embodiment
from actwam.data.embodiment import Embodiment
from actwam.data.info import read_info
from actwam.data.problem import Problem, reported

CAMERAS = ("front", "wrist_left", "wrist_right")


def edit_info(folder: Path, **changes: object) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_everything_comes_back(written: Path, robot: Embodiment, make_episode) -> None:
    dataset = LeRobotDataset.open(written)
    require_embodiment(dataset, robot)
    assert (dataset.fps, dataset.robot_type) == (10, "square_bot")
    assert tuple(camera.name for camera in dataset.cameras) == CAMERAS
    assert dataset.state.dtype == dataset.action.dtype == np.float32
    for number, found in enumerate(dataset.episodes):
        episode = make_episode(number)
        rows = slice(found.start, found.start + found.length)
        assert found.instruction == episode.instruction
        assert np.array_equal(dataset.state[rows], episode.state)
        assert np.array_equal(dataset.action[rows], episode.action)
        for camera in CAMERAS:
            difference = dataset.video(camera, number).astype(int) - episode.images[camera]
            assert np.abs(difference).mean() < 1


def test_frames_by_number_equal_the_whole_video(written: Path) -> None:
    dataset = LeRobotDataset.open(written)
    for episode in range(4):
        video = dataset.video("wrist_left", episode)
        for wanted in ([0], [19], [5, 6, 7], [18, 2, 2, 9]):
            assert np.array_equal(dataset.frames("wrist_left", episode, np.array(wanted)), video[wanted])


def test_sequential_reading_opens_each_file_once(written: Path, monkeypatch) -> None:
    dataset = LeRobotDataset.open(written)
    whole = [dataset.video("front", episode) for episode in range(4)]
    opened = []
    real = av.open
    monkeypatch.setattr("actwam.data.video.av.open", lambda path, *rest: opened.append(path) or real(path, *rest))
    read = list(dataset.videos("front"))
    assert len(opened) == 1
    assert [number for number, _ in read] == [0, 1, 2, 3]
    assert all(np.array_equal(frames, whole[number]) for number, frames in read)


def test_digest_follows_the_content(written: Path, dataset_folder: Path) -> None:
    digest = LeRobotDataset.open(written).digest
    assert LeRobotDataset.open(dataset_folder).digest == digest  # the place does not matter
    video = dataset_folder / "videos/observation.images.front/chunk-000/file-000.mp4"
    data = bytearray(video.read_bytes())
    data[-300] ^= 1
    video.write_bytes(data)
    changed = LeRobotDataset.open(dataset_folder).digest
    assert changed != digest
    (dataset_folder / "meta/collect.json").write_text("{}")
    assert LeRobotDataset.open(dataset_folder).digest not in (digest, changed)


def test_a_dataset_without_actions_has_width_zero(dataset_folder: Path) -> None:
    features = json.loads((dataset_folder / "meta/info.json").read_text())["features"]
    edit_info(dataset_folder, features={key: value for key, value in features.items() if key != "action"})
    dataset = LeRobotDataset.open(dataset_folder)
    assert dataset.action.shape == (100, 0)
    assert dataset.action_names == ()


@pytest.mark.parametrize("names", [{"motors": ["a", "b"]}, ["a", "b"]])
def test_names_in_either_spelling(dataset_folder: Path, names: object) -> None:
    features = json.loads((dataset_folder / "meta/info.json").read_text())["features"]
    features["action"]["names"] = names
    edit_info(dataset_folder, features=features)
    assert LeRobotDataset.open(dataset_folder).action_names == ("a", "b")


def test_drifted_time_stamps_are_settled_by_the_frame_count(dataset_folder: Path, rewrite) -> None:
    key = "videos/observation.images.front/from_timestamp"
    rewrite(dataset_folder, "episodes", key, lambda stamps: stamps + np.array([0, 0, 0.02, 0.12]))
    dataset = LeRobotDataset.open(dataset_folder)
    assert dataset.episodes[3].clips["front"].first_frame == 75


def test_unknown_keys_are_ignored(dataset_folder: Path) -> None:
    edit_info(dataset_folder, tools=["pen"], something_new={"a": 1})
    assert len(LeRobotDataset.open(dataset_folder).episodes) == 4


def test_wrong_questions(written: Path) -> None:
    dataset = LeRobotDataset.open(written)
    with pytest.raises(ValueError, match=r"no camera 'top'; there are \['front'"):
        dataset.video("top", 0)
    with pytest.raises(ValueError, match="no episode 4; there are 4"):
        dataset.video("front", 4)
    with pytest.raises(ValueError, match=r"episode 2 has no frames \[20\]; it has 20"):
        dataset.frames("front", 2, np.array([20]))


def test_a_camera_without_a_slot_is_left_alone(written: Path, robot: Embodiment) -> None:
    require_embodiment(LeRobotDataset.open(written), dataclasses.replace(robot, cameras={"head": "front"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "other_bot"}, "robot_type is square_bot here, other_bot there"),
        ({"fps": 20}, "fps is 10 here, 20 there"),
        ({"cameras": {"head": "top"}}, r"cameras .*'front': \(32, 48\).* here, \{'top': \(32, 48\)\} there"),
        ({"image_size": (64, 48)}, r"\(32, 48\).*\(64, 48\)"),
        ({"state_names": ("x", "y", "z")}, r"state is \('x', 'y', 'gripper'\) here, \('x', 'y', 'z'\) there"),
        (
            {"action_names": ("dx",), "delta_mask": (False,)},
            r"action is \('dx', 'dy'\) here, \('dx',\) there",
        ),
    ],
)
def test_another_embodiment_is_refused(written: Path, robot: Embodiment, change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        require_embodiment(LeRobotDataset.open(written), dataclasses.replace(robot, **change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"storage_format": "lance"}, "storage_format 'lance' is not known"),
        ({"codebase_version": "v1.6"}, "'v1.6' cannot be read, only v2.0, v2.1, v3.0; .* convert the dataset"),
        ({"codebase_version": "v4.0"}, "'v4.0' cannot be read.*update actwam"),
        ({"codebase_version": None}, "None cannot be read"),
        ({"fps": 0}, "fps is 0, expected a whole number"),
        ({"fps": "10"}, "fps is '10'"),
        ({"total_frames": 10**12}, "total_frames is 1000000000000, expected"),
        ({"total_frames": 99}, "rows, info.json allows 99"),
        ({"features": []}, "features is not a table"),
        ({"data_path": "/etc/{chunk_index:03d}.parquet"}, "leaves the dataset"),
        ({"data_path": "../{chunk_index:03d}.parquet"}, "leaves the dataset"),
        ({"video_path": "{video_key}/../../{file_index:03d}.mp4"}, "leaves the dataset"),
        ({"data_path": "{chunk_index.__class__}.parquet"}, "replaces something unknown"),
        ({"data_path": "{chunk_index:99999999d}.parquet"}, "replaces something unknown"),
        ({"data_path": "{chunk_index"}, "is no path template"),
        ({"video_path": None}, "cameras but no video_path"),
    ],
)
def test_info_that_is_not_understood_is_refused_in_one_line(dataset_folder, change: dict, message: str) -> None:
    edit_info(dataset_folder, **change)
    with pytest.raises(ValueError, match=message) as caught:
        LeRobotDataset.open(dataset_folder)
    assert str(dataset_folder) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "feature", "message"),
    [
        ("observation.images.a/../../b", {"dtype": "video", "shape": [8, 8, 3]}, "is no plain name"),
        ("observation.images.a", {"dtype": "video", "shape": [8, 10**9, 3]}, "a side beyond"),
        ("observation.images.a", {"dtype": "video", "shape": [8]}, r"has shape \[8\]"),
        ("observation.images.a", {"dtype": "image", "shape": [8, 8, 3]}, "pictures inside parquet"),
        ("front", {"dtype": "video", "shape": [8, 8, 3]}, "two cameras have one name"),
        ("action", {"dtype": "float32", "shape": [10**9], "names": None}, "is 1000000000 wide"),
        ("action", {"dtype": "float32", "shape": [3], "names": None}, "expected 3 float32 numbers|says 3"),
        ("action", {"dtype": "string", "shape": [2], "names": None}, "is string, expected float32"),
    ],
)
def test_features_that_are_not_understood_are_refused(dataset_folder, key, feature, message) -> None:
    features = json.loads((dataset_folder / "meta/info.json").read_text())["features"]
    edit_info(dataset_folder, features=features | {key: feature})
    with pytest.raises(ValueError, match=message):
        LeRobotDataset.open(dataset_folder)


def places(value: object) -> Iterator[tuple[dict | list, int | str]]:
    """Every slot inside a JSON value."""
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def test_any_value_anywhere_in_info_is_understood_or_refused(dataset_folder: Path) -> None:
    path = dataset_folder / "meta/info.json"
    info = json.loads(path.read_text())
    for camera in ("wrist_left", "wrist_right"):
        del info["features"][f"observation.images.{camera}"]
    problems: list[Problem] = []
    for holder, key in list(places(info)):
        kept = holder[key]
        for value in (None, True, -1, 1.5, "", "x", [], [None], {}, {"a": {}}, 10**30):
            holder[key] = value
            path.write_text(json.dumps(info))
            with reported(problems.append):  # lets every other exception through
                read_info(dataset_folder)
        holder[key] = kept
    assert len(problems) > 100


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000])
def test_info_that_is_no_json_is_refused(dataset_folder: Path, content: bytes) -> None:
    (dataset_folder / "meta/info.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"info\.json: not"):
        LeRobotDataset.open(dataset_folder)


def test_a_folder_that_is_no_dataset(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"info\.json: file is missing; .* the folder that holds meta/"):
        LeRobotDataset.open(tmp_path)
