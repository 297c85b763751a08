"""The statistics that LeRobot stores beside a dataset, computed exactly.

Other tools read them; training does not: it computes its own, on the action as the model sees it
(`normalize`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int64, Real, UInt8

QUANTILES = {"q01": 0.01, "q10": 0.10, "q50": 0.50, "q90": 0.90, "q99": 0.99}
SAMPLED_FRAMES = 32
"""Pictures per episode and camera that enter the statistics, evenly spread."""
FINE_SIDE = 150
"""Pictures are thinned to about this many pixels along their shorter side before counting."""


def feature_stats(values: Real[np.ndarray, "N D"]) -> dict[str, list[Any]]:
    """min, max, mean, std, count and five quantiles per dimension, in float64. N must be at least 1."""
    values = values.astype(np.float64)
    stats = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    quantiles = np.quantile(values, list(QUANTILES.values()), axis=0)
    stats.update(zip(QUANTILES, quantiles, strict=True))
    return {"count": [len(values)], **{name: row.tolist() for name, row in stats.items()}}


def count_colours(frames: UInt8[np.ndarray, "T H W 3"]) -> tuple[Int64[np.ndarray, "3 256"], int]:
    """How often each value occurs per channel in some frames of a video, and in how many frames.

    Histograms of many episodes add up, so statistics over all of them stay exact.
    """
    chosen = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), SAMPLED_FRAMES)).round().astype(int))
    stride = max(1, min(frames.shape[1:3]) // FINE_SIDE)
    pixels = frames[chosen, ::stride, ::stride].reshape(-1, 3)
    return np.stack([np.bincount(pixels[:, c], minlength=256) for c in range(3)]), len(chosen)


def image_stats(histogram: Int64[np.ndarray, "3 256"], frames: int) -> dict[str, list[Any]]:
    """The same statistics per channel from a histogram, of values divided by 255, shaped 3 x 1 x 1."""
    levels = np.arange(256) / 255
    total = histogram.sum(1)
    mean = histogram @ levels / total
    variance = (histogram * (levels - mean[:, None]) ** 2).sum(1) / total
    seen = histogram > 0
    cumulated = histogram.cumsum(1)
    stats = {
        "min": levels[seen.argmax(1)],
        "max": levels[255 - seen[:, ::-1].argmax(1)],
        "mean": mean,
        "std": np.sqrt(variance),
        **{name: levels[(cumulated >= share * total[:, None]).argmax(1)] for name, share in QUANTILES.items()},
    }
    return {"count": [frames], **{name: row.reshape(3, 1, 1).tolist() for name, row in stats.items()}}
