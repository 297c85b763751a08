"""From pictures to latents and back: one interface, and the codec that needs nothing to be downloaded.

`PatchPCACodec` cuts a picture into patches and keeps the first principal components of each: a linear code,
fitted in seconds on the training frames, exact to invert up to the components it drops. A learned autoencoder
is a better codec; this one is always at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from actwam.model.wan import WanCodec


@runtime_checkable
class Codec(Protocol):
    """Video codec. `time_stride` frames become one latent frame, except the first, which stands alone.

    It takes tensors from any device and returns them on its own.
    """

    @property
    def kind(self) -> str: ...

    @property
    def time_stride(self) -> int: ...

    @property
    def latent_channels(self) -> int: ...

    def encode(self, video: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B Z F h w"]:
        """Latents, float32, about zero mean and unit variance in every channel.

        T = 1 + k * time_stride frames give F = 1 + k; without compression in time T is free and F = T. Raises
        ValueError on any other T and on a picture size that the codec does not read.
        """

    def decode(self, latents: Float[Tensor, "B Z F h w"]) -> UInt8[Tensor, "B T H W 3"]:
        """Pictures, clamped to 0..255. A codec that compresses time needs the first latent of the clip first."""

    def digest(self) -> str:
        """SHA-256 over everything that `encode` depends on, the key of cached latents."""

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Codec:
        """The codec on this device, computing in `dtype` if it is given and that saves time worth speaking of. Latents
        and statistics stay float32. Use what is returned: a large codec changes itself instead of a copy.
        """

    def to_json(self) -> dict[str, Any]:
        """`kind` and all else that `tensors` does not hold, for the `config.json` of a checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores beside it; `read_codec` builds the codec from both."""


def read_codec(config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Codec:
    """The codec that `to_json` and `tensors` described. Raises ValueError when they do not fit together."""
    kind = config.get("kind")
    if kind == PatchPCACodec.kind:
        return PatchPCACodec.from_tensors(tensors)
    if kind == WanCodec.kind and isinstance(config.get("config"), dict):
        return WanCodec.from_tensors(config["config"], tensors, "codec")
    raise ValueError(f"a codec is {PatchPCACodec.kind}, or {WanCodec.kind} with its config, not {kind!r}")


@dataclass(frozen=True)
class PatchPCACodec:
    """A linear patch code: `latent = (patch - mean) @ basis / scale`, patches of p x p x 3 values in 0..1.

    `mean` holds one patch for every place of the picture, because cameras stand still and backgrounds repeat;
    the basis is shared by all places. `scale` is the standard deviation of each component, so that latents
    have unit variance like those of the learned codecs.
    """

    kind: ClassVar[str] = "patch_pca"
    time_stride: ClassVar[int] = 1

    patch: int
    mean: Float[Tensor, "h w p"]
    basis: Float[Tensor, "p Z"]
    scale: Float[Tensor, "Z"]

    @classmethod
    def fit(cls, frames: UInt8[Tensor, "T H W 3"], *, patch: int, channels: int) -> PatchPCACodec:
        """Principal components of the patches of `frames`, by the eigenvectors of their covariance in
        float64.
        """
        if not 0 < channels <= 3 * patch**2:
            raise ValueError(f"a patch of {patch} x {patch} has {3 * patch**2} components, not {channels}")
        patches = _patches(frames, patch)
        mean = patches.mean(0)
        centred = (patches - mean).flatten(0, 2).double()
        variance, vectors = torch.linalg.eigh(centred.T @ centred / len(centred))
        basis = vectors[:, -channels:].flip(1)
        basis *= torch.where(basis.sum(0) < 0, -1, 1)  # a sign for every component, so that refitting agrees
        scale = variance[-channels:].flip(0).clamp(min=1e-12).sqrt()
        return cls(patch, mean, basis.float().contiguous(), scale.float())

    @property
    def latent_channels(self) -> int:
        return len(self.scale)

    def encode(self, video: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B Z F h w"]:
        if video.shape[2] != self.mean.shape[0] * self.patch or video.shape[3] != self.mean.shape[1] * self.patch:
            expected = f"{self.mean.shape[0] * self.patch} x {self.mean.shape[1] * self.patch}"
            raise ValueError(f"this codec reads pictures of {expected}, not {video.shape[2]} x {video.shape[3]}")
        latents = (_patches(video.to(self.mean.device).flatten(0, 1), self.patch) - self.mean) @ (
            self.basis / self.scale
        )
        return rearrange(latents, "(b f) h w z -> b z f h w", b=len(video))

    def decode(self, latents: Float[Tensor, "B Z F h w"]) -> UInt8[Tensor, "B T H W 3"]:
        codes = rearrange(latents.to(self.mean.device), "b z f h w -> b f h w z")
        patches = codes @ (self.basis * self.scale).T + self.mean
        pictures = rearrange(patches, "b f h w (p q c) -> b f (h p) (w q) c", p=self.patch, q=self.patch)
        return (pictures * 255).round().clamp(0, 255).to(torch.uint8)

    def digest(self) -> str:
        parts = (self.mean, self.basis, self.scale)
        return hashlib.sha256(b"".join(x.cpu().contiguous().numpy().tobytes() for x in parts)).hexdigest()

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> PatchPCACodec:
        """In float32 always: it is one small product."""
        return replace(self, mean=self.mean.to(device), basis=self.basis.to(device), scale=self.scale.to(device))

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def tensors(self) -> dict[str, Tensor]:
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> PatchPCACodec:
        if set(tensors) != {"mean", "basis", "scale"}:
            raise ValueError(f"a PatchPCA codec has mean, basis and scale, not {sorted(tensors)}")
        patch = round((tensors["basis"].shape[0] / 3) ** 0.5)
        return cls(patch, tensors["mean"], tensors["basis"], tensors["scale"])


def _patches(frames: UInt8[Tensor, "T H W 3"], patch: int) -> Float[Tensor, "T h w p"]:
    """Patches as rows of values in 0..1."""
    if frames.shape[1] % patch or frames.shape[2] % patch:
        raise ValueError(f"{frames.shape[1]} x {frames.shape[2]} pixels do not divide into patches of {patch}")
    return rearrange(frames.float() / 255, "t (h p) (w q) c -> t h w (p q c)", p=patch, q=patch)
