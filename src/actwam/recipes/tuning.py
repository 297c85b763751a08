"""What of a trained model is trained further."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from actwam.checkpoint import Setup
from actwam.objective import ObjectiveConfig
from actwam.train.config import Dtype, Lora, SourceConfig, StageConfig
from actwam.types import Group, Mode

Tune = Literal["full", "low_memory", "action_expert", "lora"]
"""All weights in float32 with AdamW ("full"); all in bfloat16 with 8-bit optimizer states, without a moving average
("low_memory"); the action expert alone ("action_expert", two experts only); or adapters of rank 16 ("lora").
"""

TAKEN_OVER = ("batch_size", "learning_rate", "weight_decay", "grad_clip", "ema_decay", "precision")
"""Settings of the start's last stage that stay as they were, beside its loss."""


def tuned(stage: StageConfig, tune: Tune, *, experts: int, frozen_weights: Dtype) -> StageConfig:
    """The stage for a model of so many experts, what it does not train stored as `frozen_weights`.

    Raises ValueError when one expert is to be frozen, and there is no other.
    """
    if tune == "action_expert" and experts == 1:
        raise ValueError(f"stage {stage.name}: tune action_expert needs two experts, this model has one: take lora")
    if tune == "low_memory":
        stage = replace(stage, precision="auto")
        return replace(stage, weights="bf16", optimizer="adamw8bit", ema_decay=None, recompute_activations=True)
    if tune == "full":
        return stage
    precision = "auto" if frozen_weights == "bf16" else stage.precision
    stage = replace(stage, precision=precision, recompute_activations=True)
    if tune == "action_expert":
        frozen = (Group.HISTORY, Group.OBSERVATION, Group.FUTURE)
        return replace(stage, freeze=frozen, frozen_weights=frozen_weights)
    return replace(stage, lora=Lora(rank=16, alpha=16.0), frozen_weights=frozen_weights)


def last_stage(setup: Setup, start: Path) -> StageConfig:
    """A stage that is trained as the last one of the start was."""
    config = setup.trained.get("config")
    if config is None:
        raise ValueError(
            f"{start}: was imported, not trained here: fine-tune it with gwp.gwp0 or gwp.gwp05, which add robots too"
        )
    try:
        return StageConfig(
            name="align",
            sources=(SourceConfig(dataset="demos", mode=Mode.POLICY),),
            steps=1,
            final_learning_rate=0.0,
            warmup_steps=0,
            betas=tuple(config["betas"]),
            objective=ObjectiveConfig(**config["objective"]),
            **{name: config[name] for name in TAKEN_OVER},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{start}: {type(error).__name__} {error}; its config.json does not fit this version"
        ) from error
