"""The worker's side of a rollout: several episodes played at once, on the orders of the parent."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Float, UInt8

from actwam.sim.metaworld import MetaWorldEnv, SimulationError, TaskAssets
from actwam.sim.results import EpisodeOutcome
from actwam.sim.scene import CAMERAS
from actwam.types import Observation

FILM_STRIDE = 4
"""Control steps from one frame of a video to the next."""

Picture = UInt8[np.ndarray, "H W 3"]


@dataclass(frozen=True)
class Start:
    """An order to a worker: begin the episode. `slot` is its place in the wave."""

    slot: int
    task: str
    seed: int
    film: bool


@dataclass(frozen=True)
class Advance:
    """An order to a worker: execute these actions."""

    slot: int
    actions: Float[np.ndarray, "K A"]


@dataclass(frozen=True)
class Ending:
    """A worker's answer when an episode has ended; else it answers with an observation."""

    outcome: EpisodeOutcome
    steps: int
    crash: str | None
    frames: list[Picture]


class Player:
    """The servant of `rollout`: plays several episodes at once, each in its slot."""

    def __init__(self, scene: str, image_size: tuple[int, int], max_steps: int) -> None:
        self._scene, self._image_size, self._max_steps = scene, image_size, max_steps
        self._assets: dict[str, TaskAssets] = {}
        self._playing: dict[int, _Playing] = {}

    def answer(self, message: list[Start | Advance]) -> list[Observation | Ending]:
        starting = {order.task for order in message if isinstance(order, Start)}
        if starting:  # a new wave: what it does not need is freed
            self._assets = {task: self._assets.get(task) or self._open(task) for task in self._kept(starting)}
        return [self._obey(order) for order in message]

    def close(self) -> None:
        for assets in self._assets.values():
            assets.close()

    def _kept(self, tasks: set[str]) -> list[str]:
        for task in self._assets.keys() - tasks:
            self._assets[task].close()
        return sorted(tasks)

    def _open(self, task: str) -> TaskAssets:
        return TaskAssets(task, self._image_size)

    def _obey(self, order: Start | Advance) -> Observation | Ending:
        if isinstance(order, Start):
            env = MetaWorldEnv(
                order.task, scene=self._scene, max_steps=self._max_steps, assets=self._assets[order.task]
            )
            self._playing[order.slot] = _Playing(env, film=order.film)
        playing = self._playing[order.slot]
        try:
            answer = playing.start(order.seed) if isinstance(order, Start) else playing.advance(order.actions)
        except SimulationError as error:
            answer = playing.ending(EpisodeOutcome.CRASH, str(error))
        if isinstance(answer, Ending):
            self._playing.pop(order.slot).env.close()
        return answer


@dataclass
class _Playing:
    """One episode in a worker."""

    env: MetaWorldEnv
    film: bool
    steps: int = 0
    frames: list[Picture] = field(default_factory=list)
    looked_at: int = -1
    observation: Observation | None = None

    def start(self, seed: int) -> Observation:
        self.env.reset(seed)
        if self.film:
            self.shoot()
        return self.look()

    def advance(self, actions: Float[np.ndarray, "K A"]) -> Observation | Ending:
        for action in actions:
            outcome = self.env.step(action)
            self.steps += 1
            ended = outcome.success or outcome.truncated
            if self.film and (ended or self.steps % FILM_STRIDE == 0):
                self.shoot()
            if outcome.success:
                return self.ending(EpisodeOutcome.SUCCESS)
            if outcome.truncated:
                return self.ending(EpisodeOutcome.TIMEOUT)
        return self.look()

    def look(self) -> Observation:
        """What is to be seen now, drawn once however often it is asked for."""
        if self.observation is None or self.looked_at != self.steps:
            self.observation, self.looked_at = self.env.observe(), self.steps
        return self.observation

    def shoot(self) -> None:
        """Add a frame to the film: all cameras side by side."""
        images = self.look().images
        self.frames.append(np.concatenate([images[name] for name in CAMERAS], axis=1))

    def ending(self, outcome: EpisodeOutcome, crash: str | None = None) -> Ending:
        return Ending(outcome, self.steps, crash, self.frames)
