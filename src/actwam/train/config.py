"""What a training run is: a recipe is a function that returns a `Recipe`, a list of stages over one model.

The trainer does not know stage numbers. The three stages of the GigaWorld-Policy paper (general world model,
embodied adaptation, action alignment) are three `StageConfig`s that differ in their sources.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from actwam.checkpoint import require_fitting
from actwam.data.embodiment import Embodiment
from actwam.data.loader import Window
from actwam.data.transforms import View, ViewLayout
from actwam.model.config import TransformerConfig
from actwam.model.text import TextEncoder
from actwam.objective import ObjectiveConfig
from actwam.sampler import Sampling
from actwam.tokens import Table
from actwam.types import Group, Mode

Precision = Literal["auto", "fp32", "bf16"]
Dtype = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """A dataset by the name that the run gives it, what its samples teach, and how often it is drawn.

    Video of something that is none of the recipe's robots may say with `view` which of its cameras fill which slots;
    without one, a single camera fills the picture. `fps` is how many rows a second it has; without it, as many as the
    robots have. Of actions that were inferred (`actwam label`), windows below `min_confidence` on average are left out.
    An episode that is too short for a window is an error, or is left out with `leave_short`.
    """

    dataset: str
    mode: Mode
    weight: float = 1.0
    min_confidence: float = 0.0
    view: View | None = None
    fps: int | None = None
    leave_short: bool = False

    def __post_init__(self) -> None:
        if self.mode is not Mode.VIDEO and (self.view, self.fps) != (None, None):
            raise ValueError(
                f"dataset {self.dataset}: a view or a rate of its own is for mode video; in mode {self.mode} both are "
                "those of its robot"
            )
        if not 0 <= self.min_confidence <= 1 or (self.mode is Mode.VIDEO and self.min_confidence):
            raise ValueError(
                f"dataset {self.dataset}: min_confidence must be from 0 to 1, and 0 for mode video, which learns no "
                f"action, not {self.min_confidence:g}"
            )
        if self.fps is not None and self.fps < 1:
            raise ValueError(f"dataset {self.dataset}: fps must be at least 1, not {self.fps}")


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank adapters on the linear layers of the blocks: weight + alpha / rank * B @ A, B and A trained."""

    rank: int
    alpha: float

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0:
            raise ValueError(f"LoRA needs a rank of at least 1 and an alpha above 0, not {self.rank} and {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """One stage. Learning rate: linear warm-up, then cosine from `learning_rate` to `final_learning_rate`.

    `precision` "auto" is bfloat16 on a GPU, and on a CPU whichever of float32 and bfloat16 multiplies
    matrices faster there. `compile` compiles every block.

    What follows makes large models fit (`train.memory` counts what each needs). `optimizer` "adamw8bit" keeps moments
    in 8 bits; it compiles its step, with a C++ compiler on a CPU and Triton on a GPU. `weights` is what trained weights
    are stored in while training, `frozen_weights` the others. `freeze` names the groups whose experts are not trained,
    all groups of an expert together. With `lora` only adapters learn, and the small layers that read and write states
    and actions, which a new robot needs. `ema_decay` None publishes the weights themselves, `grad_clip` None clips
    nothing.
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
    grad_clip: float | None = 1.0
    ema_decay: float | None = 0.999
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    precision: Precision = "auto"
    compile: bool = False
    optimizer: Literal["adamw", "adamw8bit"] = "adamw"
    weights: Dtype = "fp32"
    frozen_weights: Dtype = "fp32"
    freeze: tuple[Group, ...] = ()
    lora: Lora | None = None
    recompute_activations: bool = False
    seed: int = 0
    log_every: int = 10
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"stage {self.name}: {name} must be at least 1, not {getattr(self, name)}")
        if not self.sources:
            raise ValueError(f"stage {self.name}: there is no source to learn from")
        problems = {
            f"grad_clip must be above 0, or None, not {self.grad_clip}": self.grad_clip is not None
            and not self.grad_clip > 0,
            f"ema_decay must be from 0 to 1, or None, not {self.ema_decay}": self.ema_decay is not None
            and not 0 <= self.ema_decay < 1,
            "bf16 weights need optimizer adamw8bit, which rounds stochastically: adamw would lose every update below "
            "1/256 of a weight": self.weights == "bf16" and self.optimizer == "adamw",
            "the moving average of bf16 weights would stand still, as its updates are below 1/256: set ema_decay to "
            "None": self.weights == "bf16" and self.ema_decay is not None,
            "bf16 weights are multiplied in bf16: precision must be bf16 or auto": self.in_bf16
            and self.precision == "fp32",
            "frozen_weights are bf16, but nothing is frozen: set freeze or lora": self.frozen_weights == "bf16"
            and not self.freeze
            and self.lora is None,
        }
        for problem, holds in problems.items():
            if holds:
                raise ValueError(f"stage {self.name}: {problem}")

    @property
    def in_bf16(self) -> bool:
        """Whether any weights are stored in bfloat16: products run in it then."""
        return "bf16" in (self.weights, self.frozen_weights)

    @property
    def action_prefix(self) -> int:
        """How many actions at most the stage teaches to go on from."""
        teaches = any(source.mode is Mode.POLICY for source in self.sources)
        return self.objective.action_prefix if teaches else 0

    def to_json(self) -> dict[str, Any]:
        """Without what is off and was not there when the first runs were written: those have it off."""
        settings = asdict(self)
        if not self.objective.action_prefix:
            del settings["objective"]["action_prefix"], settings["objective"]["prefix_share"]
        for source in settings["sources"]:
            if not source["leave_short"]:
                del source["leave_short"]
        return settings


@dataclass(frozen=True, kw_only=True)
class CodecConfig:
    """A `PatchPCACodec`: `patch` pixels square, `channels` wide, fitted on at most `fit_frames` frames of `datasets`,
    or of all that the recipe learns from if none is named. Trainings that are compared should have one codec.
    """

    patch: int
    channels: int
    fit_frames: int = 2000
    datasets: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One model, its inputs, and the stages that train it one after another.

    Training begins with random weights and a codec fitted on its data, or with `start`. Raises ValueError when its
    parts do not fit each other.
    """

    name: str
    start: Path | None = None
    """A checkpoint whose weights, codec and text encoder training starts from. `codec` is not fitted then, and
    `text` must be that of the checkpoint; without a start, neither may be None."""
    refit: tuple[str, ...] = ()
    """Robots of the start whose statistics are fitted anew; of all others they stay (`train.grow`)."""
    drop: tuple[str, ...] = ()
    """Robots of the start that are given up, so that others may have their index; all others are kept."""
    like: str | None = None
    """The robot of the start whose projectors new robots begin with; its first one if not given."""
    robots: tuple[Embodiment, ...]
    model: TransformerConfig
    table: Table
    codec: CodecConfig | None
    text: TextEncoder | None
    layouts: tuple[ViewLayout, ...]
    """How the cameras of each of `robots` make one picture; all pictures are of one size."""
    window: Window
    sampling: Sampling
    stages: tuple[StageConfig, ...]
    normalize: Literal["quantile", "mean_std", "min_max"] = "quantile"
    constant: Literal["error", "center"] = "error"
    future_as_change: bool = False
    """Show the model future latents as their change from the present frame (`FutureTransform`)."""
    teacher: Sampling | None = None
    """Distil (`train.distill`): all stages learn the actions that `start` samples with this schedule, at the noise
    levels of `sampling`, and nothing else."""

    def __post_init__(self) -> None:
        if self.start is None and (self.codec is None or self.text is None):
            raise ValueError(f"recipe {self.name} has no codec or no text encoder: give a checkpoint to start from")
        if self.codec and self.codec.channels != self.model.latent_channels:
            raise ValueError(
                f"recipe {self.name}: the codec has {self.codec.channels} channels, and the model reads "
                f"{self.model.latent_channels}"
            )
        self._require_fitting_robots()
        self._require_fitting_views()
        sees_future = Group.ACTION in self.table.groups and Group.FUTURE in self.table.reach(Group.ACTION)
        self._require_fitting_future(sees_future)
        if self.teacher:
            self._require_teachable(sees_future)
        for stage in self.stages:
            if stage.objective.action_prefix >= self.window.action_horizon:
                raise ValueError(
                    f"stage {stage.name}: action_prefix {stage.objective.action_prefix} leaves nothing to learn of "
                    f"{self.window.action_horizon} actions: set it below the action_horizon"
                )
            if sees_future and stage.objective.future_share < 1:
                raise ValueError(
                    f"stage {stage.name}: future_share below 1 hides the future from actions that see it in table "
                    f"{self.table.name}; it is for tables whose actions never see the future"
                )

    def _require_fitting_future(self, sees_future: bool) -> None:
        offsets, table = self.window.future_offsets, self.table
        problems = {
            f"table {table.name} has no future: set future_offsets to ()": offsets and Group.FUTURE not in table.groups,
            f"actions of table {table.name} see a future: give future_offsets, or take ACTION_ONLY": sees_future
            and not offsets,
            "future_as_change needs future_offsets": not offsets and self.future_as_change,
        }
        for problem, holds in problems.items():
            if holds:
                raise ValueError(f"recipe {self.name}: {problem}")

    def _require_teachable(self, sees_future: bool) -> None:
        problems = {
            "a teacher is the checkpoint to start from: give one": self.start is None,
            f"actions of table {self.table.name} see a future, so there are none to distil without it": sees_future,
            "a teacher needs nothing but what a policy sees: all sources are of mode policy": any(
                source.mode is not Mode.POLICY for stage in self.stages for source in stage.sources
            ),
            "a teacher gives whole chunks: set action_prefix to 0": any(
                stage.objective.action_prefix for stage in self.stages
            ),
        }
        for problem, holds in problems.items():
            if holds:
                raise ValueError(f"recipe {self.name}: {problem}")

    def _require_fitting_robots(self) -> None:
        if len(self.layouts) != len(self.robots) or len({(each.height, each.width) for each in self.layouts}) != 1:
            sizes = ", ".join(f"{each.height} x {each.width}" for each in self.layouts)
            raise ValueError(
                f"recipe {self.name}: {len(self.robots)} robots need as many layouts of one size, not {sizes}"
            )
        require_fitting(self.robots, self.model, f"recipe {self.name}")
        for robot, layout in zip(self.robots, self.layouts, strict=True):
            problem = f"recipe {self.name}: embodiment {robot.name}"
            slots = {slot.name for slot in layout.slots}
            if slots != set(robot.cameras):
                raise ValueError(f"{problem} fills slots {sorted(robot.cameras)}, its layout has {sorted(slots)}")

    def _require_fitting_views(self) -> None:
        size = self.layouts[0].height, self.layouts[0].width
        first: dict[str, SourceConfig] = {}
        for source in (source for stage in self.stages for source in stage.sources):
            problem, view = f"recipe {self.name}: dataset {source.dataset}", source.view
            if view is not None and (view.layout.height, view.layout.width) != size:
                found = f"{view.layout.height} x {view.layout.width}"
                raise ValueError(f"{problem}: its view is {found}, the picture {size[0]} x {size[1]}")
            other = first.setdefault(source.dataset, source)
            if (source.view, source.fps) != (other.view, other.fps):
                raise ValueError(f"{problem} has two views or rates: give its folder two names")

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
