"""Before the first step: datasets matched to robots, codec and statistics fitted or taken over, latents cached."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from actwam.checkpoint import Checkpoint, load
from actwam.data.dataset import LeRobotDataset, require_embodiment
from actwam.data.latents import Latents, cache_latents
from actwam.data.loader import Mixture, Source, action_chunks, require_lengths
from actwam.data.transforms import FutureTransform, RobotTransform, fit_normalizers
from actwam.model.codec import PatchPCACodec
from actwam.model.text import TextEncoder
from actwam.model.transformer import WorldActionTransformer
from actwam.train.config import CodecConfig, Recipe, StageConfig
from actwam.train.padding import share_first_embodiment, silence_padding
from actwam.types import Mode

CPU = torch.device("cpu")
CHANGE_WINDOWS = 512
"""Windows of the first stage that the scale of change is measured on."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, how much is done and how much there is."""


def open_datasets(recipe: Recipe, folders: Mapping[str, Path]) -> dict[str, LeRobotDataset]:
    """The datasets that the recipe names, each checked against its robot.

    Raises ValueError on a dataset that is missing, of another robot, or with an episode shorter than the
    window.
    """
    needed = {source.dataset for stage in recipe.stages for source in stage.sources}
    missing = sorted(needed - set(folders))
    if missing:
        raise ValueError(f"recipe {recipe.name} needs datasets {', '.join(missing)}: give each as NAME=FOLDER")
    datasets = {name: LeRobotDataset.open(folders[name]) for name in sorted(needed)}
    for dataset in datasets.values():
        require_embodiment(dataset, recipe.robot(dataset.robot_type))
        require_finite(dataset)
        require_lengths(dataset, recipe.window)
    return datasets


def require_finite(dataset: LeRobotDataset) -> None:
    """Raises ValueError with episode, frame and dimension on the first NaN or Inf in state or action."""
    for key, names, values in (
        ("state", dataset.state_names, dataset.state),
        ("action", dataset.action_names, dataset.action),
    ):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, i = (int(n) for n in bad[0])
            episode = next(e for e in dataset.episodes if e.start <= row < e.start + e.length)
            raise ValueError(
                f"{dataset.folder}: episode {episode.index}: frame {row - episode.start}: {key}: {names[i]} "
                f"is {values[row, i]}; drop the episode"
            )


def require_recipe(checkpoint: Checkpoint, recipe: Recipe, source: Path) -> None:
    """Raises ValueError when the checkpoint at `source` has another model or other inputs than the recipe."""
    sides = {
        "model": (checkpoint.model.config, recipe.model),
        "table": (checkpoint.table, recipe.table),
        "text encoder": (checkpoint.text, recipe.text or checkpoint.text),
        "window": (checkpoint.window, recipe.window),
        "robots": (tuple(robot.embodiment for robot in checkpoint.robots), recipe.robots),
        "view layouts": (tuple(robot.layout for robot in checkpoint.robots), recipe.layouts),
        "future_as_change": (checkpoint.future.scale is not None, recipe.future_as_change),
    }
    other = [name for name, (found, wanted) in sides.items() if found != wanted]
    if other:
        raise ValueError(
            f"{source}: has not the {', '.join(other)} of recipe {recipe.name}; choose another output folder "
            "or the recipe that it was trained with"
        )


def fit_robots(recipe: Recipe, datasets: Mapping[str, LeRobotDataset]) -> tuple[RobotTransform, ...]:
    """Statistics of every robot, over the datasets that teach its actions (or, without such, that condition
    on them).
    """
    robots = []
    for embodiment, layout in zip(recipe.robots, recipe.layouts, strict=True):
        teaching = [
            _datasets_of(recipe, datasets, embodiment.name, modes)
            for modes in ({Mode.POLICY, Mode.INVERSE}, {Mode.WORLD}, set(Mode))
        ]
        used = next((found for found in teaching if found), None)
        if used is None:
            raise ValueError(f"recipe {recipe.name}: no dataset of robot {embodiment.name} to take statistics from")
        states, chunks = zip(*(action_chunks(dataset, recipe.window) for dataset in used), strict=True)
        state, action = fit_normalizers(
            np.concatenate(states),
            np.concatenate(chunks),
            embodiment,
            mode=recipe.normalize,
            constant=recipe.constant,
        )
        robots.append(
            RobotTransform(embodiment, layout, state, action, recipe.model.state_width, recipe.model.action_width)
        )
    return tuple(robots)


def fit_codec(
    config: CodecConfig,
    datasets: Mapping[str, LeRobotDataset],
    robots: Sequence[RobotTransform],
    progress: Progress,
) -> PatchPCACodec:
    """A codec fitted on frames spread evenly over all datasets, the same ones every time."""
    total = sum(len(dataset.state) for dataset in datasets.values())
    every = -(-total // config.fit_frames)  # rounded up: at most `fit_frames`
    pictures = []
    for name, dataset in datasets.items():
        robot = _robot_of(robots, dataset)
        for episode in dataset.episodes:
            rows = np.arange(-episode.start % every, episode.length, every)
            if len(rows):
                views = {
                    camera: dataset.frames(camera, episode.index, rows) for camera in robot.embodiment.cameras.values()
                }
                pictures.append(robot.picture(views))
            progress(f"codec: frames of {name}", episode.index + 1, len(dataset.episodes))
    frames = torch.from_numpy(np.concatenate(pictures))
    return PatchPCACodec.fit(frames, patch=config.patch, channels=config.channels)


def initial(
    recipe: Recipe,
    datasets: Mapping[str, LeRobotDataset],
    cache: Path,
    progress: Progress,
    device: torch.device = CPU,
) -> Checkpoint:
    """The system before training, on the CPU: fitted statistics, and either random weights and a fitted codec, or the
    weights, the codec and the text encoder of `recipe.start`. `device` is where pictures are encoded.

    Raises ValueError when the start does not fit the recipe, and when the window does not fit the codec.
    """
    robots = fit_robots(recipe, datasets)
    if recipe.start is None:
        made = _fresh(recipe, datasets, robots, progress)
    else:
        made = _started(recipe, recipe.start, robots)
    recipe.window.latent_frames(made.codec.time_stride)
    if not recipe.model.noisy_padding:
        silence_padding(made.model, recipe.robots)
    if made.future.scale is not None or not recipe.future_as_change:
        return made
    some = replace(recipe.stages[0], batch_size=CHANGE_WINDOWS)
    windows = mixture(some, made, datasets, cache, progress, device).batch(0)
    return replace(made, future=FutureTransform.fit(windows.latents.numpy()))


def _fresh(
    recipe: Recipe,
    datasets: Mapping[str, LeRobotDataset],
    robots: tuple[RobotTransform, ...],
    progress: Progress,
) -> Checkpoint:
    assert recipe.codec is not None  # a recipe without them has a start
    assert recipe.text is not None
    codec = fit_codec(recipe.codec, datasets, robots, progress)
    torch.manual_seed(recipe.stages[0].seed)
    return Checkpoint(
        model=WorldActionTransformer(recipe.model),
        codec=codec,
        text=recipe.text,
        table=recipe.table,
        robots=robots,
        window=recipe.window,
        sampling=recipe.sampling,
        trained={"recipe": recipe.name, "stage": None, "step": 0},
    )


def _started(recipe: Recipe, folder: Path, robots: tuple[RobotTransform, ...]) -> Checkpoint:
    """The checkpoint in `folder` with the robots, the table and the window of the recipe."""
    start = load(folder)
    found, wanted = start.model.config.to_json(), recipe.model.to_json()
    other = [
        f"{name} is {found[name]}, not {wanted[name]}"
        for name in wanted
        if name != "noisy_padding" and found[name] != wanted[name]
    ]
    if recipe.text not in (None, start.text):
        other.append("its text encoder is another")
    if recipe.future_as_change != (start.future.scale is not None):
        other.append(f"future_as_change is {not recipe.future_as_change}")
    if other:
        raise ValueError(f"{folder}: does not fit recipe {recipe.name}: {'; '.join(other)}; change one of them")
    start.model.config = recipe.model
    if start.trained.get("imported") == "gwp0":
        share_first_embodiment(start.model, recipe.robots)
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
    datasets: Mapping[str, LeRobotDataset],
    cache: Path,
    progress: Progress,
    device: torch.device = CPU,
) -> Mixture:
    """The batches of a stage, from cached latents; `device` encodes those that are not cached yet."""
    latents = {
        name: encode_dataset(datasets[name], checkpoint, cache, progress, device)
        for name in dict.fromkeys(source.dataset for source in stage.sources)
    }
    sources = [
        Source(
            datasets[source.dataset],
            latents[source.dataset],
            _robot_of(checkpoint.robots, datasets[source.dataset]),
            checkpoint.window,
            source.mode,
            source.weight,
            checkpoint.future,
        )
        for source in stage.sources
    ]
    return Mixture(sources, stage.batch_size, stage.seed)


def encode_dataset(
    dataset: LeRobotDataset, checkpoint: Checkpoint, cache: Path, progress: Progress, device: torch.device = CPU
) -> Latents:
    """The latents of a dataset, from `cache` or encoded once on `device`; keyed by dataset, codec, layout and cameras.

    Raises ValueError, before anything is encoded, when an episode is too short for the window, or its instruction empty
    or too long.
    """
    robot, stride = _robot_of(checkpoint.robots, dataset), checkpoint.codec.time_stride
    require_lengths(dataset, checkpoint.window, stride)
    _embed_instructions(dataset, checkpoint.text)

    def encode(pictures: UInt8[np.ndarray, "B T H W 3"]) -> Float32[np.ndarray, "B Z F h w"]:
        return checkpoint.codec.to(device).encode(torch.from_numpy(pictures)).cpu().numpy()

    cameras = robot.embodiment.cameras
    latents = cache_latents(
        dataset,
        cameras=tuple(cameras.values()),
        compose=robot.picture,
        encode=encode,
        time_stride=stride,
        offsets=checkpoint.window.future_offsets,
        key=f"{checkpoint.codec.digest()} {robot.layout} {cameras}",
        root=cache,
        progress=lambda done, total: progress(f"latents of {dataset.folder.name}", done, total),
    )
    checkpoint.codec.to(CPU)  # training needs the memory of the device for itself
    return latents


def _embed_instructions(dataset: LeRobotDataset, text: TextEncoder) -> None:
    """Embed every instruction now: none fails in the middle of training then, nor is a large encoder loaded there.

    Raises ValueError naming the first episode of an instruction that is empty or too long.
    """
    episodes = {episode.instruction: episode.index for episode in reversed(dataset.episodes)}
    for instruction, episode in episodes.items():
        try:
            text.encode([instruction])
        except ValueError as error:
            raise ValueError(f"{dataset.folder}: episode {episode}: {error}") from error


def _robot_of(robots: Sequence[RobotTransform], dataset: LeRobotDataset) -> RobotTransform:
    robot = next((robot for robot in robots if robot.embodiment.name == dataset.robot_type), None)
    if robot is None:
        known = ", ".join(robot.embodiment.name for robot in robots)
        raise ValueError(f"{dataset.folder}: recorded on {dataset.robot_type!r}, this checkpoint knows {known}")
    require_embodiment(dataset, robot.embodiment)
    return robot


def _datasets_of(
    recipe: Recipe, datasets: Mapping[str, LeRobotDataset], robot: str, modes: set[Mode]
) -> list[LeRobotDataset]:
    names = {s.dataset for stage in recipe.stages for s in stage.sources if s.mode in modes}
    return [dataset for name, dataset in datasets.items() if name in names and dataset.robot_type == robot]
