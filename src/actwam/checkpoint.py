"""A checkpoint is one folder, and all that is needed to act.

    config.json          model, codec, text, table, robots, window, sampling, versions
    model.safetensors    weights (the moving average, where training kept one)
    codec.safetensors    the embedded codec
    norm_stats.json      per robot, the statistics of state and action
    manifest.json        SHA-256 of every other file
    train_state/         only for resuming

It appears whole or not at all, and is read as untrusted input: no pickle, every hash checked, every tensor
accounted for.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from actwam.data.loader import Window
from actwam.data.partial import partial_folder
from actwam.data.transforms import FutureTransform, RobotTransform
from actwam.model.codec import PatchPCACodec
from actwam.model.config import TransformerConfig
from actwam.model.text import HashedWords
from actwam.model.transformer import WorldActionTransformer
from actwam.sampler import Sampling
from actwam.tokens import TABLES, Table

FORMAT = 1
TRAIN_STATE = "train_state"


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained system in memory. `trained` says where it comes from: recipe, stage, step, data."""

    model: WorldActionTransformer
    codec: PatchPCACodec
    text: HashedWords
    table: Table
    robots: tuple[RobotTransform, ...]
    window: Window
    sampling: Sampling
    future: FutureTransform = FutureTransform()
    trained: Mapping[str, Any]
    digest: str | None = None
    """SHA-256 of the manifest it was read from: one hash of everything in the folder."""

    def robot(self, name: str | None = None) -> RobotTransform:
        """The robot of this name, or the only one. Raises ValueError, listing the robots there are."""
        names = [robot.embodiment.name for robot in self.robots]
        if name is None and len(self.robots) == 1:
            return self.robots[0]
        if name not in names:
            raise ValueError(f"this checkpoint was trained on {', '.join(names)}; name one of them, not {name!r}")
        return self.robots[names.index(name)]


def save(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    train_state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write `folder`, which must not exist. `weights` replaces the model's own, for a moving average.

    Raises ValueError when the disk is full or the folder cannot be written; nothing of it is left behind
    then, and checkpoints written before are not touched.
    """
    weights = checkpoint.model.state_dict() if weights is None else weights
    files = {"model": weights, "codec": checkpoint.codec.tensors(), f"{TRAIN_STATE}/state": train_state}
    try:
        with partial_folder(folder) as partial:
            _write_json(partial / "config.json", _config(checkpoint))
            norm_stats = {robot.embodiment.name: robot.norm_stats() for robot in checkpoint.robots}
            _write_json(partial / "norm_stats.json", norm_stats)
            for name, tensors in files.items():
                if tensors is not None:
                    (partial / name).parent.mkdir(exist_ok=True)
                    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
                    save_file(contiguous, partial / f"{name}.safetensors")
            _write_json(partial / "manifest.json", _hashes(partial))
            for path in partial.rglob("*"):
                _flush(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: the checkpoint could not be written: {error}; free disk space and resume"
        ) from error
    _flush(folder.parent)


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder, or the newest one in the folder of a run.

    Raises ValueError, one line with the file, on a missing, extra or changed file, and on a missing, extra or
    misshaped tensor.
    """
    folder = newest(folder)
    verify(folder)
    config = _read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder}: checkpoint format {config.get('format')}, this version reads {FORMAT}")
    norm_stats = _read_json(folder / "norm_stats.json")
    try:
        window = config["window"]
        checkpoint = Checkpoint(
            model=build(TransformerConfig.from_json(config["model"])).eval(),
            codec=PatchPCACodec.from_tensors(read_tensors(folder / "codec.safetensors")),
            text=HashedWords(**config["text"]),
            table=TABLES[config["table"]],
            robots=tuple(
                RobotTransform.from_json(robot, norm_stats[robot["embodiment"]["name"]]) for robot in config["robots"]
            ),
            window=Window(action_horizon=window["action_horizon"], future_offsets=tuple(window["future_offsets"])),
            sampling=Sampling(**config["sampling"]),
            future=FutureTransform(config["future"] and tuple(config["future"])),
            trained=config["trained"],
            digest=_sha256(folder / "manifest.json"),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: {type(error).__name__} {error}; config.json, norm_stats.json or codec.safetensors "
            "does not fit this version"
        ) from error
    weights = folder / "model.safetensors"
    load_weights(checkpoint.model, read_tensors(weights), weights)
    return checkpoint


def newest(folder: Path) -> Path:
    """`folder` itself when it is a checkpoint, else the checkpoint with the most steps in it."""
    if (folder / "manifest.json").is_file():
        return folder
    found = checkpoints(folder)
    if not found:
        raise ValueError(f"{folder}: no checkpoint here: neither manifest.json nor step_* folders")
    return found[-1]


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first. They are renamed into place, so that one seen is
    whole.
    """
    return sorted(path for path in run.glob("step_*") if path.suffix != ".partial")


def verify(folder: Path) -> None:
    """Hash every file against the manifest. Raises ValueError naming the first that is missing, extra or
    changed.
    """
    expected, found = _read_json(folder / "manifest.json"), _hashes(folder)
    for name in sorted({*expected, *found}):
        if name not in found:
            raise ValueError(f"{folder / name}: missing; the checkpoint is incomplete, use another")
        if expected.get(name) != found[name]:
            what = "changed since it was written" if name in expected else "not part of the checkpoint"
            raise ValueError(f"{folder / name}: {what} (SHA-256 against manifest.json); use another checkpoint")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file. Raises ValueError when it is missing or damaged."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy tensors into a module. Raises ValueError listing every missing, extra or misshaped one."""
    own = model.state_dict()
    wrong = [f"missing {name}" for name in own if name not in tensors]
    wrong += [f"extra {name}" for name in tensors if name not in own]
    wrong += [
        f"{name} is {tuple(tensors[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if wrong:
        raise ValueError(f"{source}: does not fit the model: {'; '.join(wrong)}")
    model.load_state_dict(dict(tensors))


def build(config: TransformerConfig) -> WorldActionTransformer:
    """The model with uninitialised weights, allocated once."""
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    return model.to_empty(device="cpu")


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("actwam", "torch", "numpy")},
        "model": checkpoint.model.config.to_json(),
        "text": asdict(checkpoint.text),
        "table": checkpoint.table.name,
        "robots": [robot.to_json() for robot in checkpoint.robots],
        "window": asdict(checkpoint.window),
        "sampling": asdict(checkpoint.sampling),
        "future": checkpoint.future.scale,
        "trained": dict(checkpoint.trained),
    }


def _hashes(folder: Path) -> dict[str, str]:
    hashes = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path != folder / "manifest.json":
            hashes[path.relative_to(folder).as_posix()] = _sha256(path)
    return hashes


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path}: must hold a JSON object")
    return data


def _flush(path: Path) -> None:
    """Ask the disk to keep a file, or the entries of a folder, before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
