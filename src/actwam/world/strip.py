"""One window as a picture for people: present, real future, imagined future, and where they differ."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

TILE_WIDTH = 128
"""Frames are enlarged by a whole number, to at least this width in pixels where they are smaller."""
GAP, BAND, FONT_SIZE = 6, 24, 14
PAPER, INK, SOFT = (24, 26, 30), (235, 236, 240), (160, 164, 172)


def draw_strip(
    present: UInt8[np.ndarray, "H W 3"],
    real: UInt8[np.ndarray, "F H W 3"],
    imagined: UInt8[np.ndarray, "F H W 3"],
    *,
    title: str,
    steps: Sequence[int],
) -> Image.Image:
    """Tiles from left to right: the present frame, F real ones, F imagined ones, F absolute differences.

    Pixels are enlarged without smoothing, so that one seen is one that was measured.
    """
    difference = np.abs(real.astype(np.int16) - imagined).astype(np.uint8)
    parts = {"real": real, "imagined": imagined, "difference": difference}
    tiles = [("present", present)]
    tiles += [
        (f"{name} +{step}", frame) for name, video in parts.items() for step, frame in zip(steps, video, strict=True)
    ]
    height, width = present.shape[:2]
    scale = -(-TILE_WIDTH // width)
    size = (width * scale, height * scale)
    strip = Image.new("RGB", (len(tiles) * (size[0] + GAP) + GAP, size[1] + 2 * BAND + GAP), PAPER)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(FONT_SIZE)
    draw.text((GAP, BAND // 2), title, INK, font, anchor="lm")
    for i, (label, frame) in enumerate(tiles):
        left = GAP + i * (size[0] + GAP)
        draw.text((left, BAND + BAND // 2), label, SOFT, font, anchor="lm")
        strip.paste(Image.fromarray(frame).resize(size, Image.Resampling.NEAREST), (left, 2 * BAND))
    return strip
