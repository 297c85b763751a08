"""Policies with random weights, by the sizes of everything: how long one takes to act hangs on those, and not on what
was learned.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from actwam.checkpoint import Checkpoint
from actwam.data.embodiment import Embodiment
from actwam.data.loader import Window
from actwam.data.normalize import Normalizer
from actwam.data.quantiles import compute_stats
from actwam.data.transforms import RobotTransform, ViewLayout, layout_of
from actwam.memory import Encoding, Need, Tokens, acting_need
from actwam.model.codec import Codec, PatchPCACodec, read_codec
from actwam.model.config import TransformerConfig, two_experts
from actwam.model.text import HashedWords, TextEncoder
from actwam.model.transformer import WorldActionTransformer
from actwam.policy import Policy
from actwam.recipes import gwp, metaworld
from actwam.sampler import Sampling
from actwam.tokens import ACTION_CENTERED, Table
from actwam.train.config import CodecConfig, Recipe
from actwam.types import Observation

INSTRUCTION = "do something"
FIT_ON = 64
"""Random pictures, states and action chunks that the codec and the statistics are fitted on."""
WAN_CODEC: dict[str, Any] = {
    "_class_name": "AutoencoderKLWan",
    "base_dim": 160,
    "decoder_base_dim": 256,
    "z_dim": 48,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "attn_scales": [],
    "temperal_downsample": [False, True, True],
    "dropout": 0.0,
    "is_residual": True,
    "in_channels": 12,
    "out_channels": 12,
    "patch_size": 2,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 16,
    "latents_mean": [0.0] * 48,
    "latents_std": [1.0] * 48,
}
"""The autoencoder of Wan2.2-TI2V-5B, which GWP-0 and GWP-0.5 read pictures with, as diffusers names its sizes."""


@dataclass(frozen=True, kw_only=True)
class Shape:
    """All of a policy but its weights and statistics. `codec` None is the autoencoder of Wan 2.2."""

    model: TransformerConfig
    robot: Embodiment
    layout: ViewLayout
    window: Window
    sampling: Sampling
    table: Table
    text: TextEncoder
    codec: CodecConfig | None

    @classmethod
    def of(cls, recipe: Recipe) -> Shape:
        """That of the first robot's policy. Raises ValueError for a recipe that starts from a checkpoint."""
        if recipe.codec is None or recipe.text is None:
            raise ValueError(f"recipe {recipe.name} starts from a checkpoint: time that")
        return cls(
            model=recipe.model,
            robot=recipe.robots[0],
            layout=recipe.layouts[0],
            window=recipe.window,
            sampling=recipe.sampling,
            table=recipe.table,
            text=recipe.text,
            codec=recipe.codec,
        )


def _official(experts: Literal[1, 2]) -> Shape:
    """GWP-0 or GWP-0.5 with the picture, the actions and the schedule of the release, on a robot of two arms."""
    robot = _two_arms((480, 640))
    return Shape(
        model=gwp.official_size(experts),
        robot=robot,
        layout=layout_of(robot, *gwp.PICTURE, resample="bilinear"),
        window=Window(action_horizon=gwp.ACTION_HORIZON, future_offsets=gwp.offsets(gwp.ACTION_HORIZON)),
        sampling=gwp.sampling(experts),
        table=ACTION_CENTERED,
        text=HashedWords(width=4096, tokens=gwp.TEXT_TOKENS),  # as wide as UMT5, whose embeddings are kept anyway
        codec=None,
    )


def _small() -> Shape:
    """Ten times the demo's policy: as many tokens of a picture and actions as GWP, 12 layers of width 384 and 128."""
    official = _official(2)
    robot = _two_arms((240, 320))
    text = HashedWords(width=64, tokens=16)
    model = TransformerConfig(
        layers=12,
        heads=6,
        head_width=64,
        experts=two_experts(visual=(384, 1536), action=(128, 512)),
        latent_channels=64,
        patch=(1, 1),
        text_width=text.width,
        text_tokens=text.tokens,
        state_width=14,
        action_width=14,
    )
    return replace(
        official,
        model=model,
        robot=robot,
        layout=layout_of(robot, 192, 160),
        text=text,
        codec=CodecConfig(patch=16, channels=64),
    )


def _two_arms(image_size: tuple[int, int]) -> Embodiment:
    joints = tuple(f"{side}_{joint}" for side in ("left", "right") for joint in range(7))
    return Embodiment(
        name="two_arms",
        index=0,
        fps=30,
        cameras={name: name for name in gwp.SLOTS},
        image_size=image_size,
        state_names=joints,
        action_names=joints,
        delta_mask=(False,) * len(joints),
    )


SHAPES: dict[str, Callable[[], Shape]] = {
    "tiny": lambda: Shape.of(metaworld.laptop()),
    "small": _small,
    "gwp0": lambda: _official(1),
    "gwp05": lambda: _official(2),
}
"""`tiny` is the demo's."""


def shape_named(name: str, layers: int | None = None) -> Shape:
    """A shape, or a slice of it with so many layers. Raises ValueError, listing those there are, on an unknown one, and
    without a layer.
    """
    if name not in SHAPES:
        raise ValueError(f"{name} is no shape and no folder: there are {', '.join(SHAPES)}")
    if layers is not None and layers < 1:
        raise ValueError(f"a slice has at least 1 layer, not {layers}")
    shape = SHAPES[name]()
    return shape if layers is None else replace(shape, model=replace(shape.model, layers=layers))


def need(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Need:
    """The memory that `random_policy` and acting with it take, but for what the codec allocates while it encodes."""
    with torch.device("meta"):
        codec = {} if shape.codec else _wan_tensors()
    side = shape.codec.patch if shape.codec else WAN_CODEC["scale_factor_spatial"]
    stride = 1 if shape.codec else WAN_CODEC["scale_factor_temporal"]
    tokens = Tokens(
        grid=(shape.layout.height // side, shape.layout.width // side),
        future_frames=shape.window.latent_frames(stride),
        actions=shape.window.action_horizon,
        history=len(shape.window.history_offsets),
    )
    weights = sum(tensor.numel() for tensor in codec.values()) * dtype.itemsize
    encoding = Encoding(grid=tokens.grid, time_stride=stride, weights=weights, activations=0)
    return acting_need(
        shape.model,
        shape.table,
        tokens,
        dtype=dtype,
        device=torch.device(device),
        sampling=shape.sampling,
        codec=encoding,
        instructions=1,
    )


def random_policy(shape: Shape, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Policy:
    """A policy whose every layer shapes its actions. The same weights, but rounded, in every dtype."""
    place, robot = torch.device(device), shape.robot
    random = np.random.default_rng(0)
    state = random.normal(size=(FIT_ON, len(robot.state_names))).astype(np.float32)
    chunks = random.normal(size=(FIT_ON, shape.window.action_horizon, len(robot.action_names))).astype(np.float32)
    of_state, of_action = (
        Normalizer(compute_stats(rows, names))
        for rows, names in ((state, robot.state_names), (chunks.reshape(-1, chunks.shape[-1]), robot.action_names))
    )
    transform = RobotTransform(
        robot, shape.layout, of_state, of_action, shape.model.state_width, shape.model.action_width
    )
    with torch.device("meta"):
        model = WorldActionTransformer(shape.model).eval().to(dtype)
    _draw(model.to_empty(device=place))
    checkpoint = Checkpoint(
        model=model,
        codec=_codec(shape).to(place, dtype),
        text=shape.text,
        table=shape.table,
        robots=(transform,),
        window=shape.window,
        sampling=shape.sampling,
        trained={},
    )
    return Policy(checkpoint, transform, shape.table, place)


@torch.no_grad()
def _draw(model: WorldActionTransformer) -> None:
    """Weights that keep the size of what passes through, one tensor after another: the largest alone is held twice."""
    for index, (name, parameter) in enumerate(model.named_parameters()):
        generator = torch.Generator(parameter.device).manual_seed(index)
        drawn = torch.randn(parameter.shape, generator=generator, device=parameter.device)
        drawn *= parameter.shape[-1] ** -0.5 if parameter.ndim > 1 else 0.02
        parameter.copy_(drawn + 1 if "norm" in name and not name.endswith("bias") else drawn)


def random_observation(robot: Embodiment, seed: int = 0) -> Observation:
    """Noise in every camera and dimension."""
    random = np.random.default_rng(seed)
    size = (*robot.image_size, 3)
    return Observation(
        images={camera: random.integers(0, 256, size, np.uint8) for camera in robot.cameras.values()},
        state=random.normal(size=len(robot.state_names)).astype(np.float32),
        instruction=INSTRUCTION,
    )


def _codec(shape: Shape) -> Codec:
    if shape.codec is None:
        return read_codec({"kind": "wan", "config": WAN_CODEC}, _wan_tensors())
    size = FIT_ON, shape.layout.height, shape.layout.width, 3
    pictures = torch.from_numpy(np.random.default_rng(0).integers(0, 256, size, np.uint8))
    return PatchPCACodec.fit(pictures, patch=shape.codec.patch, channels=shape.codec.channels)


def _wan_tensors() -> dict[str, Tensor]:
    """Random ones, always the same. Raises ValueError without diffusers."""
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise ValueError('the official shapes need diffusers: pip install "actwam[wan]"') from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return AutoencoderKLWan.from_config(WAN_CODEC).state_dict()
