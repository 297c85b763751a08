"""A checkpoint folder -> act, imagine.

    policy = Policy.load("runs/demo/train/3-align")
    chunk = policy.act(observation)

A policy holds no state between calls: what an observation, an instruction and a seed give does not depend on
what was asked before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from actwam.checkpoint import NO_ROBOT, Checkpoint, load, newest, read_config, stored_codec
from actwam.data.transforms import RobotTransform
from actwam.memory import Need, Tokens, acting_need, device_of, encoding
from actwam.model.files import DTYPES, Precision, read_json
from actwam.model.transformer import TextContext
from actwam.sampler import sample
from actwam.tokens import TABLES, Table, plan
from actwam.types import ActionChunk, Group, Observation

TEXTS = 8
"""Instructions whose keys and values a policy keeps: the last ones it was given. In bfloat16 each takes 24 MB (GWP-0)
or 47 MB (GWP-0.5).
"""


@dataclass(frozen=True)
class Imagination:
    """The T future frames of the composed picture, at the offsets of the checkpoint's window, and their
    actions.
    """

    video: UInt8[np.ndarray, "T H W 3"]
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
    def load(
        cls,
        folder: Path | str,
        *,
        robot: str | None = None,
        device: str = "cpu",
        precision: Precision = "auto",
    ) -> Policy:
        """Read and verify a checkpoint folder, or the newest checkpoint of a training run.

        `precision` is what the model computes in, "auto" what its weights are stored in. Raises ValueError on an
        unknown device, a damaged checkpoint, a robot that it does not know, and an imported one that has no robot yet.
        """
        place = device_of(device)
        checkpoint = load(Path(folder))
        transform = checkpoint.robot(robot)
        checkpoint.model.to(place, DTYPES.get(precision))
        checkpoint = replace(checkpoint, codec=checkpoint.codec.to(place))
        return cls(checkpoint, transform, checkpoint.table, place)

    @staticmethod
    def need(folder: Path | str, *, device: str = "cpu", precision: Precision = "auto") -> Need:
        """The memory that `load` and `act` with the same arguments take, counted without reading weights.

        The device need not be here. Raises ValueError on an unknown one, and on a folder that is no checkpoint.
        """
        place = device_of(device, here=False)
        folder = newest(Path(folder))
        config, sizes = read_json(folder / "config.json"), read_config(folder)
        if config.get("robots") == []:
            raise ValueError(f"{folder}: {NO_ROBOT}")
        try:
            window, picture = config["window"], config["robots"][0]["layout"]
            codec = encoding(*stored_codec(folder), picture["height"], picture["width"])
            frames, actions = len(window["future_offsets"]) // codec.time_stride, window["action_horizon"]
            table = TABLES[config["table"]]
            with safe_open(folder / "model.safetensors", "pt") as file:
                stored = "bf16" if file.get_slice("patch_head.bias").get_dtype() == "BF16" else "fp32"
        except (LookupError, TypeError, OSError, SafetensorError) as error:
            raise ValueError(f"{folder}: {type(error).__name__} {error}; no policy can be loaded from it") from error
        return acting_need(
            sizes,
            table,
            Tokens(grid=codec.grid, future_frames=frames, actions=actions),
            dtype=DTYPES[stored if precision == "auto" else precision],
            device=place,
            codec=codec,
            instructions=TEXTS,
        )

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
        future = self.checkpoint.future.denormalize(values[Group.FUTURE], present)
        # behind the present frame, because a codec that compresses time decodes no later frame without the first
        videos = self.checkpoint.codec.decode(torch.cat([present, future], dim=2))[:, 1:].cpu().numpy()
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
        """Keys and values of instructions; those of the last `TEXTS` distinct ones are kept."""
        distinct = list(dict.fromkeys(instructions))
        known = [self._texts.pop(instruction, None) for instruction in distinct]
        contexts = [context or self._embed(text) for text, context in zip(distinct, known, strict=True)]
        self._texts.update(zip(distinct, contexts, strict=True))  # the newest come last
        for old in list(self._texts)[:-TEXTS]:
            self._texts.pop(old, None)
        context = TextContext.stack(contexts)
        if len(distinct) == len(instructions):
            return context
        return context.select(torch.tensor([distinct.index(text) for text in instructions], device=self.device))

    @torch.inference_mode()
    def _embed(self, instruction: str) -> TextContext:
        return self.checkpoint.model.text_context(self.checkpoint.text.encode([instruction]).to(self.device))

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
        frames = window.latent_frames(self.checkpoint.codec.time_stride)
        shapes = {
            Group.ACTION: (window.action_horizon, self.robot.action_width),
            Group.FUTURE: (observed.shape[1], frames, *observed.shape[3:]),
        }
        rows = {
            group: [
                torch.randn(shapes[group], generator=torch.Generator().manual_seed(2 * seed + (group is Group.FUTURE)))
                for seed in seeds
            ]
            for group in groups
        }
        noise = {group: torch.stack(parts).to(self.device) for group, parts in rows.items()}
        if Group.ACTION in noise and not self.checkpoint.model.config.noisy_padding:  # zero, as in training
            noise[Group.ACTION][..., len(self.robot.embodiment.action_names) :] = 0
        return noise

    def _chunks(self, actions: Float[Tensor, "B K A"], states: Float[np.ndarray, "B s"]) -> list[ActionChunk]:
        return [ActionChunk(chunk) for chunk in self.robot.robot_action(actions.cpu().numpy(), states)]
