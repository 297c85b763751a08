"""A robot as the model sees it: the names and meaning of its cameras, its state and its actions.

A robot is written down as a YAML file; `examples/robots` holds some that explain every line.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from actwam.data.yamls import read_yaml, require_value

KEYS = ("name", "fps", "image_size", "cameras", "state", "action", "delta")
"""What a robot's file must say."""
OPTIONAL: Mapping[str, Any] = {"index": 0, "units": {}}
"""What it may also say, and what holds otherwise."""


@dataclass(frozen=True, kw_only=True)
class Embodiment:
    """One robot. `index` selects its own first and last projector layers in the model.

    `cameras` maps a slot of the composed picture to the name of the camera that fills it. `delta_mask` is
    True for the action dimensions that are learned relative to the state dimension of the same index.
    """

    name: str
    index: int
    fps: int
    cameras: dict[str, str]
    image_size: tuple[int, int]
    """Height and width of every camera picture, in pixels: one size for all cameras of a robot."""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    delta_mask: tuple[bool, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    """Of dimensions of state and action by their names, such as rad; of those that are not in it, nobody knows."""

    def __post_init__(self) -> None:
        if len(self.delta_mask) != len(self.action_names):
            raise ValueError(
                f"embodiment {self.name}: delta_mask has {len(self.delta_mask)} entries for "
                f"{len(self.action_names)} actions"
            )
        beyond = [i for i, delta in enumerate(self.delta_mask) if delta and i >= len(self.state_names)]
        if beyond:
            raise ValueError(f"embodiment {self.name}: action dimensions {beyond} are deltas of a state it has not")
        if len(set(self.cameras.values())) != len(self.cameras):
            raise ValueError(f"embodiment {self.name}: one camera fills two slots: {self.cameras}")
        if unknown := set(self.units) - {*self.state_names, *self.action_names}:
            raise ValueError(f"embodiment {self.name}: units of {sorted(unknown)}, which it has not")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Embodiment:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


def read_robot(path: Path) -> Embodiment:
    """The robot that a YAML file describes.

    Raises ValueError, one line with the file and the key, on a file that cannot be read, on a key that is missing
    or unknown, and on a value that is not what it should be.
    """
    data = {**OPTIONAL, **read_yaml(path, "a robot", KEYS, OPTIONAL)}
    name, cameras = data["name"], data["cameras"]
    plain = isinstance(name, str) and re.fullmatch(r"[^/\\]+", name) is not None
    require_value(path, "name", name, plain, "the robot_type of its datasets, without slashes")
    for key, least in (("index", 0), ("fps", 1)):
        require_value(path, key, data[key], _whole([data[key]], 1, least), f"a whole number of at least {least}")
    require_value(path, "image_size", data["image_size"], _whole(data["image_size"], 2, 1), "[height, width] in pixels")
    units = data["units"]
    known = isinstance(units, dict) and all(isinstance(text, str) for pair in units.items() for text in pair)
    require_value(path, "units", units, known, "lines of dimension: unit")
    filled = isinstance(cameras, dict) and _names([*cameras]) and _names([*cameras.values()])
    require_value(path, "cameras", cameras, filled, "lines of slot: camera name, each once")
    for key in ("state", "action"):
        require_value(
            path, key, data[key], _names(data[key]), "a list of names, each once, quoted where YAML reads no text"
        )
    try:
        return Embodiment(
            name=name,
            index=data["index"],
            fps=data["fps"],
            cameras=cameras,
            image_size=(data["image_size"][0], data["image_size"][1]),
            state_names=tuple(data["state"]),
            action_names=tuple(data["action"]),
            delta_mask=_delta_mask(path, data["delta"], data["action"]),
            units=data["units"],
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _delta_mask(path: Path, delta: Any, actions: list[str]) -> tuple[bool, ...]:
    """True for the listed actions, or, of `all except: [...]`, for those that are not listed."""
    except_listed = isinstance(delta, dict) and list(delta) == ["all except"]
    listed = delta["all except"] if except_listed else delta
    fits = isinstance(listed, list) and all(name in actions for name in listed)
    require_value(path, "delta", delta, fits, "a list of names of actions, or all except: with such a list")
    return tuple((name in listed) != except_listed for name in actions)


def _names(value: Any) -> bool:
    """A list of one or more texts that differ."""
    texts = isinstance(value, list) and all(isinstance(name, str) and name for name in value)
    return texts and 0 < len(value) == len({*value})


def _whole(value: Any, count: int, least: int) -> bool:
    """A list of `count` whole numbers that are not below `least`."""
    return isinstance(value, list) and len(value) == count and all(type(n) is int and n >= least for n in value)
