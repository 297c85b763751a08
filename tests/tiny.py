"""A system small enough for every test: two robots, a model of two layers, latents of 2 x 4, moving squares.

All of it is deterministic.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from actwam.checkpoint import Checkpoint
from actwam.data.embodiment import Embodiment
from actwam.data.episode import Episode
from actwam.data.loader import Window
from actwam.data.normalize import Normalizer
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import RobotTransform, t_layout
from actwam.data.writer import DatasetWriter
from actwam.draws import Draws
from actwam.model.codec import PatchPCACodec
from actwam.model.config import ExpertConfig, TransformerConfig, one_expert, two_experts
from actwam.model.text import HashedWords, TextEncoder
from actwam.model.transformer import GroupInput, TextContext, WorldActionTransformer
from actwam.objective import NoisyBatch
from actwam.sampler import Sampling
from actwam.tokens import ACTION_CENTERED, Table
from actwam.train.config import CodecConfig, Recipe, SourceConfig, StageConfig
from actwam.train.step import Lesson, Part, embedded
from actwam.types import Batch, Context, Group, Mode, Observation

HORIZON, OFFSETS = 4, (2, 4)
CHANNELS, PATCH = 6, 8
EXPERTS = {"one": one_expert(24, 48), "two": two_experts((32, 48), (16, 32))}
LAYOUT = t_layout(32, 8, 8)
TEXT = HashedWords(width=12, tokens=6)
SAMPLING = Sampling(num_steps=3, action_shift=5.0, future_shift=2.0)
INSTRUCTIONS = ("push the square", "pull the square", "lift it")


STATE_FILE = "train_state/shard-00001-model-00001-of-00001.safetensors"
"""What one process writes of a small stage to resume it."""


def robot(index: int = 0, **changes: Any) -> Embodiment:
    """A robot with three cameras. Robot 0 fills the model's widths, robot 1 has a smaller action."""
    names = (("x", "y", "grip"), ("x", "y"))[index]
    fields: dict[str, Any] = {
        "name": f"robot_{index}",
        "index": index,
        "fps": 10,
        "cameras": {"head": "front", "left": "wrist_left", "right": "wrist_right"},
        "image_size": (32, 48),
        "state_names": ("x", "y", "grip"),
        "action_names": names,
        "delta_mask": tuple(name in "xy" and index == 1 for name in names),
        **changes,
    }
    return Embodiment(**fields)


def config(experts: tuple[ExpertConfig, ...] | str = "one", **changes: Any) -> TransformerConfig:
    fields: dict[str, Any] = {
        "layers": 2,
        "heads": 2,
        "head_width": 12,
        "experts": EXPERTS[experts] if isinstance(experts, str) else experts,
        "latent_channels": CHANNELS,
        "patch": (1, 1),
        "text_width": TEXT.width,
        "text_tokens": TEXT.tokens,
        "state_width": 3,
        "action_width": 3,
        "embodiments": 2,
        "projector_widths": (8, 12),
        "frequencies": 16,
        **changes,
    }
    return TransformerConfig(**fields)


def model(experts: tuple[ExpertConfig, ...] | str = "one", seed: int = 0, **changes: Any) -> WorldActionTransformer:
    """A model without a zero weight: as it is initialised, most of it would not show in the output."""
    torch.manual_seed(seed)
    made = WorldActionTransformer(config(experts, **changes))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made.eval()


def noise_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(B: int = 3, sigma: float | Mapping[Group, float] = 0.6, seed: int = 0) -> dict[Group, GroupInput]:
    """Random values for all groups but history; the observation and the state are clean."""
    shapes = {
        Group.OBSERVATION: (B, CHANNELS, 1, 2, 4),
        Group.STATE: (B, 1, 3),
        Group.ACTION: (B, HORIZON, 3),
        Group.FUTURE: (B, CHANNELS, len(OFFSETS), 2, 4),
    }
    levels = sigma if isinstance(sigma, Mapping) else {Group.ACTION: sigma, Group.FUTURE: sigma}
    return {
        group: GroupInput(group, noise_of(10 * seed + i, *shape), torch.full((B, 1), float(levels.get(group, 0.0))))
        for i, (group, shape) in enumerate(shapes.items())
    }


def text(made: WorldActionTransformer, B: int = 3) -> TextContext:
    return made.text_context(TEXT.encode([INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(B)]))


def draws(seed: int, batch: Batch) -> Draws:
    """Random numbers for all samples of a batch."""
    return Draws((seed,), range(len(batch.modes)))


def lesson(noisy: NoisyBatch, batch: Batch, encoder: TextEncoder | None = None) -> Lesson:
    """A batch with noise and its instructions, as a training step takes it."""
    return Lesson(noisy, embedded(encoder or TEXT, batch.instructions), batch.embodiment)


def part(batch: Batch) -> Part:
    """A whole batch, of which one process computes all at once."""
    return Part(batch, range(len(batch.modes)))


def embodiments(B: int = 3) -> Tensor:
    return torch.arange(B) % 2


def run(
    model: WorldActionTransformer,
    table: Table,
    inputs: Iterable[GroupInput],
    context: Context | None = None,
    **more: dict[Group, Tensor],
) -> dict[Group, Tensor]:
    """The velocities of the tiny instructions and robots, by group."""
    inputs = list(inputs)
    B = len(inputs[0].value)
    return model(inputs, text(model, B), embodiments(B), table, context, **more)


def difference(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().abs().max())


@dataclass(frozen=True)
class Pass:
    """What one pass of a model encoded, and what went along with noise or anew: groups, and how many tokens each."""

    encoded: dict[Group, int]
    along: dict[Group, int]


@contextmanager
def watched(model: WorldActionTransformer) -> Iterator[list[Pass]]:
    """All passes of a model, as they happen."""
    passes: list[Pass] = []
    whole = model._pass

    def noted(inputs: list[GroupInput], *rest: Any, keep: Sequence[Group] = (), **more: Any) -> Any:
        tokens = {item.group: model.tokens([item]) for item in inputs}
        encoded = {group: tokens.pop(group) for group in keep}
        passes.append(Pass(encoded, tokens))
        return whole(inputs, *rest, keep=keep, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "_pass", noted)
        yield passes


def squares(height: int, width: int, length: int, seed: int) -> np.ndarray:
    """(T, H, W, 3): a square of its own colour that moves to the right over a grey slope."""
    random = np.random.default_rng(seed)
    slope = np.linspace(20, 120, width, dtype=np.uint8)[:, None]
    frames = np.broadcast_to(slope, (length, height, width, 3)).copy()
    top, colour = int(random.integers(height - 10)), random.integers(60, 255, 3)
    for t in range(length):
        left = (3 * t) % (width - 10)
        frames[t, top : top + 10, left : left + 10] = colour
    return frames


def episode(number: int, embodiment: Embodiment, length: int = 14) -> Episode:
    """A smooth motion: the next action is where the state will be, so that there is something to learn."""
    time = np.arange(length)[:, None] * 0.4 + number
    state = np.sin(time + np.arange(len(embodiment.state_names))).astype(np.float32)
    action = np.sin(time + 0.4 + np.arange(len(embodiment.action_names))).astype(np.float32)
    images = {
        camera: squares(*embodiment.image_size, length, 10 * number + i)
        for i, camera in enumerate(embodiment.cameras.values())
    }
    return Episode(images, state, action, INSTRUCTIONS[number % len(INSTRUCTIONS)], seed=number)


def write_dataset(folder: Path, embodiment: Embodiment, episodes: int = 3, length: int = 14) -> Path:
    with DatasetWriter(folder, embodiment) as writer:
        for number in range(episodes):
            writer.add_episode(episode(number, embodiment, length + number))
    return folder


def transform(embodiment: Embodiment) -> RobotTransform:
    """With statistics that differ from dimension to dimension."""
    random = np.random.default_rng(embodiment.index)

    def normalizer(names: tuple[str, ...]) -> Normalizer:
        values = random.normal(size=(50, len(names))) * np.arange(1, len(names) + 1)
        return Normalizer(compute_stats(values.astype(np.float32), names))

    state, action = normalizer(embodiment.state_names), normalizer(embodiment.action_names)
    return RobotTransform(embodiment, LAYOUT, state, action, state_width=3, action_width=3)


def codec(channels: int = CHANNELS) -> PatchPCACodec:
    pictures = np.concatenate([squares(LAYOUT.height, LAYOUT.width, 12, seed) for seed in range(6)])
    return PatchPCACodec.fit(torch.from_numpy(pictures), patch=PATCH, channels=channels)


@dataclass(frozen=True)
class PairCodec:
    """Compresses time: two frames become one latent, their mean, told as the change from the clip's first frame."""

    pictures: PatchPCACodec
    kind: ClassVar[str] = "pair"
    time_stride: ClassVar[int] = 2

    @property
    def latent_channels(self) -> int:
        return self.pictures.latent_channels

    def encode(self, video: Tensor) -> Tensor:
        latents = self.pictures.encode(video)
        first, rest = latents[:, :, :1], latents[:, :, 1:]
        pairs = rest.unflatten(2, (rest.shape[2] // 2, 2))
        return torch.cat([first, pairs.mean(3) - first], dim=2)

    def decode(self, latents: Tensor) -> Tensor:
        first, change = latents[:, :, :1], latents[:, :, 1:]
        return self.pictures.decode(torch.cat([first, (first + change).repeat_interleave(2, dim=2)], dim=2))

    def digest(self) -> str:
        return f"pair {self.pictures.digest()}"

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> PairCodec:
        return replace(self, pictures=self.pictures.to(device))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def tensors(self) -> dict[str, Tensor]:
        return self.pictures.tensors()


def checkpoint(experts: str = "one", seed: int = 0, **changes: Any) -> Checkpoint:
    """A whole system in memory, for both robots."""
    fields: dict[str, Any] = {
        "model": model(experts, seed),
        "codec": codec(),
        "text": TEXT,
        "table": ACTION_CENTERED,
        "robots": (transform(robot(0)), transform(robot(1))),
        "window": Window(action_horizon=HORIZON, future_offsets=OFFSETS),
        "sampling": SAMPLING,
        "trained": {"recipe": "tiny", "stage": "only", "step": 7},
        **changes,
    }
    return Checkpoint(**fields)


def observation(seed: int = 0, embodiment: Embodiment | None = None) -> Observation:
    embodiment = embodiment or robot(0)
    one = episode(seed, embodiment, length=1)
    images = {name: frames[0] for name, frames in one.images.items()}
    return Observation(images, one.state[0], one.instruction)


def stage(name: str = "align", **changes: Any) -> StageConfig:
    fields: dict[str, Any] = {
        "sources": (SourceConfig(dataset="squares", mode=Mode.POLICY),),
        "steps": 4,
        "batch_size": 6,
        "learning_rate": 3e-3,
        "final_learning_rate": 1e-4,
        "warmup_steps": 2,
        "precision": "fp32",
        "log_every": 1,
        "checkpoint_every": 2,
        **changes,
    }
    return StageConfig(name=name, **fields)


def recipe(*stages: StageConfig, **changes: Any) -> Recipe:
    """One robot, `squares` its dataset. Every robot has the same layout."""
    robots = changes.get("robots", (robot(0),))
    fields: dict[str, Any] = {
        "robots": robots,
        "model": config(embodiments=1),
        "table": ACTION_CENTERED,
        "codec": CodecConfig(patch=PATCH, channels=CHANNELS),
        "text": TEXT,
        "layouts": (LAYOUT,) * len(robots),
        "window": Window(action_horizon=HORIZON, future_offsets=OFFSETS),
        "sampling": SAMPLING,
        **changes,
    }
    return Recipe(name="tiny", stages=stages or (stage(),), **fields)


def weights_of(made: WorldActionTransformer) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in made.state_dict().items()}


def with_sigma(item: GroupInput, sigma: Tensor) -> GroupInput:
    return replace(item, sigma=sigma)
