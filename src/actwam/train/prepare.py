"""Before the first step: codec and statistics fitted or taken over, latents cached."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from random import sample

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from actwam.checkpoint import Checkpoint, load, read_setup
from actwam.data.dataset import Footage, require_embodiment
from actwam.data.embodiment import Embodiment
from actwam.data.latents import Encoding, Latents
from actwam.data.loader import Mixture, Source, require_lengths
from actwam.data.normalize import Normalizer
from actwam.data.partial import share
from actwam.data.transforms import FutureTransform, RobotTransform
from actwam.memory import device_of
from actwam.model.text import TextEncoder
from actwam.model.transformer import WorldActionTransformer
from actwam.train.codec import fitted_codec
from actwam.train.config import Recipe, SourceConfig, StageConfig
from actwam.train.datasets import open_datasets, recipe_views, view_of
from actwam.train.grow import grow, kept_robots, known_robots, require_range
from actwam.train.mixtures import resolve
from actwam.train.padding import silence_padding
from actwam.train.sound import require_sound
from actwam.train.statistics import robot_stats
from actwam.types import Mode, Progress

CPU = torch.device("cpu")
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
    made = initial(recipe, datasets, cache, progress, place)
    for stage in recipe.stages:
        encode(stage.sources, made, datasets, cache, progress, place)


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
    """The system before training, on the CPU: fitted statistics, and either random weights and a fitted codec, or the
    weights, the codec and the text encoder of `recipe.start`. `device` is where pictures are encoded.

    Raises ValueError when the start does not fit the recipe, and when the window does not fit the codec.
    """
    if recipe.start is None:
        made = _fresh(recipe, datasets, cache, progress)
    else:
        made = _started(recipe, recipe.start, datasets, cache)
    recipe.window.latent_frames(made.codec.time_stride)
    if not recipe.model.noisy_padding:
        silence_padding(made.model, [robot.embodiment for robot in made.robots])
    if made.future.scale is not None or not recipe.future_as_change:
        return made
    some = replace(recipe.stages[0], batch_size=CHANGE_WINDOWS)
    windows = mixture(some, made, datasets, cache, progress, device).batch(0)
    return replace(made, future=FutureTransform.fit(windows.latents.numpy(), windows.future_valid.numpy()))


def _fresh(
    recipe: Recipe,
    datasets: Mapping[str, Footage],
    cache: Path,
    progress: Progress,
) -> Checkpoint:
    assert recipe.codec is not None  # a recipe without them has a start
    assert recipe.text is not None
    shown = {name: datasets[name] for name in recipe.codec.datasets or datasets}
    codec = fitted_codec(recipe.codec, shown, recipe_views(recipe, shown), cache, progress)
    torch.manual_seed(recipe.stages[0].seed)
    return Checkpoint(
        model=WorldActionTransformer(recipe.model),
        codec=codec,
        text=recipe.text,
        table=recipe.table,
        robots=fit_robots(recipe, datasets, cache),
        window=recipe.window,
        sampling=recipe.sampling,
        trained={"recipe": recipe.name, "stage": None, "step": 0},
    )


def _started(recipe: Recipe, folder: Path, datasets: Mapping[str, Footage], cache: Path) -> Checkpoint:
    """The checkpoint in `folder` with the robots, the table and the window of the recipe, and with its own robots
    behind them. Robots that it knows keep their statistics (`known_robots`), new ones get projectors (`grow`).
    """
    setup = read_setup(folder)
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
        raise ValueError(f"{folder}: does not fit recipe {recipe.name}: {'; '.join(other)}; change one of them")
    known, kept = known_robots(recipe, setup), kept_robots(recipe, setup)
    robots = (*fit_robots(recipe, datasets, cache, known), *kept)
    for robot in known.values():
        for dataset in _datasets_of(recipe, datasets, robot.embodiment, {Mode.POLICY, Mode.INVERSE, Mode.WORLD}):
            require_range(robot, dataset, recipe.window, folder, cache)
    start = load(folder)
    grow(start.model, setup, recipe)
    start.model.config = recipe.model
    return replace(
        start,
        table=recipe.table,
        robots=robots,
        window=recipe.window,
        sampling=recipe.sampling,
        trained={"recipe": recipe.name, "stage": None, "step": 0},
        digest=None,
    )


def mixture(
    stage: StageConfig,
    checkpoint: Checkpoint,
    datasets: Mapping[str, Footage],
    cache: Path,
    progress: Progress,
    device: torch.device = CPU,
) -> Mixture:
    """The batches of a stage, from cached latents; `device` encodes those that are not cached yet."""
    robots = [_robot_of(checkpoint.robots, datasets[source.dataset], source.mode) for source in stage.sources]
    latents = encode(stage.sources, checkpoint, datasets, cache, progress, device)
    sources = [
        Source(
            datasets[source.dataset],
            latents[source.dataset],
            robot,
            checkpoint.window,
            source.mode,
            source.weight,
            checkpoint.future,
            source.min_confidence,
            source.leave_short,
        )
        for source, robot in zip(stage.sources, robots, strict=True)
    ]
    return Mixture(sources, stage.batch_size, stage.seed)


def encode(
    sources: Sequence[SourceConfig],
    checkpoint: Checkpoint,
    datasets: Mapping[str, Footage],
    cache: Path,
    progress: Progress,
    device: torch.device = CPU,
) -> dict[str, Latents]:
    """The latents of the datasets of some sources, keyed by dataset, codec, layout and cameras: from `cache`, or
    encoded on `device` by this process and all that do the same now.

    Raises ValueError, before anything is encoded, when an episode is too short for the window, or its instruction empty
    or too long.
    """
    codec, stride = checkpoint.codec, checkpoint.codec.time_stride
    views = {robot.embodiment.name: robot.view for robot in checkpoint.robots}
    used = {source.dataset: datasets[source.dataset] for source in sources}
    for source in sources:
        if not source.leave_short:
            require_lengths(used[source.dataset], checkpoint.window, {source.mode}, stride)
    embed_instructions(used.values(), checkpoint.text)

    def on_device(pictures: UInt8[np.ndarray, "B T H W 3"]) -> Float32[np.ndarray, "B Z F h w"]:
        return codec.to(device).encode(torch.from_numpy(pictures)).cpu().numpy()

    total = sum(len(dataset.state) for dataset in used.values())
    encodings: dict[str, Encoding] = {}
    for source in sources:
        if source.dataset in encodings:
            continue
        dataset = used[source.dataset]
        view = view_of(dataset, source.view, views)
        before = sum(len(encoding.dataset.state) for encoding in encodings.values())
        encodings[source.dataset] = Encoding(
            dataset=dataset,
            cameras=tuple(view.cameras.values()),
            compose=view.picture,
            encode=on_device,
            time_stride=stride,
            offsets=checkpoint.window.future_offsets,
            key=f"{codec.digest()} {view.layout} {dict(view.cameras)}",
            root=cache,
            progress=partial(lambda before, done, _: progress("latents", before + done, total), before),
        )
    share([job for encoding in encodings.values() for job in encoding.jobs])
    codec.to(CPU)  # training needs the memory of the device for itself
    return {name: encoding.open() for name, encoding in encodings.items()}


def embed_instructions(datasets: Iterable[Footage], text: TextEncoder) -> None:
    """Embed every instruction now: none fails in the middle of training then, nor is a large encoder loaded there.

    Where several processes do so, each takes what is not there yet in an order of its own. Raises ValueError naming the
    first episode of an instruction that is empty or too long.
    """
    places: dict[str, str] = {}
    for dataset in datasets:
        for episode in dataset.episodes:
            if episode.instruction not in places:
                places[episode.instruction] = dataset.where(episode.index)
    with suppress(ValueError):
        for instruction in sample(list(places), len(places)):
            text.encode([instruction])
    for instruction, where in places.items():
        try:
            text.encode([instruction])
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _robot_of(robots: Sequence[RobotTransform], dataset: Footage, mode: Mode) -> RobotTransform:
    """The robot that a dataset was recorded on; for video, which needs none, any."""
    if mode is Mode.VIDEO:
        return robots[0]
    robot = next((robot for robot in robots if robot.embodiment.name == dataset.robot_type), None)
    if robot is None:
        known = ", ".join(robot.embodiment.name for robot in robots)
        raise ValueError(f"{dataset.folder}: recorded on {dataset.robot_type!r}, this checkpoint knows {known}")
    require_embodiment(dataset, robot.embodiment, needs_state=False)
    return robot


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
