"""What a training run is: a recipe is a function that returns a `Recipe`, a list of stages over one model.

The trainer does not know stage numbers. The three stages of the GigaWorld-Policy paper (general world model,
embodied adaptation, action alignment) are three `StageConfig`s that differ in their sources.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from actwam.data.embodiment import Embodiment
from actwam.data.loader import Window
from actwam.data.transforms import ViewLayout
from actwam.model.config import TransformerConfig
from actwam.model.text import HashedWords
from actwam.objective import ObjectiveConfig
from actwam.sampler import Sampling
from actwam.tokens import Table
from actwam.types import Group, Mode

Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A dataset by the name that the run gives it, what its samples teach, and how often it is drawn."""

    dataset: str
    mode: Mode
    weight: float = 1.0


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage. Learning rate: linear warm-up, then cosine from `learning_rate` to `final_learning_rate`.

    `precision` "auto" is bfloat16 on a GPU, and on a CPU whichever of float32 and bfloat16 multiplies
    matrices faster there. `compile` compiles every block.
    """

    name: str
    sources: tuple[SourceConfig, ...]
    steps: int
    batch_size: int
    learning_rate: float
    final_learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    precision: Precision = "auto"
    compile: bool = False
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"stage {self.name}: {name} must be at least 1, not {getattr(self, name)}")
        if not self.sources:
            raise ValueError(f"stage {self.name}: there is no source to learn from")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A `PatchPCACodec`: `patch` pixels square, `channels` wide, fitted on at most `fit_frames` frames."""

    patch: int
    channels: int
    fit_frames: int = 2000


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model, its inputs, and the stages that train it one after another."""

    name: str
    robots: tuple[Embodiment, ...]
    model: TransformerConfig
    table: Table
    codec: CodecConfig
    text: HashedWords
    layout: ViewLayout
    window: Window
    sampling: Sampling
    stages: tuple[StageConfig, ...]
    normalize: Literal["quantile", "mean_std", "min_max"] = "quantile"
    constant: Literal["error", "center"] = "error"
    future_as_change: bool = False
    """Show the model future latents as their change from the present frame (`FutureTransform`)."""

    def __post_init__(self) -> None:
        sees_future = Group.ACTION in self.table.groups and Group.FUTURE in self.table.reach(Group.ACTION)
        for stage in self.stages:
            if sees_future and stage.objective.future_share < 1:
                raise ValueError(
                    f"stage {stage.name}: future_share below 1 hides the future from actions that see it in table "
                    f"{self.table.name}; it is for tables whose actions never see the future"
                )

    def robot(self, robot_type: str) -> Embodiment:
        """The robot that a dataset was recorded on. Raises ValueError listing the robots of this recipe."""
        for robot in self.robots:
            if robot.name == robot_type:
                return robot
        known = ", ".join(robot.name for robot in self.robots)
        raise ValueError(f"recipe {self.name} is for {known}, not for a dataset of {robot_type!r}")

    def stage(self, name: str) -> int:
        """The place of the stage of this name. Raises ValueError listing the names there are."""
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ValueError(f"recipe {self.name} has no stage {name!r}; it has {', '.join(names)}")
        return names.index(name)
