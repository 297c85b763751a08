"""A whole request as one function of tensors of fixed shapes: pictures of cameras in, actions in the robot's units out.

What compilers and exporters want: no Python object goes in, none comes out, nothing is asked of the machine on the way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor, nn

from actwam.data.normalize import Normalizer
from actwam.data.transforms import Resample, Slot, ViewLayout
from actwam.model.context import TextContext
from actwam.policy import Policy
from actwam.sampler import NOTHING, Ready, sample
from actwam.tokens import denoised, plan
from actwam.types import Group


class Resize(nn.Module):
    """`data.transforms.fit` as two matrix products: to within one of 255 grey levels, two where it enlarges.

    The matrices are what the filter makes of the identity.
    """

    rows: Tensor
    columns: Tensor

    def __init__(self, image_size: tuple[int, int], slot: Slot, resample: Resample) -> None:
        super().__init__()
        H, W = image_size
        if resample == "bilinear":
            scale = max(slot.width / W, slot.height / H)
            height, width = round(H * scale), round(W * scale)
            top, left = (height - slot.height) // 2, (width - slot.width) // 2
            rows = _bilinear(H, height)[top : top + slot.height]
            columns = _bilinear(W, width)[left : left + slot.width]
        else:
            height, width = min(H, round(W * slot.height / slot.width)), min(W, round(H * slot.width / slot.height))
            rows = _area(H, height, (H - height) // 2, slot.height)
            columns = _area(W, width, (W - width) // 2, slot.width)
        self.register_buffer("rows", rows)
        self.register_buffer("columns", columns)
        self.through_bytes = resample == "bilinear"  # Pillow rounds half up, and after either direction

    def forward(self, image: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B h 3 w"]:
        """The colours of a row one after another, as the products leave them."""
        if self.through_bytes:
            narrow = (F.linear(image.transpose(2, 3), self.columns) + 0.5).floor()
            return ((self.rows @ narrow.flatten(2)).unflatten(2, (3, -1)) + 0.5).floor()
        low = (self.rows @ image.flatten(2)).unflatten(2, (-1, 3))  # first, as fewer numbers are left to rearrange
        return F.linear(low.transpose(2, 3), self.columns).round()


def _bilinear(size: int, new: int) -> Float[Tensor, "n N"]:
    identity = Image.fromarray(np.eye(size, dtype=np.float32))
    return torch.from_numpy(np.array(identity.resize((new, size), Image.Resampling.BILINEAR))).T.contiguous()


def _area(size: int, cut: int, start: int, new: int) -> Float[Tensor, "n N"]:
    """Of the `cut` places from `start` on."""
    matrix = torch.zeros(new, size)
    matrix[:, start : start + cut] = F.interpolate(torch.eye(cut)[None], new, mode="area")[0].T
    return matrix


class Request(nn.Module):
    """Acting with B observations, as `Policy.act_batch` does, for a policy that does not look back.

    Raises ValueError for one that does: what it remembers grows from call to call; and for one that approximates.
    """

    reference: Tensor
    state_center: Tensor
    state_scale: Tensor
    state_moves: Tensor
    action_center: Tensor
    action_scale: Tensor
    action_moves: Tensor

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        checkpoint, robot = policy.checkpoint, policy.robot
        if checkpoint.window.history_offsets:
            raise ValueError("a policy that looks back has no request of fixed shapes; package one without history")
        embodiment, layout = robot.embodiment, robot.layout
        if policy.approximate != NOTHING:
            raise ValueError("a package holds no approximations: load the policy without, or distil it to fewer steps")
        self.model, self.table, self.codec = checkpoint.model, policy.table, checkpoint.codec
        self.sampling, self.exact = checkpoint.sampling, replace(policy.exact, room=False)
        self.place, self.robot = policy.device, embodiment.index
        self.layout, self.widths = layout, (robot.state_width, len(embodiment.action_names))
        self.resize = nn.ModuleList(Resize(embodiment.image_size, slot, layout.resample) for slot in layout.slots)
        self.given = [Group.OBSERVATION, *([Group.STATE] if embodiment.state_names else [])]
        self.denoised = sorted(denoised(plan(policy.table, [Group.ACTION], self.given)))
        reference = torch.zeros(len(embodiment.state_names), len(embodiment.action_names))
        for i, delta in enumerate(embodiment.delta_mask):
            reference[i : i + 1, i] = float(delta)
        self.register_buffer("reference", reference)  # which state each action is relative to
        self.relative = any(embodiment.delta_mask)
        for name, normalizer in (("state", robot.state), ("action", robot.action)):
            for part, row in zip(("center", "scale", "moves"), _affine(normalizer), strict=True):
                self.register_buffer(f"{name}_{part}", row)
        self.ready: Ready = {}
        self.to(policy.device)

    def forward(
        self,
        images: list[UInt8[Tensor, "B H W 3"]],
        state: Float[Tensor, "B s"],
        text: Float[Tensor, "B i j 2 N M G"],
        noise: list[Float[Tensor, "B ..."]],
    ) -> Float[Tensor, "B K a"]:
        """`images` in the order of the layout's slots, `state` in the robot's units, `text` as `stacked` makes it,
        `noise` of the groups `denoised`, in their order.
        """
        values, _ = sample(
            self.model,
            self.table,
            given=self._given(images, state),
            noise=dict(zip(self.denoised, noise, strict=True)),
            wanted=[Group.ACTION],
            text=unstacked(text),
            embodiment=torch.full((len(state),), self.robot, device=self.place),
            sampling=self.sampling,
            exact=self.exact,
            levels=self.ready,
        )
        actions = values[Group.ACTION][..., : self.widths[1]]
        actions = actions * self.action_moves * self.action_scale + self.action_center
        return actions + (state @ self.reference)[:, None] if self.relative else actions

    def _given(self, images: Sequence[Tensor], state: Tensor) -> dict[Group, Tensor]:
        picture = torch.zeros(len(state), self.layout.height, 3, self.layout.width, device=self.place)
        for slot, resize, image in zip(self.layout.slots, self.resize, images, strict=True):
            assert isinstance(resize, Resize)
            picture = picture + _placed(resize(image.float()), slot, self.layout)
        given = {Group.OBSERVATION: self.codec.encode(picture.transpose(2, 3)[:, None].to(torch.uint8))}
        if Group.STATE in self.given:
            normal = (state - self.state_center) / self.state_scale * self.state_moves
            given[Group.STATE] = F.pad(normal, (0, self.widths[0] - normal.shape[1]))[:, None]
        return given


def _placed(view: Float[Tensor, "B h 3 w"], slot: Slot, layout: ViewLayout) -> Float[Tensor, "B H 3 W"]:
    """A picture that shows one view and is black elsewhere."""
    right, below = layout.width - slot.left - slot.width, layout.height - slot.top - slot.height
    return F.pad(view, (slot.left, right, 0, 0, slot.top, below))


def stacked(text: TextContext) -> Float[Tensor, "B i j 2 N M G"]:
    """Keys and values of B instructions in all layers and experts, as one tensor."""
    layers = [torch.stack([torch.stack(pair, dim=1) for pair in layer], dim=1) for layer in text.layers]
    return torch.stack(layers, dim=1)


def unstacked(text: Float[Tensor, "B i j 2 N M G"]) -> TextContext:
    """The inverse of `stacked`."""
    layers = text.unbind(1)
    return TextContext(tuple(tuple((k, v) for k, v in (e.unbind(1) for e in layer.unbind(1))) for layer in layers))


def _affine(normalizer: Normalizer) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(row.astype(np.float32)) for row in normalizer.affine)
