"""Windows and batches: pure functions of (seed, step), cut at the ends of episodes, mixed by weight."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Latents
from actwam.data.loader import Mixture, Source, Window, Windows, action_chunks, join
from actwam.types import Batch, Mode

WINDOW = Window(action_horizon=tiny.HORIZON, future_offsets=tiny.OFFSETS)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    """Episodes of 9, 10 and 11 frames: rows 0-8, 9-18 and 19-29."""
    folder = tmp_path_factory.mktemp("loader") / "squares"
    return LeRobotDataset.open(tiny.write_dataset(folder, tiny.robot(1), length=9))


def numbered(dataset: LeRobotDataset) -> Latents:
    """Latents that say which row they are of."""
    rows = np.arange(len(dataset.state), dtype=np.float16)
    return Latents(dataset.folder, [np.broadcast_to(rows[:, None, None, None, None], (len(rows), 1, 2, 1, 1)).copy()])


def paired(dataset: LeRobotDataset, offsets: tuple[int, ...]) -> Latents:
    """As a codec that makes one latent of two frames: the present, then two latents that say which is which."""
    rows = np.arange(len(dataset.state), dtype=np.float16)[:, None]
    array = np.broadcast_to((rows + np.array([0, 100, 200]))[:, :, None, None, None], (len(rows), 3, 2, 1, 1))
    return Latents(dataset.folder, [array.astype(np.float16)], 2, offsets)


def source(dataset: LeRobotDataset, mode: Mode = Mode.POLICY, weight: float = 1.0, window: Window = WINDOW) -> Source:
    return Source(dataset, numbered(dataset), tiny.transform(tiny.robot(1)), window, mode, weight)


def equal(a: Batch, b: Batch) -> bool:
    tensors = ("latents", "future_valid", "state", "action", "action_valid", "embodiment")
    same = all(torch.equal(getattr(a, name), getattr(b, name)) for name in tensors)
    return same and (a.modes, a.instructions) == (b.modes, b.instructions)


def test_a_window_is_what_the_dataset_holds(dataset: LeRobotDataset) -> None:
    made = source(dataset)
    batch = made.batch(np.array([0, 9]))  # the first frames of episodes 0 and 1
    robot = tiny.transform(tiny.robot(1))
    for i, start in enumerate((0, 9)):
        assert batch.latents[i, 0, :, 0, 0].tolist() == [start, start + 2, start + 4]
        assert np.array_equal(batch.state[i], robot.model_state(dataset.state[start]))
        expected = robot.model_action(dataset.action[start : start + 4], dataset.state[start])
        assert np.array_equal(batch.action[i], expected)
    assert batch.instructions == ("push the square", "pull the square")
    assert batch.embodiment.tolist() == [1, 1]
    assert batch.modes == (Mode.POLICY, Mode.POLICY)
    assert batch.future_valid.all()
    assert batch.action_valid[..., :2].all()
    assert not batch.action_valid[..., 2].any()


def test_rows_past_the_end_repeat_the_last_and_are_not_valid(dataset: LeRobotDataset) -> None:
    batch = source(dataset).batch(np.array([6, 8]))  # 3 and 1 frames of episode 0 are left
    assert batch.action_valid[:, :, 0].tolist() == [[True, True, True, False], [True, False, False, False]]
    assert batch.latents[:, 0, :, 0, 0].tolist() == [[6, 8, 8], [8, 8, 8]]
    assert batch.future_valid.tolist() == [[True, False], [False, False]]
    robot = tiny.transform(tiny.robot(1))
    repeated = dataset.action[[6, 7, 8, 8]]
    assert np.array_equal(batch.action[0], robot.model_action(repeated, dataset.state[6]))


def test_latents_that_compress_time_are_valid_where_all_their_frames_are(dataset: LeRobotDataset) -> None:
    """Episode 0 has the frames 0 to 8; the two latents of a window end 2 and 5 frames after its start."""
    window = Window(action_horizon=4, future_offsets=(1, 2, 4, 5))
    robot, latents = tiny.transform(tiny.robot(1)), paired(dataset, window.future_offsets)
    policy = Source(dataset, latents, robot, window, Mode.POLICY)
    batch = policy.batch(np.array([3, 4, 6, 7, 8]))
    assert batch.latents[:, 0, :, 0, 0].tolist() == [[row, row + 100, row + 200] for row in (3, 4, 6, 7, 8)]
    assert batch.future_valid.tolist() == [[True, True], [True, False], [True, False], [False, False], [False, False]]
    video = Source(dataset, latents, robot, window, Mode.VIDEO)
    assert (len(policy), len(video)) == (30, 30 - 3 * 2)
    assert video.batch(np.arange(len(video))).future_valid[:, 0].all()
    other = Window(action_horizon=4, future_offsets=(1, 2, 4, 6))
    with pytest.raises(ValueError, match=r"holds windows of frames \(1, 2, 4, 5\), not \(1, 2, 4, 6\)"):
        Source(dataset, latents, robot, other, Mode.POLICY).batch(np.array([0]))


def test_a_future_that_does_not_fill_its_latents_is_refused(dataset: LeRobotDataset) -> None:
    window = Window(action_horizon=4, future_offsets=(1, 2, 4))
    with pytest.raises(ValueError, match=r"future_offsets are 3 pictures.*of every 2: choose a multiple of 2"):
        Source(dataset, paired(dataset, (1, 2, 4)), tiny.transform(tiny.robot(1)), window, Mode.POLICY)
    far = Window(action_horizon=4, future_offsets=(1, 9))
    with pytest.raises(ValueError, match="episode 0 has 9 frames, fewer than the 10 of one window"):
        Source(dataset, paired(dataset, (1, 9)), tiny.transform(tiny.robot(1)), far, Mode.POLICY)
    assert [far.latent_frames(1), far.latent_frames(2), far.pictures_needed(1)] == [2, 1, 2]


@pytest.mark.parametrize(
    ("mode", "windows"), [(Mode.POLICY, 30), (Mode.VIDEO, 24), (Mode.WORLD, 24), (Mode.INVERSE, 24)]
)
def test_windows_that_have_no_future_are_left_out_where_it_is_needed(
    dataset: LeRobotDataset, mode: Mode, windows: int
) -> None:
    made = source(dataset, mode)
    assert len(made) == windows
    batch = made.batch(np.arange(windows))
    if mode is not Mode.POLICY:
        assert batch.future_valid[:, 0].all()
        assert set(range(30)) - set(batch.latents[:, 0, 0, 0, 0].int().tolist()) == {7, 8, 17, 18, 28, 29}


def plain_windows(dataset: LeRobotDataset, reach: int, trusted: np.ndarray | None = None) -> np.ndarray:
    """(W, 3): for every window, written out, the row it begins at, the last row of its episode, and that's number."""
    listed = [
        (row, episode.start + episode.length - 1, episode.index)
        for episode in dataset.episodes
        for row in range(episode.start, episode.start + episode.length - reach)
        if trusted is None or trusted[row]
    ]
    return np.array(listed, int).reshape(-1, 3)


@pytest.mark.parametrize("reach", [0, 1, 5, 8, 9])
@pytest.mark.parametrize("share", [None, 1.0, 0.5, 0.1])
def test_windows_are_found_as_if_all_were_listed(dataset: LeRobotDataset, reach: int, share: float | None) -> None:
    random = np.random.default_rng(reach)
    trusted = None if share is None else random.random(30) < share
    listed, windows = plain_windows(dataset, reach, trusted), Windows.of(dataset, reach, trusted=trusted)
    assert len(windows) == len(listed)
    for drawn in (np.arange(len(listed)), random.permutation(len(listed))[:7], np.empty(0, int)):
        assert np.array_equal(np.stack(windows.find(drawn), axis=1), listed[drawn])
    kept = [values for values in vars(windows).values() if values is not None]
    assert share is not None or sum(map(len, kept)) == 3 * len(dataset.episodes)


def test_no_window_reaches_into_the_next_episode(dataset: LeRobotDataset) -> None:
    batch = source(dataset).batch(np.arange(30))
    rows, episode_of = batch.latents[:, 0, :, 0, 0].int(), np.repeat([0, 1, 2], [9, 10, 11])
    assert all(len({episode_of[row] for row in window}) == 1 for window in rows.tolist())


def test_a_batch_is_a_function_of_seed_and_step(dataset: LeRobotDataset) -> None:
    sources = [source(dataset), source(dataset, Mode.VIDEO)]
    mixture, again, other = Mixture(sources, 8, 5), Mixture(sources, 8, 5), Mixture(sources, 8, 6)
    for step in (7, 0, 7):
        assert equal(mixture.batch(step), again.batch(step))
    assert not equal(mixture.batch(0), mixture.batch(1))
    assert not equal(mixture.batch(0), other.batch(0))


def test_weights_decide_how_often_a_source_is_drawn(dataset: LeRobotDataset) -> None:
    sources = [
        source(dataset, Mode.POLICY, 3.0),
        source(dataset, Mode.VIDEO, 1.0),
        source(dataset, Mode.WORLD, 4.0),
    ]
    mixture = Mixture(sources, 64, 0)
    batches = [mixture.batch(step) for step in range(50)]
    assert all(len(batch.modes) == len(batch.state) == 64 for batch in batches)
    counts = Counter(mode for batch in batches for mode in batch.modes)
    share = {mode: count / 3200 for mode, count in counts.items()}
    assert share == pytest.approx({Mode.POLICY: 0.375, Mode.VIDEO: 0.125, Mode.WORLD: 0.5}, abs=0.03)


def test_windows_are_drawn_evenly(dataset: LeRobotDataset) -> None:
    mixture = Mixture([source(dataset)], 300, 0)
    rows = torch.cat([mixture.batch(step).latents[:, 0, 0, 0, 0] for step in range(20)]).int()
    counts = torch.bincount(rows, minlength=30)
    assert len(counts) == 30
    assert 140 < counts.min() <= counts.max() < 260


def test_join_keeps_every_sample_whole(dataset: LeRobotDataset) -> None:
    made = source(dataset)
    parts = [made.batch(np.array([1])), source(dataset, Mode.WORLD).batch(np.array([9, 3]))]
    joined = join(parts)
    assert joined.modes == (Mode.POLICY, Mode.WORLD, Mode.WORLD)
    assert joined.instructions == sum((part.instructions for part in parts), ())
    for field in dataclasses.fields(Batch):
        if field.name not in ("modes", "instructions"):
            both = torch.cat([getattr(part, field.name) for part in parts])
            assert torch.equal(getattr(joined, field.name), both)


def test_an_episode_shorter_than_the_window_is_refused_by_number(tmp_path: Path) -> None:
    short = LeRobotDataset.open(tiny.write_dataset(tmp_path / "short", tiny.robot(1), length=3))
    with pytest.raises(ValueError, match=r"short: episode 0 has 3 frames, fewer than the 4 of one window"):
        source(short)
    far = Window(action_horizon=2, future_offsets=(4,))
    with pytest.raises(ValueError, match=r"episode 0 has 3 frames, fewer than the 5 of one window"):
        source(short, window=far)


def without_actions(dataset: LeRobotDataset) -> LeRobotDataset:
    """As a dataset of something that no robot of ours is: pictures and instructions, of which only those are kept."""
    none = np.empty((len(dataset.state), 0), np.float32)
    return dataclasses.replace(dataset, robot_type="human", state_names=(), action_names=(), state=none, action=none)


@pytest.mark.parametrize("has_actions", [True, False])
def test_video_has_pictures_and_an_instruction_and_nothing_else(dataset: LeRobotDataset, has_actions: bool) -> None:
    """Whatever the dataset holds: the numbers of another robot would mean nothing here."""
    footage = dataset if has_actions else without_actions(dataset)
    made = source(footage, Mode.VIDEO)
    batch, other = (each.batch(np.array([0, 8, 20])) for each in (made, source(dataset, Mode.WORLD)))
    assert torch.equal(batch.latents, other.latents)
    assert torch.equal(batch.future_valid, other.future_valid)
    assert batch.instructions == other.instructions
    assert (batch.embodiment.tolist(), other.embodiment.tolist()) == ([0, 0, 0], [1, 1, 1])
    for name in ("state", "state_valid", "action", "action_valid"):
        assert not getattr(batch, name).any()
        assert getattr(other, name).any()
        assert getattr(batch, name).shape == getattr(other, name).shape
        assert getattr(batch, name).dtype == getattr(other, name).dtype
    both = join([batch, other])
    assert both.modes == (Mode.VIDEO,) * 3 + (Mode.WORLD,) * 3
    assert both.state_valid.tolist() == [False] * 3 + [True] * 3
    assert both.action.shape == (6, 4, 3)


@pytest.mark.parametrize("mode", [Mode.POLICY, Mode.INVERSE, Mode.WORLD])
def test_actions_without_state_are_used_and_the_state_is_not_valid(dataset: LeRobotDataset, mode: Mode) -> None:
    none = np.empty((len(dataset.state), 0), np.float32)
    robot = tiny.transform(tiny.robot(1, delta_mask=(False, False)))
    stateless = dataclasses.replace(dataset, state_names=(), state=none)
    made, known = (
        Source(each, numbered(each), robot, WINDOW, mode).batch(np.array([3, 12])) for each in (stateless, dataset)
    )
    assert torch.equal(made.action, known.action)
    assert torch.equal(made.action_valid, known.action_valid)
    assert not made.state_valid.any()
    assert not made.state.any()
    assert known.state_valid.all()
    assert known.state.shape == made.state.shape


def test_episodes_that_are_too_short_are_left_out_if_asked(tmp_path: Path) -> None:
    """Episodes of 3, 4 and 5 frames and chunks of 4 actions."""
    mixed = LeRobotDataset.open(tiny.write_dataset(tmp_path / "mixed", tiny.robot(1), length=3))
    made = dataclasses.replace(source(LeRobotDataset.open(tmp_path / "mixed"), Mode.VIDEO), leave_short=True)
    policy = Source(mixed, numbered(mixed), made.transform, WINDOW, Mode.POLICY, leave_short=True)
    assert (len(made), len(policy)) == (1 + 2 + 3, 4 + 5)
    assert policy.batch(np.arange(9)).latents[:, 0, 0, 0, 0].tolist() == list(range(3, 12))
    far = Window(action_horizon=6, future_offsets=(2,))
    with pytest.raises(ValueError, match="mixed: no window has 6 frames: leave the dataset out"):
        Source(mixed, numbered(mixed), made.transform, far, Mode.POLICY, leave_short=True)


def test_video_needs_no_action_chunk(tmp_path: Path) -> None:
    short = LeRobotDataset.open(tiny.write_dataset(tmp_path / "short", tiny.robot(1), length=3))
    assert len(source(short, Mode.VIDEO)) == 1 + 2 + 3
    far = Window(action_horizon=1, future_offsets=(3,))
    with pytest.raises(ValueError, match="short: episode 0 has 3 frames, fewer than the 4 of one window"):
        source(short, Mode.VIDEO, window=far)
    with pytest.raises(ValueError, match="short: episode 0 has 3 frames, fewer than the 4 of one window"):
        source(short, Mode.WORLD)


def test_video_without_future_frames_is_refused(dataset: LeRobotDataset) -> None:
    blind = Window(action_horizon=4, future_offsets=())
    for mode in (Mode.VIDEO, Mode.WORLD, Mode.INVERSE):
        with pytest.raises(ValueError, match=f"{mode} samples need a window with future frames"):
            source(dataset, mode, window=blind)
    assert source(dataset, window=blind).batch(np.array([0])).latents.shape == (1, 2, 1, 1, 1)


def test_a_weight_that_is_not_positive_is_refused(dataset: LeRobotDataset) -> None:
    with pytest.raises(ValueError, match="weight of a source must be positive, not 0"):
        source(dataset, weight=0.0)


@pytest.mark.parametrize(("horizon", "offsets"), [(0, (1,)), (4, (0, 2)), (4, (3, 2)), (4, (2, 2))])
def test_impossible_windows_are_refused(horizon: int, offsets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        Window(action_horizon=horizon, future_offsets=offsets)


@pytest.mark.parametrize(("block", "count"), [(1 << 20, 1), (5 * tiny.HORIZON * 2, 5), (1, 21)])
def test_statistics_use_chunks_that_lie_in_their_episode(
    dataset: LeRobotDataset, monkeypatch: pytest.MonkeyPatch, block: int, count: int
) -> None:
    monkeypatch.setattr("actwam.data.loader.BLOCK", block)
    blocks = list(action_chunks(dataset, WINDOW))
    state, chunks = (np.concatenate(parts) for parts in zip(*blocks, strict=True))
    assert len(state) == len(chunks) == 6 + 7 + 8
    assert np.array_equal(state[6], dataset.state[9])  # the first row of episode 1
    assert np.array_equal(chunks[5], dataset.action[5:9])  # the last chunk of episode 0
    assert len(blocks) == count
    some = np.concatenate([part for part, _ in action_chunks(dataset, WINDOW, range(1, 2))])
    assert np.array_equal(state[6:13], some)
