"""A robot added to a trained model: how its projectors begin, and what becomes of the robot that was there.

    python benchmarks/new_robot.py [OUT.json]

Two robots watch moving squares while their joints swing; the next action follows from the state by a rule of their own.
A model of both learns a third from two episodes: one that moves as the first does, one whose joints come in another
order and with other signs, one that has nothing to do with it. The error is the mean distance of actions from those of
held-out episodes, in the robot's units, whose motions reach from -1 to 1.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actwam.checkpoint import Checkpoint, save
from actwam.data.dataset import LeRobotDataset
from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.loader import Window
from actwam.data.transforms import t_layout
from actwam.data.writer import DatasetWriter
from actwam.model.config import TransformerConfig, two_experts
from actwam.model.projectors import EmbodimentLinear
from actwam.model.text import HashedWords
from actwam.objective import ObjectiveConfig
from actwam.policy import Policy
from actwam.provenance import provenance
from actwam.recipes.robots import add
from actwam.sampler import Sampling
from actwam.tokens import ACTION_CENTERED
from actwam.train.config import CodecConfig, Recipe, SourceConfig, StageConfig
from actwam.train.datasets import open_datasets
from actwam.train.loop import Run, train
from actwam.train.prepare import initial
from actwam.types import Mode, Observation

SEEDS = (0, 1, 2)
BASE_STEPS, STEPS, REPLAY_STEPS = 300, (30, 120), 120
HORIZON, LENGTH = 4, 20
CAMERAS = {"head": "front", "left": "wrist_left", "right": "wrist_right"}
MEMORIES: Mapping[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "all weights": ({}, ("demos",)),
    "action expert": ({"tune": "action_expert"}, ("demos",)),
    "all weights, a third of the rate": ({"learning_rate": 3e-3}, ("demos",)),
    "all weights, replay": ({}, ("demos", "replay")),
}
"""Options of the recipe, and its datasets."""


@dataclass(frozen=True)
class Motion:
    """State sin(speed * t + spread * i), action sin(speed * t + ahead + width * i), both times `signs`, of the joints i
    in this order.
    """

    joints: tuple[int, ...] = (0, 1, 2)
    signs: tuple[int, ...] = (1, 1, 1)
    speed: float = 1.0
    spread: float = 1.0
    ahead: float = 0.4
    width: float = 1.0


KNOWN = (Motion(), Motion(speed=0.8, spread=2.0, ahead=-1.2, width=1.5))
NEW = {
    "like the first": Motion(),
    "joints in another order": Motion((2, 0, 1), (-1, 1, -1)),
    "another": Motion(speed=1.7, spread=0.6, ahead=-0.9, width=2.1),
}


def robot(name: str, index: int) -> Embodiment:
    joints = ("one", "two", "three")
    return Embodiment(
        name=name,
        index=index,
        fps=10,
        cameras=CAMERAS,
        image_size=(32, 48),
        state_names=joints,
        action_names=joints,
        delta_mask=(False,) * 3,
    )


def episode(number: int, motion: Motion) -> Episode:
    random, joints = np.random.default_rng(number), np.array(motion.joints)
    time = motion.speed * 0.4 * np.arange(LENGTH)[:, None] + 1.3 * number
    state = motion.signs * np.sin(time + motion.spread * joints)
    action = motion.signs * np.sin(time + motion.ahead + motion.width * joints)
    images = {}
    for camera in CAMERAS.values():
        images[camera] = np.full((LENGTH, 32, 48, 3), 60, np.uint8)
        top, colour = int(random.integers(22)), random.integers(90, 255, 3)
        for t in range(LENGTH):
            images[camera][t, top : top + 10, 3 * t % 38 : 3 * t % 38 + 10] = colour
    return Episode(images, state.astype(np.float32), action.astype(np.float32), "move the square", seed=number)


def write(folder: Path, owner: Embodiment, motion: Motion, numbers: Sequence[int]) -> Path:
    with DatasetWriter(folder, owner) as writer:
        for number in numbers:
            writer.add_episode(episode(number, motion))
    return folder


def base(seed: int) -> Recipe:
    """Both known robots."""
    text = HashedWords(width=12, tokens=6)
    return Recipe(
        name="known",
        robots=(robot("first", 0), robot("second", 1)),
        model=TransformerConfig(
            layers=2,
            heads=2,
            head_width=12,
            experts=two_experts((48, 96), (32, 64)),
            latent_channels=6,
            patch=(1, 1),
            text_width=text.width,
            text_tokens=text.tokens,
            state_width=3,
            action_width=3,
            embodiments=2,
            projector_widths=(8, 12),
        ),
        table=ACTION_CENTERED,
        codec=CodecConfig(patch=8, channels=6),
        text=text,
        layouts=(t_layout(32, 8, 8),) * 2,
        window=Window(action_horizon=HORIZON, future_offsets=(2, 4)),
        sampling=Sampling(num_steps=3, action_shift=5.0, future_shift=2.0),
        stages=(
            StageConfig(
                name="base",
                sources=tuple(SourceConfig(dataset=name, mode=Mode.POLICY) for name in ("first", "second")),
                steps=BASE_STEPS,
                batch_size=32,
                learning_rate=1e-2,
                final_learning_rate=1e-4,
                warmup_steps=10,
                ema_decay=0.98,
                objective=ObjectiveConfig(),
                precision="fp32",
                seed=seed,
                checkpoint_every=BASE_STEPS,
            ),
        ),
    )


def error(run: Path, name: str, folder: Path) -> float:
    """Mean distance of a policy's actions from those of the episodes in `folder`."""
    policy, dataset = Policy.load(run, robot=name), LeRobotDataset.open(folder)
    found = []
    for episode in dataset.episodes:
        for frame in range(0, LENGTH - HORIZON, 3):
            images = {
                camera: dataset.frames(camera, episode.index, np.array([frame]))[0] for camera in CAMERAS.values()
            }
            row = episode.start + frame
            chunk = policy.act(Observation(images, dataset.state[row], episode.instruction), seed=row)
            found.append(np.abs(chunk.actions - dataset.action[row : row + HORIZON]).mean())
    return float(np.mean(found))


@torch.no_grad()
def begin(made: Checkpoint, how: str) -> None:
    """Projectors of the third robot: as the recipe makes them, as the mean of the others, or as a new model's."""
    for name, layer in made.model.named_modules():
        if isinstance(layer, EmbodimentLinear) and how != "copy of the first":
            weight, bias = layer.weight[:2].mean(0), layer.bias[:2].mean(0)
            if how == "fresh":
                new = EmbodimentLinear(1, *layer.weight.shape[1:])
                scale = 0.0 if name == "action_decoder.last" else 1.0
                weight, bias = scale * new.weight[0], scale * new.bias[0]
            layer.weight[2], layer.bias[2] = weight, bias


def trained(recipe: Recipe, data: Mapping[str, Path], out: Path) -> Path:
    return train(recipe, data, Run(out=out, cache=out.parent / "cache"))


def beginnings(root: Path, starts: Sequence[Path]) -> dict[str, Any]:
    """Held-out error of the new robot, by what it is, how its projectors begin, and steps: one number for each seed."""
    results: dict[str, Any] = {}
    for kind in NEW:
        newcomer, data = robot(kind, 2), {"demos": root / kind}
        for how in ("copy of the first", "mean of all", "fresh"):
            for steps in STEPS:
                errors = []
                for seed, start in zip(SEEDS, starts, strict=True):
                    made = add(start=start, robots=[newcomer], steps=steps, learning_rate=3e-3, seed=seed)
                    begun = initial(made, open_datasets(made, data), root / "cache", lambda *_: None)
                    torch.manual_seed(seed)
                    begin(begun, how)
                    folder = root / f"{kind} {how} {steps} {seed}"
                    save(replace(begun, trained={"imported": "begun"}), folder)
                    run = trained(replace(made, start=folder), data, root / f"run {folder.name}")
                    errors.append(error(run, kind, root / f"{kind} held"))
                results[f"{kind}, {how}, {steps} steps"] = errors
                print(f"{kind}, {how}, {steps} steps: {statistics.mean(errors):.3f}", flush=True)
    return results


def forgetting(root: Path, starts: Sequence[Path]) -> dict[str, Any]:
    """Held-out errors of the new robot and of the first one, for each seed."""
    kind, results = "joints in another order", {}
    for what, (options, names) in MEMORIES.items():
        pairs = []
        for seed, start in zip(SEEDS, starts, strict=True):
            made = add(start=start, robots=[robot(kind, 2)], datasets=names, steps=REPLAY_STEPS, seed=seed, **options)
            run = trained(made, {"demos": root / kind, "replay": root / "first"}, root / f"{what} {seed}")
            pairs.append([error(run, name, root / f"{name} held") for name in (kind, "first")])
        results[what] = pairs
        new, old = (statistics.mean(column) for column in zip(*pairs, strict=True))
        print(f"{what}: the new robot {new:.3f}, the old one {old:.3f}", flush=True)
    return results


def main() -> None:
    torch.set_num_threads(1)  # so small a model gains nothing from more
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        everyone = {"first": (0, KNOWN[0], 6), "second": (1, KNOWN[1], 6)}
        everyone |= {kind: (2, motion, 2) for kind, motion in NEW.items()}
        for owner, (index, motion, count) in everyone.items():
            made = robot(owner, index)
            write(root / owner, made, motion, range(count))
            write(root / f"{owner} held", made, motion, range(20, 23))
        data = {name: root / name for name in ("first", "second")}
        starts = [trained(base(seed), data, root / f"base {seed}") for seed in SEEDS]
        before = [error(start, "first", root / "first held") for start in starts]
        print(f"the first robot before: {statistics.mean(before):.3f}", flush=True)
        results = {"before": before, "beginnings": beginnings(root, starts), "forgetting": forgetting(root, starts)}
    if len(sys.argv) > 1:
        report = {"provenance": provenance(), "seeds": SEEDS, **results}
        Path(sys.argv[1]).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
