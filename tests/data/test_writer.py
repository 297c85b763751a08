from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from actwam.data.dataset import LeRobotDataset
from actwam.data.embodiment import Embodiment
from actwam.data.writer import DatasetWriter


def episode_table(folder: Path) -> dict[str, list]:
    return pq.read_table(folder / "meta/episodes/chunk-000/file-000.parquet").to_pydict()


def test_layout_on_disk(written: Path) -> None:
    files = {str(path.relative_to(written)) for path in written.rglob("*") if path.is_file()}
    assert files == {
        "meta/info.json",
        "meta/stats.json",
        "meta/seeds.json",
        "meta/tasks.parquet",
        "meta/episodes/chunk-000/file-000.parquet",
        "data/chunk-000/file-000.parquet",
        "videos/observation.images.front/chunk-000/file-000.mp4",
        "videos/observation.images.wrist_left/chunk-000/file-000.mp4",
        "videos/observation.images.wrist_right/chunk-000/file-000.mp4",
    }
    assert json.loads((written / "meta/seeds.json").read_text()) == {"seeds": [100, 101, 102, 103]}


def test_rows_keep_what_readers_rely_on(written: Path, make_episode) -> None:
    path = written / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path).to_pydict()
    lengths = [len(make_episode(number).state) for number in range(4)]
    assert table["index"] == list(range(sum(lengths)))
    assert table["frame_index"] == [t for length in lengths for t in range(length)]
    assert table["episode_index"] == [e for e, length in enumerate(lengths) for _ in range(length)]
    assert table["timestamp"] == [float(np.float32(t / 10)) for length in lengths for t in range(length)]
    assert [table["task_index"][start] for start in (0, 24, 55, 75)] == [0, 1, 0, 2]
    groups = pq.ParquetFile(path).metadata
    assert [groups.row_group(i).num_rows for i in range(groups.num_row_groups)] == lengths
    action = pq.read_schema(path).field("action").type
    assert (str(action.value_type), action.list_size) == ("float", 2)


def test_time_stamps_in_the_video_are_exact(written: Path) -> None:
    table = episode_table(written)
    key = "videos/observation.images.front"
    assert table[f"{key}/from_timestamp"] == [0.0, 24 / 10, 55 / 10, 75 / 10]
    assert table[f"{key}/to_timestamp"] == [24 / 10, 55 / 10, 75 / 10, 100 / 10]
    assert table["dataset_from_index"] == [0, 24, 55, 75]
    assert table["tasks"][3] == ["lift the square"]
    assert np.array(table["stats/observation.images.front/mean"]).shape == (4, 3, 1, 1)
    assert [len(row) for row in table["stats/observation.state/std"]] == [3] * 4


def test_tasks_are_a_pandas_index(written: Path) -> None:
    schema = pq.read_schema(written / "meta/tasks.parquet")
    assert json.loads(schema.metadata[b"pandas"])["index_columns"] == ["task"]
    table = pq.read_table(written / "meta/tasks.parquet").to_pydict()
    sentences = ["push the square", "pull the square", "lift the square"]
    assert table == {"task_index": [0, 1, 2], "task": sentences}


def test_stored_statistics(written: Path, make_episode) -> None:
    stats = json.loads((written / "meta/stats.json").read_text())
    action = np.concatenate([make_episode(number).action for number in range(4)]).astype(np.float64)
    assert np.allclose(stats["action"]["mean"], action.mean(0), rtol=1e-12)
    assert np.allclose(stats["action"]["std"], action.std(0), rtol=1e-12)
    assert np.allclose(stats["action"]["q10"], np.quantile(action, 0.1, axis=0), rtol=1e-12)
    assert stats["action"]["count"] == [100]
    front = [make_episode(number).images["front"] for number in range(4)]  # no episode exceeds the sample
    pixels = np.concatenate([frames.reshape(-1, 3) for frames in front]) / 255
    image = stats["observation.images.front"]
    assert np.allclose(np.ravel(image["mean"]), pixels.mean(0))
    assert np.allclose(np.ravel(image["std"]), pixels.std(0))
    assert np.allclose(np.ravel(image["min"]), pixels.min(0))
    assert np.allclose(np.ravel(image["max"]), pixels.max(0))
    assert np.array(image["q50"]).shape == (3, 1, 1)
    assert image["count"] == [100]


def test_lerobot_doctor_passes(tmp_path: Path, robot: Embodiment, make_episode) -> None:
    folder = tmp_path / "long"
    with DatasetWriter(folder, robot) as writer:
        for number in range(3):
            episode = make_episode(number)
            images = {camera: np.tile(frames, (6, 1, 1, 1))[:110] for camera, frames in episode.images.items()}
            motion = np.cumsum(np.random.default_rng(number).normal(size=(110, 5)), 0).astype(np.float32)
            state, action = motion[:, :3], motion[:, 3:]
            writer.add_episode(make_episode(number, images=images, state=state, action=action))
    command = [sys.executable, "-m", "lerobot_doctor.cli", "check", str(folder), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    report = json.loads(done.stdout)
    assert done.returncode == 0
    assert report["total_episodes"] == 3
    assert report["overall_severity"] == "PASS", report


def test_files_roll_over(tmp_path: Path, robot: Embodiment, make_episode, monkeypatch) -> None:
    monkeypatch.setattr("actwam.data.writer.FILES_PER_CHUNK", 2)
    with DatasetWriter(tmp_path / "d", robot, data_file_bytes=1, video_file_bytes=1) as writer:
        for number in range(4):
            writer.add_episode(make_episode(number))
    places = [(0, 0), (0, 1), (1, 0), (1, 1)]
    table = episode_table(tmp_path / "d")
    for key in ("data", "videos/observation.images.front"):
        assert list(zip(table[f"{key}/chunk_index"], table[f"{key}/file_index"], strict=True)) == places
    assert table["videos/observation.images.front/from_timestamp"] == [0.0] * 4
    dataset = LeRobotDataset.open(tmp_path / "d")
    assert np.array_equal(dataset.action[75:], make_episode(3).action)
    assert [number for number, _ in dataset.videos("front")] == [0, 1, 2, 3]
    assert np.abs(dataset.video("front", 3).astype(int) - make_episode(3).images["front"]).mean() < 1


def test_a_state_of_width_one_is_a_scalar_column(tmp_path: Path, robot: Embodiment, make_episode) -> None:
    narrow = dataclasses.replace(robot, state_names=("x",))
    with DatasetWriter(tmp_path / "d", narrow) as writer:
        writer.add_episode(make_episode(0, state=make_episode(0).state[:, :1]))
    schema = pq.read_schema(tmp_path / "d/data/chunk-000/file-000.parquet")
    assert str(schema.field("observation.state").type) == "float"
    assert np.array_equal(LeRobotDataset.open(tmp_path / "d").state, make_episode(0).state[:, :1])


def changed(values: np.ndarray, place: tuple[int, int], value: float) -> np.ndarray:
    values = values.copy()
    values[place] = value
    return values


BAD_EPISODES = {
    "missing camera": (
        lambda e: {"images": {k: v for k, v in e.images.items() if k != "front"}},
        r"cameras \['front'\] of square_bot are missing",
    ),
    "unknown camera": (
        lambda e: {"images": {**e.images, "top": e.images["front"]}},
        r"square_bot has no cameras \['top'\]",
    ),
    "wrong size": (
        lambda e: {"images": {**e.images, "front": e.images["front"][:, :16]}},
        r"camera front: shape \(24, 16, 48, 3\), expected \(24, 32, 48, 3\)",
    ),
    "channels first": (
        lambda e: {"images": {**e.images, "front": e.images["front"].transpose(0, 3, 1, 2)}},
        r"camera front: shape \(24, 3, 32, 48\)",
    ),
    "wrong dtype": (
        lambda e: {"images": {**e.images, "front": e.images["front"] / np.float32(255)}},
        "camera front: pictures are float32, expected uint8",
    ),
    "fewer pictures": (
        lambda e: {"images": {**e.images, "front": e.images["front"][:-1]}},
        r"camera front: shape \(23, 32, 48, 3\)",
    ),
    "wrong state width": (lambda e: {"state": e.state[:, :2]}, r"state: shape \(24, 2\), expected \(24, 3\)"),
    "wrong action width": (lambda e: {"action": np.ones((24, 7), np.float32)}, r"action: shape \(24, 7\)"),
    "whole numbers": (lambda e: {"action": np.ones((24, 2), np.int64)}, "action: is int64"),
    "fewer actions": (lambda e: {"action": e.action[:-1]}, r"action: shape \(23, 2\), expected \(24, 2\)"),
    "nan": (lambda e: {"state": changed(e.state, (7, 2), np.nan)}, "state: frame 7: gripper is nan"),
    "inf": (lambda e: {"action": changed(e.action, (3, 0), np.inf)}, "action: frame 3: dx is inf"),
    "too large for float32": (
        lambda e: {"action": changed(e.action.astype(np.float64), (3, 1), 1e300)},
        "action: frame 3: dy is 1e",
    ),
    "empty": (lambda e: {"state": e.state[:0]}, "empty; record at least one frame"),
    "no instruction": (lambda e: {"instruction": " "}, "instruction is empty"),
}


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
@pytest.mark.parametrize("kind", BAD_EPISODES)
def test_bad_episodes_are_refused_by_name_and_leave_no_trace(
    tmp_path: Path, robot: Embodiment, make_episode, kind: str
) -> None:
    change, message = BAD_EPISODES[kind]
    folder = tmp_path / "d"
    with DatasetWriter(folder, robot) as writer:
        writer.add_episode(make_episode(1))
        with pytest.raises(ValueError, match=rf"{folder}: episode 1: {message}"):
            writer.add_episode(make_episode(0, **change(make_episode(0))))
        writer.add_episode(make_episode(2))
    dataset = LeRobotDataset.open(folder)
    assert [episode.length for episode in dataset.episodes] == [31, 20]
    assert np.array_equal(dataset.action[31:], make_episode(2).action)


def test_an_exception_leaves_nothing(tmp_path: Path, robot: Embodiment, make_episode) -> None:
    def record() -> None:
        with DatasetWriter(tmp_path / "d", robot) as writer:
            writer.add_episode(make_episode(0))
            raise RuntimeError("simulator died")

    with pytest.raises(RuntimeError, match="simulator"):
        record()
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing(tmp_path: Path, robot: Embodiment, make_episode, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def record() -> None:
        with DatasetWriter(tmp_path / "d", robot) as writer:
            writer.add_episode(make_episode(0))
            monkeypatch.setattr("actwam.data.video.VideoWriter.append", full)
            with pytest.raises(OSError, match="No space left"):
                writer.add_episode(make_episode(1))
            monkeypatch.undo()
            with pytest.raises(ValueError, match="the one before was only half written"):
                writer.add_episode(make_episode(1))  # a caller that swallows errors gets no dataset either

    with pytest.raises(ValueError, match="only half written; nothing is kept"):
        record()
    assert list(tmp_path.iterdir()) == []


def test_no_episode_is_no_dataset(tmp_path: Path, robot: Embodiment) -> None:
    with pytest.raises(ValueError, match="no episode was added"), DatasetWriter(tmp_path / "d", robot):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_refused(tmp_path: Path, robot: Embodiment) -> None:
    (tmp_path / "d").mkdir()
    with pytest.raises(ValueError, match="exists already"), DatasetWriter(tmp_path / "d", robot):
        pass
    assert (tmp_path / "d").is_dir()


def test_a_killed_writer_is_cleared_a_living_one_is_not(tmp_path: Path, robot, make_episode) -> None:
    (tmp_path / "d.partial" / "data").mkdir(parents=True)
    (tmp_path / "d.partial" / "data" / "left.parquet").write_bytes(b"from a killed process")
    with DatasetWriter(tmp_path / "d", robot) as writer:
        writer.add_episode(make_episode(0))
        with (
            pytest.raises(ValueError, match="another process is writing"),
            DatasetWriter(tmp_path / "d", robot),
        ):
            pass
    assert not (tmp_path / "d" / "data" / "left.parquet").exists()
    assert len(LeRobotDataset.open(tmp_path / "d").episodes) == 1


def test_odd_pictures_and_bad_camera_names_are_refused_at_once(tmp_path: Path, robot: Embodiment) -> None:
    with pytest.raises(ValueError, match="choose an even height"):
        DatasetWriter(tmp_path / "d", dataclasses.replace(robot, image_size=(31, 48)))
    with pytest.raises(ValueError, match="no plain name"):
        DatasetWriter(tmp_path / "d", dataclasses.replace(robot, cameras={"head": "../front"}))


def test_extra_json(tmp_path: Path, robot: Embodiment, make_episode) -> None:
    with DatasetWriter(tmp_path / "d", robot) as writer:
        writer.add_episode(make_episode(0))
        writer.write_json("collect.json", {"version": 1})
        for name in ("info.json", "../collect.json", "collect.txt"):
            with pytest.raises(ValueError, match="cannot be written"):
                writer.write_json(name, {})
    assert json.loads((tmp_path / "d/meta/collect.json").read_text()) == {"version": 1}
