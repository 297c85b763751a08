"""The table and the figure of `actwam bench`, from the JSON that it leaves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from actwam.report.markdown import count, measured_with, number, table
from actwam.report.style import COLOURS, INK, SOFT, WIDTH, write_png

ROW, HEAD = 0.24, 1.1
"""Inches of a case in the figure, and of what is above and below the cases of a policy."""


def markdown(found: Mapping[str, Any]) -> str:
    """All cases and parts of what `time_ways` found, by policy."""
    policies = (_policy(name, one) for name, one in found["policies"].items())
    return "\n\n".join([*policies, measured_with(found["provenance"])]) + "\n"


def _policy(name: str, one: Mapping[str, Any]) -> str:
    tokens = ", ".join(f"{count} {group}" for group, count in one["tokens"].items())
    settings = one["settings"]
    cases = [
        [
            case["way"],
            case["precision"],
            str(case["latency"]["batch"]),
            *(number(case["latency"][p], ".2f") for p in ("p50", "p95", "p99")),
            str(case["latency"]["tokens_denoised"]),
            number(case["floor_ms"], ".2f"),
            number(case["times_floor"], ".1f"),
            number(case["deviation"], ".1e"),
        ]
        for case in one["cases"]
    ]
    parts = [
        [part, precision, *(number(times[p], ".2f") for p in ("p50", "p95", "p99")), str(times["times"])]
        for precision, all_parts in one["parts"].items()
        for part, times in all_parts.items()
    ]
    rates = "; ".join(
        f"{precision}: copies {rate['bytes_per_s'] / 1e9:.0f} GB/s, multiplies {rate['flops_per_s'] / 1e12:.2f} TFLOP/s"
        for precision, rate in one["rates"].items()
    )
    heads = [
        "decoding",
        "weights",
        "batch",
        "p50 (ms)",
        "p95",
        "p99",
        "tokens",
        "floor (ms)",
        "p50 / floor",
        "deviation",
    ]
    return "\n\n".join(
        [
            f"**{name}**: {count(one['parameters'])} parameters; {tokens} tokens; {one['num_steps']} steps; "
            f"{settings['repeats']} calls after {settings['warmup']} of warm-up",
            table(heads, cases),
            table(["part of a call", "weights", "p50 (ms)", "p95", "p99", "times"], parts),
            f"The floor: {rates}.",
        ]
    )


def write_figure(found: Mapping[str, Any], path: Path) -> None:
    """A line for every case, from what the machine could do at best to what was measured, on a logarithmic axis."""
    write_png(lambda: _figure(found), path)


def _figure(found: Mapping[str, Any]) -> Figure:
    policies = found["policies"]
    rows = [len(one["cases"]) for one in policies.values()]
    figure = Figure(figsize=(WIDTH, HEAD * len(rows) + ROW * sum(rows)), layout="constrained")
    panels = figure.subplots(len(rows), 1, squeeze=False, height_ratios=[n + HEAD / ROW / 2 for n in rows])[:, 0]
    precisions = list(dict.fromkeys(case["precision"] for one in policies.values() for case in one["cases"]))
    for axes, (name, one) in zip(panels, policies.items(), strict=True):
        cases = one["cases"]
        p50 = [case["latency"]["p50"] for case in cases]
        floors = [case["floor_ms"] for case in cases]
        colours = [COLOURS[precisions.index(case["precision"])] for case in cases]
        lowest = min([*p50, *floors]) / 1.6
        axes.hlines(range(len(cases)), floors, p50, colors=colours, linewidth=2.2)
        axes.scatter(p50, range(len(cases)), s=60, c=colours, zorder=3)
        axes.plot(floors, range(len(cases)), linestyle="", marker="|", markersize=11, color=INK, markeredgewidth=2)
        for row, value in enumerate(p50):
            said = f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms"
            axes.annotate(
                said, (max(value, floors[row]), row), xytext=(8, 0), textcoords="offset points", va="center",
                fontsize=9.5, color=colours[row],
            )  # fmt: skip
        axes.set_xscale("log")
        axes.set_xlim(lowest, max(p50) * 1.9)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.grid(axis="x")
        labels = [f"{case['way']}, {case['precision']}{_batch(case)}" for case in cases]
        axes.set_yticks(range(len(cases)), labels, color=INK)
        axes.set_ylim(len(cases) - 0.4, -0.6)
        axes.set_title(f"{name}: {count(one['parameters'])} parameters", loc="left", fontsize=11.5, fontweight="bold")
    panels[-1].set_xlabel("median time to act (ms)")
    machine = found["provenance"]["machine"]
    where = (
        f"{machine['gpu']}"
        if found["device"] != "cpu"
        else f"{machine['cpu']}, {found['threads']} thread{'s' * (found['threads'] > 1)}"
    )
    said = f"{where}. Dots: median. Strokes: what the best rates of PyTorch's copies and matrix products would allow."
    figure.supxlabel(fill(said, 120), x=0.012, ha="left", fontsize=9.5, color=SOFT)
    return figure


def _batch(case: Mapping[str, Any]) -> str:
    batch = case["latency"]["batch"]
    return "" if batch == 1 else f", {batch} at once"
