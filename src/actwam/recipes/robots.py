"""A robot added to a trained model, with a few demonstrations, with video, or with both.

    actwam train robots.add --start CHECKPOINT --robots new.yaml --data demos A video B replay C --out OUT

What a dataset is for is the first word of its name: `demos` teach the new robots' actions, `video` only shows what
happens, `replay` are demonstrations of robots that the model knows, so that it does not forget them. There may be
several of each (`demos_kitchen`, `demos_lab`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from actwam.checkpoint import Setup, read_setup
from actwam.data.embodiment import Embodiment
from actwam.data.transforms import View, ViewLayout, layout_of
from actwam.objective import ObjectiveConfig
from actwam.recipes.families import FAMILIES
from actwam.recipes.tuning import Tune, tuned
from actwam.train.config import Dtype, Recipe, SourceConfig, StageConfig
from actwam.train.grow import sizes_for
from actwam.types import Mode

KINDS = ("demos", "video", "replay")


TAKEN_OVER = ("batch_size", "learning_rate", "weight_decay", "grad_clip", "ema_decay", "precision")


def add(
    *,
    start: Path,
    robots: Sequence[Embodiment] = (),
    datasets: Sequence[str] = ("demos",),
    steps: int = 1000,
    video_steps: int = 1000,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    replay_weight: float = 1.0,
    tune: Tune = "full",
    frozen_weights: Dtype = "fp32",
    refit: tuple[str, ...] = (),
    like: str | None = None,
    checkpoint_every: int = 250,
    seed: int = 0,
) -> Recipe:
    """Up to two stages: `video` for `video_steps`, then `align` on demonstrations for `steps`.

    Model, picture, window, sampling, codec and text encoder are those of `start`, which must have been trained here;
    batch size, learning rate and loss too, unless given. Offsets of the window count control steps, of each robot its
    own: where one has 10 a second and another 30, the same window spans 3 s of one and 1 s of the other.

    A replay dataset is drawn `replay_weight` times as often as one of the others, in both stages. `tune` chooses what
    is trained: see `tuning.Tune`; "action_expert" leaves the visual expert as it is, for models that have two.
    `frozen_weights` "bf16" rounds what is not trained, to save memory. `refit` and `like` are those of `Recipe`.

    Robots are needed for demonstrations. Without any, `robots` may name the one whose cameras recorded the video; a
    folder of video files fills the whole picture. Raises ValueError on datasets that it has no use for, on imported
    weights, and where the robots do not fit the model.
    """
    setup, kinds = read_setup(start), _kinds(datasets)
    before = _before(setup, start, seed)
    if not setup.robots:
        raise ValueError(f"{start}: has no robot, so nothing says what its pictures look like: train it on one first")
    if kinds["demos"] and not robots:
        raise ValueError("recipe robots.add needs --robots: whose demonstrations are these?")
    videos = _videos(kinds["video"], robots, setup, alone=not kinds["demos"])
    if not kinds["demos"]:
        robots = ()  # nothing tells what their numbers are: they only lent the video their cameras
    old = tuple(robot for robot in setup.robots if robot.embodiment.name not in {robot.name for robot in robots})
    replay = _sources(kinds["replay"], _modes(setup), replay_weight)
    sources = {
        "video": (videos, video_steps),
        "align": (_sources(kinds["demos"], _modes(setup), 1.0), steps),
    }
    rate = before.learning_rate if learning_rate is None else learning_rate
    stages = [
        replace(
            before,
            name=name,
            sources=(*found, *replay),
            steps=count,
            batch_size=before.batch_size if batch_size is None else batch_size,
            learning_rate=rate,
            final_learning_rate=rate / 100,
            warmup_steps=max(1, min(50, count // 10)),
            checkpoint_every=checkpoint_every,
        )
        for name, (found, count) in sources.items()
        if found
    ]
    model = sizes_for(setup, robots, str(start))
    return Recipe(
        name="robots.add",
        start=start,
        robots=(*robots, *(robot.embodiment for robot in old)),
        model=model,
        table=setup.table,
        codec=None,
        text=None,
        layouts=(*(_layout(robot, setup) for robot in robots), *(robot.layout for robot in old)),
        window=setup.window,
        sampling=setup.sampling,
        stages=tuple(tuned(stage, tune, experts=len(model.experts), frozen_weights=frozen_weights) for stage in stages),
        normalize=setup.robots[0].action.mode,
        constant=setup.robots[0].action.constant,
        future_as_change=setup.future.scale is not None,
        refit=refit,
        like=like,
    )


def _kinds(datasets: Sequence[str]) -> Mapping[str, list[str]]:
    """The names of the datasets by what they are for. Raises ValueError on others, and where nothing new is taught."""
    kinds: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for name in datasets:
        kind = name.partition("_")[0]
        if kind not in kinds:
            raise ValueError(f"recipe robots.add has no use for dataset {name}: names begin with {', '.join(KINDS)}")
        kinds[kind].append(name)
    if not kinds["demos"] and not kinds["video"]:
        raise ValueError("recipe robots.add needs something new to learn from: --data demos FOLDER or video FOLDER")
    return kinds


def _before(setup: Setup, start: Path, seed: int) -> StageConfig:
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
            seed=seed,
            **{name: config[name] for name in TAKEN_OVER},
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{start}: {type(error).__name__} {error}; its config.json does not fit this version"
        ) from error


def _layout(robot: Embodiment, setup: Setup) -> ViewLayout:
    """That of a robot of the start with the same slots, or else the usual one of the same size."""
    known = [other.layout for other in setup.robots]
    same = [layout for layout in known if {slot.name for slot in layout.slots} == set(robot.cameras)]
    return same[0] if same else layout_of(robot, known[0].height, known[0].width, known[0].resample)


def _modes(setup: Setup) -> tuple[Mode, ...]:
    """What a demonstration teaches models of this table."""
    return next((family.modes for family in FAMILIES.values() if family.table is setup.table), (Mode.POLICY,))


def _sources(datasets: Sequence[str], modes: Sequence[Mode], weight: float) -> tuple[SourceConfig, ...]:
    return tuple(
        SourceConfig(dataset=name, mode=mode, weight=weight / len(modes)) for name in datasets for mode in modes
    )


def _videos(
    datasets: Sequence[str], robots: Sequence[Embodiment], setup: Setup, *, alone: bool
) -> tuple[SourceConfig, ...]:
    """`alone`: the robots will not be among those of the recipe, so that the sources must say what they look like."""
    if alone and datasets and len(robots) > 1:
        raise ValueError("recipe robots.add: video alone is of one robot at a time: give one of --robots")
    view = View(_layout(robots[0], setup), robots[0].cameras) if alone and robots else None
    rates = {robot.fps for robot in robots}
    fps = rates.pop() if len(rates) == 1 else None
    return tuple(SourceConfig(dataset=name, mode=Mode.VIDEO, view=view, fps=fps) for name in datasets)
