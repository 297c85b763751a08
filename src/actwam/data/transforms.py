"""From a robot's numbers and pictures to the model's and back: the same code for training and for serving.

Every transform stands beside its inverse. A `RobotTransform` is stored in the checkpoint, and is all that is
needed to prepare an observation and to read an action.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from torch import Tensor

from actwam.data.embodiment import Embodiment
from actwam.data.normalize import Normalizer
from actwam.types import Observation

Resample = Literal["area", "bilinear"]


@dataclass(frozen=True)
class Slot:
    """Where one view stands in the composed picture, in pixels."""

    name: str
    top: int
    left: int
    height: int
    width: int


@dataclass(frozen=True)
class ViewLayout:
    """How named views make a picture of `height` x `width`: each is scaled to its slot, what stands over is cut off.

    `resample` says how (`fit`): "area", or "bilinear" as the official GigaWorld-Policy models were trained. Raises
    ValueError when two slots have one name or overlap, and when one leaves the picture.
    """

    height: int
    width: int
    slots: tuple[Slot, ...]
    resample: Resample = "area"

    def __post_init__(self) -> None:
        if self.resample not in get_args(Resample):
            raise ValueError(f"resample must be one of {', '.join(get_args(Resample))}, not {self.resample!r}")
        if len({slot.name for slot in self.slots}) < len(self.slots) or not self.slots:
            raise ValueError(f"a layout needs slots of different names, not {[slot.name for slot in self.slots]}")
        for slot in self.slots:
            inside = 0 <= slot.top < slot.top + slot.height <= self.height
            inside &= 0 <= slot.left < slot.left + slot.width <= self.width
            if not inside:
                raise ValueError(f"{slot} is not within the picture of {self.height} x {self.width}")
        for one, other in combinations(self.slots, 2):
            if _overlap(one, other):
                raise ValueError(f"{one} and {other} overlap")

    def compose(self, views: Mapping[str, UInt8[np.ndarray, "T H W 3"]]) -> UInt8[np.ndarray, "T h w 3"]:
        """Put T frames of every view into their slots, by name. Raises ValueError on a missing or unknown
        view.
        """
        names = {slot.name for slot in self.slots}
        if set(views) != names:
            raise ValueError(f"the layout has slots {sorted(names)}, but views {sorted(views)} were given")
        frames = len(next(iter(views.values())))
        picture = np.zeros((frames, self.height, self.width, 3), np.uint8)
        for slot in self.slots:
            rows, columns = slice(slot.top, slot.top + slot.height), slice(slot.left, slot.left + slot.width)
            picture[:, rows, columns] = fit(views[slot.name], slot.height, slot.width, self.resample)
        return picture

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> ViewLayout:
        return cls(data["height"], data["width"], tuple(Slot(**slot) for slot in data["slots"]), data["resample"])


@dataclass(frozen=True)
class View:
    """How recordings become the model's picture: `cameras` maps every slot of the layout to the camera that fills it.

    Raises ValueError when the slots are not those of the layout, or one camera fills two.
    """

    layout: ViewLayout
    cameras: Mapping[str, str] = field(hash=False)

    def __post_init__(self) -> None:
        slots = {slot.name for slot in self.layout.slots}
        if set(self.cameras) != slots:
            raise ValueError(f"a view fills slots {sorted(self.cameras)}, its layout has {sorted(slots)}")
        if len(set(self.cameras.values())) != len(self.cameras):
            raise ValueError(f"one camera fills two slots of a view: {self.cameras}")

    def picture(self, images: Mapping[str, UInt8[np.ndarray, "T H W 3"]]) -> UInt8[np.ndarray, "T h w 3"]:
        """Compose T frames of these cameras, of whatever size."""
        return self.layout.compose({slot: images[camera] for slot, camera in self.cameras.items()})


def whole_picture(camera: str, like: ViewLayout) -> View:
    """One camera that fills a picture of the size of another layout."""
    slot = Slot("whole", 0, 0, like.height, like.width)
    return View(ViewLayout(like.height, like.width, (slot,), like.resample), {slot.name: camera})


def _overlap(one: Slot, other: Slot) -> bool:
    beside = one.left + one.width <= other.left or other.left + other.width <= one.left
    apart = one.top + one.height <= other.top or other.top + other.height <= one.top
    return not beside and not apart


def layout_of(robot: Embodiment, height: int, width: int, resample: Resample = "area") -> ViewLayout:
    """The usual picture of a robot: the T where its slots are head, left and right, else its n slots one below the
    other in n equal rows.

    Raises ValueError when the height does not divide into the rows, or, for the T, the width into halves.
    """
    return layout_of_slots(tuple(robot.cameras), height, width, resample, f"embodiment {robot.name}")


def layout_of_slots(
    names: Sequence[str], height: int, width: int, resample: Resample = "area", whose: str = "a layout"
) -> ViewLayout:
    """The usual picture of these slots, as `layout_of`; errors begin with `whose`."""
    is_t = set(names) == {"head", "left", "right"}
    rows = 2 if is_t else len(names)
    if height % rows or (is_t and width % 2):
        shape = "a head above two halves" if is_t else f"{rows} equal rows"
        raise ValueError(f"{whose}: a picture of {height} x {width} does not divide into {shape}")
    if is_t:
        return t_layout(width, height // 2, height // 2, resample)
    row = height // rows
    slots = tuple(Slot(name, i * row, 0, row, width) for i, name in enumerate(names))
    return ViewLayout(height, width, slots, resample)


def t_layout(width: int, head_height: int, wrist_height: int, resample: Resample = "area") -> ViewLayout:
    """The T of GigaWorld-Policy: head on top, left and right below it at half its width each."""
    half = width // 2
    return ViewLayout(
        head_height + wrist_height,
        width,
        (
            Slot("head", 0, 0, head_height, width),
            Slot("left", head_height, 0, wrist_height, half),
            Slot("right", head_height, half, wrist_height, width - half),
        ),
        resample,
    )


def fit(
    frames: UInt8[np.ndarray, "T H W 3"], height: int, width: int, resample: Resample = "area"
) -> UInt8[np.ndarray, "T h w 3"]:
    """The centre of every frame, of the wanted shape, scaled to the wanted size.

    "area" cuts first, then averages areas. "bilinear" scales with Pillow's antialiased bilinear filter until the size
    is covered, then cuts: to the last bit what the official GigaWorld-Policy code makes of a picture.
    """
    H, W = frames.shape[1:3]
    if frames.shape[1:3] == (height, width):
        return frames
    if resample == "bilinear":
        scale = max(width / W, height / H)
        size = round(W * scale), round(H * scale)
        left, top = (size[0] - width) // 2, (size[1] - height) // 2
        covering = np.stack([np.asarray(Image.fromarray(x).resize(size, Image.Resampling.BILINEAR)) for x in frames])
        return covering[:, top : top + height, left : left + width]
    cut_height, cut_width = min(H, round(W * height / width)), min(W, round(H * width / height))
    top, left = (H - cut_height) // 2, (W - cut_width) // 2
    cut = torch.from_numpy(frames[:, top : top + cut_height, left : left + cut_width])
    scaled = F.interpolate(cut.permute(0, 3, 1, 2).float(), (height, width), mode="area")
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class RobotTransform:
    """Everything between one robot and the model. `state_width` and `action_width` are the model's padded
    widths.
    """

    embodiment: Embodiment
    layout: ViewLayout
    state: Normalizer
    action: Normalizer
    state_width: int
    action_width: int

    def picture(self, images: Mapping[str, UInt8[np.ndarray, "T H W 3"]]) -> UInt8[np.ndarray, "T h w 3"]:
        """Compose T frames of the robot's cameras, which are found by name and must have the robot's image
        size.
        """
        cameras = self.embodiment.cameras
        if set(images) != set(cameras.values()):
            raise ValueError(
                f"embodiment {self.embodiment.name} has cameras {sorted(cameras.values())}, not {sorted(images)}"
            )
        for name, frames in images.items():
            if frames.dtype != np.uint8 or frames.shape[1:] != (*self.embodiment.image_size, 3):
                size = "x".join(map(str, (*self.embodiment.image_size, 3)))
                found = "x".join(map(str, frames.shape[1:]))
                raise ValueError(f"camera {name} must give {size} uint8 pictures, not {found} {frames.dtype}")
        return self.view.picture(images)

    @property
    def view(self) -> View:
        return View(self.layout, self.embodiment.cameras)

    def model_state(self, state: Float[np.ndarray, "... s"]) -> Float[np.ndarray, "... S"]:
        """Normalise and pad with zeros. Raises ValueError on another width, NaN or Inf."""
        return _pad(self.state.normalize(state), self.state_width)

    def model_action(
        self, action: Float[np.ndarray, "... K a"], state: Float[np.ndarray, "... s"]
    ) -> Float[np.ndarray, "... K A"]:
        """Make delta dimensions relative to the state at the chunk's start, normalise, pad with zeros."""
        return _pad(self.action.normalize(relative(action, state, self.embodiment)), self.action_width)

    def robot_action(
        self, action: Float[np.ndarray, "... K A"], state: Float[np.ndarray, "... s"]
    ) -> Float[np.ndarray, "... K a"]:
        """The inverse of `model_action`: cut the padding, denormalise, add the state to delta dimensions."""
        used = action[..., : len(self.embodiment.action_names)]
        return absolute(self.action.denormalize(used), state, self.embodiment)

    def observe(self, observation: Observation) -> tuple[UInt8[np.ndarray, "1 h w 3"], Float[np.ndarray, "S"]]:
        """The composed picture and the model's state of one observation."""
        names = self.embodiment.state_names
        if observation.state.shape != (len(names),):
            raise ValueError(f"state must be the {len(names)} of {names}, not shape {observation.state.shape}")
        picture = self.picture({name: image[None] for name, image in observation.images.items()})
        return picture, self.model_state(observation.state)

    def to_json(self) -> dict[str, Any]:
        """All but the statistics, which a checkpoint keeps in `norm_stats.json`."""
        return {
            "embodiment": self.embodiment.to_json(),
            "layout": self.layout.to_json(),
            "state_width": self.state_width,
            "action_width": self.action_width,
        }

    @classmethod
    def from_json(cls, data: dict[str, Any], norm_stats: dict[str, Any]) -> RobotTransform:
        return cls(
            embodiment=Embodiment.from_json(data["embodiment"]),
            layout=ViewLayout.from_json(data["layout"]),
            state=Normalizer.from_json(norm_stats["state"]),
            action=Normalizer.from_json(norm_stats["action"]),
            state_width=data["state_width"],
            action_width=data["action_width"],
        )

    def norm_stats(self) -> dict[str, Any]:
        return {"state": self.state.to_json(), "action": self.action.to_json()}


@dataclass(frozen=True)
class FutureTransform:
    """How the model sees future latents: as they are, or as scaled change from the present frame.

    Most of a scene stands still. With `scale`, one number for each latent channel, "nothing changes" is zero, and a
    small model need not learn to copy the background. What delta dimensions are for actions.
    """

    scale: tuple[float, ...] | None = None

    @classmethod
    def fit(cls, latents: Float[np.ndarray, "B Z T h w"], future_valid: Bool[np.ndarray, "B F"]) -> FutureTransform:
        """The standard deviation of the change in every channel, over B windows of latents, of which the frames that
        repeat the end of an episode do not count. Raises ValueError where there are no others.
        """
        if not future_valid.any():
            raise ValueError("no window has a future frame in its episode: nothing tells how much latents change")
        change = (latents[:, :, 1:] - latents[:, :, :1]).swapaxes(1, 2)[future_valid]
        return cls(tuple(float(std) for std in change.std(axis=(0, 2, 3)).clip(min=1e-6)))

    def normalize(self, latents: Float[np.ndarray, "B Z T h w"]) -> Float[np.ndarray, "B Z T h w"]:
        """The present as it is, then the future as the model sees it."""
        if self.scale is None:
            return latents
        present, future = latents[:, :, :1], latents[:, :, 1:]
        scale = np.array(self.scale, np.float32)[:, None, None, None]
        return np.concatenate([present, (future - present) / scale], axis=2)

    def denormalize(
        self, future: Float[Tensor, "B Z F h w"], present: Float[Tensor, "B Z 1 h w"]
    ) -> Float[Tensor, "B Z F h w"]:
        """The inverse for the future: latents that the codec decodes."""
        if self.scale is None:
            return future
        return present + future * torch.tensor(self.scale, device=future.device)[:, None, None, None]


def relative(
    action: Float[np.ndarray, "... K a"], state: Float[np.ndarray, "... s"], embodiment: Embodiment
) -> Float[np.ndarray, "... K a"]:
    """Subtract the state from the action dimensions of `delta_mask`; one state serves the whole chunk.

    Raises ValueError on actions of another width.
    """
    names = embodiment.action_names
    if action.shape[-1] != len(names):
        raise ValueError(f"actions must end in the {len(names)} of {names}, not shape {action.shape}")
    return action - _reference(state, embodiment)


def absolute(
    action: Float[np.ndarray, "... K a"], state: Float[np.ndarray, "... s"], embodiment: Embodiment
) -> Float[np.ndarray, "... K a"]:
    """The inverse of `relative`."""
    return action + _reference(state, embodiment)


def _reference(state: Float[np.ndarray, "... s"], embodiment: Embodiment) -> Float[np.ndarray, "... 1 a"]:
    delta = np.array(embodiment.delta_mask)
    reference = np.zeros((*state.shape[:-1], 1, len(delta)), np.float32)
    reference[..., delta] = state[..., None, np.flatnonzero(delta)]
    return reference


def _pad(values: Float[np.ndarray, "... n"], width: int) -> Float[np.ndarray, "... m"]:
    if values.shape[-1] > width:
        raise ValueError(f"{values.shape[-1]} dimensions do not fit into the model's {width}")
    return np.pad(values, [(0, 0)] * (values.ndim - 1) + [(0, width - values.shape[-1])]).astype(np.float32)
