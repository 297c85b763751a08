"""Every way a dataset can be broken: `check` names file, episode and frame; `open` refuses what it must."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset
from actwam.data.video import write_video
from actwam.data.writer import DatasetWriter

INFO = "meta/info.json"
STATS = "meta/stats.json"
TASKS = "meta/tasks.parquet"
EPISODES = "meta/episodes/chunk-000/file-000.parquet"
DATA = "data/chunk-000/file-000.parquet"
FRONT = "videos/observation.images.front/chunk-000/file-000.mp4"
LEFT = "videos/observation.images.wrist_left/chunk-000/file-000.mp4"


@dataclass(frozen=True)
class Fault:
    """`damage` breaks a folder; the rest is the problem to be found. Episodes begin at rows 0, 24, 55, 75."""

    damage: Callable[[Path, Callable], object]
    file: str
    what: str
    episode: int | None = None
    frame: int | None = None
    key: str | None = None
    severity: str = "error"
    opens: bool = False


def set_row(table: str, column: str, row: int, value: object) -> Callable:
    def change(values: np.ndarray) -> np.ndarray:
        values[row] = value
        return values

    return lambda folder, rewrite: rewrite(folder, table, column, change)


def cut(name: str, keep: float) -> Callable:
    return lambda folder, rewrite: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


def remove(name: str) -> Callable:
    return lambda folder, rewrite: (folder / name).unlink()


def other_video(length: int, height: int = 32, width: int = 48) -> Callable:
    frames = np.zeros((length, height, width, 3), np.uint8)
    return lambda folder, rewrite: write_video(folder / FRONT, frames, 10)


def without_column(name: str, column: str) -> Callable:
    def damage(folder: Path, rewrite: Callable) -> None:
        pq.write_table(pq.read_table(folder / name).drop_columns([column]), folder / name)

    return damage


def edit_json(name: str, change: Callable[[dict], object]) -> Callable:
    def damage(folder: Path, rewrite: Callable) -> None:
        data = json.loads((folder / name).read_text())
        change(data)
        (folder / name).write_text(json.dumps(data))

    return damage


def flip_video(folder: Path, rewrite: Callable) -> None:
    data = bytearray((folder / FRONT).read_bytes())
    middle = len(data) // 2
    data[middle : middle + 60] = bytes(60)
    (folder / FRONT).write_bytes(data)


def constant_action(folder: Path, rewrite: Callable) -> None:
    rewrite(folder, "data", "action", lambda values: values * [1, 0] + [0, 0.5])
    (folder / STATS).unlink()


FAULTS = {
    "nan in action": Fault(
        set_row("data", "action", 55 + 7, [0, np.nan]),
        DATA,
        "dy is nan in 1 rows",
        2,
        7,
        "action",
        opens=True,
    ),
    "inf in state": Fault(
        set_row("data", "observation.state", 24, [np.inf, 0, 0]),
        DATA,
        "x is inf in 1 rows",
        1,
        0,
        "observation.state",
        opens=True,
    ),
    "zero range": Fault(constant_action, INFO, "dy is 0.5 in all 100 rows: zero range", key="action", opens=True),
    "time runs backwards": Fault(
        set_row("data", "timestamp", 24 + 9, 0.1),
        DATA,
        "timestamp is 0.1 s, expected 0.9 at 10 fps; time runs backwards",
        1,
        9,
        "timestamp",
        opens=True,
    ),
    "nan in time": Fault(set_row("data", "timestamp", 3, np.nan), DATA, "timestamp is nan", 0, 3, opens=True),
    "wrong fps": Fault(edit_json(INFO, lambda d: d.update(fps=20)), DATA, "at 20 fps", 0, 1, "timestamp", opens=True),
    "index with a gap": Fault(set_row("data", "index", 80, 81), DATA, "index is 81, expected 80", 3, 5, "index"),
    "row of another episode": Fault(
        set_row("data", "episode_index", 30, 0), DATA, "episode_index is 0, expected 1", 1, 6, "episode_index"
    ),
    "frame index": Fault(set_row("data", "frame_index", 2, 7), DATA, "frame_index is 7, expected 2", 0, 2),
    "instruction changes": Fault(set_row("data", "task_index", 10, 1), DATA, "task_index is 1, expected 0", 0, 10),
    "task without sentence": Fault(
        set_row("data", "task_index", slice(75, 100), 9), DATA, "task_index 9 is not among the 3 tasks", 3
    ),
    "tasks missing": Fault(remove(TASKS), TASKS, "file is missing"),
    "episode too long": Fault(
        set_row("episodes", "length", 2, 21), DATA, "file has 100 rows, its 4 episodes announce 101"
    ),
    "episode of length zero": Fault(set_row("episodes", "length", 1, 0), EPISODES, "length is 0", 1),
    "episodes not contiguous": Fault(set_row("episodes", "episode_index", 2, 7), EPISODES, "row 2 holds episode 7", 7),
    "rows not contiguous": Fault(
        set_row("episodes", "dataset_from_index", 3, 70),
        EPISODES,
        "dataset_from_index is 70, .* add up to 75",
        3,
    ),
    "episode count": Fault(
        edit_json(INFO, lambda d: d.update(total_episodes=5)),
        INFO,
        "total_episodes is 5, the episodes give 4",
    ),
    "data without footer": Fault(cut(DATA, 0.6), DATA, "parquet file without footer"),
    "episodes without footer": Fault(cut(EPISODES, 0.6), EPISODES, "parquet file without footer"),
    "empty data file": Fault(cut(DATA, 0), DATA, "parquet file without footer"),
    "no episodes in the table": Fault(
        lambda folder, rewrite: pq.write_table(pq.read_table(folder / EPISODES)[:0], folder / EPISODES),
        EPISODES,
        "episode table is empty",
    ),
    "data missing": Fault(remove(DATA), DATA, "file is missing"),
    "column missing": Fault(without_column(DATA, "action"), DATA, r"columns \['action'\] are missing"),
    "camera missing": Fault(
        without_column(EPISODES, "videos/observation.images.front/file_index"),
        EPISODES,
        "columns .*front.* missing",
    ),
    "video missing": Fault(remove(FRONT), FRONT, "video file is missing", 0, None, "front"),
    "video truncated": Fault(cut(LEFT, 0.7), LEFT, "not a complete video file", 0, None, "wrist_left", opens=True),
    "video damaged": Fault(flip_video, FRONT, "video is damaged or truncated", key="front", opens=True),
    "video too short": Fault(
        other_video(60), FRONT, "video has 60 frames, its 4 episodes have 100", 2, 5, "front", opens=True
    ),
    "video too long": Fault(
        other_video(104), FRONT, "video has 104 frames, its 4 episodes have 100", 0, None, "front", opens=True
    ),
    "video of another size": Fault(
        other_video(100, 64, 48),
        FRONT,
        "pictures are 64x48, info.json says 32x48",
        0,
        None,
        "front",
        opens=True,
    ),
    "clip elsewhere": Fault(
        lambda folder, rewrite: (
            other_video(104)(folder, rewrite),
            set_row("episodes", "videos/observation.images.front/from_timestamp", 3, 7.9)(folder, rewrite),
        ),
        FRONT,
        "from_timestamp 7.9 s is frame 79, earlier lengths say 75, and the file has 104 frames for 100",
        3,
        None,
        "front",
    ),
    "statistics drifted": Fault(
        edit_json(STATS, lambda d: d["action"]["mean"].__setitem__(1, 9.0)),
        STATS,
        "mean of dy is 9, the data give",
        key="action",
        severity="warning",
        opens=True,
    ),
    "statistics missing": Fault(remove(STATS), STATS, "file is missing", severity="warning", opens=True),
    "unknown storage": Fault(
        edit_json(INFO, lambda d: d.update(storage_format="lance")),
        INFO,
        "storage_format 'lance' is not known",
    ),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_check_names_the_fault(dataset_folder: Path, rewrite: Callable, kind: str) -> None:
    fault = FAULTS[kind]
    fault.damage(dataset_folder, rewrite)
    before = {path: path.read_bytes() for path in dataset_folder.rglob("*") if path.is_file()}
    report = check(dataset_folder)
    named = [problem for problem in report.problems if problem.file == dataset_folder / fault.file]
    problem = next((problem for problem in named if re.search(fault.what, problem.what)), None)
    assert problem is not None, report.problems
    assert problem.severity == fault.severity
    assert fault.key in (None, problem.key)
    assert fault.frame in (None, problem.frame)
    if fault.episode is not None:
        assert problem.episode == fault.episode
    assert problem.fix
    assert "\n" not in str(problem)
    assert report.ok == (fault.severity == "warning")
    assert {path: path.read_bytes() for path in dataset_folder.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("kind", [kind for kind, fault in FAULTS.items() if fault.opens])
def test_the_reader_opens_what_only_the_content_spoils(dataset_folder, rewrite, kind: str) -> None:
    FAULTS[kind].damage(dataset_folder, rewrite)
    assert len(LeRobotDataset.open(dataset_folder).episodes) == 4


@pytest.mark.parametrize("kind", [kind for kind, fault in FAULTS.items() if not fault.opens])
def test_the_reader_refuses_broken_structure_with_the_same_line(dataset_folder, rewrite, kind: str) -> None:
    FAULTS[kind].damage(dataset_folder, rewrite)
    with pytest.raises(ValueError, match=str(dataset_folder)) as caught:
        LeRobotDataset.open(dataset_folder)
    assert caught.value.args[0] in check(dataset_folder).problems


@pytest.mark.parametrize("kind", ["video damaged", "video truncated", "video too short", "video of another size"])
def test_reading_a_bad_video_names_file_camera_and_episode(dataset_folder, rewrite, kind: str) -> None:
    fault = FAULTS[kind]
    fault.damage(dataset_folder, rewrite)
    dataset = LeRobotDataset.open(dataset_folder)
    for read in (
        lambda: [dataset.video(fault.key, episode) for episode in range(4)],
        lambda: list(dataset.videos(fault.key)),
    ):
        with pytest.raises(ValueError, match=rf"{fault.file}: {fault.key}, episode \d.*; .*(copy|write)"):
            read()


def test_a_video_that_disappears_is_named(dataset_folder: Path) -> None:
    dataset = LeRobotDataset.open(dataset_folder)
    (dataset_folder / FRONT).unlink()
    with pytest.raises(ValueError, match=rf"{FRONT}: front, episode 2: video file is missing; copy"):
        dataset.video("front", 2)


def test_a_video_that_goes_on_is_refused_when_read_in_order(dataset_folder: Path, rewrite) -> None:
    other_video(104)(dataset_folder, rewrite)
    with pytest.raises(ValueError, match="front, episode 3: video goes on after its last episode"):
        list(LeRobotDataset.open(dataset_folder).videos("front"))


def test_a_good_dataset_has_no_problems(written: Path) -> None:
    for decode, decoded in (("all", 300), ("ends", 24)):
        calls: list[tuple[int, ...]] = []

        def progress(*call: int, calls: list = calls) -> None:
            calls.append(call)

        report = check(written, action_horizon=20, decode=decode, progress=progress)
        assert report.problems == ()
        assert (report.ok, report.episodes, report.frames, report.decoded) == (True, 4, 100, decoded)
        assert calls[-1] == (decoded, decoded)
        assert calls == sorted(calls)


def test_short_episodes_are_named(written: Path) -> None:
    report = check(written, action_horizon=25, decode="ends")
    assert [problem.episode for problem in report.problems] == [0, 2]
    assert "20 frames are fewer than the action horizon of 25" in report.problems[1].what


def test_a_constant_dimension_may_be_a_policy(dataset_folder: Path, rewrite) -> None:
    constant_action(dataset_folder, rewrite)
    report = check(dataset_folder, decode="ends", constant="center")
    assert report.ok
    assert "zero range" in report.problems[0].what


def test_all_problems_are_listed_at_once(dataset_folder: Path, rewrite) -> None:
    for kind in ("nan in action", "inf in state", "time runs backwards", "video missing", "index with a gap"):
        FAULTS[kind].damage(dataset_folder, rewrite)
    FAULTS["video truncated"].damage(dataset_folder, rewrite)
    report = check(dataset_folder, action_horizon=21)
    whats = " ".join(problem.what for problem in report.problems)
    assert len(report.problems) == 7
    for word in (
        "nan",
        "inf",
        "backwards",
        "missing",
        "index is 81",
        "not a complete",
        "fewer than the action",
    ):
        assert word in whats
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["ok"] is False
    assert data["problems"][1]["episode"] is not None
    assert {"file", "what", "fix", "frame", "key", "severity"} <= set(data["problems"][0])


def test_one_unreadable_file_does_not_hide_the_others(tmp_path: Path, robot, make_episode) -> None:
    with DatasetWriter(tmp_path / "d", robot, data_file_bytes=1) as writer:
        for number in range(4):
            writer.add_episode(make_episode(number))
    files = [tmp_path / "d" / f"data/chunk-000/file-00{i}.parquet" for i in range(4)]
    for file in files[1:3]:
        os.truncate(file, 100)
    report = check(tmp_path / "d", decode="ends", action_horizon=25)
    assert [problem.file for problem in report.problems if "footer" in problem.what] == files[1:3]
    assert not [problem for problem in report.problems if problem.file in (files[0], files[3])]


@pytest.mark.parametrize("name", [INFO, STATS, TASKS, EPISODES, DATA, FRONT])
def test_random_damage_is_listed_never_a_crash(written: Path, tmp_path: Path, name: str) -> None:
    """Truncated anywhere or with bytes changed, any file gives a report."""
    rng = np.random.default_rng(0)
    original = (written / name).read_bytes()
    folder = Path(shutil.copytree(written, tmp_path / "d"))
    for trial in range(20):
        data = bytearray(original)
        if trial % 2:
            data = data[: rng.integers(len(data))]
        else:
            data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        (folder / name).write_bytes(data)
        report = check(folder, decode="ends")
        if trial % 2:
            assert report.problems
