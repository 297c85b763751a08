"""One optimizer step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from actwam.checkpoint import Checkpoint
from actwam.draws import Draws
from actwam.model.context import Instructions
from actwam.model.text import TextEncoder
from actwam.model.transformer import GroupInput, WorldActionTransformer
from actwam.objective import NoisyBatch, Tally, add_noise, losses
from actwam.tokens import Table
from actwam.train.config import Precision, StageConfig
from actwam.train.distill import Teacher
from actwam.train.parallel import ALONE, World, whole_tensor
from actwam.train.state import TrainState, learning_rate
from actwam.types import Batch


class NotFinite(ValueError):
    """A loss or a gradient was NaN or Inf. `rows` are the samples whose loss alone is, if there are any."""

    def __init__(self, message: str, rows: Sequence[int]) -> None:
        super().__init__(message)
        self.rows = rows


@dataclass(frozen=True)
class Part:
    """Samples of a batch that are computed at once: those that are `rows` of it."""

    batch: Batch
    rows: Sequence[int]


@dataclass(frozen=True)
class Lesson:
    """A part with its noise and its instructions, as `forward_losses` takes it."""

    noisy: NoisyBatch
    text: Instructions
    embodiment: Int[Tensor, "B"]

    def to(self, device: torch.device) -> Lesson:
        """The same on `device`."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True), self.text.to(device))

    def sample(self, i: int) -> Lesson:
        """One sample of it, with all groups."""
        return self._mapped(lambda tensor: tensor[i : i + 1], replace(self.text, rows=self.text.rows[i : i + 1]))

    def _mapped(self, apply: Callable[[Tensor], Tensor], text: Instructions) -> Lesson:
        parts: dict[str, Any] = {
            name: {group: apply(value) for group, value in part.items()} for name, part in self.noisy.tensors()
        }
        return Lesson(replace(self.noisy, **parts), text, apply(self.embodiment))


def train_step(
    stage: StageConfig,
    checkpoint: Checkpoint,
    state: TrainState,
    parts: Sequence[Part],
    step: int,
    precision: Precision,
    teacher: Teacher | None = None,
    world: World = ALONE,
) -> dict[str, Float[Tensor, ""]]:
    """One optimizer step, which the data teaches or a teacher. `parts` are what this process computes of the batch, one
    after another. The noise of a sample is a function of (seed, step) and its row, and the losses are means over the
    whole batch: in how many parts and processes it is computed changes nothing but the last bits.

    Returns what this process adds to the losses of the whole, and the norm of the whole gradient. Raises NotFinite,
    before anything has changed, if that is not finite.
    """
    device, model = next(checkpoint.model.parameters()).device, checkpoint.model
    lessons = [_lesson(stage, checkpoint, part, step, teacher, device) for part in parts]
    tallies = world.added([lesson.noisy.tally().numbers() for lesson in lessons])
    whole = Tally.of_numbers([sum(column) for column in zip(*tallies, strict=True)])
    lessons = [
        replace(lesson, noisy=lesson.noisy.without_absent(Tally.of_numbers(numbers)))
        for lesson, numbers in zip(lessons, tallies, strict=True)
    ]
    autocast = torch.bfloat16 if precision == "bf16" else None
    totals: dict[str, Tensor] = {}
    for n, lesson in enumerate(lessons):
        world.reduce_gradients(model, n + 1 == len(lessons))
        found = forward_losses(stage, model, checkpoint.table, lesson.to(device), autocast, whole)
        (found["loss"] * world.size).backward()  # gradients of all processes are averaged
        totals |= {name: totals.get(name, 0) + value.detach() for name, value in found.items()}
    try:
        return finish_step(stage, model, state, totals, step)
    except NotFinite as error:
        model.zero_grad()
        rows = _not_finite(stage, checkpoint, lessons, autocast)
        mine = [row for part, wrong in zip(parts, rows, strict=True) for row in np.array(part.rows)[wrong].tolist()]
        raise NotFinite(str(error), world.everyones(mine)) from error


@torch.no_grad()
def _not_finite(
    stage: StageConfig, checkpoint: Checkpoint, lessons: Sequence[Lesson], autocast: torch.dtype | None
) -> list[list[int]]:
    """Which samples of each lesson have a loss that is not finite, each computed alone."""
    found = []
    for lesson in lessons:
        alone = [lesson.sample(i).to(next(checkpoint.model.parameters()).device) for i in range(len(lesson.embodiment))]
        values = [forward_losses(stage, checkpoint.model, checkpoint.table, one, autocast)["loss"] for one in alone]
        found.append([i for i, value in enumerate(values) if not bool(torch.isfinite(value))])
    return found


def _lesson(
    stage: StageConfig, checkpoint: Checkpoint, part: Part, step: int, teacher: Teacher | None, device: torch.device
) -> Lesson:
    """On the CPU, or on `device` where a teacher computes."""
    batch, draws = part.batch, Draws((stage.seed, step), part.rows)
    text = embedded(checkpoint.text, batch.instructions)
    if teacher is None:
        noisy = add_noise(batch, stage.objective, draws, checkpoint.model.config.noisy_padding)
        return Lesson(noisy, text, batch.embodiment)
    batch, text = batch.to(device), text.to(device)
    return Lesson(teacher.lesson(batch, text, draws), text, batch.embodiment)


def embedded(text: TextEncoder, instructions: Sequence[str]) -> Instructions:
    """Each distinct one once."""
    distinct = list(dict.fromkeys(instructions))
    return Instructions(text.encode(distinct), torch.tensor([distinct.index(each) for each in instructions]))


def forward_losses(
    stage: StageConfig,
    model: WorldActionTransformer,
    table: Table,
    lesson: Lesson,
    autocast: torch.dtype | None,
    whole: Tally | None = None,
) -> dict[str, Float[Tensor, ""]]:
    """The losses of a lesson, or what it adds to those of a `whole` batch."""
    noisy = lesson.noisy
    inputs = [GroupInput(group, value, noisy.level(group)) for group, value in noisy.values.items()]
    # Cached casts of weights live until the end of the forward pass: not wanted by those who count every byte.
    cached = not stage.recompute_activations
    device = lesson.embodiment.device.type
    with torch.autocast(device, autocast, enabled=autocast is not None, cache_enabled=cached):
        velocities = model(
            inputs,
            lesson.text,
            lesson.embodiment,
            table,
            valid=noisy.present,
            recompute_activations=stage.recompute_activations,
        )
        return losses(velocities, noisy, stage.objective, whole)


def finish_step(
    stage: StageConfig,
    model: WorldActionTransformer,
    state: TrainState,
    parts: dict[str, Float[Tensor, ""]],
    step: int,
) -> dict[str, Float[Tensor, ""]]:
    """What follows the backward pass: clipping, the optimizer and the moving average. Raises NotFinite before anything
    has changed if the gradient is not finite.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    most = math.inf if stage.grad_clip is None else stage.grad_clip
    norm = whole_tensor(torch.nn.utils.clip_grad_norm_(trained, most))
    if not bool(torch.isfinite(norm)):
        raise NotFinite(
            f"stage {stage.name}: loss {parts['loss'].item()} with gradient norm {norm.item()} at step {step} "
            f"(seed {stage.seed}); the weights are unchanged; check the data or lower the learning rate",
            (),
        )
    state.update(learning_rate(stage, step), seed_of(stage, step))
    state.update_average(step, stage.ema_decay)
    return {**parts, "grad_norm": norm}


def seed_of(stage: StageConfig, step: int) -> int:
    """Of a step's rounding."""
    return stage.seed * 1_000_003 + step
