"""From pictures to latents and back: one interface, and the codec that needs nothing to be downloaded.

`PatchPCACodec` cuts a picture into patches and keeps the first principal components of each: a linear code,
fitted in seconds on the training frames, exact to invert up to the components it drops. A learned autoencoder
is a better codec; this one is always at hand.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor


class Codec(Protocol):
    """Video codec. `time_stride` frames become one latent frame, except the first, which stands alone."""

    time_stride: int

    def encode(self, video: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B Z F h w"]:
        """Latents, about zero mean and unit variance in every channel."""

    def decode(self, latents: Float[Tensor, "B Z F h w"]) -> UInt8[Tensor, "B T H W 3"]:
        """Pictures, clamped to 0..255."""

    def digest(self) -> str:
        """SHA-256 over everything that `encode` depends on, the key of cached latents."""


@dataclass(frozen=True)
class PatchPCACodec:
    """A linear patch code: `latent = (patch - mean) @ basis / scale`, patches of p x p x 3 values in 0..1.

    `mean` holds one patch for every place of the picture, because cameras stand still and backgrounds repeat;
    the basis is shared by all places. `scale` is the standard deviation of each component, so that latents
    have unit variance like those of the learned codecs.
    """

    patch: int
    mean: Float[Tensor, "h w p"]
    basis: Float[Tensor, "p Z"]
    scale: Float[Tensor, "Z"]
    time_stride: int = 1

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

    def encode(self, video: UInt8[Tensor, "B T H W 3"]) -> Float[Tensor, "B Z F h w"]:
        if video.shape[2] != self.mean.shape[0] * self.patch or video.shape[3] != self.mean.shape[1] * self.patch:
            expected = f"{self.mean.shape[0] * self.patch} x {self.mean.shape[1] * self.patch}"
            raise ValueError(f"this codec reads pictures of {expected}, not {video.shape[2]} x {video.shape[3]}")
        latents = (_patches(video.flatten(0, 1), self.patch) - self.mean) @ (self.basis / self.scale)
        return rearrange(latents, "(b f) h w z -> b z f h w", b=len(video))

    def decode(self, latents: Float[Tensor, "B Z F h w"]) -> UInt8[Tensor, "B T H W 3"]:
        codes = rearrange(latents, "b z f h w -> b f h w z")
        patches = codes @ (self.basis * self.scale).T + self.mean
        pictures = rearrange(patches, "b f h w (p q c) -> b f (h p) (w q) c", p=self.patch, q=self.patch)
        return (pictures * 255).round().clamp(0, 255).to(torch.uint8)

    def digest(self) -> str:
        parts = (self.mean, self.basis, self.scale)
        return hashlib.sha256(b"".join(x.contiguous().numpy().tobytes() for x in parts)).hexdigest()

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint stores, and `from_tensors` reads."""
        return {"mean": self.mean, "basis": self.basis, "scale": self.scale}

    @classmethod
    def from_tensors(cls, tensors: dict[str, Tensor]) -> PatchPCACodec:
        if set(tensors) != {"mean", "basis", "scale"}:
            raise ValueError(f"a PatchPCA codec has mean, basis and scale, not {sorted(tensors)}")
        patch = round((tensors["basis"].shape[0] / 3) ** 0.5)
        return cls(patch, tensors["mean"], tensors["basis"], tensors["scale"])


def _patches(frames: UInt8[Tensor, "T H W 3"], patch: int) -> Float[Tensor, "T h w p"]:
    """Patches as rows of values in 0..1."""
    if frames.shape[1] % patch or frames.shape[2] % patch:
        raise ValueError(f"{frames.shape[1]} x {frames.shape[2]} pixels do not divide into patches of {patch}")
    return rearrange(frames.float() / 255, "t (h p) (w q) c -> t h w (p q c)", p=patch, q=patch)
