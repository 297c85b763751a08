"""Statistics of the datasets of a robot, in pieces, against all chunks in memory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny

from actwam.data.dataset import LeRobotDataset
from actwam.data.loader import Window, action_chunks
from actwam.data.normalize import NormStats
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import relative
from actwam.train import statistics
from actwam.train.statistics import robot_stats

WINDOW = Window(action_horizon=tiny.HORIZON, future_offsets=(1,))
ROBOT = tiny.robot(1)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[LeRobotDataset]:
    root = tmp_path_factory.mktemp("statistics")
    sizes = {"one": (3, 14), "two": (1, 9), "three": (5, 11)}
    return [
        LeRobotDataset.open(tiny.write_dataset(root / name, ROBOT, episodes=episodes, length=length))
        for name, (episodes, length) in sizes.items()
    ]


def plain(datasets: list[LeRobotDataset]) -> tuple[NormStats, NormStats]:
    """All chunks at once, relative to the state that they begin at."""
    blocks = [block for dataset in datasets for block in action_chunks(dataset, WINDOW)]
    state, chunks = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    actions = relative(chunks, state, ROBOT).reshape(-1, chunks.shape[-1])
    return compute_stats(state, ROBOT.state_names), compute_stats(actions, ROBOT.action_names)


def require_equal(found: NormStats, expected: NormStats) -> None:
    for column in ("names", "count", "min", "max", "q01", "q99"):
        assert getattr(found, column) == getattr(expected, column), column
    assert np.allclose(found.mean, expected.mean, rtol=1e-12, atol=1e-12)
    assert np.allclose(found.std, expected.std, rtol=1e-12)


@pytest.mark.parametrize(("rows", "pieces"), [(1_000_000, 1), (30, 3), (1, 9)])
def test_pieces_give_the_statistics_of_all_chunks(
    datasets: list[LeRobotDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: int, pieces: int
) -> None:
    monkeypatch.setattr(statistics, "PIECE_ROWS", rows)
    assert any(ROBOT.delta_mask)
    for found, expected in zip(robot_stats(datasets, ROBOT, WINDOW, tmp_path), plain(datasets), strict=True):
        require_equal(found, expected)
    assert (
        len(list((tmp_path / "statistics").iterdir())) == (pieces * 2 + 1) * 2
    )  # two looks and the result, of state and action


def test_what_was_counted_is_not_counted_again(
    datasets: list[LeRobotDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "PIECE_ROWS", 20)
    first = robot_stats(datasets, ROBOT, WINDOW, tmp_path)
    with monkeypatch.context() as never:
        never.delattr(statistics, "action_chunks")
        assert robot_stats(datasets, ROBOT, WINDOW, tmp_path) == first
    longer = Window(action_horizon=tiny.HORIZON + 1, future_offsets=(1,))
    assert robot_stats(datasets, ROBOT, longer, tmp_path) != first
    absolute = tiny.robot(1, delta_mask=(False,) * len(ROBOT.action_names))
    state, action = robot_stats(datasets, absolute, WINDOW, tmp_path)
    assert (state, action != first[1]) == (first[0], True)


def test_nothing_as_long_as_a_chunk_is_said(datasets: list[LeRobotDataset], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no rows; there is nothing to normalise by"):
        robot_stats(datasets, ROBOT, Window(action_horizon=99, future_offsets=(1,)), tmp_path)
