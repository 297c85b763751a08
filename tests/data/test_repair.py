"""A repaired copy: what was wrong is gone, what was right is unchanged to the bit, and the original is untouched."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reaching
import v21_files
from test_check_content import FOUND, waiting

from actwam import cli
from actwam.data.check import check
from actwam.data.dataset import LeRobotDataset
from actwam.data.repair import SHEET, repair
from actwam.data.video import iterate_frames, write_video

DATA = "data/chunk-000/file-000.parquet"


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, column: str, row: int, value: object) -> None:
    table = pq.read_table(path)
    values = table.column(column).to_pylist()
    values[row] = value
    field = table.schema.field(column)
    pq.write_table(table.set_column(table.schema.names.index(column), field, [pa.array(values, field.type)]), path)


@pytest.mark.parametrize("name", FOUND)
def test_what_was_wrong_is_gone(tmp_path: Path, name: str) -> None:
    episodes = reaching.episodes()
    good = LeRobotDataset.open(reaching.write(tmp_path / "good", episodes))
    episodes[1] = FOUND[name][0](episodes[1])
    folder = reaching.write(tmp_path / "d", episodes)
    before = contents(folder)
    made = repair(folder, tmp_path / "copy")
    assert contents(folder) == before
    left = {problem.kind for problem in made.copy.problems}
    assert left == ({"idle"} if "inside" in name else {"gripper"} if name.startswith("both") else set())
    assert made.ok
    copy = LeRobotDataset.open(tmp_path / "copy")
    if left:
        assert made.done == ()
        return
    assert {episode for episode, _ in made.done} == {1}
    if "dropped" in made.done[0][1]:
        assert FOUND[name][1][0] in ("outlier", "black", "frozen")
        assert np.array_equal(copy.state[:100], good.state[:100])
        assert np.array_equal(copy.video("head", 1), LeRobotDataset.open(folder).video("head", 2))
    elif "waits" in name:
        assert 100 < copy.episodes[1].length <= 121
    else:
        assert np.allclose(copy.state, good.state, atol=1e-6)
        assert np.allclose(copy.action, good.action)
        assert np.abs(copy.video("head", 1).astype(int) - good.video("head", 1)).mean() < 3


def test_pictures_are_taken_over_as_they_are_encoded(tmp_path: Path) -> None:
    episodes = reaching.episodes()
    episodes[2] = waiting(0)(episodes[2])
    folder = reaching.write(tmp_path / "d", episodes)
    made = repair(folder, tmp_path / "copy")
    assert "idle rows cut off at its start" in made.done[0][1]
    source, copy = LeRobotDataset.open(folder), LeRobotDataset.open(tmp_path / "copy")
    cut = source.episodes[2].length - copy.episodes[2].length
    assert np.array_equal(copy.video("left", 2), source.video("left", 2)[cut:])
    assert np.array_equal(copy.video("left", 4), source.video("left", 4))


def test_many_faults_at_once(tmp_path: Path) -> None:
    episodes = reaching.episodes(6)
    folder = reaching.write(tmp_path / "d", [*episodes, episodes[5]], data_file_bytes=1, video_file_bytes=1)
    edit(folder / "data/chunk-000/file-001.parquet", "action", 7, [0.0, np.nan, 0.0, 0.0])
    edit(folder / "data/chunk-000/file-002.parquet", "timestamp", 50, 0.63)
    (folder / "data/chunk-000/file-003.parquet").write_bytes(b"PAR1")
    (folder / "videos/observation.images.left/chunk-000/file-004.mp4").unlink()
    (folder / "meta/stats.json").unlink()
    made = repair(folder, tmp_path / "copy")
    assert made.ok
    assert made.copy.problems == ()
    assert made.copy.episodes == 3
    said = dict(made.done)
    assert said[None] == "statistics computed anew"
    for episode, words in ((1, "nan"), (2, "made regular"), (3, "rows"), (4, "missing"), (6, "of episode 5")):
        assert words in said[episode]
    sheet = json.loads((tmp_path / "copy/meta" / SHEET).read_text())
    assert sheet["original"]["episodes"] == [0, 2, 5]


def test_surplus_and_missing_frames_drop_only_what_may_be_shifted(tmp_path: Path) -> None:
    """Where the time stamps in the video file part from the lengths, the episode before lost or gained frames."""
    folder = reaching.write(tmp_path / "d", reaching.episodes())
    path = folder / "videos/observation.images.head/chunk-000/file-000.mp4"
    frames = np.stack(list(iterate_frames(path)))
    write_video(path, np.delete(frames, range(110, 115), axis=0), 80)
    column = "videos/observation.images.head/from_timestamp"
    for row, begins in ((2, 195), (3, 295), (4, 395)):
        edit(folder / "meta/episodes/chunk-000/file-000.parquet", column, row, begins / 80)
    made = repair(folder, tmp_path / "copy")
    assert [episode for episode, _ in made.done] == [1, 2, 3, 4]
    assert made.ok


@pytest.mark.parametrize("version", ["v2.0", "v2.1"])
def test_older_versions_become_v3(tmp_path: Path, version: str) -> None:
    episodes = [v21_files.make_episode(number, length) for number, length in enumerate(v21_files.LENGTHS)]
    folder = v21_files.write_v2(tmp_path / "d", v21_files.two_arms(), episodes, version=version)
    (folder / v21_files.video_file("cam_high", 1)).write_bytes(b"")
    made = repair(folder, tmp_path / "copy")
    assert made.ok
    assert (None, f"written as LeRobot v3.0, was {version}") in made.done
    copy = LeRobotDataset.open(tmp_path / "copy")
    assert np.array_equal(copy.state, np.concatenate([episodes[0].state, episodes[2].state]))


def test_what_is_not_read_is_named(tmp_path: Path) -> None:
    folder = reaching.write(tmp_path / "d", reaching.episodes())
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    (folder / "meta/info.json").write_text(json.dumps(info))
    assert repair(folder, tmp_path / "copy").done == ((None, "left out, since it is not read: next.reward"),)


def test_nothing_to_keep_is_said_and_nothing_is_left(tmp_path: Path) -> None:
    folder = reaching.write(tmp_path / "d", reaching.episodes(2))
    (folder / DATA).write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="no episode can be kept: its rows cannot be read"):
        repair(folder, tmp_path / "copy")
    (folder / "meta/tasks.parquet").unlink()
    with pytest.raises(ValueError, match=r"tasks.parquet: file is missing"):
        repair(folder, tmp_path / "copy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]


def test_cameras_of_two_sizes_are_refused(tmp_path: Path) -> None:
    episodes = reaching.episodes(4)
    folder = reaching.write(tmp_path / "d", episodes)
    info = json.loads((folder / "meta/info.json").read_text())
    info["features"]["observation.images.left"]["shape"] = [64, 64, 3]
    (folder / "meta/info.json").write_text(json.dumps(info))
    with pytest.raises(ValueError, match="no episode can be kept"):
        repair(folder, tmp_path / "copy")


def run(*words: object) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["actwam", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
    return int(ended.value.code)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    episodes = reaching.episodes()
    episodes[3] = FOUND["black at the end"][0](episodes[3])
    folder = reaching.write(tmp_path / "d", episodes)
    assert run("check", folder) == 1
    assert run("check", folder, "--repair", tmp_path / "copy") == 0
    said = capsys.readouterr()
    assert "repaired: episode 3: dropped: left: pictures are black in 45 of 100 frames" in said.err
    assert run("check", tmp_path / "copy") == 0
    assert run("check", folder, "--repair", tmp_path / "copy") == 2
    capsys.readouterr()
    assert run("check", folder, "--repair", tmp_path / "other", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["ok"]
    assert found["done"][0]["episode"] == 3
    assert not found["original"]["ok"]
    assert run("check", folder, "--repair", tmp_path / "third", "--decode", "ends") == 2


def test_a_copy_that_still_has_errors_is_told_by_the_exit_code(tmp_path: Path) -> None:
    episodes = [replace(each, action=each.action * [1, 1, 0, 1]) for each in reaching.episodes()]
    episodes = [replace(each, action=each.action.astype(np.float32)) for each in episodes]
    folder = reaching.write(tmp_path / "d", episodes)
    assert run("check", folder, "--repair", tmp_path / "copy") == 1
    assert run("check", folder, "--repair", tmp_path / "centred", "--constant", "center") == 0
    assert [problem.kind for problem in check(tmp_path / "copy").problems] == ["range"]
