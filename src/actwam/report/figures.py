"""The drawn figures of the report, as SVG in the colours and the font of the page, light or dark."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from actwam.tokens import Segment, Table, attention_mask
from actwam.types import Group

POINTS = 120
"""Points of a drawn curve: what was logged is averaged over as many bins."""
LOSSES = {"loss_future": "video", "loss_action": "action"}
"""Metric of the training loop -> the name, and the colour of the page, that it is drawn under."""
COLOURS = {"ink": "#a0b0c1", "soft": "#a0b0c2", "line": "#a0b0c3", "video": "#a0b0c4", "action": "#a0b0c5"}
"""Colours that stand for the page's own in what matplotlib writes, and occur nowhere else."""

MASK_SIDE, LEAST_SIDE = 400, 46
"""Side of the attention mask, and of its smallest group, in SVG units."""
MASK_LEFT, MASK_TOP = 104, 44


@dataclass(frozen=True)
class Curve:
    """Means of consecutive bins of logged values, at the mean steps of the bins."""

    name: str
    steps: tuple[float, ...]
    values: tuple[float, ...]


def curves(rows: Sequence[Mapping[str, int | float]]) -> list[Curve]:
    """The losses among the logged metrics of one stage; one that was never logged is left out."""
    found = []
    for key, name in LOSSES.items():
        logged = np.array([(row["step"], row[key]) for row in rows if key in row])
        if len(logged):
            bins = np.array_split(logged, min(POINTS, len(logged)))
            steps, values = np.stack([part.mean(0) for part in bins], axis=1).tolist()
            found.append(Curve(name, tuple(steps), tuple(values)))
    return found


def loss_panels(stages: Sequence[Sequence[Curve]]) -> list[Markup]:
    """One panel a stage, with a logarithmic axis that all of them share."""
    values = [value for stage in stages for curve in stage for value in curve.values if value > 0]
    limits = (min(values) / 1.15, max(values) * 1.15) if values else (0.1, 1.0)
    return [_loss_panel(stage, limits) for stage in stages]


_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "actwam",
    "font.size": 11,
    "text.color": COLOURS["ink"],
    "axes.edgecolor": COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": COLOURS["line"],
    "xtick.color": COLOURS["soft"],
    "ytick.color": COLOURS["soft"],
    "xtick.major.size": 0,
    "ytick.major.size": 0,
}


def _loss_panel(stage: Sequence[Curve], limits: tuple[float, float]) -> Markup:
    with rc_context(_STYLE):
        figure = Figure(figsize=(4.0, 2.6), layout="constrained")
        axes = figure.add_subplot()
        for curve in stage:
            axes.plot(curve.steps, curve.values, color=COLOURS[curve.name], linewidth=1.6)
        axes.set_yscale("log")
        axes.set_ylim(limits)
        axes.grid(axis="y", linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("step", color=COLOURS["soft"])
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _themed(buffer.getvalue())


def _themed(svg: str) -> Markup:
    """The drawing alone, with the page's colours in the place of those that stand for them."""
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)


def mask_figure(table: Table, tokens: Mapping[Group, int]) -> Markup:
    """`attention_mask` of one sequence, token by token: filled where the token of the row may attend.

    A group is drawn as large as it has tokens, but never too small to read.
    """
    groups = [group for group in table.groups if group in tokens]
    mask = attention_mask(table, [Segment(group, tokens[group]) for group in groups]).numpy()
    sides = _sides([tokens[group] for group in groups])
    ends = np.cumsum(sides)
    edges = np.concatenate(
        [
            *(
                end - side + side / tokens[g] * np.arange(tokens[g])
                for g, side, end in zip(groups, sides, ends, strict=True)
            ),
            ends[-1:],
        ]
    )
    parts = [
        f'<svg viewBox="0 0 {MASK_LEFT + MASK_SIDE + 2} {MASK_TOP + MASK_SIDE + 2}" role="img" '
        f'aria-label="attention mask of {escape(table.name)}">',
        f'<g transform="translate({MASK_LEFT} {MASK_TOP})">',
        f'<path class="may" d="{_cells(mask, edges)}"/>',
    ]
    first = np.cumsum([0, *(tokens[group] for group in groups)])
    for i, (group, side, end) in enumerate(zip(groups, sides, ends, strict=True)):
        centre, count = end - side / 2, tokens[group]
        unit = "token" if count == 1 else "tokens"
        parts += [
            f'<text class="name" x="-10" y="{centre - 2:.1f}" text-anchor="end">{group}</text>',
            f'<text class="count" x="-10" y="{centre + 11:.1f}" text-anchor="end">{count} {unit}</text>',
            f'<text class="name" x="{centre:.1f}" y="-22" text-anchor="middle">{_HEADS[group]}</text>',
            f'<text class="count" x="{centre:.1f}" y="-8" text-anchor="middle">{count}</text>',
            f'<path class="rule" d="M{end:.1f} 0V{MASK_SIDE}M0 {end:.1f}H{MASK_SIDE}"/>',
        ]
        for j, other in enumerate(ends):
            if mask[first[i], first[j]]:
                x, y = other - sides[j] / 2, centre + 5
                parts.append(f'<text class="x" x="{x:.1f}" y="{y:.1f}" text-anchor="middle">&#215;</text>')
    parts.append(f'<path class="rule" d="M0 0V{MASK_SIDE}M0 0H{MASK_SIDE}"/></g></svg>')
    return Markup("".join(parts))


_HEADS = {
    Group.HISTORY: "hist",
    Group.OBSERVATION: "obs",
    Group.STATE: "state",
    Group.ACTION: "action",
    Group.FUTURE: "future",
}


def _sides(counts: Sequence[int]) -> np.ndarray:
    """`MASK_SIDE` shared out by tokens, after every group has had `LEAST_SIDE`."""
    return LEAST_SIDE + (MASK_SIDE - LEAST_SIDE * len(counts)) * np.array(counts) / sum(counts)


def _cells(mask: np.ndarray, edges: np.ndarray) -> str:
    """One rectangle for every run of True in a row, with a hair of paper between rows, as an SVG path."""
    path = []
    for row, line in enumerate(mask):
        top, height = edges[row], edges[row + 1] - edges[row]
        height -= min(0.15 * height, 0.8)
        start = 0
        for value, run in groupby(line):
            end = start + len(list(run))
            if value:
                left, right = edges[start], edges[end]
                path.append(f"M{left:.1f} {top:.1f}H{right:.1f}v{height:.1f}H{left:.1f}z")
            start = end
    return "".join(path)
