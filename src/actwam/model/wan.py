"""The video autoencoder of Wan 2.2 (and 2.1), through diffusers: 4 x 16 x 16 pixels to one latent, and back.

A robot acts on one picture at a time. Before the first frame of a clip every causal convolution sees zeros, so that
of its kernel only the last slice in time matters, and nothing is compressed in time. For a single picture the encoder
is therefore a network of 2-D convolutions with those slices: the same latents (tests/model/test_wan.py) for about a
third of the arithmetic and, on a CPU, of the time.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, UInt8
from safetensors import SafetensorError
from torch import Tensor, nn

from actwam.model.files import read_json, read_tensors, write_tensors
from actwam.model.hub import assign_weights, one_line

CLASS = "AutoencoderKLWan"
_CHUNK = 4
"""Pictures that diffusers encodes at a time, after the first one."""
_ONE_CLIP_AT_A_TIME = threading.Lock()
"""diffusers keeps the frames that it has seen of a clip on the module. The path for single pictures keeps none."""


@dataclass(frozen=True, eq=False)
class WanCodec:
    """`AutoencoderKLWan` with latents normalised per channel, `(z - latents_mean) / latents_std`.

    `config` is the autoencoder's `config.json`. `pictures` is its encoder for single pictures. It is folded at
    construction, not when first needed: acting needs it always, it costs a third of the encoder's weights (about 0.2 of
    2.8 GB), and a codec that never changes can be shared by threads. Everything else it shares with `autoencoder`.
    """

    kind: ClassVar[str] = "wan"

    config: Mapping[str, Any]
    autoencoder: Any = field(repr=False)
    pictures: nn.Module = field(repr=False)

    @classmethod
    def load(cls, folder: Path) -> WanCodec:
        """Read a folder as diffusers saves it, in the dtype of its tensors.

        Raises ValueError, one line, on a missing or damaged file, an autoencoder of another class, and on any tensor
        that is missing, unused or misshaped.
        """
        return cls.from_tensors(read_json(folder / "config.json"), read_tensors(folder), folder)

    @classmethod
    def from_tensors(cls, config: Mapping[str, Any], tensors: Mapping[str, Tensor], source: Path | str) -> WanCodec:
        """The codec with these weights, which are not copied. `source` is what errors call it."""
        autoencoder = _build(config, source)
        assign_weights(autoencoder, tensors, source)
        dtypes = {tensor.dtype for tensor in tensors.values()}
        if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.bfloat16, torch.float16}:
            names = ", ".join(sorted(str(dtype) for dtype in dtypes))
            raise ValueError(f"{source}: tensors of {names}; all must be of one floating type: convert them")
        for name, values in (("center", autoencoder.config.latents_mean), ("spread", autoencoder.config.latents_std)):
            autoencoder.register_buffer(name, torch.tensor(values).view(-1, 1, 1, 1), persistent=False)
        autoencoder.requires_grad_(False).eval()
        return cls(dict(config), autoencoder, _fold(autoencoder.encoder))

    @property
    def time_stride(self) -> int:
        return self.autoencoder.config.scale_factor_temporal

    @property
    def side(self) -> int:
        """Pixels along a side that make a latent one."""
        return self.autoencoder.config.scale_factor_spatial

    @property
    def latent_channels(self) -> int:
        return self.autoencoder.config.z_dim

    def encode(self, video: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B Z F h w"]:
        """Normalised latents, the mode of the posterior, float32. T = 1 + k * time_stride gives F = 1 + k."""
        _, T, height, width, _ = video.shape
        stride, side = self.time_stride, self.autoencoder.config.scale_factor_spatial
        if T % stride != 1 or height % side or width % side:
            raise ValueError(
                f"{T} pictures of {height} x {width}: this codec reads 1 + k * {stride} pictures with sides divisible "
                f"by {side}"
            )
        weight = self.autoencoder.quant_conv.weight
        pixels = rearrange(video.to(weight.device), "b t h w c -> b c t h w") / 127.5 - 1
        pixels = pixels.to(weight.dtype)
        if T == 1:
            with _exact_convolutions():
                patches = _patchify(pixels, self.autoencoder.config.patch_size)
                mode = self.autoencoder.quant_conv(self.pictures(patches)).chunk(2, dim=1)[0]
        else:
            with _ONE_CLIP_AT_A_TIME, _exact_convolutions():
                mode = self.autoencoder.encode(pixels).latent_dist.mode()
        return (mode.float() - self.autoencoder.center) / self.autoencoder.spread

    def decode(self, latents: Float[Tensor, "B Z F h w"]) -> UInt8[Tensor, "B T H W 3"]:
        """Pictures. The latent of the clip's first frame must come first; F latents are 1 + (F-1) * time_stride."""
        weight = self.autoencoder.quant_conv.weight
        codes = latents.to(weight.device) * self.autoencoder.spread + self.autoencoder.center
        codes = codes.to(weight.dtype)
        with _ONE_CLIP_AT_A_TIME, _exact_convolutions():
            pixels = self.autoencoder.decode(codes).sample
        pictures = rearrange(pixels.float(), "b c t h w -> b t h w c")
        return ((pictures + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)

    def digest(self) -> str:
        return self._digest

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> WanCodec:
        """This codec itself: the weights are moved, because two copies of them would be too many."""
        center, spread = self.autoencoder.center, self.autoencoder.spread
        nn.Module.to(self.autoencoder, device, dtype)  # diffusers' own warns of layers that this one does not have
        self.pictures.to(device, dtype)
        self.autoencoder.center, self.autoencoder.spread = center.to(device), spread.to(device)
        return self

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "config": dict(self.config)}

    def tensors(self) -> dict[str, Tensor]:
        return self.autoencoder.state_dict()

    def export(self, folder: Path) -> None:
        """Write `config.json` and the weights as diffusers reads them, made if need be.

        Raises ValueError when that is impossible; take a folder that is renamed into place when it is whole.
        """
        config = json.dumps(dict(self.config), indent=2, sort_keys=True) + "\n"
        tensors = {name: tensor.cpu().contiguous() for name, tensor in self.tensors().items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.json").write_text(config, encoding="utf-8")
            write_tensors(tensors, folder)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{folder}: the codec could not be written: {error}") from error

    @cached_property
    def _digest(self) -> str:
        sha = hashlib.sha256(json.dumps(dict(self.config), sort_keys=True).encode())
        for name, tensor in sorted(self.tensors().items()):
            sha.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            sha.update(tensor.cpu().contiguous().flatten().view(torch.uint8).numpy().data)
        return sha.hexdigest()


class _LastSlice(nn.Module):
    """A causal 3-D convolution whose input is one frame after zeros: 2-D, with the last slice of its kernel."""

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        last = convolution.weight[:, :, -1]
        self.weight = nn.Parameter(last.contiguous(), requires_grad=False)
        self.bias = convolution.bias
        left, _, top, *_ = convolution._padding  # what diffusers pads with, before the convolution
        self.padding = (top, left)

    def forward(self, x: Float[Tensor, "B C 1 h w"]) -> Float[Tensor, "B D 1 h w"]:
        return F.conv2d(x.squeeze(2), self.weight, self.bias, padding=self.padding)[:, :, None]


def _fold(encoder: nn.Module) -> nn.Module:
    """The encoder for single pictures. All but the convolutions over time is shared with `encoder`.

    Called without frames that it has seen, diffusers' encoder leaves out the convolutions that compress time, as it
    does for the first frame of a clip.
    """
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanCausalConv3d

    shared = {id(parameter): parameter for parameter in encoder.parameters()}
    folded = copy.deepcopy(encoder, shared)
    for name, module in list(folded.named_modules()):
        if isinstance(module, WanCausalConv3d):
            parent, _, child = name.rpartition(".")
            setattr(folded.get_submodule(parent), child, nn.Identity() if child == "time_conv" else _LastSlice(module))
    return folded


def _patchify(pixels: Float[Tensor, "B C 1 H W"], patch: int | None) -> Float[Tensor, "B Cpp 1 h w"]:
    """Squares of pixels as channels, in diffusers' order."""
    return rearrange(pixels, "b c t (h q) (w p) -> b (c p q) t h w", p=patch or 1, q=patch or 1)


@contextmanager
def _exact_convolutions() -> Iterator[None]:
    """float32 products in float32. cuDNN would round their factors to TF32, and cached latents would be those of one
    machine.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _build(config: Mapping[str, Any], source: Path | str) -> Any:
    """The autoencoder on the meta device. Raises ValueError on a configuration that cannot be one.

    Keys that diffusers does not know are left out: released configurations have some, and what the network is, the
    tensors confirm.
    """
    try:
        from diffusers import AutoencoderKLWan
    except ImportError as error:
        raise ValueError(f'{source}: this codec needs diffusers: pip install "actwam[wan]"') from error
    if config.get("_class_name") != CLASS:
        raise ValueError(f"{source}: its _class_name is {config.get('_class_name')!r}, this codec is {CLASS}")
    known = inspect.signature(AutoencoderKLWan.__init__).parameters
    try:
        with torch.device("meta"):
            autoencoder: Any = AutoencoderKLWan(**{key: value for key, value in config.items() if key in known})
        own = autoencoder.config
        space = (own.patch_size or 1) * 2 ** (len(own.dim_mult) - 1)
        time = 2 ** sum(own.temperal_downsample)
        problems = {
            f"scale_factor_spatial is {own.scale_factor_spatial}, its layers compress by {space}": (
                own.scale_factor_spatial != space
            ),
            f"scale_factor_temporal is {own.scale_factor_temporal}, its layers compress by {time}": (
                own.scale_factor_temporal != time
            ),
            f"its layers compress time by {time}, diffusers encodes {_CHUNK} pictures at a time": time != _CHUNK,
            f"latents_mean and latents_std must be {own.z_dim} finite numbers, the second ones positive": not (
                len(own.latents_mean) == len(own.latents_std) == own.z_dim
                and torch.tensor([*own.latents_mean, *own.latents_std]).isfinite().all()
                and min(own.latents_std) > 0
            ),
        }
    except (TypeError, ValueError, IndexError, RuntimeError, ZeroDivisionError) as error:
        raise ValueError(f"{source}: its config.json cannot be an {CLASS}: {one_line(error)}") from error
    found = [problem for problem, holds in problems.items() if holds]
    if found:
        raise ValueError(f"{source}: its config.json contradicts itself: {'; '.join(found)}")
    return autoencoder
