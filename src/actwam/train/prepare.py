"""Before the first step: what is fitted or taken over, and the system that training begins with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from actwam.checkpoint import Checkpoint, Setup, load, read_setup, stored_codec
from actwam.data.dataset import Footage
from actwam.data.embodiment import Embodiment
from actwam.data.normalize import Normalizer
from actwam.data.transforms import FutureTransform, RobotTransform
from actwam.memory import device_of
from actwam.model.codec import Codec, PatchPCACodec, read_codec
from actwam.model.transformer import WorldActionTransformer
from actwam.train.codec import fitted_codec
from actwam.train.config import Recipe
from actwam.train.datasets import open_datasets, recipe_views
from actwam.train.encode import CPU, encode, encodings, mixture
from actwam.train.grow import grow, kept_robots, known_robots, require_range
from actwam.train.mixtures import resolve
from actwam.train.padding import silence_padding
from actwam.train.sound import require_sound
from actwam.train.statistics import robot_stats
from actwam.types import Mode, Progress

CHANGE_WINDOWS = 512
"""Windows of the first stage that the scale of change is measured on."""


def prepare(
    recipe: Recipe,
    data: Mapping[str, Path],
    cache: Path,
    *,
    device: str = "cpu",
    progress: Progress,
    say: Callable[[str], None],
) -> None:
    """Do all that `train` does before its first step, of all stages: open and check the datasets, take statistics,
    embed instructions, encode latents on `device`. Training with this `cache` finds it done.

    As many processes as there are may call this at the same time, on machines that share the folder `cache`: each does
    what nobody has done yet, and returns when all is done. One that is killed costs the piece that it was at.
    """
    recipe, data = resolve(recipe, data, say)
    datasets = open_datasets(recipe, data, cache)
    require_sound(recipe, datasets, cache, say)
    place = device_of(device)
    setup = begun(recipe, datasets, cache)
    if recipe.start is None:
        codec: Codec = _fitted_codec(recipe, datasets, cache, progress)
    else:
        codec = read_codec(*stored_codec(recipe.start))
    every = [encodings(stage.sources, setup, codec, datasets, cache, progress, place) for stage in recipe.stages]
    encode([encoding for each in every for encoding in each.values()], codec)
    made = {name: encoding.open() for each in every for name, encoding in each.items()}
    rows = sum(len(piece) for latents in made.values() for piece in latents.pieces)
    say(f"prepared: {rows} rows of {len(made)} datasets")


def require_recipe(checkpoint: Checkpoint, recipe: Recipe, source: Path) -> None:
    """Raises ValueError when the checkpoint at `source` has another model or other inputs than the recipe."""
    # behind the robots of the recipe stand those of its start that it does not train
    robots = checkpoint.robots[: len(recipe.robots)] if recipe.start else checkpoint.robots
    sides = {
        "model": (checkpoint.model.config, recipe.model),
        "table": (checkpoint.table, recipe.table),
        "text encoder": (checkpoint.text, recipe.text or checkpoint.text),
        "window": (checkpoint.window, recipe.window),
        "robots": (tuple(robot.embodiment for robot in robots), recipe.robots),
        "view layouts": (tuple(robot.layout for robot in robots), recipe.layouts),
        "future_as_change": (checkpoint.future.scale is not None, recipe.future_as_change),
    }
    other = [name for name, (found, wanted) in sides.items() if found != wanted]
    if other:
        raise ValueError(
            f"{source}: has not the {', '.join(other)} of recipe {recipe.name}; choose another output folder "
            "or the recipe that it was trained with"
        )


def fit_robots(
    recipe: Recipe,
    datasets: Mapping[str, Footage],
    cache: Path,
    known: Mapping[str, RobotTransform] | None = None,
) -> tuple[RobotTransform, ...]:
    """Statistics (`robot_stats`) of every robot that is not `known`, over the datasets that teach its actions (or,
    without such, that condition on them, or at least have them); datasets without state or without actions do not
    count.
    """
    robots = []
    for embodiment, layout in zip(recipe.robots, recipe.layouts, strict=True):
        if known and embodiment.name in known:
            robots.append(known[embodiment.name])
            continue
        teaching = [
            _datasets_of(recipe, datasets, embodiment, modes)
            for modes in ({Mode.POLICY, Mode.INVERSE}, {Mode.WORLD}, set(Mode))
        ]
        used = next((found for found in teaching if found), None)
        if used is None:
            raise ValueError(
                f"recipe {recipe.name}: no dataset of robot {embodiment.name} to take statistics from: one with its "
                "state and its actions"
            )
        state, action = (
            Normalizer(stats, recipe.normalize, recipe.constant)
            for stats in robot_stats(used, embodiment, recipe.window, cache)
        )
        robots.append(
            RobotTransform(embodiment, layout, state, action, recipe.model.state_width, recipe.model.action_width)
        )
    return tuple(robots)


def initial(
    recipe: Recipe,
    datasets: Mapping[str, Footage],
    cache: Path,
    progress: Progress,
    device: torch.device = CPU,
) -> Checkpoint:
    """The system before training, on the CPU: what has `begun`, with a fitted codec and random weights, or with those
    of `recipe.start` and projectors for new robots (`grow`). `device` is where pictures are encoded.

    Raises ValueError when the start does not fit the recipe, and when the window does not fit the codec.
    """
    setup = begun(recipe, datasets, cache)
    if recipe.start is None:
        codec: Codec = _fitted_codec(recipe, datasets, cache, progress)
        torch.manual_seed(recipe.stages[0].seed)
        model = WorldActionTransformer(recipe.model)
    else:
        start = load(recipe.start)
        model, codec = start.model, start.codec
        grow(model, read_setup(recipe.start), recipe)
        model.config = recipe.model
    recipe.window.latent_frames(codec.time_stride)
    made = Checkpoint(**{**vars(setup), "model": model}, codec=codec)
    if not recipe.model.noisy_padding:
        silence_padding(made.model, [robot.embodiment for robot in made.robots])
    if made.future.scale is not None or not recipe.future_as_change:
        return made
    some = replace(recipe.stages[0], batch_size=CHANGE_WINDOWS)
    windows = mixture(some, made, datasets, cache, progress, device).batch(0)
    return replace(made, future=FutureTransform.fit(windows.latents.numpy(), windows.future_valid.numpy()))


def begun(recipe: Recipe, datasets: Mapping[str, Footage], cache: Path) -> Setup:
    """All of the system but its weights and its codec, with the statistics of the data. Robots that `recipe.start`
    knows keep theirs (`known_robots`); its others stand behind those of the recipe.

    Raises ValueError when the start does not fit the recipe, and when data is far outside of statistics that stay.
    """
    trained = {"recipe": recipe.name, "stage": None, "step": 0}
    sides: dict[str, Any] = {
        "table": recipe.table,
        "window": recipe.window,
        "sampling": recipe.sampling,
        "trained": trained,
    }
    if recipe.start is None:
        assert recipe.text is not None  # a recipe without it has a start
        robots = fit_robots(recipe, datasets, cache)
        return Setup(model=recipe.model, text=recipe.text, robots=robots, future=FutureTransform(), **sides)
    start = read_setup(recipe.start)
    require_fitting_start(start, recipe)
    known, kept = known_robots(recipe, start), kept_robots(recipe, start)
    robots = (*fit_robots(recipe, datasets, cache, known), *kept)
    for robot in known.values():
        for dataset in _datasets_of(recipe, datasets, robot.embodiment, {Mode.POLICY, Mode.INVERSE, Mode.WORLD}):
            require_range(robot, dataset, recipe.window, recipe.start, cache)
    return replace(start, model=recipe.model, robots=robots, **sides)


def _fitted_codec(recipe: Recipe, datasets: Mapping[str, Footage], cache: Path, progress: Progress) -> PatchPCACodec:
    assert recipe.codec is not None  # a recipe without it has a start
    shown = {name: datasets[name] for name in recipe.codec.datasets or datasets}
    return fitted_codec(recipe.codec, shown, recipe_views(recipe, shown), cache, progress)


def require_fitting_start(setup: Setup, recipe: Recipe) -> None:
    """Raises ValueError, naming what is different, when the start of a recipe is no start for it."""
    found, wanted = setup.model.to_json(), recipe.model.to_json()
    other = [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted
        if name != "noisy_padding" and found[name] != wanted[name]
        if name != "embodiments" or found[name] > wanted[name]
    ]
    if recipe.text not in (None, setup.text):
        other.append("its text encoder is another")
    if recipe.future_as_change != (setup.future.scale is not None):
        other.append(f"future_as_change is {not recipe.future_as_change}")
    if other:
        raise ValueError(f"{recipe.start}: does not fit recipe {recipe.name}: {'; '.join(other)}; change one of them")


def _datasets_of(recipe: Recipe, datasets: Mapping[str, Footage], robot: Embodiment, modes: set[Mode]) -> list[Footage]:
    """Those of a robot's whole state and action, long enough for a chunk, that a source has in one of these modes."""
    names = {s.dataset for stage in recipe.stages for s in stage.sources if s.mode in modes}
    return [
        dataset
        for name, dataset in datasets.items()
        if name in names
        and dataset.robot_type == robot.name
        and (dataset.fps, dataset.state_names, dataset.action_names)
        == (robot.fps, robot.state_names, robot.action_names)
        and any(episode.length >= recipe.window.action_horizon for episode in dataset.episodes)
    ]
