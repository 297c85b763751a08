"""Before the first step: which data is accepted, what is fitted on it, what is cached."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from actwam.data.dataset import LeRobotDataset
from actwam.data.loader import Window
from actwam.data.writer import DatasetWriter
from actwam.train import prepare
from actwam.train.config import CodecConfig, SourceConfig
from actwam.train.prepare import fit_codec, fit_robots, initial, mixture, open_datasets, require_finite
from actwam.types import Mode


def silent(what: str, done: int, total: int) -> None:
    pass


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("prepare")
    return {
        "squares": tiny.write_dataset(root / "squares", tiny.robot(0)),
        "more": tiny.write_dataset(root / "more", tiny.robot(0), episodes=2, length=20),
        "other": tiny.write_dataset(root / "other", tiny.robot(1)),
    }


def sources(**modes: Mode) -> tuple[SourceConfig, ...]:
    return tuple(SourceConfig(dataset=name, mode=mode) for name, mode in modes.items())


def test_a_dataset_that_is_not_given_is_named(folders: dict[str, Path]) -> None:
    recipe = tiny.recipe(tiny.stage(sources=sources(squares=Mode.POLICY, sand=Mode.VIDEO)))
    with pytest.raises(ValueError, match="recipe tiny needs datasets sand: give each as NAME=FOLDER"):
        open_datasets(recipe, folders)


def test_a_dataset_of_another_robot_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match="recipe tiny is for robot_0, not for a dataset of 'robot_1'"):
        open_datasets(tiny.recipe(), {"squares": folders["other"]})
    changed = tiny.robot(0, fps=20, action_names=("a", "b", "c"))
    with pytest.raises(ValueError, match=r"squares: not recorded on embodiment robot_0: fps is 10 here, 20 there"):
        open_datasets(tiny.recipe(robots=(changed,)), folders)


def test_a_dataset_of_a_robot_that_the_checkpoint_does_not_know_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    datasets = {"squares": LeRobotDataset.open(folders["other"])}
    known = tiny.checkpoint(robots=(tiny.transform(tiny.robot(0)),))
    with pytest.raises(ValueError, match="other: recorded on 'robot_1', this checkpoint knows robot_0"):
        mixture(tiny.stage(), known, datasets, tmp_path, silent)
    namesake = replace(tiny.robot(0), name="robot_1")
    known = tiny.checkpoint(robots=(tiny.transform(namesake),))
    with pytest.raises(ValueError, match=r"not recorded on embodiment robot_1: action is .* here, .* there"):
        mixture(tiny.stage(), known, datasets, tmp_path, silent)


def test_an_episode_shorter_than_the_chunk_is_refused(folders: dict[str, Path]) -> None:
    long = Window(action_horizon=15, future_offsets=(1,))
    with pytest.raises(ValueError, match="squares: episode 0 has 14 frames, fewer than the 15 of one window"):
        open_datasets(tiny.recipe(window=long), folders)


@pytest.mark.parametrize("key", ["state", "action"])
def test_nan_is_found_with_episode_frame_and_dimension(folders: dict[str, Path], key: str) -> None:
    dataset = LeRobotDataset.open(folders["squares"])
    values = getattr(dataset, key).copy()
    values[14 + 5, 1] = np.inf  # episode 1 begins at row 14
    with pytest.raises(ValueError, match=f"squares: episode 1: frame 5: {key}: y is inf; drop the episode"):
        require_finite(replace(dataset, **{key: values}))
    require_finite(dataset)


def test_a_dimension_that_never_moves_is_refused_by_name(tmp_path: Path) -> None:
    one = tiny.episode(0, tiny.robot(0))
    one.action[:, 2] = 0.5
    with DatasetWriter(tmp_path / "still", tiny.robot(0)) as writer:
        writer.add_episode(one)
    datasets = open_datasets(tiny.recipe(), {"squares": tmp_path / "still"})
    with pytest.raises(ValueError, match=r"grip \(dimension 2\) is 0.5 in all 44 rows: zero range"):
        fit_robots(tiny.recipe(), datasets)
    (robot,) = fit_robots(tiny.recipe(constant="center"), datasets)
    assert robot.model_action(one.action[:4], one.state[0])[:, 2].tolist() == [0, 0, 0, 0]


def test_statistics_come_from_what_teaches_actions(folders: dict[str, Path]) -> None:
    both = tiny.stage(sources=sources(squares=Mode.POLICY, more=Mode.VIDEO))
    datasets = open_datasets(tiny.recipe(both), folders)
    (robot,) = fit_robots(tiny.recipe(both), datasets)
    rows = sum(length - tiny.HORIZON + 1 for length in (14, 15, 16))
    assert robot.state.stats.count == rows
    assert robot.action.stats.count == rows * tiny.HORIZON
    (alone,) = fit_robots(tiny.recipe(), open_datasets(tiny.recipe(), folders))
    assert robot == alone
    world = tiny.stage(sources=sources(more=Mode.WORLD, squares=Mode.VIDEO))
    (robot,) = fit_robots(tiny.recipe(world), open_datasets(tiny.recipe(world), folders))
    assert robot.state.stats.count == sum(length - tiny.HORIZON + 1 for length in (20, 21))


def test_every_robot_has_statistics_of_its_own(folders: dict[str, Path]) -> None:
    robots = (tiny.robot(0), tiny.robot(1))
    stage = tiny.stage(sources=sources(squares=Mode.POLICY, other=Mode.POLICY))
    recipe = tiny.recipe(stage, robots=robots, model=tiny.config())
    fitted = fit_robots(recipe, open_datasets(recipe, folders))
    assert [robot.embodiment.name for robot in fitted] == ["robot_0", "robot_1"]
    assert [len(robot.action.stats.names) for robot in fitted] == [3, 2]
    only = tiny.recipe(robots=robots, model=tiny.config())
    with pytest.raises(ValueError, match="no dataset of robot robot_1 to take statistics from"):
        fit_robots(only, open_datasets(only, folders))


@pytest.mark.parametrize(("limit", "frames"), [(1000, 45), (44, 23), (10, 9)])
def test_the_codec_is_fitted_on_frames_spread_over_all_episodes(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, limit: int, frames: int
) -> None:
    seen: list[torch.Tensor] = []
    real = prepare.PatchPCACodec.fit

    def fit(pictures: torch.Tensor, **how: int) -> object:
        seen.append(pictures)
        return real(pictures, **how)

    monkeypatch.setattr(prepare.PatchPCACodec, "fit", fit)
    recipe = tiny.recipe(codec=CodecConfig(patch=tiny.PATCH, channels=4, fit_frames=limit))
    datasets = open_datasets(recipe, folders)
    robots = fit_robots(recipe, datasets)
    first, again = (fit_codec(recipe, datasets, robots, silent) for _ in range(2))
    assert first.digest() == again.digest()
    assert len(seen[0]) == frames <= limit
    assert seen[0].shape[1:] == (tiny.LAYOUT.height, tiny.LAYOUT.width, 3)


def test_latents_are_encoded_once_and_again_for_another_codec(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe()
    datasets = open_datasets(recipe, folders)
    checkpoint = initial(recipe, datasets, tmp_path / "cache", silent)
    decoded: list[str] = []
    videos = LeRobotDataset.videos

    def counted(self: LeRobotDataset, camera: str) -> object:
        decoded.append(camera)
        return videos(self, camera)

    monkeypatch.setattr(LeRobotDataset, "videos", counted)
    batches = [mixture(recipe.stages[0], checkpoint, datasets, tmp_path, silent).batch(0) for _ in range(2)]
    assert len(decoded) == 3
    assert torch.equal(batches[0].latents, batches[1].latents)
    finer = replace(checkpoint, codec=tiny.codec(channels=5))
    assert mixture(recipe.stages[0], finer, datasets, tmp_path, silent).batch(0).latents.shape[1] == 5
    assert len(decoded) == 6


def test_cached_latents_are_those_of_acting(folders: dict[str, Path], tmp_path: Path) -> None:
    """Training and serving see the same picture the same way."""
    recipe = tiny.recipe()
    datasets = open_datasets(recipe, folders)
    checkpoint = initial(recipe, datasets, tmp_path / "cache", silent)
    dataset, robot = datasets["squares"], checkpoint.robots[0]
    latents = prepare.encode_dataset(dataset, checkpoint, tmp_path, silent)
    frame = {name: dataset.frames(name, 1, np.array([5])) for name in robot.embodiment.cameras.values()}
    served = checkpoint.codec.encode(torch.from_numpy(robot.picture(frame))[None])[0, :, 0]
    assert np.abs(latents.window(np.array([14 + 5]))[0] - served.numpy()).max() < 0.01


def test_the_first_weights_follow_the_seed(folders: dict[str, Path], tmp_path: Path) -> None:
    recipes = (tiny.recipe(tiny.stage(seed=seed)) for seed in (0, 0, 1))
    made = [initial(recipe, open_datasets(recipe, folders), tmp_path / "cache", silent) for recipe in recipes]
    first, again, other = (checkpoint.model.patch_embedding.weight for checkpoint in made)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_scale_of_change_is_fitted_when_the_recipe_asks(folders: dict[str, Path], tmp_path: Path) -> None:
    recipe = replace(tiny.recipe(), future_as_change=True)
    datasets = open_datasets(recipe, folders)
    checkpoint = initial(recipe, datasets, tmp_path, silent)
    absolute = initial(tiny.recipe(), datasets, tmp_path, silent)
    assert absolute.future.scale is None
    with pytest.raises(ValueError, match="has not the future_as_change of recipe tiny"):
        prepare.require_recipe(absolute, recipe, tmp_path)
    prepare.require_recipe(checkpoint, recipe, tmp_path)
    future = mixture(recipe.stages[0], checkpoint, datasets, tmp_path, silent).batch(0).latents[:, :, 1:]
    assert 0.3 < float(future.std()) < 3
