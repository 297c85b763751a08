"""Actions inferred from video: which windows answer for which row, their mean and spread, and who may be asked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from actwam.data.dataset import LeRobotDataset
from actwam.data.embodiment import Embodiment
from actwam.data.loader import Window
from actwam.data.transforms import FutureTransform
from actwam.data.writer import DatasetWriter
from actwam.inverse import Inference, Inferred, _agree, infer, require_inverse, require_video, shown
from actwam.policy import Policy
from actwam.sampler import sample
from actwam.tokens import ACTION_CENTERED, BIDIRECTIONAL, JOINT, VIDEO_FIRST, Table
from actwam.types import Group, Mode

DENSE = Window(action_horizon=tiny.HORIZON, future_offsets=(1, 2, 3, 4))
CHANGE = FutureTransform((0.5, 1.0, 2.0, 1.0, 1.5, 1.0))


def policy(index: int = 0, table: Table = VIDEO_FIRST, dropout: float = 0.5, **changes: Any) -> Policy:
    """Random weights that say of themselves that they were trained to infer actions."""
    trained = {"config": {"sources": [{"dataset": "d", "mode": Mode.INVERSE}], "objective": {"state_dropout": dropout}}}
    fields: dict[str, Any] = {"table": table, "window": DENSE, "future": CHANGE, "trained": trained, **changes}
    checkpoint = tiny.checkpoint(**fields)
    return Policy(checkpoint, checkpoint.robots[index], table, torch.device("cpu"))


def write(folder: Path, robot: Embodiment, length: int = 9, **names: tuple[Any, ...]) -> LeRobotDataset:
    """Two episodes; without state or action where their names are ()."""
    shown_as = replace(robot, **names)
    with DatasetWriter(folder, shown_as) as writer:
        for number in range(2):
            made = tiny.episode(number, robot, length + number)
            state, action = made.state[:, : len(shown_as.state_names)], made.action[:, : len(shown_as.action_names)]
            writer.add_episode(replace(made, state=state, action=action))
    return LeRobotDataset.open(folder)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> list[LeRobotDataset]:
    """Of robot 0, and of robot 1, whose actions are relative to its state."""
    folder = tmp_path_factory.mktemp("inverse")
    return [write(folder / f"robot_{index}", tiny.robot(index)) for index in (0, 1)]


@pytest.mark.parametrize(
    ("length", "stride", "expected"),
    [(9, 1, [0, 1, 2, 3, 4]), (9, 3, [0, 3, 4]), (9, 4, [0, 4]), (5, 2, [0]), (10, None, [0, 1, 2, 3, 4, 5])],
)
def test_windows_end_at_the_last_frame(length: int, stride: int | None, expected: list[int]) -> None:
    assert Inference(stride=stride).starts(length, DENSE).tolist() == expected


def test_only_actions_that_frames_show_are_asked_for() -> None:
    assert shown(Window(action_horizon=4, future_offsets=(1, 2))) == 2  # the last two bring nothing to see
    assert shown(Window(action_horizon=2, future_offsets=(1, 4))) == 2
    assert Inference().starts(200, Window(action_horizon=48, future_offsets=(12, 24, 36, 48)))[1] == 12


def slow(asked: Policy, dataset: LeRobotDataset, ask: Inference, with_state: bool) -> list[Inferred]:
    """Every window and noise alone and from the beginning, and every row by itself."""
    checkpoint, robot, found = asked.checkpoint, asked.robot, []
    window = checkpoint.window
    for episode in dataset.episodes:
        pictures = robot.picture(
            {name: dataset.video(name, episode.index) for name in robot.embodiment.cameras.values()}
        )
        answers: dict[int, list[np.ndarray]] = {}
        for start in ask.starts(episode.length, window):
            clip = pictures[[start, *(start + offset for offset in window.future_offsets)]]
            latents = torch.from_numpy(
                checkpoint.future.normalize(checkpoint.codec.encode(torch.from_numpy(clip[None])).numpy())
            )
            state = dataset.state[episode.start + start]
            given = {Group.OBSERVATION: latents[:, :, :1], Group.FUTURE: latents[:, :, 1:]}
            if with_state:
                given[Group.STATE] = torch.from_numpy(robot.model_state(state))[None, None]
            past = [start + offset for offset in window.history_offsets if start + offset >= 0]
            if past:
                each = [checkpoint.codec.encode(torch.from_numpy(pictures[[row]][None])) for row in past]
                given[Group.HISTORY] = torch.cat(each, dim=2)
            for number in range(ask.samples):
                seed = np.random.SeedSequence((ask.seed, episode.index, int(start), number)).generate_state(1)[0]
                values, _ = sample(
                    checkpoint.model,
                    asked.table,
                    given=given,
                    noise={Group.ACTION: asked.action_noise([int(seed)])},
                    wanted=[Group.ACTION],
                    text=checkpoint.model.text_context(checkpoint.text.encode([episode.instruction])),
                    embodiment=torch.tensor([robot.embodiment.index]),
                    sampling=checkpoint.sampling,
                )
                for k, action in enumerate(robot.robot_action(values[Group.ACTION][0].numpy(), state)):
                    if k < shown(window):
                        answers.setdefault(int(start) + k, []).append(action)
        rows = [np.array(answers[row]) for row in range(len(answers))]
        std = np.array(robot.action.stats.std)
        spread = np.array([np.sqrt(np.mean((row.std(0, ddof=1) / std) ** 2)) for row in rows])
        found.append(Inferred(np.array([row.mean(0) for row in rows]), spread))
    return found


HISTORY = replace(DENSE, history_offsets=(-4, -2))
CASES = {
    "video first": ({}, True),
    "without a state": ({}, False),
    "joint": ({"table": JOINT}, True),
    "bidirectional": ({"table": BIDIRECTIONAL}, False),
    "relative to the state": ({"index": 1}, True),
    "history": ({"window": HISTORY}, True),
    "a codec that compresses time": ({"codec": tiny.PairCodec(tiny.codec())}, True),
    "more actions than are shown": ({"window": replace(DENSE, future_offsets=(1, 2))}, True),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_inferred_together_is_what_is_inferred_alone(datasets: list[LeRobotDataset], case: str) -> None:
    changes, with_state = CASES[case]
    asked, dataset = policy(**changes), datasets[changes.get("index", 0)]
    window = asked.checkpoint.window
    ask = Inference(stride=2, samples=2, seed=3, batch_size=3)
    require_inverse(asked, ask)
    require_video(asked, dataset)
    expected = slow(asked, dataset, ask, with_state)
    found = [inferred for _, _, inferred in infer(asked, dataset, ask, with_state=with_state)]
    for episode, one, other in zip(dataset.episodes, found, expected, strict=True):
        assert len(one.action) == episode.length - 1 - window.future_offsets[-1] + shown(window)
        np.testing.assert_allclose(one.action, other.action, atol=2e-5)
        np.testing.assert_allclose(one.spread, other.spread, atol=2e-5)
        assert one.spread.min() > 0


def test_the_state_is_shown_only_if_asked_for(datasets: list[LeRobotDataset]) -> None:
    known, hidden = (
        next(infer(policy(), datasets[0], Inference(samples=2), with_state=with_state))[2].action
        for with_state in (True, False)
    )
    assert np.abs(known - hidden).max() > 1e-3


def test_noise_follows_from_the_seed(datasets: list[LeRobotDataset]) -> None:
    one, again, other = (
        next(infer(policy(), datasets[0], Inference(samples=2, seed=seed), with_state=True))[2] for seed in (0, 0, 1)
    )
    assert np.array_equal(one.action, again.action)
    assert not np.array_equal(one.action, other.action)


def test_a_row_of_a_robot_that_holds_a_dimension_still() -> None:
    """Its spread is that of the dimensions that move."""
    robot = tiny.transform(tiny.robot(0))
    stats = robot.action.stats
    still = replace(stats, **{name: (*getattr(stats, name)[:2], 0.5) for name in ("mean", "min", "max", "q01", "q99")})
    still = replace(still, std=(*stats.std[:2], 0.0))
    held = replace(robot, action=replace(robot.action, stats=still, constant="center"))
    answers = np.random.default_rng(0).normal(size=(2, 3, 2, 3)).astype(np.float32)
    one, other = (_agree(np.array([0, 1]), answers, each) for each in (robot, held))
    assert np.array_equal(one.action, other.action)
    answers[..., 2] += np.arange(3)[:, None]
    assert np.array_equal(_agree(np.array([0, 1]), answers, held).spread, other.spread)
    assert not np.array_equal(_agree(np.array([0, 1]), answers, robot).spread, one.spread)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"table": ACTION_CENTERED},
            "table ACTION_CENTERED cannot infer actions from video: its actions never see the future",
        ),
        ({"window": Window(action_horizon=4, future_offsets=())}, "its window has no future frames"),
        ({"trained": {"imported": "gwp0"}}, "the modes of its last stage are unknown"),
        (
            {"trained": {"config": {"sources": [{"mode": "world"}, {"mode": "policy"}]}}},
            "not trained to infer actions from video: the modes of its last stage are policy, world",
        ),
    ],
)
def test_who_cannot_infer_actions_says_why(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        require_inverse(policy(**changes), Inference())


def test_a_stride_that_leaves_gaps_and_a_single_answer_are_refused() -> None:
    with pytest.raises(ValueError, match="stride 5 would pass over rows: a window shows 4 actions"):
        require_inverse(policy(), Inference(stride=5))
    require_inverse(policy(), Inference(stride=4))
    for name, value in (("stride", 0), ("samples", 1), ("batch_size", 0)):
        with pytest.raises(ValueError, match=f"{name} must be at least"):
            Inference(**{name: value})


def test_other_videos_are_refused(tmp_path: Path) -> None:
    robot = tiny.robot(0)
    other = replace(robot, fps=20, image_size=(16, 32), state_names=("x", "y", "z"))
    with pytest.raises(
        ValueError, match=r"fps is 20 here, 10 there; cameras .*\(16, 32\).* here.*; state is \('x', 'y'"
    ):
        require_video(policy(), write(tmp_path / "other", other))
    renamed = replace(robot, cameras={**robot.cameras, "head": "top"})
    with pytest.raises(ValueError, match=r"'top'.* here, .*'front'"):
        require_video(policy(), write(tmp_path / "renamed", renamed))
    with pytest.raises(ValueError, match="episode 0 has 4 frames, fewer than the 5 of one window"):
        require_video(policy(), write(tmp_path / "short", robot, length=4))


def test_one_camera_more_and_no_action_are_no_hindrance(tmp_path: Path) -> None:
    robot = tiny.robot(0)
    more = replace(robot, cameras={**robot.cameras, "more": "overhead"})
    require_video(policy(), write(tmp_path / "more", more, action_names=(), delta_mask=()))


def test_a_video_without_state_needs_a_model_that_does_without(tmp_path: Path) -> None:
    bare = write(tmp_path / "bare", tiny.robot(0), state_names=())
    require_video(policy(), bare)
    with pytest.raises(ValueError, match=r"has no state, and this checkpoint was never without: .* state_dropout"):
        require_video(policy(dropout=0.0), bare)
    relative = write(tmp_path / "relative", tiny.robot(1), state_names=(), action_names=(), delta_mask=())
    with pytest.raises(ValueError, match=r"has no state, and the actions \['x', 'y'\] of robot_1 are learned relative"):
        require_video(policy(1), relative)


def test_a_state_that_is_no_number_is_found_before_anything_is_inferred(datasets: list[LeRobotDataset]) -> None:
    state = datasets[0].state.copy()
    state[11, 1] = np.nan
    with pytest.raises(ValueError, match="episode 1: frame 2: state y is nan"):
        require_video(policy(), replace(datasets[0], state=state))
