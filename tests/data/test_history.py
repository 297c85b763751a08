"""The past in a batch: which pictures, how many of them are shown, and that none is before the beginning."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Latents
from actwam.data.loader import Mixture, Source, Window
from actwam.types import Mode

WINDOW = Window(action_horizon=tiny.HORIZON, future_offsets=tiny.OFFSETS, history_offsets=(-6, -4, -2))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Source:
    """Episodes of 9, 10 and 11 frames: rows 0-8, 9-18 and 19-29; latents that say which row they are of."""
    folder = tmp_path_factory.mktemp("history") / "squares"
    dataset = LeRobotDataset.open(tiny.write_dataset(folder, tiny.robot(1), length=9))
    rows = np.arange(len(dataset.state), dtype=np.float16)
    array = np.broadcast_to(rows[:, None, None, None, None], (len(rows), 1, 2, 1, 1)).copy()
    return Source(dataset, Latents(folder, [array]), tiny.transform(tiny.robot(1)), WINDOW, Mode.POLICY)


def test_history_is_what_the_dataset_holds_and_does_not_begin_before_the_episode(made: Source) -> None:
    batch = made.batch(np.array([16, 14, 9, 0]))  # of episode 1, which begins with row 9, and of episode 0
    assert batch.history_valid.tolist() == [[True] * 3, [False, True, True], [False] * 3, [False] * 3]
    for row, shown in enumerate(([10, 12, 14], [10, 12], [], [])):
        assert batch.history[row, 0, batch.history_valid[row], 0, 0].tolist() == shown
    assert batch.history.shape == (4, 2, 3, 1, 1)
    assert batch.history.dtype == torch.float32
    assert batch.latents[:, 0, 0, 0, 0].tolist() == [16, 14, 9, 0]


def test_of_a_history_its_newest_moments_are_shown(made: Source) -> None:
    batch = made.batch(np.array([16, 16, 16, 16, 14, 14]), np.array([0, 1, 2, 3, 3, 1]))
    T, F = True, False
    expected = [[F, F, F], [F, F, T], [F, T, T], [T, T, T], [F, T, T], [F, F, T]]
    assert batch.history_valid.tolist() == expected
    assert batch.history[1, 0, 2, 0, 0] == 14


def test_every_count_of_moments_occurs_and_the_step_alone_decides(made: Source) -> None:
    mixture = Mixture([made], 200, seed=3)
    batch = mixture.batch(5)
    late = batch.latents[:, 0, 0, 0, 0] % 9 >= 6  # windows whose whole history lies in their episode, among others
    counts = Counter(batch.history_valid[late].sum(1).tolist())
    assert set(counts) == {0, 1, 2, 3}
    assert min(counts.values()) > 5
    shown = batch.history_valid
    assert torch.equal(shown, shown.cummax(1).values)  # the newest
    again, other = mixture.batch(5), mixture.batch(6)
    assert torch.equal(shown, again.history_valid)
    assert not torch.equal(shown, other.history_valid)


def test_without_history_batches_are_drawn_as_ever(made: Source) -> None:
    plain = Window(action_horizon=tiny.HORIZON, future_offsets=tiny.OFFSETS)
    source = Source(made.dataset, made.latents, made.transform, plain, Mode.POLICY)
    batch = Mixture([source, source], 8, seed=3).batch(5)
    random = np.random.default_rng((3, 5))
    counts = random.multinomial(8, [0.5, 0.5])
    rows = np.concatenate([random.integers(len(source), size=count) for count in counts])
    assert batch.latents[:, 0, 0, 0, 0].tolist() == rows.tolist()
    assert batch.history.shape == (8, 2, 0, 1, 1)
    assert batch.history_valid.shape == (8, 0)


def test_a_codec_that_compresses_time_shows_past_pictures_alone(made: Source) -> None:
    rows = np.arange(len(made.dataset.state), dtype=np.float16)[:, None] + np.array([0, 100, 200], np.float16)
    array = np.broadcast_to(rows[:, :, None, None, None], (len(rows), 3, 2, 1, 1)).copy()
    window = Window(action_horizon=4, future_offsets=(1, 2, 3, 4), history_offsets=(-4, -2))
    latents = Latents(Path("pairs"), [array], 2, (1, 2, 3, 4))
    batch = Source(made.dataset, latents, made.transform, window, Mode.POLICY).batch(np.array([5]))
    assert batch.history[0, 0, :, 0, 0].tolist() == [1, 3]
    assert batch.latents[0, 0, :, 0, 0].tolist() == [5, 105, 205]


@pytest.mark.parametrize("offsets", [(2,), (-2, -4), (-4, -1), (-6, -2), (0,), (-3, -2, -1, 0)])
def test_a_history_that_is_not_evenly_spaced_up_to_the_present_is_refused(offsets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="history_offsets must be evenly spaced up to the present"):
        Window(action_horizon=4, future_offsets=(), history_offsets=offsets)


def test_the_spacing_is_that_of_the_last_moment_to_the_present() -> None:
    assert WINDOW.history_spacing == 2
    assert Window(action_horizon=4, future_offsets=()).history_spacing == 0
