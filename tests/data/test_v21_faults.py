"""v2.0 and v2.1 that are broken: one clear line about each fault, and never a crash."""

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
from v21_files import EPISODES, STATS, TASK_LIST, arrow, change_info, data_file, read_lines, video_file, write_lines

from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset
from actwam.data.video import write_video


@pytest.fixture
def folder(v21: Path, tmp_path: Path) -> Path:
    """A copy of the v2.1 dataset that a test may damage."""
    return Path(shutil.copytree(v21, tmp_path / "d"))


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
        path = folder / data_file(episode)
        old = pq.read_table(path)
        values = np.array(old.column(column).to_pylist(), old.column(column).type.to_pandas_dtype())
        pq.write_table(old.set_column(old.schema.names.index(column), column, arrow(change(values))), path)

    return damage


def remove(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, keep: float) -> Callable[[Path], object]:
    return lambda folder: os.truncate(folder / name, int((folder / name).stat().st_size * keep))


FAULTS = {
    "data missing": Fault(remove(data_file(1)), data_file(1), "file is missing", 1),
    "data without footer": Fault(cut(data_file(2), 0.6), data_file(2), "parquet file without footer", 2),
    "video missing": Fault(
        remove(video_file("cam_left_wrist", 1)),
        video_file("cam_left_wrist", 1),
        "video file is missing",
        1,
        "cam_left_wrist",
    ),
    "video truncated": Fault(
        cut(video_file("cam_high", 2), 0.7),
        video_file("cam_high", 2),
        "not a complete video file|no video stream",
        2,
        "cam_high",
        opens=True,
    ),
    "video too short": Fault(
        lambda folder: write_video(folder / video_file("cam_high", 1), np.zeros((44, 32, 48, 3), np.uint8), 30),
        video_file("cam_high", 1),
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
        data_file(1),
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
        change_line(EPISODES, 1, length=44), data_file(1), r"file has 45 rows, episodes\.jsonl says 44", 1
    ),
    "row of another episode": Fault(
        change_column(2, "episode_index", lambda values: values * 0),
        data_file(2),
        "episode_index is 0, expected 2, in 34 rows",
        2,
        "episode_index",
    ),
    "index that begins again": Fault(
        change_column(2, "index", lambda values: values - 85), data_file(2), "index is 0, expected 85", 2, "index"
    ),
    "another rate": Fault(
        change_column(0, "timestamp", lambda values: values * 2),
        data_file(0),
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
        severity="warning",
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
        (2, "action", "warning", "mean of left_3 is"),
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


@pytest.mark.parametrize("name", [EPISODES, TASK_LIST, STATS, data_file(1), video_file("cam_high", 0)])
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
