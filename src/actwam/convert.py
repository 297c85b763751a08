"""Official models in, official models out.

`import_model` makes a checkpoint of a folder or Hub repository with GWP-0, GWP-0.5 or Wan 2.2; `export_model` turns a
checkpoint back into their layout. What is imported and exported again is the same to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError

from actwam.checkpoint import Checkpoint, load, require_divisible, require_fitting, save
from actwam.data.embodiment import Embodiment, read_robot
from actwam.data.loader import Window
from actwam.data.normalize import Normalizer, NormStats
from actwam.data.partial import partial_folder
from actwam.data.transforms import RobotTransform, layout_of
from actwam.model.files import Precision, read_json
from actwam.model.hub import resolve
from actwam.model.official import Official, TimeProjection, read_official, write_official
from actwam.model.umt5 import UMT5
from actwam.model.wan import WanCodec
from actwam.model.weights import ActionSide
from actwam.recipes import gwp
from actwam.tokens import ACTION_CENTERED

_STATE, _ACTION = "observation.state", "action"
_COLUMNS = ("mean", "std", "min", "max", "q01", "q99")


@dataclass(frozen=True, kw_only=True)
class ImportConfig:
    """What a folder of weights does not tell.

    `folder` is where in the source the weights are, such as `transformer_ema`; None finds them. `codec` and `text`: a
    folder or Hub id with `vae/`, and with `text_encoder/` and `tokenizer/`; None takes those beside the weights, or
    else Wan 2.2's own. `robots` and `norm_stats`: a YAML file of each robot that the weights were trained on and its
    statistics; without them the checkpoint can be fine-tuned, but cannot act. `picture` is the (height, width) of the
    composed picture. The rest is `read_official`'s.
    """

    folder: str | None = None
    codec: str | None = None
    text: str | None = None
    robots: tuple[Path, ...] = ()
    norm_stats: tuple[Path, ...] = ()
    action_horizon: int = gwp.ACTION_HORIZON
    picture: tuple[int, int] = gwp.PICTURE
    actions: ActionSide = gwp.ACTIONS
    precision: Precision = "auto"
    time_projection: TimeProjection = "chunks"
    seed: int = 0
    only_for_wan: tuple[str, ...] = ()
    """Options that were chosen, and that only Wan may be given."""


def import_model(source: str, out: Path, config: ImportConfig) -> Checkpoint:
    """Write the checkpoint `out`, which must not exist, from a local folder or a Hub id.

    Raises ValueError, one line, on weights that are missing, damaged, left over or contradicted by their config.json,
    on a text encoder or codec of another width, on robots, statistics or pictures that do not fit the model, and on a
    Hub id that cannot be reached. Nothing is left behind then.
    """
    if out.exists():
        raise ValueError(f"{out}: exists already; choose another folder or delete this one")
    if len(config.robots) != len(config.norm_stats):
        raise ValueError(
            f"{len(config.robots)} robots and {len(config.norm_stats)} files of statistics: give one for each robot"
        )
    robots = [(read_robot(robot), path) for robot, path in zip(config.robots, config.norm_stats, strict=True)]
    normalizers = [_normalizers(robot, path) for robot, path in robots]
    window = Window(action_horizon=config.action_horizon, future_offsets=gwp.offsets(config.action_horizon))
    weight_files = gwp.WEIGHT_FILES if config.folder is None else (f"{config.folder}/*",)
    fetched = resolve(source, (*weight_files, *gwp.BESIDE))
    with _hint("--text"):
        text = UMT5.load(config.text or _beside(source, fetched, "text_encoder"), tokens=gwp.TEXT_TOKENS)
    with _hint("--codec"):
        autoencoder = resolve(config.codec or _beside(source, fetched, "vae"), gwp.CODEC_FILES)
        codec = WanCodec.load(autoencoder / "vae" if (autoencoder / "vae").is_dir() else autoencoder)
    official = read_official(
        fetched / (config.folder or ""),
        text_tokens=gwp.TEXT_TOKENS,
        actions=config.actions,
        precision=config.precision,
        time_projection=config.time_projection,
        seed=config.seed,
        pickled=True,
    )
    sizes = official.model.config
    _require_fit(official, codec, text, [robot for robot, _ in robots], source, config)
    checkpoint = Checkpoint(
        model=official.model,
        codec=codec,
        text=text,
        table=ACTION_CENTERED,
        robots=tuple(
            RobotTransform(
                robot,
                layout_of(robot, *config.picture, resample="bilinear"),
                *normalizer,
                sizes.state_width,
                sizes.action_width,
            )
            for (robot, _), normalizer in zip(robots, normalizers, strict=True)
        ),
        window=window,
        sampling=gwp.sampling(len(sizes.experts)),
        trained={"imported": official.layout, "source": source, "seed": config.seed},
    )
    save(checkpoint, out)
    return checkpoint


def _require_fit(
    official: Official, codec: WanCodec, text: UMT5, robots: Sequence[Embodiment], source: str, config: ImportConfig
) -> None:
    """Raises ValueError when model, codec, text encoder, robots and picture do not fit each other."""
    sizes = official.model.config
    for what, found, wanted in (
        ("text encoder", text.width, sizes.text_width),
        ("codec", codec.latent_channels, sizes.latent_channels),
    ):
        if found != wanted:
            raise ValueError(f"{source}: the model reads a {what} of width {wanted}, the one given has {found}")
    require_fitting(robots, sizes, source)
    require_divisible(config.picture, codec.side, sizes, source)
    if official.layout == "gwp0" and any(robot.index for robot in robots):
        raise ValueError(f"{source}: the released GWP-0 acts as embodiment 0 for every robot: give robots index 0")
    if official.layout != "wan" and config.only_for_wan:
        raise ValueError(f"{source}: is {official.layout}; {', '.join(config.only_for_wan)}: for Wan only")


def export_model(folder: Path, out: Path, *, pickled: bool = False) -> None:
    """Write a checkpoint as `out/transformer`, `out/vae` and one file of statistics for each robot.

    `pickled`: a `.bin` instead of safetensors, for GWP's C++ converter. Raises ValueError on a model without official
    counterpart, and on one that the official inference would run in another way. The folder appears whole or not at
    all.
    """
    checkpoint = load(folder)
    modes = {normalizer.mode for robot in checkpoint.robots for normalizer in (robot.state, robot.action)}
    problems = {
        f"its table is {checkpoint.table.name}": checkpoint.table is not ACTION_CENTERED,
        "it sees the future as change from the present": checkpoint.future.scale is not None,
        f"its codec is {checkpoint.codec.kind}": not isinstance(checkpoint.codec, WanCodec),
        f"it normalises by {', '.join(sorted(modes))}": not modes <= {"quantile"},
    }
    if found := [problem for problem, holds in problems.items() if holds]:
        raise ValueError(f"{folder}: the official inference would run this model in another way: {', '.join(found)}")
    with partial_folder(out) as partial:
        try:
            write_official(checkpoint.model, partial, pickled=pickled)
        except (OSError, SafetensorError, RuntimeError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise ValueError(f"{out}: could not be written: {reason}; free disk space") from error
        assert isinstance(checkpoint.codec, WanCodec)
        checkpoint.codec.export(partial / "vae")
        for robot in checkpoint.robots:
            path = partial / f"norm_stats_{robot.embodiment.name}.json"
            path.write_text(json.dumps(_official_stats(robot), indent=2) + "\n", encoding="utf-8")


def _beside(source: str, fetched: Path, part: str) -> str:
    """Where `part` is: with the weights, or else in the model that they started from."""
    return source if (fetched / part).is_dir() else gwp.WAN


@contextmanager
def _hint(option: str) -> Iterator[None]:
    """Add to what goes wrong in the block which option says where else to look."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{error}; {option} says where it is") from error


def _normalizers(robot: Embodiment, path: Path) -> tuple[Normalizer, Normalizer]:
    """State and action by the official statistics: `{"norm_stats": {"observation.state": {"mean": []}, "action": {}}}`,
    lists as long as the padded vectors, over actions that are already relative where the robot's are.
    """
    if set(robot.cameras) != set(gwp.SLOTS):
        raise ValueError(
            f"{path}: the official models see {', '.join(gwp.SLOTS)}, embodiment {robot.name} fills "
            f"{', '.join(robot.cameras)}"
        )
    data = read_json(path).get("norm_stats")
    if not isinstance(data, dict) or not {_STATE, _ACTION} <= set(data):
        raise ValueError(f"{path}: has no norm_stats of {_STATE} and {_ACTION}")
    state, action = (
        Normalizer(_stats(path, key, data[key], names), "quantile", "center")
        for key, names in ((_STATE, robot.state_names), (_ACTION, robot.action_names))
    )
    return state, action


def _stats(path: Path, key: str, columns: Any, names: Sequence[str]) -> NormStats:
    if not isinstance(columns, dict):
        raise ValueError(f"{path}: {key} is no table of statistics")
    cut: dict[str, Any] = {"names": list(names), "count": 1}
    for column in _COLUMNS:
        values: Any = columns.get(column)
        numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
        if not numbers or len(values) < len(names):
            raise ValueError(f"{path}: {key}: {column} is {str(values)[:60]}, expected at least {len(names)} numbers")
        if any(values[len(names) :]):
            raise ValueError(f"{path}: {key}: {column} has more than the {len(names)} dimensions of {', '.join(names)}")
        cut[column] = values[: len(names)]
    for i in range(len(names)):
        if 0 <= cut["q99"][i] - cut["q01"][i] <= 1e-8:  # 2 (x - q01) / max(q99 - q01, 1e-8) - 1 is -1 there, officially
            cut["min"][i] = cut["q01"][i]
            cut["q99"][i] = cut["max"][i] = cut["q01"][i] + 2
    try:
        return NormStats.from_json(cut)
    except ValueError as error:
        raise ValueError(f"{path}: {key}: {error}") from error


def _official_stats(robot: RobotTransform) -> Mapping[str, Any]:
    """The statistics of a robot in the official form, padded with zeros.

    What stands still is 0 to the model here; a range of 2 around it makes it 0 there.
    """

    def columns(normalizer: Normalizer, width: int) -> dict[str, list[float]]:
        stats = normalizer.stats
        found = {name: [*getattr(stats, name), *[0.0] * (width - len(stats.names))] for name in _COLUMNS}
        for i in np.flatnonzero(normalizer.still):
            for name, offset in (("min", -1), ("q01", -1), ("q99", 1), ("max", 1)):
                found[name][i] = stats.min[i] + offset
        return found

    parts = {_STATE: columns(robot.state, robot.state_width), _ACTION: columns(robot.action, robot.action_width)}
    return {"norm_stats": parts}
