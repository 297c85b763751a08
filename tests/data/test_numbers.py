"""Rows that are mapped from a cache are those that are read."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

from actwam.data import numbers, parquet
from actwam.data.dataset import LeRobotDataset


def same(one: LeRobotDataset, other: LeRobotDataset) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("state", "action"))
    return arrays and one.episodes == other.episodes and one.digest == other.digest


@pytest.mark.parametrize("version", ["v20", "v21", "v30", "written"])
def test_mapped_and_read_are_equal(version: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    folder: Path = request.getfixturevalue(version)
    plain = LeRobotDataset.open(folder)
    for _ in range(2):
        mapped = LeRobotDataset.open(folder, cache=tmp_path)
        assert isinstance(mapped.state, np.memmap)
        assert same(mapped, plain)
    assert len(list((tmp_path / "rows").iterdir())) == 1


def test_the_tables_are_read_once(v21: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    LeRobotDataset.open(v21, cache=tmp_path)
    monkeypatch.setattr(numbers, "_write", None)
    monkeypatch.setattr(parquet, "read_rows", None)
    assert len(LeRobotDataset.open(v21, cache=tmp_path).state) == 119


def test_another_file_is_read_again(dataset_folder: Path, tmp_path: Path, rewrite) -> None:
    before = LeRobotDataset.open(dataset_folder, cache=tmp_path)
    rewrite(dataset_folder, "data", "action", lambda values: values + 1)
    data = dataset_folder / "data/chunk-000/file-000.parquet"
    os.utime(data, ns=(1, 1))  # of another time, whatever the clock of this disk can tell apart
    after = LeRobotDataset.open(dataset_folder, cache=tmp_path)
    assert np.array_equal(after.action, before.action + 1)
    assert same(after, LeRobotDataset.open(dataset_folder))


def test_what_a_dataset_lacks_is_no_file(tmp_path: Path) -> None:
    bare = tiny.robot(0, state_names=(), action_names=(), delta_mask=())
    folder = tiny.write_dataset(tmp_path / "video", bare)
    mapped = LeRobotDataset.open(folder, cache=tmp_path / "cache")
    assert (mapped.state.shape, mapped.action.shape, mapped.confidence) == ((45, 0), (45, 0), None)
    assert same(mapped, LeRobotDataset.open(folder))


def test_broken_rows_leave_no_cache(dataset_folder: Path, tmp_path: Path, rewrite) -> None:
    rewrite(dataset_folder, "data", "frame_index", lambda values: values + 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="frame_index is 1, expected 0"):
            LeRobotDataset.open(dataset_folder, cache=tmp_path)
    assert list((tmp_path / "rows").iterdir()) == []


def test_a_damaged_cache_is_refused(v21: Path, tmp_path: Path) -> None:
    LeRobotDataset.open(v21, cache=tmp_path)
    (found,) = (tmp_path / "rows").iterdir()
    (found / "state").write_bytes(b"")
    with pytest.raises(ValueError, match=r"state: missing or cut off; delete .* and run again"):
        LeRobotDataset.open(v21, cache=tmp_path)
    shutil.rmtree(found)
    assert len(LeRobotDataset.open(v21, cache=tmp_path).state) == 119


def test_processes_that_come_together_write_once(v21: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from actwam.data.dataset import LeRobotDataset; "
        "print(LeRobotDataset.open(Path(sys.argv[1]), cache=Path(sys.argv[2])).state.shape)"
    )
    command = [sys.executable, "-c", code, str(v21), str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate()[0].strip() for process in running] == ["(119, 14)"] * 3
    assert len(list((tmp_path / "rows").iterdir())) == 1
