"""v2.0 and v2.1 give the same view as v3.0 of the same episodes, and one clear line where they are broken."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from v21_files import arrow, read_lines, write_lines, write_v2

from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset, require_embodiment
from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.info import read_info
from actwam.data.loader import Window, action_chunks
from actwam.data.problem import refuse
from actwam.data.v21 import read_tables
from actwam.data.video import write_video
from actwam.data.writer import DatasetWriter

LENGTHS = (40, 45, 34)
STARTS = (0, 40, 85)
TASKS = ("stack the cubes", "fold the towel", "stack the cubes")
JOINTS = tuple(f"{arm}_{i}" for arm in ("left", "right") for i in range(7))
CAMERAS = ("cam_high", "cam_left_wrist", "cam_right_wrist")
EPISODES, TASK_LIST, STATS = "meta/episodes.jsonl", "meta/tasks.jsonl", "meta/episodes_stats.jsonl"


def data(episode: int) -> str:
    return f"data/chunk-000/episode_{episode:06d}.parquet"


def video(camera: str, episode: int) -> str:
    return f"videos/chunk-000/observation.images.{camera}/episode_{episode:06d}.mp4"


@pytest.fixture(scope="module")
def arms() -> Embodiment:
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


@pytest.fixture(scope="module")
def episodes() -> list[Episode]:
    return [make_episode(number, length) for number, length in enumerate(LENGTHS)]


@pytest.fixture(scope="module")
def v21(tmp_path_factory: pytest.TempPathFactory, arms: Embodiment, episodes: list[Episode]) -> Path:
    return write_v2(tmp_path_factory.mktemp("v21") / "d", arms, episodes)


@pytest.fixture(scope="module")
def v20(tmp_path_factory: pytest.TempPathFactory, arms: Embodiment, episodes: list[Episode], v21: Path) -> Path:
    """With the videos of the other one."""
    folder = write_v2(tmp_path_factory.mktemp("v20") / "d", arms, episodes, version="v2.0")
    shutil.copytree(v21 / "videos", folder / "videos", dirs_exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def v30(tmp_path_factory: pytest.TempPathFactory, arms: Embodiment, episodes: list[Episode], v21: Path) -> Path:
    """With one episode to a video file, and there the very files of v2.1: no frame may differ by a single value."""
    folder = tmp_path_factory.mktemp("v30") / "d"
    with DatasetWriter(folder, arms, video_file_bytes=1) as writer:
        for episode in episodes:
            writer.add_episode(episode)
    for camera in CAMERAS:
        for number in range(3):
            file = folder / f"videos/observation.images.{camera}/chunk-000/file-{number:03d}.mp4"
            assert file.is_file()
            shutil.copy(v21 / video(camera, number), file)
    return folder


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
        assert np.array_equal(mine, other)
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
    with (folder / video("cam_high", 1)).open("r+b") as file:
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
    for path in (folder / data(2), *(folder / video(camera, 2) for camera in CAMERAS)):
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


@dataclass(frozen=True)
class Fault:
    """`damage` breaks a folder; the rest is the only problem that there is then."""

    damage: Callable[[Path], object]
    file: str
    what: str
    episode: int | None = None
    key: str | None = None
    severity: str = "error"
    opens: bool = False


def change_info(**changes: object) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / "meta/info.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def change_line(name: str, line: int, **changes: object) -> Callable[[Path], object]:
    """Replace fields of a line, counted from 0; None removes one."""

    def damage(folder: Path) -> None:
        lines = read_lines(folder / name)
        lines[line] = {key: value for key, value in (lines[line] | changes).items() if value is not None}
        write_lines(folder / name, lines)

    return damage


def replace_line(name: str, line: int, text: bytes) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        lines = (folder / name).read_bytes().splitlines()
        lines[line] = text
        (folder / name).write_bytes(b"\n".join(lines))

    return damage


def change_column(episode: int, column: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        path = folder / data(episode)
        old = pq.read_table(path)
        values = np.array(old.column(column).to_pylist(), old.column(column).type.to_pandas_dtype())
        pq.write_table(old.set_column(old.schema.names.index(column), column, arrow(change(values))), path)

    return damage


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, keep: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


FAULTS = {
    "data missing": Fault(remove(data(1)), data(1), "file is missing", 1),
    "data without footer": Fault(cut(data(2), 0.6), data(2), "parquet file without footer", 2),
    "video missing": Fault(
        remove(video("cam_left_wrist", 1)),
        video("cam_left_wrist", 1),
        "video file is missing",
        1,
        "cam_left_wrist",
    ),
    "video truncated": Fault(
        cut(video("cam_high", 2), 0.7),
        video("cam_high", 2),
        "not a complete video file|no video stream",
        2,
        "cam_high",
        opens=True,
    ),
    "video too short": Fault(
        lambda folder: write_video(folder / video("cam_high", 1), np.zeros((44, 32, 48, 3), np.uint8), 30),
        video("cam_high", 1),
        "video has 44 frames, its episode has 45",
        1,
        "cam_high",
        opens=True,
    ),
    "tasks missing": Fault(remove(TASK_LIST), TASK_LIST, "file is missing"),
    "broken line of tasks": Fault(
        replace_line(TASK_LIST, 1, b'{"task_index": 1, "task": "fo'), TASK_LIST, "line 2: not JSON"
    ),
    "line of another kind": Fault(replace_line(TASK_LIST, 0, b"[1]"), TASK_LIST, "line 1: not a JSON object"),
    "line without a sentence": Fault(
        change_line(TASK_LIST, 1, task=7), TASK_LIST, "line 2: task is 7, expected a sentence"
    ),
    "task numbered twice": Fault(
        change_line(TASK_LIST, 1, task_index=0), TASK_LIST, "line 2: task_index 0 comes twice"
    ),
    "task that is not in the list": Fault(
        change_column(1, "task_index", lambda values: values + 4),
        data(1),
        "task_index 5 is not among the 2 tasks",
        1,
        "task_index",
    ),
    "sentence that is not in the list": Fault(
        change_line(EPISODES, 2, tasks=["stack the cups"]),
        EPISODES,
        r"tasks are \['stack the cups'\], the rows of the episode say 'stack the cubes'",
        2,
        "tasks",
    ),
    "episodes missing": Fault(remove(EPISODES), EPISODES, "file is missing"),
    "no episodes": Fault(lambda folder: (folder / EPISODES).write_text("\n"), EPISODES, "no episode is listed"),
    "too many episodes": Fault(
        change_info(total_episodes=2), EPISODES, "line 3: one episode more than the 2 of info.json"
    ),
    "broken line of episodes": Fault(replace_line(EPISODES, 0, b"\xff"), EPISODES, "line 1: not JSON .*utf-8"),
    "a number without end": Fault(
        replace_line(EPISODES, 0, b'{"length": ' + b"9" * 5000 + b"}"), EPISODES, "line 1: not JSON"
    ),
    "a very deep line": Fault(replace_line(EPISODES, 0, b"[" * 100_000), EPISODES, "line 1: not JSON"),
    "episode listed twice": Fault(
        change_line(EPISODES, 1, episode_index=0), EPISODES, "line 2: episode_index 0 comes twice"
    ),
    "episode without a number": Fault(
        change_line(EPISODES, 1, episode_index=True), EPISODES, "line 2: episode_index is True, expected a whole"
    ),
    "episode of no length": Fault(change_line(EPISODES, 1, length=0), EPISODES, "line 2: length is 0, expected"),
    "length of another kind": Fault(change_line(EPISODES, 1, length="45"), EPISODES, "line 2: length is '45'"),
    "episode without tasks": Fault(change_line(EPISODES, 1, tasks=None), EPISODES, "line 2: tasks is None, expected"),
    "length that disagrees": Fault(
        change_line(EPISODES, 1, length=44), data(1), r"file has 45 rows, episodes\.jsonl says 44", 1
    ),
    "row of another episode": Fault(
        change_column(2, "episode_index", lambda values: values * 0),
        data(2),
        "episode_index is 0, expected 2, in 34 rows",
        2,
        "episode_index",
    ),
    "index that begins again": Fault(
        change_column(2, "index", lambda values: values - 85), data(2), "index is 0, expected 85", 2, "index"
    ),
    "another rate": Fault(
        change_column(0, "timestamp", lambda values: values * 2),
        data(0),
        "timestamp is 0.0666667 s, expected 0.0333333 at 30 fps",
        0,
        "timestamp",
        opens=True,
    ),
    "statistics that drifted": Fault(
        lambda folder: change_line(
            STATS, 1, stats=read_lines(folder / STATS)[1]["stats"] | {"action": read_lines(folder / STATS)[0]["stats"]}
        )(folder),
        STATS,
        "min is None, expected 14 numbers",
        1,
        "action",
        opens=True,
    ),
    "statistics of another kind": Fault(
        change_line(STATS, 2, stats=[]), STATS, r"line 3: stats is \[\], expected a table", opens=True
    ),
    "statistics missing": Fault(remove(STATS), STATS, "file is missing", severity="warning", opens=True),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_gives_one_clear_line(folder: Path, kind: str) -> None:
    fault = FAULTS[kind]
    fault.damage(folder)
    report = check(folder)
    assert report.ok == (fault.severity == "warning")
    problem = report.problems[0]
    assert {other.file for other in report.problems} == {folder / fault.file}
    assert {other.episode for other in report.problems} == {fault.episode}
    assert (problem.key, problem.severity) == (fault.key, fault.severity)
    assert re.search(fault.what, problem.what), problem
    assert problem.fix
    assert "\n" not in str(problem)
    if fault.opens:
        assert len(LeRobotDataset.open(folder).episodes) == 3
    else:
        with pytest.raises(ValueError, match=re.escape(str(folder / fault.file))) as caught:
            LeRobotDataset.open(folder)
        assert caught.value.args[0] == problem


def test_statistics_are_those_of_each_episode(folder: Path) -> None:
    lines = read_lines(folder / STATS)
    lines[2]["stats"]["action"]["mean"][3] += 5
    del lines[0]["stats"]["observation.state"]
    write_lines(folder / STATS, lines[:1] + lines[2:])
    found = [(p.episode, p.key, p.severity, p.what.split(",")[0][:17]) for p in check(folder, decode="ends").problems]
    assert found == [
        (0, "observation.state", "warning", "statistics are mi"),
        (1, "observation.state", "warning", "statistics are mi"),
        (1, "action", "warning", "statistics are mi"),
        (2, "action", "error", "mean of left_3 is"),
    ]


def test_statistics_of_the_whole_dataset_in_v20(v20: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(v20, tmp_path / "d"))
    stats = json.loads((folder / "meta/stats.json").read_text())
    stats["action"]["max"][0] = 10**400
    stats["observation.state"]["std"][13] = 0.0
    (folder / "meta/stats.json").write_text(json.dumps(stats))
    problems = check(folder, decode="ends").problems
    assert [problem.file for problem in problems] == [folder / "meta/stats.json"] * 2
    assert problems[0].what.startswith("std of right_6 is 0, the data give")
    assert problems[1].what.startswith("max is [1000")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codebase_version": "v2.2"}, "'v2.2' cannot be read, only v2.0, v2.1, v3.0; update actwam"),
        ({"codebase_version": "v3.0"}, "data_path .*episode_index.* replaces something unknown"),
        ({"data_path": "data/file-{file_index:03d}.parquet"}, r"unknown: only \['episode_chunk', 'episode_index'\]"),
        ({"data_path": "{video_key}/{episode_index}.parquet"}, "replaces something unknown"),
        ({"data_path": "../{episode_index:06d}.parquet"}, "leaves the dataset"),
        ({"video_path": "/tmp/{video_key}/{episode_index:06d}.mp4"}, "leaves the dataset"),
        ({"fps": 29.97}, "fps is 29.97, expected a whole number; resample rows and videos to a whole number"),
        ({"fps": float("nan")}, "fps is nan, expected a whole number"),
        ({"fps": 0.0}, "fps is 0, expected a whole number from 1"),
        ({"fps": 1e300}, "expected a whole number from 1"),
        ({"chunks_size": 0}, "chunks_size is 0, expected"),
        ({"chunks_size": None}, "chunks_size is None, expected"),
    ],
)
def test_info_that_is_not_understood_is_refused(folder: Path, changes: dict, message: str) -> None:
    change_info(**changes)(folder)
    with pytest.raises(ValueError, match=message) as caught:
        LeRobotDataset.open(folder)
    assert "\n" not in str(caught.value)
    assert not check(folder).ok


def test_v2_templates_are_refused_in_v30(v30: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(v30, tmp_path / "d"))
    change_info(data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet")(folder)
    with pytest.raises(ValueError, match=r"replaces something unknown: only \['chunk_index', 'file_index'\]"):
        LeRobotDataset.open(folder)


def test_every_file_is_opened_once(v21: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = pq.ParquetFile
    monkeypatch.setattr("actwam.data.parquet.pq.ParquetFile", lambda path: opened.append(path) or real(path))
    read_tables(read_info(v21), refuse)
    assert opened == [v21 / data(episode) for episode in range(3)]


@pytest.mark.parametrize("name", [EPISODES, TASK_LIST, STATS, data(1), video("cam_high", 0)])
def test_random_damage_is_listed_never_a_crash(v21: Path, tmp_path: Path, name: str) -> None:
    """Truncated anywhere or with a bit flipped, any file gives a report."""
    rng = np.random.default_rng(0)
    original = (v21 / name).read_bytes()
    folder = Path(shutil.copytree(v21, tmp_path / "d"))
    for trial in range(16):
        damaged = bytearray(original)
        if trial % 2:
            damaged = damaged[: rng.integers(len(damaged) * 9 // 10)]  # a video ends in a comment that nobody needs
        else:
            damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
        (folder / name).write_bytes(damaged)
        report = check(folder, decode="ends")
        if trial % 2:
            assert report.problems
