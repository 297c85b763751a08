"""A checkpoint is one folder, and all that is needed to act.

    config.json          model, codec, text encoder, table, robots, window, sampling, versions
    model.safetensors    weights (the moving average, where training kept one), float32 or bfloat16
    codec.safetensors    the codec
    norm_stats.json      per robot, the statistics of state and action
    manifest.json        SHA-256 of every other file
    train_state/         only for resuming: what each process held (`train.saving`)

It appears whole or not at all, and is read as untrusted input: no pickle, every hash checked, every tensor
accounted for. A text encoder with weights is the exception: it is larger than the model and never trained, so that
`config.json` names it and the hash that it must have.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from actwam.data.embodiment import Embodiment
from actwam.data.loader import Window
from actwam.data.partial import flush, partial_folder
from actwam.data.transforms import FutureTransform, RobotTransform
from actwam.model.codec import Codec, read_codec
from actwam.model.config import TransformerConfig
from actwam.model.files import read_json, read_safetensors
from actwam.model.hub import assign_weights
from actwam.model.text import TextEncoder, read_text
from actwam.model.transformer import WorldActionTransformer
from actwam.sampler import Sampling
from actwam.tokens import Table, table_named

FORMAT = 2
TRAIN_STATE = "train_state"
NO_ROBOT = "this checkpoint has no robot: name one when importing it, or fine-tune it on its data"


@dataclass(frozen=True, kw_only=True)
class Setup:
    """A system without its weights and its codec; see `Checkpoint`."""

    model: TransformerConfig
    text: TextEncoder
    table: Table
    robots: tuple[RobotTransform, ...]
    window: Window
    sampling: Sampling
    future: FutureTransform
    action_prefix: int = 0
    trained: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A system in memory. `trained` says where it comes from: recipe, stage, step, data. `robots` is empty for an
    imported model that no robot uses yet. `action_prefix` is how many actions, given as the first of a chunk, it was
    trained to go on from; 0 when it was not.
    """

    model: WorldActionTransformer
    codec: Codec
    text: TextEncoder
    table: Table
    robots: tuple[RobotTransform, ...]
    window: Window
    sampling: Sampling
    future: FutureTransform = FutureTransform()
    action_prefix: int = 0
    trained: Mapping[str, Any]
    digest: str | None = None
    """SHA-256 of the manifest it was read from: one hash of everything in the folder."""

    def robot(self, name: str | None = None) -> RobotTransform:
        """The robot of this name, or the only one. Raises ValueError, listing the robots there are."""
        names = [robot.embodiment.name for robot in self.robots]
        if not names:
            raise ValueError(NO_ROBOT)
        if name is None and len(names) == 1:
            return self.robots[0]
        if name not in names:
            raise ValueError(f"this checkpoint was trained on {', '.join(names)}; name one of them, not {name!r}")
        return self.robots[names.index(name)]


def save(
    checkpoint: Checkpoint,
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    beside: Callable[[Path], None] = lambda folder: None,
) -> None:
    """Write `folder`, which must not exist. `weights` replaces the model's own, for a moving average. `beside` writes
    further files into the folder that it is given.

    Raises ValueError when the disk is full or the folder cannot be written; nothing of it is left behind
    then, and checkpoints written before are not touched.
    """
    weights = checkpoint.model.state_dict() if weights is None else weights
    files = {"model": weights, "codec": checkpoint.codec.tensors()}
    try:
        with partial_folder(folder) as partial:
            _write_json(partial / "config.json", _config(checkpoint))
            norm_stats = {robot.embodiment.name: robot.norm_stats() for robot in checkpoint.robots}
            _write_json(partial / "norm_stats.json", norm_stats)
            for name, tensors in files.items():
                _write_tensors(partial / f"{name}.safetensors", tensors)
            beside(partial)
            write_manifest(partial)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder}: the checkpoint could not be written: {error}; free disk space and resume"
        ) from error
    flush(folder.parent)


def write_manifest(folder: Path) -> None:
    """Write the hash of every file in it to its `manifest.json`, and ask the disk to keep all of them."""
    _write_json(folder / "manifest.json", _hashes(folder))
    for path in folder.rglob("*"):
        flush(path)


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint folder, or the newest one in the folder of a run.

    Raises ValueError, one line with the file, on a missing, extra or changed file, and on a missing, extra or
    misshaped tensor.
    """
    folder = newest(folder)
    verify(folder)
    setup, config = read_setup(folder), _read_format(folder)
    with _described(folder):
        codec = read_codec(config["codec"], read_safetensors(folder / "codec.safetensors"))
    model = load_weights(setup.model, folder / "model.safetensors").eval()
    digest = _sha256(folder / "manifest.json")
    return Checkpoint(**{**vars(setup), "model": model}, codec=codec, digest=digest)


def read_setup(folder: Path) -> Setup:
    """What a checkpoint says of itself, without reading its weights. Raises ValueError as `load` does."""
    folder = newest(folder)
    config, norm_stats = _read_format(folder), read_json(folder / "norm_stats.json")
    with _described(folder):
        window: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in config["window"].items()}
        return Setup(
            model=TransformerConfig.from_json(config["model"]),
            text=read_text(config["text"]),
            table=table_named(config["table"]),
            robots=tuple(
                RobotTransform.from_json(robot, norm_stats[robot["embodiment"]["name"]]) for robot in config["robots"]
            ),
            window=Window(**window),
            sampling=Sampling(**config["sampling"]),
            future=FutureTransform(config["future"] and tuple(config["future"])),
            action_prefix=config.get("action_prefix", 0),
            trained=config["trained"],
        )


@contextmanager
def _described(folder: Path) -> Iterator[None]:
    """Say of what goes wrong in the block that a file of the checkpoint is not as this version writes it."""
    try:
        yield
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{folder}: {type(error).__name__} {error}; config.json, norm_stats.json or codec.safetensors "
            "does not fit this version"
        ) from error


def read_config(folder: Path) -> TransformerConfig:
    """The sizes of the model in a checkpoint, without reading its weights. Raises ValueError as `load` does."""
    folder = newest(folder)
    try:
        return TransformerConfig.from_json(_read_format(folder)["model"])
    except (KeyError, TypeError) as error:
        raise ValueError(f"{folder / 'config.json'}: {type(error).__name__} {error}; it describes no model") from error


def require_fitting(robots: Sequence[Embodiment], sizes: TransformerConfig, where: str) -> None:
    """Raises ValueError, beginning with `where`, when a model of these sizes has no place for the robots."""
    if len({robot.name for robot in robots}) < len(robots):
        raise ValueError(f"{where}: two robots are called {[robot.name for robot in robots]}")
    for robot in robots:
        problem = f"{where}: embodiment {robot.name}"
        if not 0 <= robot.index < sizes.embodiments:
            raise ValueError(f"{problem} has index {robot.index}, the model {sizes.embodiments} embodiments")
        for what, names in (("state", robot.state_names), ("action", robot.action_names)):
            width = getattr(sizes, f"{what}_width")
            if len(names) > width:
                raise ValueError(f"{problem} has {len(names)} {what} dimensions, the model is {width} wide")
        for other in robots:
            widths = {(len(each.state_names), len(each.action_names)) for each in (robot, other)}
            if other.index == robot.index and len(widths) > 1:
                raise ValueError(f"{problem} and {other.name} have one index and other widths: give each its own index")


def require_divisible(picture: tuple[int, int], side: int, sizes: TransformerConfig, where: str) -> None:
    """Raises ValueError, beginning with `where`, when a picture (height, width) does not divide into whole tokens.
    `side` is how many pixels of it make a latent one.
    """
    for what, pixels, patch in zip(("high", "wide"), picture, sizes.patch, strict=True):
        if pixels % (side * patch):
            raise ValueError(f"{where}: pictures {pixels} pixels {what} do not divide into tokens of {side * patch}")


def stored_codec(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """What `read_codec` makes the codec of a checkpoint from. Its tensors are mapped into memory, and not read.

    Raises ValueError as `load` does.
    """
    folder = newest(folder)
    return _read_format(folder).get("codec", {}), read_safetensors(folder / "codec.safetensors")


def _read_format(folder: Path) -> dict[str, Any]:
    config = read_json(folder / "config.json")
    if config.get("format") != FORMAT:
        raise ValueError(f"{folder}: checkpoint format {config.get('format')}, this version reads {FORMAT}")
    return config


def newest(folder: Path) -> Path:
    """`folder` itself when it is a checkpoint, else the one with the most steps in it, of its last stage if it has
    stages.
    """
    if (folder / "manifest.json").is_file():
        return folder
    stages = sorted(folder.glob("[0-9]-*"))
    found = checkpoints(folder) or [path for stage in stages for path in checkpoints(stage)]
    if not found:
        raise ValueError(f"{folder}: no checkpoint here: neither manifest.json nor step_* folders")
    return found[-1]


def checkpoints(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first. They are renamed into place, so that one seen is
    whole.
    """
    return sorted(path for path in run.glob("step_*") if not path.suffix)


def verify(folder: Path) -> None:
    """Hash every file against the manifest. Raises ValueError naming the first that is missing, extra or
    changed.
    """
    expected, found = read_json(folder / "manifest.json"), _hashes(folder)
    if not (folder / "manifest.json").read_bytes().endswith(b"}\n"):
        raise ValueError(f"{folder / 'manifest.json'}: cut off; use another checkpoint")
    for name in sorted({*expected, *found}):
        if name not in found:
            raise ValueError(f"{folder / name}: missing; the checkpoint is incomplete, use another")
        if expected.get(name) != found[name]:
            what = "changed since it was written" if name in expected else "not part of the checkpoint"
            raise ValueError(f"{folder / name}: {what} (SHA-256 against manifest.json); use another checkpoint")


def load_weights(config: TransformerConfig, source: Path) -> WorldActionTransformer:
    """A model of these sizes with the weights of a safetensors file, in their dtype and never in memory twice.

    Raises ValueError listing every missing, extra or misshaped tensor, and on another dtype or a mixture.
    """
    tensors = read_safetensors(source)
    with torch.device("meta"):
        model = WorldActionTransformer(config)
    assign_weights(model, tensors, source)
    dtypes = {tensor.dtype for tensor in tensors.values()}
    if dtypes not in ({torch.float32}, {torch.bfloat16}):
        raise ValueError(
            f"{source}: weights are {', '.join(sorted(map(str, dtypes)))}, not float32 or bfloat16 throughout"
        )
    return model


def _config(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "versions": {name: version(name) for name in ("actwam", "torch", "numpy")},
        "model": checkpoint.model.config.to_json(),
        "codec": checkpoint.codec.to_json(),
        "text": checkpoint.text.to_json(),
        "table": checkpoint.table.name,
        "robots": [robot.to_json() for robot in checkpoint.robots],
        "window": asdict(checkpoint.window),
        "sampling": asdict(checkpoint.sampling),
        "future": checkpoint.future.scale,
        "action_prefix": checkpoint.action_prefix,
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


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors from any device. The copies that it takes on the CPU are gone when the next file is written."""
    save_file({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, path)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
