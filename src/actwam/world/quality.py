"""How close one video is to another: PSNR and SSIM, and PSNR over the pixels that moved.

Everything is measured on uint8 RGB pictures, frame by frame, by scikit-image.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, UInt8
from skimage.metrics import mean_squared_error, structural_similarity

SSIM_WINDOW = 7
"""Side of the sliding window of SSIM in pixels, unweighted: the default of scikit-image."""
MOVED_THRESHOLD = 16
"""A pixel has moved when one of its colours differs from the present frame by more than this, of 255. It
lies above the noise of H.264 at visually lossless quality, and below the contrast of objects to their
background."""
PSNR_CEILING = 10 * math.log10(255**2 * 12)
"""58.9 dB, what rounding to whole numbers alone costs: equal pictures get this and not infinity, so that a
mean over frames exists."""


def psnr(real: UInt8[np.ndarray, "T H W 3"], other: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "T"]:
    """Peak signal-to-noise ratio of each frame in dB, at most `PSNR_CEILING`. Raises ValueError on unequal
    shapes."""
    _require_equal_shapes(real, other)
    return np.array([to_psnr(float(mean_squared_error(a, b))) for a, b in zip(real, other, strict=True)])


def ssim(real: UInt8[np.ndarray, "T H W 3"], other: UInt8[np.ndarray, "t h w 3"]) -> Float[np.ndarray, "T"]:
    """Structural similarity of each frame, the mean over colours and over windows of `SSIM_WINDOW` pixels
    square.

    1 is equal. Raises ValueError on unequal shapes and on pictures smaller than the window.
    """
    _require_equal_shapes(real, other)
    if min(real.shape[1:3]) < SSIM_WINDOW:
        raise ValueError(f"SSIM needs at least {SSIM_WINDOW} pixels a side, not {real.shape[1:3]}")
    pairs = zip(real, other, strict=True)
    return np.array(
        [structural_similarity(a, b, win_size=SSIM_WINDOW, channel_axis=-1, data_range=255) for a, b in pairs]
    )


def moved(
    present: UInt8[np.ndarray, "H W 3"], real: UInt8[np.ndarray, "T H W 3"], threshold: int = MOVED_THRESHOLD
) -> Bool[np.ndarray, "T H W"]:
    """Where the real future differs from the present by more than `threshold` in at least one colour."""
    return np.abs(real.astype(np.int16) - present).max(-1) > threshold


def squared_error(
    real: UInt8[np.ndarray, "T H W 3"], other: UInt8[np.ndarray, "t h w 3"]
) -> Float[np.ndarray, "T H W"]:
    """Squared error of each pixel, the mean over its colours, of 255². Raises ValueError on unequal
    shapes."""
    _require_equal_shapes(real, other)
    return np.square(real.astype(np.float64) - other).mean(-1)


def to_psnr(mean_error: float) -> float:
    """A mean squared error of 0..255² in dB, at most `PSNR_CEILING`."""
    return PSNR_CEILING if mean_error <= 0 else min(PSNR_CEILING, 10 * math.log10(255**2 / mean_error))


def _require_equal_shapes(real: np.ndarray, other: np.ndarray) -> None:
    if real.shape != other.shape:
        raise ValueError(f"cannot compare videos of shape {real.shape} and {other.shape} (T, H, W, 3)")
