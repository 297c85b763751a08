"""MetaWorld on a laptop: a model of three million parameters, three stages, a few minutes on two CPU cores.

Datasets by name: `general`, clips of many tasks; `adapt`, exploratory episodes of the target tasks; `demos`, a few
expert demonstrations of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from actwam.data.loader import Window
from actwam.data.transforms import t_layout
from actwam.model.config import ExpertConfig, TransformerConfig, one_expert, two_experts
from actwam.model.text import HashedWords
from actwam.objective import ObjectiveConfig
from actwam.recipes.families import Family, family_of
from actwam.sampler import Sampling
from actwam.sim.robot import metaworld_embodiment
from actwam.train.config import CodecConfig, Precision, Recipe, SourceConfig, StageConfig
from actwam.types import Mode

IMAGE_SIZE = (128, 128)
EXECUTE_HORIZON = 8
"""Actions executed of every chunk: history has a moment for every time that the policy looked."""
CODEC = CodecConfig(patch=16, channels=64)
OBJECTIVE = ObjectiveConfig(action_weight=1.0, future_weight=1.0, action_shift=1.0, future_shift=1.0)


def laptop(
    general_steps: int = 90,
    adapt_steps: int = 110,
    align_steps: int = 720,
    action_horizon: int = 24,
    action_prefix: int = 0,
    prefix_steps: int = 150,
) -> Recipe:
    """The recipe of `actwam demo`. Its eight future frames are spread over the `action_horizon`. With `action_prefix` a
    fourth stage of `prefix_steps` steps teaches to go on from at most as many given actions.
    """
    aligned = replace(OBJECTIVE, future_share=0.15)
    demos = (_source("demos", Mode.POLICY),)
    prefixed = replace(aligned, action_prefix=action_prefix)
    prefix = replace(_stage("prefix", demos, prefix_steps, 64, prefixed), learning_rate=3e-4)
    return _recipe(
        "metaworld.laptop",
        family_of("ACTION_CENTERED"),
        experts=two_experts(visual=(192, 768), action=(96, 384)),
        window=Window(
            action_horizon=action_horizon, future_offsets=tuple(action_horizon * n // 8 for n in range(1, 9))
        ),
        stages=(
            _stage("general", (_source("general", Mode.VIDEO),), general_steps, 32, OBJECTIVE),
            _stage("adapt", (_source("adapt", Mode.VIDEO), _source("adapt", Mode.WORLD)), adapt_steps, 32, OBJECTIVE),
            _stage("align", demos, align_steps, 64, aligned),
            *([prefix] if action_prefix else []),
        ),
    )


def compare(
    family: str = "ACTION_CENTERED",
    experts: Literal["one", "two"] = "two",
    visual_width: int = 128,
    action_width: int = 96,
    future_offsets: tuple[int, ...] = (12, 24),
    future_share: float = 1.0,
    action_weight: float = 1.0,
    future_weight: float = 1.0,
    general_steps: int = 0,
    embodied_steps: int = 0,
    embodied_actions: bool = True,
    align_steps: int = 1_000,
    extra: dict[str, float] | None = None,
    action_prefix: int = 0,
    precision: Precision = "bf16",
    seed: int = 0,
) -> Recipe:
    """The recipe of `actwam study`: any family, smaller than `laptop`, so that many can be trained.

    One codec, fitted on `general`, serves all. A stage of no steps is left out. Half of what the stage `embodied` sees
    comes with its actions, or, without `embodied_actions`, nothing. The last stage learns from `demos`, and
    from the datasets of `extra` by their weights (that of `demos` is 1): those called clips as videos without actions,
    others as demonstrations. `experts` "one" gives all groups the visual width. Families without a future ignore what
    concerns it. The last stage teaches to go on from up to `action_prefix` given actions.
    """
    chosen = family_of(family)
    objective = replace(
        OBJECTIVE,
        action_weight=action_weight,
        future_weight=future_weight,
        future_share=future_share if chosen.has_future else 1.0,
        shared_sigma=chosen.shared_sigma,
    )
    sources = _compared(chosen, embodied_actions, extra or {})
    steps = {"general": general_steps, "embodied": embodied_steps, "align": align_steps}
    visual, action = (visual_width, 4 * visual_width), (action_width, 4 * action_width)
    return _recipe(
        "metaworld.compare",
        chosen,
        experts=two_experts(visual=visual, action=action) if experts == "two" else one_expert(*visual),
        window=Window(
            action_horizon=24,
            future_offsets=future_offsets if chosen.has_future else (),
            history_offsets=tuple(-EXECUTE_HORIZON * n for n in range(chosen.history, 0, -1)),
        ),
        stages=tuple(
            replace(
                _stage(name, sources[name], steps[name], 16, replace(objective, action_prefix=prefix)),
                seed=seed,
                precision=precision,
            )
            for name, prefix in (("general", 0), ("embodied", 0), ("align", action_prefix))
            if steps[name]
        ),
        codec=replace(CODEC, fit_frames=1000, datasets=("general",)),
    )


def _compared(family: Family, embodied_actions: bool, extra: dict[str, float]) -> dict[str, tuple[SourceConfig, ...]]:
    """What each stage of `compare` learns from."""
    demonstrations = [_source("demos", mode, 1 / len(family.modes)) for mode in family.modes]
    others = [_source(name, Mode.VIDEO if name == "clips" else Mode.POLICY, weight) for name, weight in extra.items()]
    modes = (Mode.VIDEO, Mode.WORLD) if embodied_actions else (Mode.VIDEO,)
    return {
        "general": (_source("general", Mode.VIDEO),),
        "embodied": tuple(_source("embodied", mode) for mode in modes),
        "align": (*demonstrations, *others),
    }


def _recipe(
    name: str,
    family: Family,
    *,
    experts: tuple[ExpertConfig, ...],
    window: Window,
    stages: tuple[StageConfig, ...],
    codec: CodecConfig = CODEC,
) -> Recipe:
    text = HashedWords(width=64, tokens=16)
    return Recipe(
        name=name,
        robots=(metaworld_embodiment(IMAGE_SIZE),),
        model=TransformerConfig(
            layers=4,
            heads=2,
            head_width=64,
            experts=experts,
            latent_channels=64,
            patch=(1, 1),
            text_width=text.width,
            text_tokens=text.tokens,
            state_width=4,
            action_width=4,
            precondition=True,
        ),
        table=family.table,
        codec=codec,
        text=text,
        layouts=(t_layout(64, 64, 32),),
        window=window,
        constant="center",  # there are tasks that need no gripper
        future_as_change=bool(window.future_offsets),
        sampling=Sampling(num_steps=5, action_shift=1.0, future_shift=1.0),
        stages=stages,
    )


def _source(dataset: str, mode: Mode, weight: float = 1.0) -> SourceConfig:
    return SourceConfig(dataset=dataset, mode=mode, weight=weight)


def _stage(
    name: str, sources: tuple[SourceConfig, ...], steps: int, batch_size: int, objective: ObjectiveConfig
) -> StageConfig:
    return StageConfig(
        name=name,
        sources=sources,
        steps=steps,
        batch_size=batch_size,
        learning_rate=1e-3,
        final_learning_rate=1e-5,
        warmup_steps=max(1, min(50, steps // 10)),
        ema_decay=0.99,
        objective=objective,
        checkpoint_every=250,
    )


def inverse(
    steps: int = 500,
    datasets: Sequence[str] = ("labelled",),
    precision: Precision = "auto",
    action_horizon: int = 8,
    future_offsets: tuple[int, ...] = tuple(range(1, 9)),
) -> Recipe:
    """An inverse dynamics model for `actwam label`: it sees every frame of a tenth of a second, and half of the time no
    state. `labelled` teaches it; any other dataset is watched only, so that the codec knows its pictures too. One that
    judges the futures of a policy (`actwam serve --inverse`) sees the frames that this one imagines.
    """
    watched = [_source(name, Mode.VIDEO, 0.25) for name in datasets if name != "labelled"]
    sources = (_source("labelled", Mode.INVERSE), *watched)
    stage = _stage("inverse", sources, steps, 32, replace(OBJECTIVE, state_dropout=0.5))
    return _recipe(
        "metaworld.inverse",
        family_of("VIDEO_FIRST"),
        experts=two_experts(visual=(128, 512), action=(96, 384)),
        window=Window(action_horizon=action_horizon, future_offsets=future_offsets),
        stages=(replace(stage, precision=precision),),
    )
