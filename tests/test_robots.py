"""Several robots in one model, and one more in a trained model: from the command line to the error of its actions."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import yaml

from actwam import cli
from actwam.checkpoint import Checkpoint, load, save
from actwam.data.dataset import LeRobotDataset
from actwam.data.embodiment import Embodiment, read_robot
from actwam.data.episode import Episode
from actwam.data.transforms import layout_of
from actwam.data.writer import DatasetWriter
from actwam.model.config import two_experts
from actwam.objective import add_noise
from actwam.policy import Policy
from actwam.recipes.robots import add
from actwam.train import prepare
from actwam.train.config import Recipe, SourceConfig
from actwam.train.datasets import open_datasets
from actwam.train.encode import mixture
from actwam.train.step import forward_losses
from actwam.types import Group, Mode, Observation

OLD = tiny.robot(0)
NEW = Embodiment(
    name="newcomer",
    index=1,
    fps=15,
    cameras={"top": "cam_a", "side": "cam_b"},
    image_size=(24, 40),
    state_names=("shoulder", "elbow"),
    action_names=("shoulder", "elbow"),
    delta_mask=(True, False),
)
SIZES = tiny.config(two_experts((48, 96), (32, 64)), layers=1)
TRAINING = {
    "batch_size": 32,
    "learning_rate": 1e-2,
    "final_learning_rate": 1e-4,
    "warmup_steps": 10,
    "ema_decay": 0.98,
    "log_every": 100,
    "checkpoint_every": 1000,
}


def write(folder: Path, robot: Embodiment, numbers: Sequence[int], length: int = 20) -> Path:
    """Smooth motions of squares. The next action follows from the state, by another rule for every robot."""
    with DatasetWriter(folder, robot) as writer:
        for number in numbers:
            phase = np.arange(length)[:, None] * 0.4 + 1.3 * number
            sign = 1 if robot.index == 0 else -1
            state = sign * np.sin(phase + (1 + robot.index) * np.arange(len(robot.state_names)))
            action = np.sin(phase + 0.4 + np.arange(len(robot.action_names)))
            images = {
                camera: tiny.squares(*robot.image_size, length, 10 * number + i)
                for i, camera in enumerate(robot.cameras.values())
            }
            sentence = tiny.INSTRUCTIONS[number % 3]
            writer.add_episode(
                Episode(images, state.astype(np.float32), action.astype(np.float32), sentence, seed=number)
            )
    return folder


def silent(what: str, done: int, total: int) -> None:
    pass


def error(run: Path, robot: Embodiment, folder: Path) -> float:
    """Mean distance of the actions of a policy from those of held-out episodes, in the robot's units."""
    policy, dataset = Policy.load(run, robot=robot.name), LeRobotDataset.open(folder)
    seen, wanted = [], []
    for episode in dataset.episodes:
        for frame in range(0, episode.length - tiny.HORIZON, 3):
            images = {
                camera: dataset.frames(camera, episode.index, np.array([frame]))[0] for camera in robot.cameras.values()
            }
            row = episode.start + frame
            seen.append(Observation(images, dataset.state[row], episode.instruction))
            wanted.append(dataset.action[row : row + tiny.HORIZON])
    chunks, _ = policy.act_batch(seen, range(len(seen)))
    return float(np.abs(np.stack([chunk.actions for chunk in chunks]) - np.stack(wanted)).mean())


def base(steps: int = 160) -> Recipe:
    """One robot; a recipe that the command line finds."""
    stage = tiny.stage(sources=(SourceConfig(dataset="old", mode=Mode.POLICY),), steps=steps, **TRAINING)
    return tiny.recipe(stage, robots=(OLD,), model=replace(SIZES, embodiments=1))


@dataclass(frozen=True)
class Place:
    """Folders of datasets by name, the YAML file of the new robot, and where runs and latents go."""

    root: Path
    robot: Path

    def folder(self, name: str) -> Path:
        return self.root / "data" / name

    def train(self, recipe: str, out: str, *words: object, data: Sequence[str]) -> Path:
        """`actwam train`, as a user types it, on the datasets called so, as NAME or as NAME=FOLDER."""
        line = ["actwam", "train", recipe, "--out", self.root / out, "--cache", self.root / "cache", *words, "--data"]
        for name in data:
            called, _, folder = name.partition("=")
            line += [called, self.folder(folder or called)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(word) for word in line])
            with pytest.raises(SystemExit) as exit_:
                cli.main()
        assert exit_.value.code == 0
        return self.root / out


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    root = tmp_path_factory.mktemp("robots")
    (root / "data").mkdir()
    yaml_file = root / "new.yaml"
    fields = {
        "name": NEW.name,
        "index": NEW.index,
        "fps": NEW.fps,
        "image_size": list(NEW.image_size),
        "cameras": NEW.cameras,
        "state": list(NEW.state_names),
        "action": list(NEW.action_names),
        "delta": ["shoulder"],
    }
    yaml_file.write_text(yaml.safe_dump(fields))
    made = Place(root, yaml_file)
    for name, robot, numbers in (
        ("old", OLD, range(6)),
        ("old_held", OLD, range(20, 23)),
        ("new", NEW, range(2)),
        ("new_held", NEW, range(20, 23)),
        ("film", NEW, range(30, 36)),
    ):
        write(made.folder(name), robot, numbers)
    return made


@pytest.fixture(scope="module")
def start(place: Place) -> Path:
    return place.train("test_robots:base", "base", data=["old"]) / "1-align"


STEPS = ("steps", 80, "video_steps", 50)


@pytest.fixture(scope="module")
def added(place: Place, start: Path) -> Path:
    """The new robot, by video and two demonstrations, while the old one is replayed."""
    words = ("--start", start, "--robots", place.robot, "--options", *STEPS)
    return place.train("robots.add", "added", *words, data=["demos=new", "video=film", "replay=old"])


def test_a_robot_is_added_and_the_old_one_not_forgotten(place: Place, start: Path, added: Path) -> None:
    """Replay keeps the old robot's error on held-out episodes within one and a half times what it was. Without, the
    weights that robots share forget it within the same number of steps, though its own rows are untouched.
    """
    old, new = place.folder("old_held"), place.folder("new_held")
    before, folder = error(start, OLD, old), added / "2-align"
    assert error(folder, OLD, old) < 1.5 * before
    assert error(folder, NEW, new) < 0.4 < 1 < error(added / "1-video", NEW, new)  # no better than a guess before
    words = ("--start", start, "--robots", place.robot, "--options", *STEPS)
    forgetful = place.train("robots.add", "forgetful", *words, data=["demos=new"]) / "1-align"
    assert error(forgetful, NEW, new) < 0.4
    assert error(forgetful, OLD, old) > 4 * before
    rows = [load(each).model.action_decoder.last.weight[0] for each in (start, forgetful)]
    assert torch.equal(*rows)


def test_every_robot_acts_with_its_own_transform(place: Place, added: Path) -> None:
    for robot, name in ((OLD, "old_held"), (NEW, "new_held")):
        policy, dataset = Policy.load(added, robot=robot.name), LeRobotDataset.open(place.folder(name))
        assert policy.robot.embodiment == robot
        assert (policy.robot.layout.height, policy.robot.layout.width) == (tiny.LAYOUT.height, tiny.LAYOUT.width)
        images = {camera: dataset.frames(camera, 0, np.array([0]))[0] for camera in robot.cameras.values()}
        observation = Observation(images, dataset.state[0], tiny.INSTRUCTIONS[0])
        assert policy.act(observation).actions.shape == (tiny.HORIZON, len(robot.action_names))
        other = Policy.load(added, robot=(NEW if robot is OLD else OLD).name)
        with pytest.raises(ValueError, match=f"embodiment {other.robot.embodiment.name} has cameras|state must be"):
            other.act(observation)
    with pytest.raises(ValueError, match="this checkpoint was trained on newcomer, robot_0; name one of them"):
        Policy.load(added)


def test_the_embodiment_changes_the_action(place: Place, added: Path) -> None:
    policy = Policy.load(added, robot=OLD.name)
    as_the_other = replace(policy, robot=replace(policy.robot, embodiment=replace(OLD, index=NEW.index)))
    first, second = (each.act(tiny.observation()).actions for each in (policy, as_the_other))
    assert np.abs(first - second).max() > 0.1


def test_robots_share_a_batch_by_weight(place: Place) -> None:
    """Each with its own widths, statistics and pictures."""
    sources = (
        SourceConfig(dataset="old", mode=Mode.POLICY, weight=3.0),
        SourceConfig(dataset="new", mode=Mode.POLICY, weight=1.0),
    )
    stage = tiny.stage(sources=sources, batch_size=32)
    made = tiny.recipe(
        stage,
        robots=(OLD, NEW),
        layouts=(tiny.LAYOUT, layout_of(NEW, tiny.LAYOUT.height, tiny.LAYOUT.width)),
        model=SIZES,
    )
    datasets = open_datasets(made, {name: place.folder(name) for name in ("old", "new")})
    checkpoint = prepare.initial(made, datasets, place.root / "cache", silent)
    batches = mixture(stage, checkpoint, datasets, place.root / "cache", silent)
    several = [batches.batch(step) for step in range(20)]
    share = np.mean([float((batch.embodiment == NEW.index).float().mean()) for batch in several])
    assert share == pytest.approx(0.25, abs=0.05)
    for batch in several:
        new = batch.embodiment == NEW.index
        assert batch.latents.shape[1:] == (tiny.CHANNELS, 1 + len(tiny.OFFSETS), 2, 4)
        assert not batch.action_valid[new, :, 2].any()
        assert not batch.state[new, 2].any()
        assert batch.action_valid[~new, 0].all()
    # the numbers of either robot fill its own range, though those of the new one are differences in one dimension
    for index, width in ((0, 3), (1, 2)):
        chosen = torch.cat([batch.state[batch.embodiment == index, :width] for batch in several])
        assert chosen.abs().amax(0).tolist() == pytest.approx([1.0] * width, abs=0.1)


def video_loss(checkpoint: Checkpoint, recipe: Recipe, place: Place, name: str) -> float:
    """Loss on the future of a dataset that the recipe calls `video`."""
    source = next(source for source in recipe.stages[0].sources if source.mode is Mode.VIDEO)
    stage = replace(recipe.stages[0], sources=(source,), batch_size=64)
    datasets = open_datasets(replace(recipe, stages=(stage,)), {"video": place.folder(name)})
    batch = mixture(stage, checkpoint, datasets, place.root / "cache", silent).batch(0)
    noisy = add_noise(batch, stage.objective, tiny.draws(0, batch)).without_absent()
    lesson = tiny.lesson(noisy, batch, checkpoint.text)
    with torch.no_grad():
        parts = forward_losses(stage, checkpoint.model, checkpoint.table, lesson, None)
    return float(parts["loss_future"])


def test_video_alone_teaches_what_a_robot_looks_like(place: Place, start: Path) -> None:
    """No state and no action of it is known: its cameras are lent by its file, and it is no robot of the checkpoint."""
    words = ("--start", start, "--robots", place.robot, "--options", *STEPS)
    run = place.train("robots.add", "watched", *words, data=["video=film"])
    made = add(start=start, robots=[read_robot(place.robot)], datasets=["video"])
    before, after = (video_loss(load(each), made, place, "new_held") for each in (start, run))
    assert after < 0.9 * before
    assert [robot.embodiment for robot in load(run).robots] == [OLD]
    acting = place.train(
        "robots.add", "acting", "--start", run, "--robots", place.robot, "--options", "steps", 2, data=["demos=new"]
    )
    assert [robot.embodiment for robot in load(acting).robots] == [NEW, OLD]


def test_a_folder_of_video_files_needs_no_robot(place: Place, start: Path) -> None:
    files = sorted(place.folder("film").rglob("*cam_a/**/*.mp4"))
    clips = place.folder("clips")
    clips.mkdir()
    for i, file in enumerate(files):
        (clips / f"{i}.mp4").write_bytes(file.read_bytes())
    (clips / "caption.txt").write_text(tiny.INSTRUCTIONS[0])
    words = ("--start", start, "--options", "video_steps", 2)
    run = place.train("robots.add", "clips", *words, data=["video_web=clips"])
    assert load(run).trained["step"] == 2


def test_what_is_not_asked_for_stays_as_the_start_was_trained(start: Path) -> None:
    made, before = add(start=start, robots=[NEW]), base().stages[0]
    (stage,) = made.stages
    for name in ("batch_size", "learning_rate", "betas", "grad_clip", "ema_decay", "objective", "precision"):
        assert getattr(stage, name) == getattr(before, name), name
    assert made.model == SIZES
    assert (made.window, made.sampling, made.table) == (base().window, base().sampling, base().table)
    assert made.robots == (NEW, OLD)
    watched = add(start=start, robots=[NEW], datasets=["demos_a", "demos_b", "video", "replay"], replay_weight=0.5)
    assert [(s.dataset, s.mode, s.weight) for s in watched.stages[0].sources] == [
        ("video", Mode.VIDEO, 1.0),
        ("replay", Mode.POLICY, 0.5),
    ]
    assert [(s.dataset, s.weight) for s in watched.stages[1].sources] == [
        ("demos_a", 1.0),
        ("demos_b", 1.0),
        ("replay", 0.5),
    ]
    seen = replace(NEW, cameras=OLD.cameras)
    assert add(start=start, robots=[seen]).layouts[0] == tiny.LAYOUT
    frozen = add(start=start, robots=[NEW], tune="action_expert").stages[0]
    assert set(frozen.freeze) == {Group.HISTORY, Group.OBSERVATION, Group.FUTURE}
    assert frozen.frozen_weights == "fp32"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"datasets": ["towels"]}, "recipe robots.add has no use for dataset towels: names begin with demos, video"),
        ({"datasets": ["replay"]}, "recipe robots.add needs something new to learn from"),
        ({"robots": []}, "recipe robots.add needs --robots: whose demonstrations are these?"),
        ({"robots": [replace(NEW, index=0)]}, "index 0 of embodiment newcomer is that of robot robot_0 there"),
        ({"robots": [replace(NEW, index=4)]}, "leaves rows unused: take 1"),
        ({"robots": [NEW, replace(NEW, name="b", index=2)], "datasets": ["video"]}, "is of one robot at a time"),
        ({"robots": [replace(NEW, state_names=tuple("abcd"))]}, "has 4 state dimensions, the model is 3 wide"),
        ({"datasets": ["demos", "video"], "tune": "action_expert"}, "video teaches the visual expert"),
        ({"start": Path("nowhere")}, "nowhere: no checkpoint here"),
    ],
)
def test_what_cannot_be_added_is_one_line(start: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as raised:
        add(**{"start": start, "robots": [NEW], **changes})
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"trained": {"imported": "gwp05"}}, "was imported, not trained here: fine-tune it with gwp.gwp0 or gwp.gwp05"),
        ({"trained": {"config": {"objective": {"colour": 1}}}}, "does not fit this version"),
        ({"robots": (), "trained": tiny.checkpoint().trained}, "was imported|has no robot"),
    ],
)
def test_a_start_that_does_not_say_enough_is_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    save(tiny.checkpoint(**changes), tmp_path / "start")
    with pytest.raises(ValueError, match=said):
        add(start=tmp_path / "start", robots=[replace(NEW, index=2)])
