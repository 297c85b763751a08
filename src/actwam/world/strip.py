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
    real: UInt8[np.ndarray, "T H W 3"],
    imagined: UInt8[np.ndarray, "T H W 3"],
    *,
    title: str,
    steps: Sequence[int],
) -> Image.Image:
    """Three rows, real, imagined and absolute difference, under the steps ahead; the present frame at the left.

    Pixels are enlarged without smoothing, so that one seen is one that was measured.
    """
    difference = np.abs(real.astype(np.int16) - imagined).astype(np.uint8)
    height, width = present.shape[:2]
    scale = -(-TILE_WIDTH // width)
    wide, high = width * scale + GAP, height * scale + GAP
    strip = Image.new("RGB", ((1 + len(steps)) * wide + GAP, 3 * (high + BAND) + BAND), PAPER)
    draw, font = ImageDraw.Draw(strip), ImageFont.load_default(FONT_SIZE)
    draw.text((GAP, BAND // 2), title, INK, font, anchor="lm")
    for row, (name, video) in enumerate((("real", real), ("imagined", imagined), ("difference", difference))):
        top = BAND + row * (high + BAND)
        tiles = [("present", present)] if row == 0 else []
        tiles += [(f"{name} +{step}", frame) for step, frame in zip(steps, video, strict=True)]
        for column, (label, frame) in enumerate(tiles, start=1 if row else 0):
            left = GAP + column * wide
            draw.text((left, top + BAND // 2), label, SOFT, font, anchor="lm")
            tile = Image.fromarray(frame).resize((width * scale, height * scale), Image.Resampling.NEAREST)
            strip.paste(tile, (left, top + BAND))
    return strip
