"""MetaWorld on a laptop: a model of three million parameters, three stages, a few minutes on two CPU cores.

Datasets by name: `general`, clips of many tasks; `adapt`, exploratory episodes of the target tasks; `demos`, a few
expert demonstrations of them.
"""

from __future__ import annotations

from dataclasses import replace

from actwam.data.loader import Window
from actwam.data.transforms import t_layout
from actwam.model.config import TransformerConfig, two_experts
from actwam.model.text import HashedWords
from actwam.objective import ObjectiveConfig
from actwam.sampler import Sampling
from actwam.sim.robot import metaworld_embodiment
from actwam.tokens import ACTION_CENTERED
from actwam.train.config import CodecConfig, Recipe, SourceConfig, StageConfig
from actwam.types import Mode

IMAGE_SIZE = (128, 128)


def laptop(general_steps: int = 90, adapt_steps: int = 110, align_steps: int = 720) -> Recipe:
    """The recipe of `actwam demo`."""
    text = HashedWords(width=64, tokens=16)
    objective = ObjectiveConfig(action_weight=1.0, future_weight=1.0, action_shift=1.0, future_shift=1.0)
    return Recipe(
        name="metaworld.laptop",
        robots=(metaworld_embodiment(IMAGE_SIZE),),
        model=TransformerConfig(
            layers=4,
            heads=2,
            head_width=64,
            experts=two_experts(visual=(192, 768), action=(96, 384)),
            latent_channels=64,
            patch=(1, 1),
            text_width=text.width,
            text_tokens=text.tokens,
            state_width=4,
            action_width=4,
            precondition=True,
        ),
        table=ACTION_CENTERED,
        codec=CodecConfig(patch=16, channels=64),
        text=text,
        layouts=(t_layout(64, 64, 32),),
        window=Window(action_horizon=24, future_offsets=(3, 6, 9, 12, 15, 18, 21, 24)),
        future_as_change=True,
        sampling=Sampling(num_steps=5, action_shift=1.0, future_shift=1.0),
        stages=(
            _stage("general", {Mode.VIDEO: "general"}, general_steps, 32, objective),
            _stage("adapt", {Mode.VIDEO: "adapt", Mode.WORLD: "adapt"}, adapt_steps, 32, objective),
            _stage("align", {Mode.POLICY: "demos"}, align_steps, 64, replace(objective, future_share=0.15)),
        ),
    )


def _stage(name: str, sources: dict[Mode, str], steps: int, batch_size: int, objective: ObjectiveConfig) -> StageConfig:
    return StageConfig(
        name=name,
        sources=tuple(SourceConfig(dataset=dataset, mode=mode) for mode, dataset in sources.items()),
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        final_learning_rate=1e-5,
        warmup_steps=max(1, min(50, steps // 10)),
        ema_decay=0.99,
        objective=objective,
        checkpoint_every=250,
    )
