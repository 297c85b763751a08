"""Before the first step: which data is accepted, what is fitted on it, what is cached."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from actwam import checkpoint as checkpoint_module
from actwam.checkpoint import Checkpoint, save
from actwam.data.dataset import LeRobotDataset
from actwam.data.latents import Latents
from actwam.data.loader import Window
from actwam.data.transforms import FutureTransform, ViewLayout, layout_of, t_layout
from actwam.data.writer import DatasetWriter
from actwam.model.text import HashedWords
from actwam.train import codec as codec_module
from actwam.train import encode as encode_module
from actwam.train import prepare
from actwam.train.codec import fit_codec, fitted_codec
from actwam.train.config import CodecConfig, SourceConfig
from actwam.train.datasets import open_datasets, recipe_views, require_finite
from actwam.train.encode import encode, encodings, mixture
from actwam.train.prepare import fit_robots, initial
from actwam.types import Mode

WINDOW = Window(action_horizon=tiny.HORIZON, future_offsets=(1, 2, 3, 4))
SHORTER = replace(tiny.LAYOUT, slots=tuple(replace(slot, height=slot.height - 4) for slot in tiny.LAYOUT.slots))
"""The same picture with less high views."""


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


def encoded(dataset: LeRobotDataset, checkpoint: Checkpoint, cache: Path) -> Latents:
    codec = checkpoint.codec
    encoding = encodings(sources(it=Mode.POLICY), checkpoint, codec, {"it": dataset}, cache, silent)["it"]
    encode([encoding], codec)
    return encoding.open()


def whole(latents: Latents) -> np.ndarray:
    return np.concatenate(list(latents.pieces))


def sources(**modes: Mode) -> tuple[SourceConfig, ...]:
    return tuple(SourceConfig(dataset=name, mode=mode) for name, mode in modes.items())


def test_a_dataset_that_is_not_given_is_named(folders: dict[str, Path]) -> None:
    recipe = tiny.recipe(tiny.stage(sources=sources(squares=Mode.POLICY, sand=Mode.VIDEO)))
    with pytest.raises(ValueError, match="recipe tiny needs datasets sand: give each as NAME FOLDER"):
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
        fit_robots(tiny.recipe(), datasets, tmp_path)
    (robot,) = fit_robots(tiny.recipe(constant="center"), datasets, tmp_path)
    assert robot.model_action(one.action[:4], one.state[0])[:, 2].tolist() == [0, 0, 0, 0]


def test_statistics_come_from_what_teaches_actions(folders: dict[str, Path], tmp_path: Path) -> None:
    both = tiny.stage(sources=sources(squares=Mode.POLICY, more=Mode.VIDEO))
    datasets = open_datasets(tiny.recipe(both), folders)
    (robot,) = fit_robots(tiny.recipe(both), datasets, tmp_path)
    rows = sum(length - tiny.HORIZON + 1 for length in (14, 15, 16))
    assert robot.state.stats.count == rows
    assert robot.action.stats.count == rows * tiny.HORIZON
    (alone,) = fit_robots(tiny.recipe(), open_datasets(tiny.recipe(), folders), tmp_path)
    assert robot == alone
    world = tiny.stage(sources=sources(more=Mode.WORLD, squares=Mode.VIDEO))
    (robot,) = fit_robots(tiny.recipe(world), open_datasets(tiny.recipe(world), folders), tmp_path)
    assert robot.state.stats.count == sum(length - tiny.HORIZON + 1 for length in (20, 21))


def test_every_robot_has_statistics_of_its_own(folders: dict[str, Path], tmp_path: Path) -> None:
    robots = (tiny.robot(0), tiny.robot(1))
    stage = tiny.stage(sources=sources(squares=Mode.POLICY, other=Mode.POLICY))
    recipe = tiny.recipe(stage, robots=robots, model=tiny.config())
    fitted = fit_robots(recipe, open_datasets(recipe, folders), tmp_path)
    assert [robot.embodiment.name for robot in fitted] == ["robot_0", "robot_1"]
    assert [len(robot.action.stats.names) for robot in fitted] == [3, 2]
    only = tiny.recipe(robots=robots, model=tiny.config())
    with pytest.raises(ValueError, match="no dataset of robot robot_1 to take statistics from"):
        fit_robots(only, open_datasets(only, folders), tmp_path)


@pytest.mark.parametrize(("limit", "frames"), [(1000, 45), (44, 23), (10, 9)])
def test_the_codec_is_fitted_on_frames_spread_over_all_episodes(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, limit: int, frames: int
) -> None:
    seen: list[torch.Tensor] = []
    real = codec_module.PatchPCACodec.fit

    def fit(pictures: torch.Tensor, **how: int) -> object:
        seen.append(pictures)
        return real(pictures, **how)

    monkeypatch.setattr(codec_module.PatchPCACodec, "fit", fit)
    config = CodecConfig(patch=tiny.PATCH, channels=tiny.CHANNELS, fit_frames=limit)
    recipe = tiny.recipe(codec=config)
    datasets = open_datasets(recipe, folders)
    views = recipe_views(recipe, datasets)
    first, again = (fit_codec(config, datasets, views, silent) for _ in range(2))
    assert first.digest() == again.digest()
    assert len(seen[0]) == frames <= limit
    assert seen[0].shape[1:] == (tiny.LAYOUT.height, tiny.LAYOUT.width, 3)


def test_the_codec_is_fitted_once_for_the_same_frames(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = CodecConfig(patch=tiny.PATCH, channels=tiny.CHANNELS, fit_frames=20)
    recipe = tiny.recipe(codec=config)
    datasets = open_datasets(recipe, folders)
    views = recipe_views(recipe, datasets)
    first = fitted_codec(config, datasets, views, tmp_path, silent)
    assert first.digest() == fit_codec(config, datasets, views, silent).digest()
    other = {name: replace(view, layout=replace(view.layout, resample="bilinear")) for name, view in views.items()}
    others = (
        fitted_codec(replace(config, channels=5), datasets, views, tmp_path, silent),
        fitted_codec(config, datasets, other, tmp_path, silent),
    )
    assert first.digest() not in {codec.digest() for codec in others}
    monkeypatch.delattr(codec_module, "_pictures")
    assert fitted_codec(config, datasets, views, tmp_path, silent).digest() == first.digest()
    for file in tmp_path.rglob("codec.safetensors"):
        data = bytearray(file.read_bytes())
        data[-3] ^= 1
        file.write_bytes(data)
    with pytest.raises(ValueError, match=r"codec\.safetensors: damaged: .*; delete .* and run again"):
        fitted_codec(config, datasets, views, tmp_path, silent)


def test_latents_are_encoded_once_and_again_for_another_codec(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny.recipe()
    datasets = open_datasets(recipe, folders)
    checkpoint = initial(recipe, datasets, tmp_path / "cache", silent)
    decoded: list[str] = []
    videos = LeRobotDataset.videos

    def counted(self: LeRobotDataset, camera: str, *how: object) -> object:
        decoded.append(camera)
        return videos(self, camera, *how)

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
    latents = encoded(dataset, checkpoint, tmp_path)
    frame = {name: dataset.frames(name, 1, np.array([5])) for name in robot.embodiment.cameras.values()}
    served = checkpoint.codec.encode(torch.from_numpy(robot.picture(frame))[None])[0, :, 0]
    cached = latents.window(np.array([14 + 5]), np.array([28]), ())[0, :, 0]
    assert np.abs(cached - served.numpy()).max() < 0.01


def test_a_swapped_camera_is_encoded_anew(folders: dict[str, Path], tmp_path: Path) -> None:
    dataset = LeRobotDataset.open(folders["squares"])
    swapped = tiny.robot(cameras={"head": "front", "left": "wrist_right", "right": "wrist_left"})
    pair = [
        encoded(dataset, tiny.checkpoint(robots=(tiny.transform(each),)), tmp_path) for each in (tiny.robot(), swapped)
    ]
    assert np.abs(whole(pair[0])[:, :, :, :1].astype(float) - whole(pair[1])[:, :, :, :1]).max() == 0  # the head
    assert np.abs(whole(pair[0])[:, :, :, 1:].astype(float) - whole(pair[1])[:, :, :, 1:]).max() > 0.1


@pytest.mark.parametrize("layout", [replace(tiny.LAYOUT, resample="bilinear"), SHORTER], ids=["resample", "slot"])
def test_another_layout_is_encoded_anew(folders: dict[str, Path], tmp_path: Path, layout: ViewLayout) -> None:
    dataset, robot = LeRobotDataset.open(folders["squares"]), tiny.transform(tiny.robot())
    first, other = (
        encoded(dataset, tiny.checkpoint(robots=(replace(robot, layout=each),)), tmp_path)
        for each in (tiny.LAYOUT, layout)
    )
    assert first.folder != other.folder
    assert np.abs(whole(first).astype(float) - whole(other)).max() > 0.1


@dataclass(frozen=True)
class TravellingCodec(tiny.PairCodec):
    """Is said to be on any device, while its numbers stay here; `log` holds where it was sent and where it encoded."""

    device: torch.device
    log: list[tuple[str, str]]

    def to(self, device: torch.device) -> TravellingCodec:
        self.log.append(("to", device.type))
        return replace(self, device=device)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        self.log.append(("encode", self.device.type))
        return super().encode(video)


def test_pictures_are_encoded_on_the_device_which_the_codec_then_leaves(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    codec = TravellingCodec(tiny.codec(), torch.device("cpu"), [])
    checkpoint = tiny.checkpoint(codec=codec, window=WINDOW)
    datasets = {"squares": LeRobotDataset.open(folders["squares"])}
    mixture(tiny.stage(), checkpoint, datasets, tmp_path, silent, torch.device("cuda"))
    assert {where for what, where in codec.log if what == "encode"} == {"cuda"}
    assert codec.log[-1] == ("to", "cpu")
    codec.log.clear()
    mixture(tiny.stage(), checkpoint, datasets, tmp_path, silent, torch.device("cuda"))
    assert not any(what == "encode" for what, _ in codec.log)


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


def saved(folder: Path, **changes: Any) -> Path:
    """A checkpoint to start from, whose codec makes one latent of two frames."""
    save(tiny.checkpoint(**changes), folder)
    return folder


def paired(monkeypatch: pytest.MonkeyPatch) -> None:
    """Read the codec of every checkpoint as one that compresses time: what is stored of both is the same."""
    real = checkpoint_module.read_codec
    for module in (checkpoint_module, prepare):
        monkeypatch.setattr(
            module, "read_codec", lambda config, tensors: tiny.PairCodec(real({"kind": "patch_pca"}, tensors))
        )


def test_training_starts_from_a_checkpoint(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = tiny.PairCodec(tiny.codec())
    start = saved(tmp_path / "start", codec=codec, model=tiny.model(seed=3, noisy_padding=True), robots=())
    paired(monkeypatch)
    stage = tiny.stage(sources=sources(squares=Mode.POLICY, other=Mode.VIDEO), batch_size=8)
    robots = (tiny.robot(0), tiny.robot(1))
    recipe = tiny.recipe(stage, start=start, codec=None, text=None, robots=robots, model=tiny.config(), window=WINDOW)
    datasets = open_datasets(recipe, folders)
    made = initial(recipe, datasets, tmp_path / "cache", silent)
    assert made.model.config == tiny.config()
    assert made.codec.digest() == codec.digest()
    assert made.text == tiny.TEXT
    assert [robot.embodiment for robot in made.robots] == list(robots)
    assert (made.window, made.trained["step"], made.digest) == (WINDOW, 0, None)
    before = tiny.weights_of(tiny.model(seed=3))
    changed = {name for name, tensor in tiny.weights_of(made.model).items() if not torch.equal(tensor, before[name])}
    assert changed == {
        f"action_{part}" for part in ("encoder.first.weight", "decoder.last.weight", "decoder.last.bias")
    }
    prepare.require_recipe(made, recipe, tmp_path)
    batch = mixture(stage, made, datasets, tmp_path / "cache", silent).batch(0)
    assert batch.latents.shape == (8, tiny.CHANNELS, 3, 2, 4)
    assert batch.future_valid.shape == (8, 2)
    dataset, robot = datasets["squares"], made.robots[0]
    latents = encoded(dataset, made, tmp_path / "cache")
    frames = np.array([5, 6, 7, 8, 9])
    views = {name: dataset.frames(name, 1, frames) for name in robot.embodiment.cameras.values()}
    direct = codec.encode(torch.from_numpy(robot.picture(views))[None]).numpy()
    cached = latents.window(np.array([14 + 5]), np.array([28]), WINDOW.future_offsets)
    assert np.abs(cached - direct).max() < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": tiny.config(embodiments=1)}, "start: does not fit recipe tiny: embodiments is 2, not 1; change one"),
        ({"model": tiny.config(layers=3, heads=1)}, "layers is 2, not 3; heads is 2, not 1"),
        ({"text": HashedWords(width=12, tokens=7)}, "its text encoder is another"),
        ({"future_as_change": True}, "future_as_change is False"),
    ],
)
def test_a_start_that_does_not_fit_is_refused(
    folders: dict[str, Path], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    start = saved(tmp_path / "start")
    recipe = tiny.recipe(**{"start": start, "codec": None, "text": None, "model": tiny.config(), **changes})
    with pytest.raises(ValueError, match=message) as caught:
        initial(recipe, open_datasets(recipe, folders), tmp_path / "cache", silent)
    assert "\n" not in str(caught.value)


def test_a_start_brings_its_scale_of_change(folders: dict[str, Path], tmp_path: Path) -> None:
    scale = FutureTransform((0.5,) * tiny.CHANNELS)
    start = saved(tmp_path / "start", future=scale)
    recipe = tiny.recipe(start=start, model=tiny.config(), future_as_change=True)  # its codec is not fitted
    assert initial(recipe, open_datasets(recipe, folders), tmp_path / "cache", silent).future == scale


def test_a_future_that_does_not_fill_the_latents_of_the_codec_is_refused(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = saved(tmp_path / "start")
    paired(monkeypatch)
    window = Window(action_horizon=tiny.HORIZON, future_offsets=(1, 2, 3))
    recipe = tiny.recipe(start=start, codec=None, text=None, model=tiny.config(), window=window)
    with pytest.raises(ValueError, match=r"future_offsets are 3 pictures.* choose a multiple of 2"):
        initial(recipe, open_datasets(recipe, folders), tmp_path / "cache", silent)


def test_an_episode_too_short_for_a_latent_is_refused_before_anything_is_encoded(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode_module, "share", None)
    window = Window(action_horizon=tiny.HORIZON, future_offsets=(1, 14))
    checkpoint = tiny.checkpoint(codec=tiny.PairCodec(tiny.codec()), window=window)
    with pytest.raises(ValueError, match="squares: episode 0 has 14 frames, fewer than the 15 of one window"):
        encoded(LeRobotDataset.open(folders["squares"]), checkpoint, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"codec": None}, "recipe tiny has no codec or no text encoder: give a checkpoint to start from"),
        ({"text": None}, "recipe tiny has no codec or no text encoder"),
        ({"model": tiny.config(latent_channels=5)}, "the codec has 6 channels, and the model reads 5"),
        ({"layouts": ()}, "1 robots need as many layouts of one size, not"),
        ({"layouts": (tiny.LAYOUT,) * 2}, "1 robots need as many layouts of one size, not 16 x 32, 16 x 32"),
        (
            {"robots": (tiny.robot(0), tiny.robot(1)), "layouts": (tiny.LAYOUT, t_layout(32, 8, 16))},
            "2 robots need as many layouts of one size, not 16 x 32, 24 x 32",
        ),
        ({"robots": (tiny.robot(0),) * 2}, r"two robots are called \['robot_0', 'robot_0'\]"),
        ({"robots": (tiny.robot(1),)}, "embodiment robot_1 has index 1, the model 1 embodiments"),
        ({"model": tiny.config(action_width=2)}, "embodiment robot_0 has 3 action dimensions, the model is 2 wide"),
        ({"model": tiny.config(state_width=1)}, "embodiment robot_0 has 3 state dimensions, the model is 1 wide"),
        (
            {"robots": (tiny.robot(cameras={"head": "front"}),)},
            r"embodiment robot_0 fills slots \['head'\], its layout has \['head', 'left', 'right'\]",
        ),
    ],
)
def test_a_recipe_whose_parts_do_not_fit_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        tiny.recipe(**changes)
    assert "\n" not in str(caught.value)


def test_every_robot_has_its_layout(folders: dict[str, Path], tmp_path: Path) -> None:
    robots = (tiny.robot(0), tiny.robot(1, cameras={"a": "front", "b": "wrist_left", "c": "wrist_right"}))
    layouts = (t_layout(48, 16, 8), layout_of(robots[1], 24, 48))
    both = sources(squares=Mode.POLICY, other=Mode.POLICY)
    recipe = tiny.recipe(tiny.stage(sources=both), robots=robots, layouts=layouts, model=tiny.config())
    made = initial(recipe, open_datasets(recipe, folders), tmp_path, silent)
    assert tuple(robot.layout for robot in made.robots) == layouts
    prepare.require_recipe(made, recipe, tmp_path)
    other = replace(recipe, layouts=(t_layout(48, 8, 16), layouts[1]))
    with pytest.raises(ValueError, match="has not the view layouts of recipe tiny"):
        prepare.require_recipe(made, other, tmp_path)
    folder = {name: encoded(LeRobotDataset.open(folders[name]), made, tmp_path).folder for name in ("squares", "other")}
    assert len(set(folder.values())) == 2
