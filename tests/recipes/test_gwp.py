"""The fine-tuning presets, on the path of the full size: official folder -> import -> two datasets -> train -> act."""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import tiny
import tiny_official
import torch
from v21_files import write_v2

from actwam import cli
from actwam.checkpoint import Setup, load, newest
from actwam.convert import import_model
from actwam.data.embodiment import Embodiment, read_robot
from actwam.data.episode import Episode
from actwam.data.loader import Window
from actwam.data.transforms import FutureTransform
from actwam.data.writer import DatasetWriter
from actwam.objective import ObjectiveConfig
from actwam.policy import Policy
from actwam.recipes import gwp
from actwam.sampler import Sampling
from actwam.tokens import ACTION_CENTERED
from actwam.types import Group

EXAMPLES = Path(__file__).parents[2] / "examples" / "robots"
SIZES = ["--options", "steps", 2, "batch_size", 4, "action_horizon", 8, "height", 64, "width", 96]


def episodes(robot: Embodiment, count: int) -> list[Episode]:
    """Smooth motions of 20 steps, at 1.5 radians and more from each other, before a moving bar."""
    made = []
    for number in range(count):
        time = np.arange(20)[:, None] * 0.2 + number
        state = np.sin(time + np.arange(len(robot.state_names))).astype(np.float32)
        action = np.sin(time + 0.2 + np.arange(len(robot.action_names))).astype(np.float32)
        images = {}
        for view, camera in enumerate(robot.cameras.values()):
            frames = np.full((20, *robot.image_size, 3), 40 * view, np.uint8)
            for t in range(20):
                frames[t, :, 2 * t : 2 * t + 8] = 200
            images[camera] = frames
        made.append(Episode(images, state, action, ("open the drawer", "close the door")[number % 2], number))
    return made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A robot of six dimensions in LeRobot v3.0, another of four, with its own projectors, in v2.1."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "a").mkdir()
    (folder / "b").mkdir()
    first = tiny_official.robot_file(folder / "a")
    names = list(tiny_official.NAMES[:4])
    second = tiny_official.robot_file(
        folder / "b", name="one_arm", index=1, state=names, action=names, delta=names[:2]
    )  # fmt: skip
    robot = read_robot(first)
    with DatasetWriter(folder / "v30", robot) as writer:
        for episode in episodes(robot, 3):
            writer.add_episode(episode)
    write_v2(folder / "v21", read_robot(second), episodes(read_robot(second), 2))
    return {"robot_a": first, "robot_b": second, "v30": folder / "v30", "v21": folder / "v21"}


@pytest.fixture(scope="module", params=["gwp0", "gwp05"])
def start(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    source = tiny_official.pipeline(folder / "official", request.param)
    config = replace(tiny_official.import_config(folder), robots=(), norm_stats=())
    import_model(str(source), folder / request.param, config)
    return folder / request.param


def train(start: Path, data: dict[str, Path], out: Path, monkeypatch: pytest.MonkeyPatch, *options: object) -> Path:
    """`actwam train`, as a user types it."""
    words = ["actwam", "train", f"gwp.{start.name}", "--start", start, "--robots", data["robot_a"], data["robot_b"]]
    words += ["--data", "a", data["v30"], "b", data["v21"], "--out", out, *SIZES, *options]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    assert exit_.value.code == 0
    return out / "1-finetune"


@pytest.mark.parametrize("values", ["paper", "released"])
def test_a_preset_trains_and_acts(
    values: str, start: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = train(start, data, tmp_path / "run", monkeypatch, "values", values)
    before, after = load(start), load(run)
    assert after.trained["step"] == 2
    assert [robot.embodiment.name for robot in after.robots] == [tiny_official.ROBOT, "one_arm"]
    assert after.codec.digest() == before.codec.digest()
    assert not after.model.config.noisy_padding
    moved = [
        name for name, tensor in after.model.state_dict().items()
        if not torch.equal(tensor, before.model.state_dict()[name])
    ]  # fmt: skip
    assert len(moved) == len(after.model.state_dict()), "a preset trains every weight"
    for robot, width in ((tiny_official.ROBOT, 6), ("one_arm", 4)):
        policy = Policy.load(run, robot=robot)
        seen = tiny_official.observation()
        chunk = policy.act(replace(seen, state=seen.state[:width]))
        assert chunk.actions.shape == (8, width)
        assert np.isfinite(chunk.actions).all()


def test_padding_stays_silent_through_training(
    start: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an export acts the same under the official inference, which puts noise there."""
    model = load(train(start, data, tmp_path / "run", monkeypatch)).model
    for index, width in ((0, 6), (1, 4)):
        assert not model.action_encoder.first.weight[index, width:].any()
        assert model.action_encoder.first.weight[index, :width].any()
        assert not model.action_decoder.last.weight[index, :, width:].any()
        assert not model.action_decoder.last.bias[index, width:].any()


@pytest.mark.parametrize("tune", ["low_memory", "action_expert", "lora"])
def test_the_ways_to_save_memory(
    tune: str, start: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if start.name == "gwp0":
        pytest.skip("one expert has no action expert to train alone; the others do not depend on the model")
    run = train(start, data, tmp_path / "run", monkeypatch, "tune", tune)
    before, after = load(start).model, load(run).model
    moved = {
        name
        for name, tensor in after.state_dict().items()
        if not torch.equal(tensor.bfloat16(), before.state_dict()[name].bfloat16())  # frozen weights are kept so
    }
    visual = {name for name in before.state_dict() if ".experts.1." in name or name.startswith("experts.1.")}
    if tune == "action_expert":
        assert moved
        assert not moved & visual
    elif tune == "lora":
        assert any(name.endswith("qkv.weight") for name in moved)
        assert not any(name.endswith("table") for name in moved)
    assert after.config == replace(before.config, noisy_padding=False)
    Policy.load(run, robot="one_arm")


def test_resuming_a_fine_tuning(
    start: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished run that is resumed does nothing, and needs neither encoder nor video again."""
    run = train(start, data, tmp_path / "run", monkeypatch)
    checkpoint = newest(run)
    before = (checkpoint / "manifest.json").read_bytes()
    train(start, data, tmp_path / "run", monkeypatch, "--resume")
    assert newest(run) == checkpoint
    assert (checkpoint / "manifest.json").read_bytes() == before


def test_as_many_embodiments_as_robots_need(start: Path, data: dict[str, Path], tmp_path: Path) -> None:
    there, first = load(start).model.config.embodiments, read_robot(data["robot_a"])
    experts: Any = 1 if start.name == "gwp0" else 2
    for index, embodiments in ((there - 1, there), (there, there + 1)):
        made = gwp.finetune(experts=experts, start=start, robots=[replace(first, index=index)])
        assert made.model.embodiments == embodiments
    with pytest.raises(ValueError, match="leaves rows unused"):
        gwp.finetune(experts=experts, start=start, robots=[replace(first, index=there + 1)])


def test_a_robot_keeps_the_statistics_of_its_publisher(
    start: Path, data: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless the recipe says otherwise; and another robot cannot take its index by mistake."""
    source = tiny_official.pipeline(tmp_path / "official", start.name)
    published = tmp_path / start.name
    import_model(str(source), published, tiny_official.import_config(tmp_path))
    words = ("actwam", "train", f"gwp.{start.name}", "--start", published, "--robots", data["robot_a"])
    for out, options in (("kept", ()), ("refit", ("refit", tiny_official.ROBOT))):
        line = [*words, "--data", "a", data["v30"], "--out", tmp_path / out, *SIZES, *options]
        monkeypatch.setattr(sys, "argv", [str(word) for word in line])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        assert exit_.value.code == 0
    before, kept, refit = (load(folder).robot() for folder in (published, tmp_path / "kept", tmp_path / "refit"))
    assert kept.norm_stats() == before.norm_stats() != refit.norm_stats()
    experts: Any = 1 if start.name == "gwp0" else 2
    other = replace(read_robot(data["robot_a"]), name="other")
    with pytest.raises(ValueError, match=f"that of robot {tiny_official.ROBOT} there.* give other index 1"):
        gwp.finetune(experts=experts, start=published, robots=[other])
    assert gwp.finetune(experts=experts, start=published, robots=[other], drop=(tiny_official.ROBOT,)).robots == (
        other,
    )


def test_the_values(start: Path) -> None:
    robot = read_robot(EXAMPLES / "piper_dual.yaml")
    with pytest.raises(ValueError, match="has 14 state dimensions, the model is 8 wide"):
        gwp.finetune(experts=1 if start.name == "gwp0" else 2, start=start, robots=[robot])
    other: Any = 2 if start.name == "gwp0" else 1
    with pytest.raises(ValueError, match=rf"has {3 - other} experts, this recipe is for {other}"):
        gwp.finetune(experts=other, start=start, robots=[robot])


def official(experts: Literal[1, 2], start: Path) -> Setup:
    """Stands for reading what an imported checkpoint says of itself."""
    return Setup(
        model=gwp.official_size(experts),
        text=tiny.TEXT,
        table=ACTION_CENTERED,
        robots=(),
        window=Window(action_horizon=48, future_offsets=(48,)),
        sampling=gwp.sampling(experts),
        future=FutureTransform(),
        trained={"imported": "gwp0" if experts == 1 else "gwp05"},
    )


TRAINING = {
    (1, "paper"): gwp.Training(
        objective=ObjectiveConfig(action_weight=5.0, future_weight=1.0, action_shift=1.0, future_shift=1.0),
        steps=50_000,
        batch_size=256,
        learning_rate=1e-4,
        final_learning_rate=1e-6,
        betas=(0.9, 0.95),
        ema_decay=0.999,
        grad_clip=1.0,
    ),
    (1, "released"): gwp.Training(
        objective=ObjectiveConfig(
            action_weight=1.0, future_weight=0.5, action_shift=5.0, future_shift=5.0, shared_sigma=True
        ),
        steps=50_000,
        batch_size=128,
        learning_rate=6e-5,
        final_learning_rate=6e-5,
        betas=(0.9, 0.999),
        ema_decay=0.9999,
        grad_clip=None,
    ),
    (2, "paper"): gwp.Training(
        objective=ObjectiveConfig(action_weight=5.0, future_weight=1.0, action_shift=5.0, future_shift=2.0),
        steps=30_000,
        batch_size=16,
        learning_rate=6e-5,
        final_learning_rate=6e-5,
        betas=(0.9, 0.95),
        ema_decay=0.999,
        grad_clip=1.0,
    ),
    (2, "released"): gwp.Training(
        objective=ObjectiveConfig(action_weight=1.0, future_weight=0.5, action_shift=5.0, future_shift=2.0),
        steps=50_000,
        batch_size=128,
        learning_rate=6e-5,
        final_learning_rate=6e-5,
        betas=(0.9, 0.999),
        ema_decay=0.9999,
        grad_clip=None,
    ),
}
SAMPLING = {
    1: Sampling(num_steps=10, action_shift=5.0, future_shift=5.0, schedule="diffusers"),
    2: Sampling(num_steps=10, action_shift=5.0, future_shift=2.0, schedule="diffusers"),
}


def test_the_values_of_papers_and_released_code() -> None:
    """Written out once more: who changes a number changes it here too, with its source."""
    assert gwp.TRAINING == TRAINING
    assert {experts: gwp.sampling(experts) for experts in SAMPLING} == SAMPLING


def test_the_full_size_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both presets of both models for a real robot, with the numbers of the paper and of the code."""
    robots = [read_robot(EXAMPLES / name) for name in ("piper_dual.yaml",)]
    for experts in (1, 2):
        monkeypatch.setattr(gwp, "read_setup", partial(official, experts))
        made = {
            v: gwp.finetune(experts=experts, start=Path("x"), robots=robots, values=v) for v in ("paper", "released")
        }
        for values, recipe in made.items():
            assert recipe.window.future_offsets == (12, 24, 36, 48)
            assert recipe.window.action_horizon == 48
            assert (recipe.layouts[0].height, recipe.layouts[0].width) == (384, 320)
            assert recipe.layouts[0].resample == "bilinear"
            assert recipe.normalize == "quantile"
            assert recipe.sampling == SAMPLING[experts]
            (stage,) = recipe.stages
            for name, value in vars(TRAINING[experts, values]).items():
                assert getattr(stage, name) == value, (experts, values, name)
            assert (stage.warmup_steps, stage.weight_decay) == (500 if values == "paper" else 0, 0.01)
    frozen = gwp.finetune(experts=2, start=Path("x"), robots=robots, tune="action_expert").stages[0]
    assert set(frozen.freeze) == {Group.HISTORY, Group.OBSERVATION, Group.FUTURE}
