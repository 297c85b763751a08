"""Where the names of points go in a figure, so that nothing lies on anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox, BboxBase

STEP = 6.0
"""Distance of the places that are tried, in pixels of the figure."""
LEADER = 12.0
"""A name farther than this from its point is led to it by a line."""
MARGIN = 3.0
CROSSED, COVERED = 60.0, 100.0
"""What a line across something, and a pixel of a name upon something, cost in pixels of distance."""
SAMPLES = np.linspace(0.08, 0.92, 12)
"""Places along a leader where it is asked what it crosses."""

Point = tuple[float, float]


def spread(wanted: Sequence[float], gap: float) -> list[float]:
    """Places in the order of `wanted`, which rises, at least `gap` apart and with the least squared displacement.

    The pool-adjacent-violators algorithm on `wanted[i] - i * gap` (Barlow et al., Statistical Inference under Order
    Restrictions, 1972).
    """
    pools: list[list[float]] = []  # sum and number of the members
    for i, place in enumerate(wanted):
        pools.append([place - i * gap, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, count = pools.pop()
            pools[-1] = [pools[-1][0] + total, pools[-1][1] + count]
    means = [total / count for total, count in pools for _ in range(int(count))]
    return [mean + i * gap for i, mean in enumerate(means)]


def place_labels(
    figure: Figure,
    axes: Axes,
    points: Mapping[str, Sequence[Point]],
    columns: Sequence[tuple[float, float, float]],
    *,
    ink: str,
    paper: str,
) -> None:
    """Write each text as near as it can be to one of its `points`, on no other text, point or whisker.

    `columns` are the whiskers, (x, low, high). All in data coordinates; the layout of the figure must be final.
    """
    figure.draw_without_rendering()
    to_pixels = axes.transData.transform
    taken = [Bbox(to_pixels([(x, low), (x, high)])).padded(7, 7) for x, low, high in columns]
    boxes = np.array([box.extents for box in taken])  # left, bottom, right, top
    for text, own in points.items():
        label = axes.annotate(text, own[0], ha="center", va="center", fontsize=10, linespacing=1.15, color=ink)
        label.set_bbox({"facecolor": paper, "linewidth": 0, "pad": 1})
        label.set_in_layout(False)
        size = np.array(label.get_window_extent().size) + 2 * MARGIN
        anchors = to_pixels(own)
        centre, anchor, edge = _best(axes.bbox, size, anchors, boxes)
        x, y = axes.transData.inverted().transform(centre)
        label.set_position((x, y))
        boxes = np.concatenate([boxes, [[*(centre - size / 2), *(centre + size / 2)]]])
        if np.hypot(*(edge - anchor)) > LEADER:
            line = axes.transData.inverted().transform([anchor, edge])
            axes.plot(*line.T, color=ink, linewidth=0.7, alpha=0.5, zorder=1.8)


def _best(
    frame: BboxBase, size: Float[np.ndarray, "2"], anchors: Float[np.ndarray, "n 2"], boxes: Float[np.ndarray, "b 4"]
) -> tuple[Float[np.ndarray, "2"], Float[np.ndarray, "2"], Float[np.ndarray, "2"]]:
    """Centre of the best place in the frame, the point it belongs to, and the end of a line from that point."""
    low, high = np.array(frame.min) + size / 2, np.array(frame.max) - size / 2
    xs, ys = (np.arange(a, max(a, b) + 1e-6, STEP) for a, b in zip(low, high, strict=True))
    centres = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2)
    left, right = centres - size / 2, centres + size / 2
    over = np.minimum(right[:, None], boxes[:, 2:]) - np.maximum(left[:, None], boxes[:, :2])
    covered = ((over > 0).all(-1) * over.clip(0).prod(-1)).sum(1)
    edges = np.clip(anchors, left[:, None] + MARGIN, right[:, None] - MARGIN)  # place, anchor, 2
    lines = edges - anchors
    along = anchors[:, None] + lines[:, :, None] * SAMPLES[:, None]  # place, anchor, sample, 2
    inside = (along[..., None, :] > boxes[:, :2]) & (along[..., None, :] < boxes[:, 2:])
    own = ((anchors[:, None] > boxes[:, :2]) & (anchors[:, None] < boxes[:, 2:])).all(-1)  # anchor, box
    crossed = (inside.all(-1).any(2) & ~own).sum(-1)
    cost = np.hypot(*np.moveaxis(lines, -1, 0)) + CROSSED * crossed + COVERED * covered[:, None]
    place, anchor = np.unravel_index(cost.argmin(), cost.shape)
    return centres[place], anchors[anchor], edges[place, anchor]
