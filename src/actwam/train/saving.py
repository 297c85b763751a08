"""Checkpoints of a stage: written while training goes on, and read by as many processes as there are then."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.staging import BlockingAsyncStager

from actwam.checkpoint import TRAIN_STATE, Checkpoint, checkpoints, load, save
from actwam.model.files import read_json
from actwam.train.parallel import World

KEPT = 2
"""Checkpoints kept of a stage: the newest, and one before it."""
LATEST, BEST = "latest", "best"
"""Links to the newest checkpoint of a stage, and to that with the highest score. They move when it is whole and on the
disk.
"""
SCORE = "best.json"
"""What the best checkpoint was found to be."""
warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as it should be: one process

FILE_BYTES = 1 << 30
"""Of a file of the training state, about: so much is copied once more while it is written."""


class Saver:
    """Writes checkpoints of a stage to `folder`, one at a time, from copies of everything."""

    def __init__(self, folder: Path, world: World) -> None:
        self._folder, self._world = folder, world
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: Future[None] | None = None

    def save(
        self, checkpoint: Checkpoint, step: int, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        """Copy `state`, what this process holds of it, and begin to write the checkpoint of a step; the first process
        writes it around `weights`, which must be copies. Raises ValueError when the one before could not be written.
        """
        self.wait()
        copied = BlockingAsyncStager().stage(dict(state))
        target = self._folder / f"step_{step:08d}"
        self._under_way = self._pool.submit(self._write, checkpoint, target, weights, copied)

    def judge(self, step: int, found: Mapping[str, float]) -> None:
        """Keep the checkpoint of a step, what is `found` of it being its numbers, if its `score` is the highest yet."""
        sheet = self._folder / SCORE
        if sheet.exists() and read_json(sheet)["score"] >= found["score"]:
            return
        point(self._folder / BEST, self._folder / f"step_{step:08d}")
        new = sheet.with_name(f"{SCORE}.partial")
        new.write_text(json.dumps({"step": step, **found}, indent=2) + "\n", encoding="utf-8")
        new.replace(sheet)

    def check(self) -> None:
        """Raises ValueError when a checkpoint could not be written. Never waits."""
        if self._under_way is not None and self._under_way.done():
            self.wait()

    def wait(self) -> None:
        """Until all is written. Raises ValueError when it could not be."""
        if self._under_way is not None:
            under_way, self._under_way = self._under_way, None
            under_way.result()

    def close(self) -> None:
        """Wait for what is being written, whatever comes of it."""
        self._pool.shutdown()

    def _write(
        self, checkpoint: Checkpoint, target: Path, weights: Mapping[str, Tensor], state: Mapping[str, Tensor]
    ) -> None:
        if not self._world.first:
            write_state(self._world, state, target.with_name(f"{target.name}.partial"))
            return
        save(checkpoint, target, weights=weights, beside=partial(write_state, self._world, state))
        point(self._folder / LATEST, target)
        forget(self._folder)


def write_state(world: World, state: Mapping[str, Tensor], folder: Path) -> None:
    """All processes together, each what it holds, as safetensors files. Raises OSError when one of them cannot."""
    alone = world.mesh is None
    place, size = {}, 0
    for name, tensor in state.items():
        size += tensor.nbytes
        place[name] = 1 + size // FILE_BYTES
    used = {number: n for n, number in enumerate(sorted(set(place.values())), 1)}
    files = {name: used[number] for name, number in place.items()}
    writer = HuggingFaceStorageWriter(str(folder / TRAIN_STATE), files, save_distributed=True)
    try:
        dcp.save(dict(state), storage_writer=writer, process_group=world.writers, no_dist=alone)
    except CheckpointException as error:
        raise OSError(next(iter(str(each[0]) for each in error.failures.values()))) from error


def read_state(world: World, state: Mapping[str, Tensor], folder: Path) -> None:
    """Fill `state` with what a checkpoint holds of it, however many processes wrote that.

    Raises ValueError when it holds other tensors.
    """
    reader = HuggingFaceStorageReader(str(folder / TRAIN_STATE))
    sizes: Mapping[str, Any] = reader.read_metadata().state_dict_metadata
    found = {name: tuple(each.size) for name, each in sizes.items()}
    if found != {name: tuple(tensor.shape) for name, tensor in state.items()}:
        raise ValueError(f"{folder}: {TRAIN_STATE} does not hold the tensors of this model; start the stage again")
    dcp.load(dict(state), storage_reader=reader, process_group=world.writers, no_dist=world.mesh is None)


def newest_whole(folder: Path, world: World, say: Callable[[str], None]) -> tuple[Path, Checkpoint] | None:
    """The last checkpoint of a stage that can be read, None where there is none at all. Others are said, and put aside.

    Raises ValueError when none of them can be read.
    """
    found, broken = checkpoints(folder), dict[Path, ValueError]()
    for path in reversed(found):
        try:
            made = load(path)
        except ValueError as error:
            broken[path] = error
            continue
        world.wait()
        for other, problem in broken.items():
            say(f"{problem}; put aside")
            if world.first:
                other.rename(_aside(other))
        return path, made
    if found:
        first = next(iter(broken.values()))
        raise ValueError(
            f"{folder}: none of its {len(found)} checkpoints can be read: train again in another --out ({first})"
        )
    return None


def forget(folder: Path) -> None:
    """Delete all but the newest checkpoints and the best, and what a process left that was killed while deleting them.

    The newest has been renamed into place before. An old one is renamed away first: no half of it is ever
    seen.
    """
    best = (folder / BEST).resolve()
    for old in checkpoints(folder)[:-KEPT]:
        if old.resolve() != best:
            old.rename(old.with_suffix(".partial"))
    for left in folder.glob("step_*.partial"):
        shutil.rmtree(left)


def point(link: Path, target: Path) -> None:
    """Let a link say the name of `target`, in the same folder. It says one or the other at every moment."""
    new = link.with_name(f"{link.name}.partial")
    new.unlink(missing_ok=True)
    new.symlink_to(target.name)
    os.replace(new, link)


def _aside(path: Path) -> Path:
    """A free name for a checkpoint that cannot be read."""
    names = (path.with_suffix(f".broken{n or ''}") for n in range(1000))
    return next(name for name in names if not name.exists())
