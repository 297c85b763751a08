"""A robot as the model sees it: the names and meaning of its cameras, its state and its actions."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
    """Height and width of every camera picture, in pixels."""
    state_names: tuple[str, ...]
    action_names: tuple[str, ...]
    delta_mask: tuple[bool, ...]

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

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Embodiment:
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)
