"""A checkpoint folder -> act, imagine.

    policy = Policy.load("runs/demo/train/3-align")
    chunk = policy.act(observation)

A policy holds no state between calls: what an observation, an instruction and a seed give does not depend on
what was asked before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from actwam.checkpoint import Checkpoint, load
from actwam.data.transforms import RobotTransform
from actwam.model.transformer import TextContext
from actwam.sampler import sample
from actwam.tokens import Table, plan
from actwam.types import ActionChunk, Group, Observation


@dataclass(frozen=True)
class Imagination:
    """The F future frames of the composed picture, at the offsets of the checkpoint's window, and their
    actions.
    """

    video: UInt8[np.ndarray, "F H W 3"]
    actions: Float[np.ndarray, "K A"]


@dataclass(frozen=True)
class Encoded:
    """B observations as the model takes them, and their states as the robot gave them."""

    given: Mapping[Group, Float[Tensor, "B ..."]]
    text: TextContext
    states: Float[np.ndarray, "B s"]


@dataclass(frozen=True, eq=False)
class Policy:
    """A checkpoint that acts for one of its robots. `table` may be replaced to decode the same weights
    differently.
    """

    checkpoint: Checkpoint
    robot: RobotTransform
    table: Table
    device: torch.device
    _texts: dict[str, TextContext] = field(default_factory=dict)

    @classmethod
    def load(cls, folder: Path | str, *, robot: str | None = None, device: str = "cpu") -> Policy:
        """Read and verify a checkpoint folder, or the newest checkpoint of a training run.

        Raises ValueError on a damaged checkpoint or a robot that it does not know.
        """
        checkpoint = load(Path(folder))
        checkpoint.model.to(device)
        return cls(checkpoint, checkpoint.robot(robot), checkpoint.table, torch.device(device))

    def act(self, observation: Observation, *, seed: int = 0) -> ActionChunk:
        """The next K actions, in the robot's units. `seed` draws the noise that they are denoised from.

        Raises ValueError on a missing or unknown camera, a wrong picture size or dtype, a state of the wrong
        width, NaN or Inf, and an instruction that is empty or too long.
        """
        return self.act_batch([observation], [seed])[0]

    def act_batch(self, observations: Sequence[Observation], seeds: Sequence[int]) -> list[ActionChunk]:
        """`act` for many observations in one call of the model."""
        encoded = self.encode(observations)
        values = self._sample(encoded, [Group.ACTION], seeds)
        return self._chunks(values[Group.ACTION], encoded.states)

    def imagine(
        self, observation: Observation, *, actions: Float[np.ndarray, "K A"] | None = None, seed: int = 0
    ) -> Imagination:
        """The future that `actions` would bring, or, without them, the policy's own actions and their future.

        Raises ValueError as `act` does, when `actions` are not K of the robot's width or not finite, and when
        the table lets no action shape the future.
        """
        given = None if actions is None else actions[None]
        return self.imagine_batch([observation], given, [seed])[0]

    def imagine_batch(
        self,
        observations: Sequence[Observation],
        actions: Float[np.ndarray, "B K A"] | None,
        seeds: Sequence[int],
    ) -> list[Imagination]:
        """`imagine` for many observations in one call of the model."""
        encoded = self.encode(observations)
        given = {}
        if actions is not None:
            if Group.ACTION not in self.table.reach(Group.FUTURE):
                raise ValueError(f"table {self.table.name}: the future does not see actions, so give none to imagine")
            horizon = self.checkpoint.window.action_horizon
            if actions.shape[1] != horizon:
                raise ValueError(f"imagine needs {horizon} actions, not {actions.shape[1]}")
            model_actions = self.robot.model_action(np.asarray(actions, np.float32), encoded.states)
            given[Group.ACTION] = torch.from_numpy(model_actions).to(self.device)
        encoded = Encoded({**encoded.given, **given}, encoded.text, encoded.states)
        values = self._sample(encoded, [group for group in (Group.ACTION, Group.FUTURE) if group not in given], seeds)
        present = encoded.given[Group.OBSERVATION]
        latents = self.checkpoint.future.denormalize(values[Group.FUTURE], present)
        videos = self.checkpoint.codec.decode(latents.cpu()).numpy()
        if actions is None:
            actions = np.stack([chunk.actions for chunk in self._chunks(values[Group.ACTION], encoded.states)])
        return [Imagination(video, chunk) for video, chunk in zip(videos, actions, strict=True)]

    def encode(self, observations: Sequence[Observation]) -> Encoded:
        """Pictures to latents, states normalised, instructions embedded: what all decoding starts from."""
        prepared = [self.robot.observe(observation) for observation in observations]
        pictures = torch.from_numpy(np.stack([picture for picture, _ in prepared]))
        given = {
            Group.OBSERVATION: self.checkpoint.codec.encode(pictures).to(self.device),
            Group.STATE: torch.from_numpy(np.stack([state for _, state in prepared]))[:, None].to(self.device),
        }
        states = np.stack([observation.state for observation in observations])
        return Encoded(given, self._text([observation.instruction for observation in observations]), states)

    def _text(self, instructions: Sequence[str]) -> TextContext:
        """Keys and values of instructions; each distinct one is embedded once in the life of the policy."""
        distinct = list(dict.fromkeys(instructions))
        for instruction in distinct:
            if instruction not in self._texts:
                embedded = self.checkpoint.text.encode([instruction]).to(self.device)
                with torch.inference_mode():
                    self._texts[instruction] = self.checkpoint.model.text_context(embedded)
        rows = torch.tensor([distinct.index(instruction) for instruction in instructions], device=self.device)
        return TextContext.stack([self._texts[instruction] for instruction in distinct]).select(rows)

    def _sample(
        self, encoded: Encoded, wanted: Iterable[Group], seeds: Sequence[int]
    ) -> dict[Group, Float[Tensor, "B ..."]]:
        if len(seeds) != len(encoded.states):
            raise ValueError(f"{len(encoded.states)} observations need as many seeds, not {len(seeds)}")
        noisy = {group for stage in plan(self.table, wanted, encoded.given) for group in stage.denoise}
        values, _ = sample(
            self.checkpoint.model,
            self.table,
            given=encoded.given,
            noise=self._noise(noisy, encoded, seeds),
            wanted=wanted,
            text=encoded.text,
            embodiment=torch.full((len(seeds),), self.robot.embodiment.index, device=self.device),
            sampling=self.checkpoint.sampling,
        )
        return values

    def _noise(self, groups: set[Group], encoded: Encoded, seeds: Sequence[int]) -> dict[Group, Tensor]:
        """Noise that belongs to (seed, group): adding a group or a neighbour in the batch changes no other
        noise.
        """
        window, observed = self.checkpoint.window, encoded.given[Group.OBSERVATION]
        shapes = {
            Group.ACTION: (window.action_horizon, self.robot.action_width),
            Group.FUTURE: (observed.shape[1], len(window.future_offsets), *observed.shape[3:]),
        }
        rows = {
            group: [
                torch.randn(shapes[group], generator=torch.Generator().manual_seed(2 * seed + (group is Group.FUTURE)))
                for seed in seeds
            ]
            for group in groups
        }
        noise = {group: torch.stack(parts).to(self.device) for group, parts in rows.items()}
        if Group.ACTION in noise:  # padded dimensions are zero, as in training
            noise[Group.ACTION][..., len(self.robot.embodiment.action_names) :] = 0
        return noise

    def _chunks(self, actions: Float[Tensor, "B K A"], states: Float[np.ndarray, "B s"]) -> list[ActionChunk]:
        return [ActionChunk(chunk) for chunk in self.robot.robot_action(actions.cpu().numpy(), states)]
