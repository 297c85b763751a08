"""The figure and the tables of a study, from the JSON that the study leaves.

`results` holds `study` (its name), `question`, `cells`, `differences`, and where there are any `laws`, `multipliers`,
`paper` and `provenance`.

* A cell has `label`, `standing` ("samples", "compute" or "both": what it has in common with the reference), `success`
  (rate, n, low, high, crashes), `per_task` and `per_seed`; its place on the axis, `x` or `latency_ms_p50`; the
  `family` whose curve of the data it belongs to; and what else was measured, or None. Of cells with the same `x` the
  plain ones come first.
* A difference has `cell`, `standing`, `reference`, and under `success`, `psnr` or `ssim` what `Difference.to_json`
  gives.
* A law has `family`, `standing` and what `PowerLaw.to_json` gives; a multiplier `cell`, `reference` and what
  `Multiplier.to_json` gives.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from actwam.report.labels import place_labels, spread
from actwam.report.study_tables import tables
from actwam.report.style import COLOURS, INK, MARKERS, PAPER, SOFT, WIDTH, write_png

TASK_DOT = "#b4b9c1"
STANDINGS = {"samples": "same samples", "compute": "same compute"}
NEEDED = ("label", "standing", "success", "per_task", "per_seed")
MEASURES = {"success": ("success", "{:.0%}"), "psnr": ("PSNR (dB)", "{:.2f}"), "ssim": ("SSIM", "{:.3f}")}
"""What the axis calls a measure, and how its numbers are written. PSNR and SSIM are of the imagined future."""
SPANS = {"psnr": 1.0, "ssim": 0.05}
"""The least that an axis shows, so that what differs little looks it."""

Cell = Mapping[str, Any]


class Look(NamedTuple):
    """How a series is drawn and what the legend calls it, None to leave it out."""

    name: str | None
    colour: str
    marker: str
    filled: bool = True


def write_figure(results: Mapping[str, Any], path: Path) -> None:
    """Draw the study as a PNG. Raises ValueError naming the study and the cell where something is missing."""
    _check(results)
    write_png(lambda: FIGURES[results["study"]](results), path)


def markdown(results: Mapping[str, Any]) -> str:
    """All numbers of the study as Markdown tables. Raises ValueError as `write_figure` does."""
    _check(results)
    return tables(results)


def _check(results: Mapping[str, Any]) -> None:
    study = results.get("study")
    if study not in FIGURES:
        raise ValueError(f"unknown study {study!r}: there are figures of {', '.join(FIGURES)}")
    for key in ("question", "cells"):
        if not results.get(key):
            raise ValueError(f"study {study}: has no {key}; run it again")
    for cell in results["cells"]:
        name = f"study {study}: cell {cell.get('label')!r}"
        lacks = [key for key in (*NEEDED, *PLACES.get(study, ())) if cell.get(key) is None]
        if lacks:
            raise ValueError(f"{name} has no {lacks[0]}; run it again")
        if cell["standing"] not in (*STANDINGS, "both"):
            raise ValueError(f"{name} has the unknown standing {cell['standing']!r}: samples, compute or both")
        if study in LOGARITHMIC and cell[PLACES[study][0]] <= 0:
            raise ValueError(f"{name} has no place on a logarithmic axis: {PLACES[study][0]} is not above 0")
    if all(cell["success"]["rate"] is None for cell in results["cells"]):
        raise ValueError(f"study {study}: every episode crashed; see the crashes of the evaluation and run it again")


def _figure(results: Mapping[str, Any], height: float, *meanings: str, tasks: bool = True) -> Figure:
    """Empty, with the question above it and what its marks mean below it."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    figure.suptitle(fill(results["question"], 84), x=0.012, ha="left", fontsize=12.5, fontweight="bold")
    counts = sorted({cell["success"]["n"] for cell in results["cells"]})
    n = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    text = [f"Markers: success over n = {n} episodes", "bars: Wilson's 95% interval", *meanings]
    if tasks and any(len(cell["per_task"]) > 1 for cell in results["cells"]):
        text.insert(2, "grey dots: single tasks")
    figure.supxlabel(fill(f"{'; '.join(text)}.", 120), x=0.012, ha="left", fontsize=9.5, color=SOFT)
    return figure


def _dot(
    axes: Axes, cell: Cell, at: float, look: Look, *, measure: str = "success", lying: bool = False, tasks: bool = True
) -> None:
    """One cell at the place `at` of its axis: tasks as grey dots, the interval as a whisker, the mean as a marker.

    `lying` puts the measure on the x axis. PSNR and SSIM have no whisker. Nothing where there is no value.
    """
    score = cell["success"] if measure == "success" else {"rate": cell.get(measure)}
    if score["rate"] is None:
        return

    def draw(place: Sequence[float], value: Sequence[float], **style: Any) -> None:
        axes.plot(*((value, place) if lying else (place, value)), linestyle="", **style)

    if measure == "success":
        rates = [task["rate"] for task in cell["per_task"].values() if task["rate"] is not None]
        if tasks and len(rates) > 1:
            draw([at] * len(rates), rates, marker="o", markersize=5.5, color=TASK_DOT, markeredgewidth=0, zorder=2)
        ends = ([at, at], [score["low"], score["high"]])
        axes.plot(*(ends[::-1] if lying else ends), color=look.colour, linewidth=2.2, zorder=3, solid_capstyle="round")
    draw([at], [score["rate"]], zorder=4, **_marker(look))


def _marker(look: Look) -> dict[str, Any]:
    """Filled with a rim of paper, or hollow."""
    inside, rim = (look.colour, PAPER) if look.filled else (PAPER, look.colour)
    width = 1.0 if look.filled else 1.8
    return {"marker": look.marker, "markersize": 8.5, "color": inside, "markeredgecolor": rim, "markeredgewidth": width}


def _legend(axes: Axes, looks: Sequence[Look], columns: int = 2) -> None:
    """Above the axes, at the left: there it hides nothing."""
    handles = [axes.plot([], [], linestyle="", label=look.name, **_marker(look))[0] for look in looks if look.name]
    if handles:
        axes.legend(
            handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2,
            handletextpad=0.2, columnspacing=1.6,
        )  # fmt: skip


def _standings(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells by what they share with the reference; those that share both stand in each. At least one entry."""
    found = {s: [cell for cell in cells if cell["standing"] in (s, "both")] for s in STANDINGS}
    if any(cell["standing"] == "compute" for cell in cells):
        return found
    return {"samples": found["samples"]}


def _looks(cells: Sequence[Cell]) -> dict[str, Look]:
    """By standing. A single one needs no name."""
    if len(_standings(cells)) == 1:
        return dict.fromkeys((*STANDINGS, "both"), Look(None, COLOURS[0], MARKERS[0]))
    looks = {s: Look(STANDINGS[s], COLOURS[i], MARKERS[i]) for i, s in enumerate(STANDINGS)}
    return {**looks, "both": Look("same samples and compute", INK, MARKERS[0])}


def _success_axis(axes: Axes) -> None:
    axes.set_ylim(-0.03, 1.03)
    axes.set_yticks(np.linspace(0, 1, 6), [f"{value}%" for value in range(0, 101, 20)])
    axes.set_ylabel("success")
    axes.grid(axis="y")


def _rows(results: Mapping[str, Any]) -> Figure:
    """A row for each label, with a lane for each standing; a panel for each measure that there is."""
    cells = results["cells"]
    labels = list(dict.fromkeys(cell["label"] for cell in cells))
    lanes = {label: [cell for cell in cells if cell["label"] == label] for label in labels}
    looks = _looks(cells)
    measures = [m for m in MEASURES if m == "success" or any(cell.get(m) is not None for cell in cells)]
    figure = _figure(results, 1.8 + 0.2 * len(labels) + 0.3 * len(cells))
    widths = [1.7] + [1.0] * (len(measures) - 1)
    panels = figure.subplots(1, len(measures), sharey=True, squeeze=False, width_ratios=widths)[0]
    for axes, measure in zip(panels, measures, strict=True):
        for row, label in enumerate(labels):
            for lane, cell in enumerate(lanes[label]):
                at = row + 0.36 * (lane - (len(lanes[label]) - 1) / 2)
                _dot(axes, cell, at, looks[cell["standing"]], measure=measure, lying=True)
                _value(axes, cell, at, measure, looks[cell["standing"]])
        axes.grid(axis="x")
        axes.set_xlabel(MEASURES[measure][0])
        if measure == "success":
            axes.set_xlim(-0.03, 1.03)
            marks = range(0, 101, 20 if len(measures) == 1 else 50)
            axes.set_xticks([mark / 100 for mark in marks], [f"{mark}%" for mark in marks])
        else:
            found = [cell[measure] for cell in cells if cell.get(measure) is not None]
            margin = max(0.6 * (max(found) - min(found)), SPANS[measure] / 2)
            axes.set_xlim(min(found) - margin, max(found) + margin)
            axes.xaxis.set_major_locator(MaxNLocator(2, steps=[1, 2, 5, 10]))
    panels[0].set_yticks(range(len(labels)), labels, color=INK)
    panels[0].set_ylim(len(labels) - 0.5, -0.5)
    _legend(panels[0], [looks[s] for s in looks if any(cell["standing"] == s for cell in cells)], columns=3)
    return figure


def _value(axes: Axes, cell: Cell, row: float, measure: str, look: Look) -> None:
    """The number, at the right of its panel."""
    value = cell["success"]["rate"] if measure == "success" else cell.get(measure)
    if value is not None:
        axes.annotate(
            MEASURES[measure][1].format(value), (1, row), xycoords=axes.get_yaxis_transform(), xytext=(2, 0),
            textcoords="offset points", va="center", color=look.colour, fontsize=10,
        )  # fmt: skip


def _curves(
    axes: Axes,
    series: Sequence[tuple[Look, Sequence[Cell]]],
    place: Callable[[int | float], int | float],
    joined: int = 0,
) -> None:
    """Success against `x`. The first `joined` series are joined by thin lines and stand around the tick, the others
    to the right of them; with none joined all stand around it.
    """
    xs = sorted({cell["x"] for _, cells in series for cell in cells})
    places = [place(x) for x in xs]
    apart = 0.02 * ((places[-1] - places[0]) or 1)
    middle = (min(joined or len(series), len(series)) - 1) / 2
    for i, (look, cells) in enumerate(series):
        ordered = sorted((cell for cell in cells if cell["success"]["rate"] is not None), key=lambda cell: cell["x"])
        at = [place(cell["x"]) + apart * (i - middle) for cell in ordered]
        for cell, where in zip(ordered, at, strict=True):
            _dot(axes, cell, where, look)
        if i < joined:
            rates = [cell["success"]["rate"] for cell in ordered]
            axes.plot(at, rates, color=look.colour, linewidth=1.2, alpha=0.55, zorder=2.5)
    axes.set_xlim(places[0] - 3 * apart, places[-1] + (2 + len(series)) * apart)
    _success_axis(axes)


def _future(results: Mapping[str, Any]) -> Figure:
    """Evenly spaced numbers of frames. Later labels of the same number are variants: marked, not joined."""
    cells = results["cells"]
    xs = sorted({cell["x"] for cell in cells})
    first = {x: next(cell["label"] for cell in cells if cell["x"] == x) for x in xs}
    usual = [cell for cell in cells if cell["label"] == first[cell["x"]]]
    variants = [cell for cell in cells if cell not in usual]
    looks = _looks(usual)
    series = [(looks[standing], members) for standing, members in _standings(usual).items()]
    names = list(dict.fromkeys(cell["label"] for cell in variants))
    for label, (colour, marker) in zip(names, _distinct(names, first=2), strict=True):
        for cell in [cell for cell in variants if cell["label"] == label]:
            filled = cell["standing"] != "compute"
            series.append((Look(label if filled else None, colour, marker, filled), [cell]))
    meanings = [] if all(look.filled for look, _ in series) else ["hollow: same compute"]
    figure = _figure(results, 4.6 + 0.1 * len(series), *meanings)
    axes = figure.add_subplot()
    _curves(axes, series, xs.index, joined=len(_standings(usual)))
    axes.set_xticks(range(len(xs)), ["none" if x == 0 else f"{x:g}" for x in xs])
    axes.set_xlabel("future frames")
    _legend(axes, [look for look, _ in series])
    return figure


def _weights(results: Mapping[str, Any]) -> Figure:
    cells = results["cells"]
    looks = _looks(cells)
    figure = _figure(results, 4.2)
    axes = figure.add_subplot()
    _curves(axes, [(looks[s], members) for s, members in _standings(cells).items()], _log, joined=2)
    xs = sorted({cell["x"] for cell in cells})
    axes.set_xticks([_log(x) for x in xs], [f"{x:g}:1" if x >= 1 else f"1:{1 / x:g}" for x in xs])
    axes.set_xlabel("weight of the action loss : weight of the video loss")
    _legend(axes, [looks[standing] for standing in _standings(cells)])
    return figure


def _data(results: Mapping[str, Any]) -> Figure:
    """A panel for each standing; families by colour; the fitted laws as lines in their 95 % bands."""
    cells = results["cells"]
    families = list(dict.fromkeys(cell["family"] for cell in cells))
    standings = _standings(cells)
    laws = results.get("laws") or []
    meanings = ["lines: failure rate = a / demonstrations^b", "bands: 95% over tasks, training seeds and starts"]
    figure = _figure(results, 5.3, *(meanings if laws else []))
    panels = figure.subplots(1, len(standings), sharey=True, squeeze=False)[0]
    xs = sorted({cell["x"] for cell in cells})
    for axes, (standing, members) in zip(panels, standings.items(), strict=True):
        series = []
        for family, (colour, marker) in zip(families, _distinct(families), strict=True):
            look = Look(family, colour, marker)
            for law in laws:
                if law["family"] == family and law["standing"] in (standing, "both"):
                    _law(axes, law, colour)
                    slope = f"b = {law['b']:.2f} ({law['b_low']:.2f} to {law['b_high']:.2f})"
                    look = look._replace(name=f"{family}\n{slope}")
            series.append((look, [cell for cell in members if cell["family"] == family]))
        _curves(axes, series, _log)
        axes.set_xticks([_log(x) for x in xs], [f"{x:g}" for x in xs])
        axes.set_xlabel("demonstrations of each task" + (f"\n{STANDINGS[standing]}" if len(standings) > 1 else ""))
        _legend(axes, [look for look, _ in series], columns=1)
        axes.label_outer(remove_inner_ticks=True)
    return figure


def _distinct(names: Sequence[str], first: int = 0) -> list[tuple[str, str]]:
    """A colour and a marker for each name, from the `first` on. Raises ValueError when there are too few of them."""
    looks = list(zip(COLOURS, MARKERS, strict=True))[first:]
    if len(names) > len(looks):
        raise ValueError(f"a figure can tell {len(looks)} apart here, not {', '.join(names)}: leave some out")
    return looks[: len(names)]


def _law(axes: Axes, law: Mapping[str, Any], colour: str) -> None:
    curve = law["curve"]
    at = [_log(x) for x in curve["demonstrations"]]
    axes.fill_between(at, curve["low"], curve["high"], color=colour, alpha=0.13, linewidth=0, zorder=1)
    axes.plot(at, curve["success"], color=colour, linewidth=1.4, zorder=1.5)


def _families(results: Mapping[str, Any]) -> Figure:
    """Success against the median latency. Markers nearer than their own width are set side by side.

    The standings of a family are one model, trained differently: they share the mean of their latencies.
    """
    labels: dict[str, list[Cell]] = {}
    for cell in results["cells"]:
        if cell["success"]["rate"] is not None:
            labels.setdefault(cell["label"], []).append(cell)
    latency = {label: float(np.mean([cell["latency_ms_p50"] for cell in labels[label]])) for label in labels}
    cells = [cell for label in sorted(labels, key=lambda label: latency[label]) for cell in labels[label]]
    looks = _looks(cells)
    figure = _figure(results, 5.4, "markers too near are set side by side", tasks=False)
    axes = figure.add_subplot()
    wanted = [_log(latency[cell["label"]]) for cell in cells]
    span = max(wanted[-1] - wanted[0], 0.5)
    at = spread(wanted, 0.022 * span)
    points: dict[str, list[tuple[float, float]]] = {}
    for cell, where in zip(cells, at, strict=True):
        _dot(axes, cell, where, looks[cell["standing"]], tasks=False)
        tokens = cell.get("tokens_denoised")
        text = cell["label"] if tokens is None else f"{cell['label']}\n{tokens} tokens"
        points.setdefault(text, []).append((where, cell["success"]["rate"]))
    for own in points.values():
        axes.plot(*zip(*own, strict=True), color=SOFT, linewidth=0.9, zorder=2)
    axes.set_xlim(at[0] - 0.1 * span, at[-1] + 0.1 * span)
    ticks = _ticks(*axes.get_xlim())
    axes.set_xticks([_log(tick) for tick in ticks], [f"{tick:g}" for tick in ticks])
    axes.set_xlabel("median time to act (ms), with the number of tokens denoised")
    _success_axis(axes)
    _legend(axes, [looks[s] for s in looks if any(cell["standing"] == s for cell in cells)], columns=3)
    columns = [(x, c["success"]["low"], c["success"]["high"]) for c, x in zip(cells, at, strict=True)]
    place_labels(figure, axes, points, columns, ink=INK, paper=PAPER)
    return figure


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers between two places of a logarithmic axis, at least three where there is room for so many."""
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        ticks = [digit * 10.0**power for power in range(-2, 7) for digit in digits]
        ticks = [tick for tick in ticks if low <= _log(tick) <= high]
        if len(ticks) > 2:
            break
    return ticks


def _log(x: int | float) -> float:
    return float(np.log10(x))


FIGURES: dict[str, Callable[[Mapping[str, Any]], Figure]] = {
    "families": _families,
    "future": _future,
    "mask": _rows,
    "pretraining": _rows,
    "data": _data,
    "weights": _weights,
    "idm": _rows,
    "clips": _rows,
}
PLACES = {"families": ("latency_ms_p50",), "future": ("x",), "data": ("x", "family"), "weights": ("x",)}
"""What the cells of a study need beside `NEEDED` to have a place in its figure."""
LOGARITHMIC = ("families", "data", "weights")
