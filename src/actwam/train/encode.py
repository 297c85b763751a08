"""Pictures and instructions as the model reads them, made once for all training, and the batches of a stage."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import sample

import numpy as np
import torch
from jaxtyping import Float32, UInt8

from actwam.checkpoint import Checkpoint, Setup
from actwam.data.dataset import Footage, require_embodiment
from actwam.data.latents import Encoding, require_space
from actwam.data.loader import Mixture, Source, require_lengths
from actwam.data.partial import share
from actwam.data.transforms import RobotTransform
from actwam.model.codec import Codec
from actwam.model.text import TextEncoder
from actwam.train.config import SourceConfig, StageConfig
from actwam.train.datasets import view_of
from actwam.types import Mode, Progress

CPU = torch.device("cpu")


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
    made = encodings(stage.sources, checkpoint, checkpoint.codec, datasets, cache, progress, device)
    encode(made.values(), checkpoint.codec)
    latents = {name: encoding.open() for name, encoding in made.items()}
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


def encode(wanted: Collection[Encoding], codec: Codec) -> None:
    """Have all of these encoded, by this process and all that do the same now; the codec is on the CPU afterwards.

    Raises ValueError, before anything is encoded, when it does not fit on the disk.
    """
    require_space(wanted)
    share([job for encoding in wanted for job in encoding.jobs])
    codec.to(CPU)  # training needs the memory of the device for itself


def encodings(
    sources: Sequence[SourceConfig],
    system: Setup | Checkpoint,
    codec: Codec,
    datasets: Mapping[str, Footage],
    cache: Path,
    progress: Progress,
    device: torch.device = CPU,
) -> dict[str, Encoding]:
    """How the datasets of some sources are encoded on `device`, or found in `cache`: by dataset, codec, layout and
    cameras. Their instructions are embedded.

    Raises ValueError when an episode is too short for the window, or its instruction empty or too long.
    """
    views = {robot.embodiment.name: robot.view for robot in system.robots}
    used = {source.dataset: datasets[source.dataset] for source in sources}
    for source in sources:
        if not source.leave_short:
            require_lengths(used[source.dataset], system.window, {source.mode}, codec.time_stride)
    embed_instructions(used.values(), system.text)

    def on_device(pictures: UInt8[np.ndarray, "B T H W 3"]) -> Float32[np.ndarray, "B Z F h w"]:
        return codec.to(device).encode(torch.from_numpy(pictures)).cpu().numpy()

    total, before = sum(len(dataset.state) for dataset in used.values()), 0
    found: dict[str, Encoding] = {}
    for source in sources:
        if source.dataset not in found:
            dataset = used[source.dataset]
            view = view_of(dataset, source.view, views)
            found[source.dataset] = Encoding(
                dataset=dataset,
                cameras=tuple(view.cameras.values()),
                size=(view.layout.height, view.layout.width),
                compose=view.picture,
                encode=on_device,
                time_stride=codec.time_stride,
                offsets=system.window.future_offsets,
                key=f"{codec.digest()} {view.layout} {dict(view.cameras)}",
                root=cache,
                progress=partial(lambda before, done, _: progress("latents", before + done, total), before),
            )
            before += len(dataset.state)
    return found


def embed_instructions(datasets: Iterable[Footage], text: TextEncoder) -> None:
    """Embed every instruction now: none fails in the middle of training then, nor is a large encoder loaded there.

    Each process does it in an order of its own, so that of several each finds most of them done. Raises ValueError
    naming an episode whose instruction is empty or too long.
    """
    places: dict[str, str] = {}
    for dataset in datasets:
        for episode in dataset.episodes:
            if episode.instruction not in places:
                places[episode.instruction] = dataset.where(episode.index)
    for instruction in sample(list(places), len(places)):
        try:
            text.encode([instruction])
        except ValueError as error:
            raise ValueError(f"{places[instruction]}: {error}") from error


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
