"""What is imagined, with which actions, compared with which frames, and what is written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image

from actwam.data.dataset import LeRobotDataset
from actwam.data.loader import Window
from actwam.data.writer import DatasetWriter
from actwam.model.codec import PatchPCACodec
from actwam.policy import Imagination, Policy
from actwam.tokens import ACTION_CENTERED, ACTION_ONLY, JOINT, UNCOUPLED, VIDEO_FIRST, Table
from actwam.types import Group, Memory
from actwam.world.imagine import choose_windows, imagine_dataset, measure, observation_at, read_clip
from actwam.world.quality import PSNR_CEILING
from actwam.world.strip import draw_strip

LENGTHS = (10, 11, 12)
ROBOT = tiny.robot(0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> LeRobotDataset:
    folder = tmp_path_factory.mktemp("imagine") / "held_out"
    return LeRobotDataset.open(tiny.write_dataset(folder, ROBOT, episodes=3, length=LENGTHS[0]))


@cache
def tiny_policy(offsets: tuple[int, ...] = tiny.OFFSETS, table: Table = ACTION_CENTERED) -> Policy:
    """Random weights: whatever it imagines, it does so in the right shapes."""
    window = Window(action_horizon=tiny.HORIZON, future_offsets=offsets)
    checkpoint = tiny.checkpoint(window=window, table=table)
    return Policy(checkpoint, checkpoint.robot(ROBOT.name), table, torch.device("cpu"))


def test_every_window_has_its_actions_and_its_future(dataset: LeRobotDataset) -> None:
    chosen = choose_windows(tiny_policy(), dataset, sum(LENGTHS) - 4 * len(LENGTHS), seed=0)
    assert chosen == [(i, start) for i, length in enumerate(LENGTHS) for start in range(length - 4)]
    reach_of_actions = choose_windows(tiny_policy((1,)), dataset, sum(LENGTHS) - 3 * len(LENGTHS), seed=0)
    assert reach_of_actions[-1] == (2, LENGTHS[2] - 4)


def test_windows_are_even_and_repeatable(dataset: LeRobotDataset) -> None:
    chosen = choose_windows(tiny_policy(), dataset, 6, seed=3)
    assert chosen == choose_windows(tiny_policy(), dataset, 6, seed=3)
    assert chosen != choose_windows(tiny_policy(), dataset, 6, seed=4)
    assert {episode for episode, _ in chosen} == {0, 1, 2}
    assert len(set(chosen)) == 6


@pytest.mark.parametrize("count", [0, 1000])
def test_more_windows_than_there_are_is_an_error(dataset: LeRobotDataset, count: int) -> None:
    with pytest.raises(ValueError, match=f"holds 21 windows of 5 frames, not {count}"):
        choose_windows(tiny_policy(), dataset, count, seed=0)


def test_a_clip_is_what_the_dataset_holds(dataset: LeRobotDataset) -> None:
    policy = tiny_policy()
    clip = read_clip(policy, dataset, episode=1, start=3)
    whole = policy.robot.picture({name: dataset.video(name, 1) for name in ROBOT.cameras.values()})
    np.testing.assert_array_equal(clip.present, whole[3])
    np.testing.assert_array_equal(clip.future, whole[[5, 7]])
    np.testing.assert_array_equal(clip.actions, dataset.action[LENGTHS[0] + 3 : LENGTHS[0] + 7])
    np.testing.assert_array_equal(clip.observation.state, dataset.state[LENGTHS[0] + 3])
    assert clip.observation.instruction == tiny.INSTRUCTIONS[1]


def test_an_observation_is_a_row_of_the_dataset(dataset: LeRobotDataset) -> None:
    found = observation_at(dataset, tiny_policy().robot, episode=2, frame=5)
    np.testing.assert_array_equal(found.state, dataset.state[LENGTHS[0] + LENGTHS[1] + 5])
    assert found.instruction == tiny.INSTRUCTIONS[2]
    assert set(found.images) == set(ROBOT.cameras.values())
    for name, picture in found.images.items():
        np.testing.assert_array_equal(picture, dataset.video(name, 2)[5])
    with pytest.raises(ValueError, match="episode 2 has no frames"):
        observation_at(dataset, tiny_policy().robot, episode=2, frame=LENGTHS[2])


def test_references_are_the_present_and_the_codec(dataset: LeRobotDataset) -> None:
    clip = read_clip(tiny_policy(), dataset, 0, 0)
    perfect = measure(clip, clip.future, clip.future)
    assert (perfect.psnr["imagined"] == PSNR_CEILING).all()
    assert (perfect.moved_error["codec"] == 0).all()
    assert (perfect.psnr["persistence"] < 30).all()
    assert (perfect.moved_pixels > 50).all()
    lazy = measure(clip, np.repeat(clip.present[None], 2, 0), clip.future)
    for numbers in (lazy.psnr, lazy.ssim, lazy.moved_error):
        np.testing.assert_array_equal(numbers["imagined"], numbers["persistence"])


def test_imagine_dataset_writes_numbers_and_strips(dataset: LeRobotDataset, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = imagine_dataset(
        tiny_policy(), dataset, windows=10, seed=0, out=tmp_path / "imagine", batch_size=4,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(4, 10), (8, 10), (10, 10)]
    written = json.loads((tmp_path / "imagine" / "imagine.json").read_text())
    assert written == json.loads(json.dumps(result.to_json()))
    assert (written["n"], written["offsets"]) == (10, [2, 4])
    assert written["psnr"] == written["imagined"]["psnr"]
    for method in ("imagined", "persistence", "codec"):
        score = written[method]
        assert score["psnr"] == pytest.approx(np.mean([part["psnr"] for part in score["per_offset"]]))
        assert 0 < score["psnr_moved"] < PSNR_CEILING
    assert 0 < written["moved_share"] < 0.5
    assert {strip["instruction"] for strip in written["strips"]} == set(tiny.INSTRUCTIONS)
    for strip in written["strips"]:
        with Image.open(tmp_path / "imagine" / strip["file"]) as picture:
            assert picture.width > 3 * 128


def test_the_batch_size_changes_nothing(dataset: LeRobotDataset, tmp_path: Path) -> None:
    whole = imagine_dataset(tiny_policy(), dataset, windows=5, seed=0, out=tmp_path / "a", batch_size=5)
    single = imagine_dataset(tiny_policy(), dataset, windows=5, seed=0, out=tmp_path / "b", batch_size=1)
    assert single.psnr == pytest.approx(whole.psnr, abs=0.02)
    assert single.codec == whole.codec
    assert single.persistence == whole.persistence


def test_the_real_actions_are_given(dataset: LeRobotDataset, tmp_path: Path, monkeypatch) -> None:
    def perfect(self: Policy, observations, actions, seeds, memories) -> list[Imagination]:
        chosen = choose_windows(self, dataset, 4, seed=0)
        clips = [read_clip(self, dataset, *window) for window in chosen]
        np.testing.assert_array_equal(actions, [clip.actions for clip in clips])
        return [Imagination(clip.future, clip.actions) for clip in clips]

    monkeypatch.setattr(Policy, "imagine_batch", perfect)
    result = imagine_dataset(tiny_policy(), dataset, windows=4, seed=0, out=tmp_path / "out")
    assert result.psnr == pytest.approx(PSNR_CEILING)
    assert result.imagined.overall.psnr_moved == pytest.approx(PSNR_CEILING)


@pytest.mark.parametrize("table", [VIDEO_FIRST, UNCOUPLED], ids=lambda table: table.name)
def test_actions_that_could_not_matter_are_not_given(dataset: LeRobotDataset, tmp_path: Path, table: Table) -> None:
    result = imagine_dataset(tiny_policy(table=table), dataset, windows=3, seed=0, out=tmp_path / "out")
    assert json.loads((tmp_path / "out" / "imagine.json").read_text())["condition"] == "nothing"
    moved = replace(dataset, action=dataset.action + 1)
    again = imagine_dataset(tiny_policy(table=table), moved, windows=3, seed=0, out=tmp_path / "moved")
    assert again.imagined == result.imagined
    given = imagine_dataset(tiny_policy(), dataset, windows=3, seed=0, out=tmp_path / "given")
    assert given.condition == "actions"


def test_what_its_own_actions_bring_is_imagined_without_the_recorded_ones(
    dataset: LeRobotDataset, tmp_path: Path
) -> None:
    first, second = (
        imagine_dataset(tiny_policy(), seen, windows=3, seed=0, out=tmp_path / name, give_actions=False)
        for name, seen in (("first", dataset), ("second", replace(dataset, action=dataset.action + 1)))
    )
    assert first.condition == "nothing"
    assert first.windows == second.windows
    assert [window.psnr for window in first.windows] != [
        window.psnr
        for window in imagine_dataset(tiny_policy(), dataset, windows=3, seed=0, out=tmp_path / "given").windows
    ]
    assert np.mean([window.psnr for window in first.windows]) == pytest.approx(first.psnr)


def test_who_looks_back_is_shown_what_was_to_be_seen(
    dataset: LeRobotDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = Window(action_horizon=tiny.HORIZON, future_offsets=tiny.OFFSETS, history_offsets=(-4, -2))
    checkpoint = tiny.checkpoint(window=window, table=JOINT)
    policy = Policy(checkpoint, checkpoint.robot(ROBOT.name), JOINT, torch.device("cpu"))
    handed: list[Memory | None] = []
    imagine_batch = Policy.imagine_batch

    def noted(self: Policy, observations, actions, seeds, memories) -> list[Imagination]:
        handed.extend(memories)
        return imagine_batch(self, observations, actions, seeds, memories)

    monkeypatch.setattr(Policy, "imagine_batch", noted)
    imagine_dataset(policy, dataset, windows=21, seed=0, out=tmp_path / "out")
    chosen = choose_windows(policy, dataset, 21, seed=0)
    assert [start for episode, start in chosen if episode == 0] == [0, 1, 2, 3, 4, 5]
    for memory, (episode, start) in zip(handed, chosen, strict=True):
        past = [observation_at(dataset, policy.robot, episode, t) for t in (start - 4, start - 2) if t >= 0]
        assert (memory is None) == (not past)
        if memory is not None:
            latents = [policy.encode([seen]).given[Group.OBSERVATION] for seen in past]
            assert torch.equal(memory.seen, torch.cat(latents, dim=2))


def test_a_still_world_has_no_moved_pixels(tmp_path: Path) -> None:
    moving = tiny.episode(0, ROBOT, length=8)
    images = {name: np.repeat(frames[:1], 8, 0) for name, frames in moving.images.items()}
    with DatasetWriter(tmp_path / "still", ROBOT) as writer:
        writer.add_episode(replace(moving, images=images))
    still = LeRobotDataset.open(tmp_path / "still")
    result = imagine_dataset(tiny_policy(), still, windows=2, seed=0, out=tmp_path / "out")
    assert result.moved_share == 0
    assert result.imagined.overall.psnr_moved is None
    assert result.persistence.overall.psnr > 40


def test_the_codec_sets_the_ceiling_and_nothing_else(dataset: LeRobotDataset, tmp_path: Path) -> None:
    good = tiny_policy()
    noise = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (32, 16, 32, 3)).astype(np.uint8))
    unfit = PatchPCACodec.fit(noise, patch=tiny.PATCH, channels=tiny.CHANNELS)
    bad = replace(good, checkpoint=replace(good.checkpoint, codec=unfit))
    scores = [
        imagine_dataset(policy, dataset, windows=4, seed=0, out=tmp_path / name)
        for name, policy in (("good", good), ("bad", bad))
    ]
    assert scores[0].codec.overall.psnr > scores[1].codec.overall.psnr + 3
    assert scores[0].codec.overall.psnr > scores[0].psnr
    assert scores[0].persistence == scores[1].persistence


def test_a_codec_that_compresses_time_is_measured_on_every_picture(dataset: LeRobotDataset, tmp_path: Path) -> None:
    frames = tiny_policy((1, 2, 3, 4))
    pairs = replace(frames, checkpoint=replace(frames.checkpoint, codec=tiny.PairCodec(frames.checkpoint.codec)))
    whole, halved = (
        imagine_dataset(policy, dataset, windows=3, seed=0, out=tmp_path / name)
        for name, policy in (("frames", frames), ("pairs", pairs))
    )
    assert len(halved.imagined.per_offset) == len(halved.offsets) == 4
    assert halved.persistence == whole.persistence
    assert halved.codec.overall.psnr < whole.codec.overall.psnr  # two frames were made one
    assert halved.codec.overall.psnr > halved.psnr


def test_another_robot_is_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    policy = tiny_policy()
    other = replace(policy.robot, embodiment=replace(ROBOT, fps=20))
    with pytest.raises(ValueError, match="fps is 10 here, 20 there"):
        imagine_dataset(replace(policy, robot=other), dataset, windows=1, seed=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_policy_without_a_future_is_refused(dataset: LeRobotDataset, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="predicts no future frames"):
        imagine_dataset(tiny_policy(()), dataset, windows=1, seed=0, out=tmp_path / "out")
    with pytest.raises(ValueError, match="predicts no future frames"):
        imagine_dataset(tiny_policy(table=ACTION_ONLY), dataset, windows=1, seed=0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_finished_folder_is_not_overwritten(dataset: LeRobotDataset, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="exists already"):
        imagine_dataset(tiny_policy(), dataset, windows=1, seed=0, out=tmp_path / "out")


def test_a_strip_shows_every_pixel_unsmoothed() -> None:
    random = np.random.default_rng(0)
    present, *others = random.integers(0, 256, (5, 24, 32, 3)).astype(np.uint8)
    real, imagined = np.stack(others[:2]), np.stack(others[2:])
    strip = np.array(draw_strip(present, real, imagined, title="push", steps=(8, 16)))
    scale, gap, band = 4, 6, 24
    difference = np.abs(real.astype(int) - imagined).astype(np.uint8)
    for row, frames in enumerate(([present, *real], [None, *imagined], [None, *difference])):
        for column, frame in enumerate(frames):
            left, top = gap + column * (32 * scale + gap), 2 * band + row * (24 * scale + gap + band)
            if frame is not None:
                tile = strip[top : top + 24 * scale, left : left + 32 * scale]
                np.testing.assert_array_equal(tile, frame.repeat(scale, 0).repeat(scale, 1))
