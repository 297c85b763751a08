"""What a closed loop needs from a world: the `Env` protocol, and the seeds of training and evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from actwam.types import Observation

TRAINING_SEEDS = range(1_000_000)
EVALUATION_SEEDS = range(1_000_000, 2_000_000)


@dataclass(frozen=True)
class Outcome:
    """What one control step brought. `success` is the environment's own verdict, and stays True once it was.

    `truncated` is True when the step limit of the episode is reached.
    """

    success: bool
    truncated: bool


@runtime_checkable
class Env(Protocol):
    """One task in one scene. Only `observe` renders pictures, so that other steps cost little."""

    instruction: str

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` names. The same seed always gives the same scene and layout."""

    def observe(self) -> Observation:
        """Render every camera and read the state."""

    def step(self, action: Float[np.ndarray, "A"]) -> Outcome:
        """Apply one action in the robot's own units. Raises ValueError on a wrong width, NaN or Inf."""

    def expert_action(self) -> Float[np.ndarray, "A"]:
        """What the scripted expert would do now."""

    def close(self) -> None:
        """Free the renderer and the simulator."""
