"""The table and the figure of `actwam sweep`, from the JSON that it leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

from actwam.report.markdown import measured_with, number, table
from actwam.report.page import NONE, percent
from actwam.report.style import COLOURS, INK, MARKERS, SOFT, WIDTH, write_png

REST = "#b3b7bd"
"""Of trials that were not promoted."""
ERROR = "held-out action error"
FINE, COARSE = (1.0, 1.2, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 7.0), (1.0, 3.0)
"""What a logarithmic axis marks of each power of ten."""
PLAIN = FuncFormatter(lambda value, _: f"{value:g}")


def markdown(found: Mapping[str, Any]) -> str:
    """What was searched, what won and how sure that is, the promoted and all trials."""
    settings, winner = found["settings"], found["winner"]
    held = settings["held_out"]
    space = ", ".join(f"{name} {text}" for name, text in settings["space"].items())
    values = ", ".join(f"{name} {value:g}" for name, value in winner["settings"].items())
    return (
        "\n\n".join(
            [
                f"**{found['recipe']}, stage {found['stage']}**: {len(found['trials'])} trials of "
                f"{settings['pilot_steps']} steps over {space}; {len(found['promoted'])} promoted to "
                f"{settings['long_steps']} steps. {found['rule']}",
                f"The winner is trial {winner['trial']}: {values}. {found['sure']}",
                f"    {winner['command']}",
                _promoted(found["promoted"]),
                f"Errors are means over {held['windows']} windows of {held['episodes']} held-out episodes, in standard "
                "deviations of the trained action. Brackets: 95 % intervals over other held-out episodes and tasks "
                "(bootstrap), of success over other episodes (Wilson); none of them speaks of training again.",
                _trials(found),
                measured_with(found["provenance"]),
            ]
        )
        + "\n"
    )


def _promoted(promoted: Sequence[Mapping[str, Any]]) -> str:
    played = promoted[0]["success"] is not None
    rows = []
    for one in promoted:
        held, against = one["held_out"], one.get("against_best")
        error = against and against["action_error"]
        rows.append(
            [
                str(one["trial"]),
                f"{held['action_error']:.3f} ({held['low']:.3f} to {held['high']:.3f})",
                f"{error['mean']:+.3f} ({error['low']:+.3f} to {error['high']:+.3f}), {error['verdict']}"
                if error
                else NONE,
                number(held["psnr"], ".1f"),
                *([_success(one["success"]["success"])] if played else []),
                _minutes(one["seconds"]),
            ]
        )
    heads = ["trial", "error after long training", "against the winner", "PSNR (dB)"]
    return table([*heads, *(["success"] if played else []), "minutes"], rows)


def _success(score: Mapping[str, Any]) -> str:
    crashed = f", {score['crashes']} crashed" if score["crashes"] else ""
    return f"{percent(score['rate'])} of {score['n']} ({percent(score['low'])} to {percent(score['high'])}){crashed}"


def _trials(found: Mapping[str, Any]) -> str:
    """The best first: those that came farther, and of these the ones of lower error."""
    names = list(found["settings"]["space"])
    steps = sorted({int(step) for one in found["trials"] for step in one["held_out_action_error"]})

    def place(one: Mapping[str, Any]) -> tuple[int, float]:
        values = one["held_out_action_error"]
        return -len(values), list(values.values())[-1] if values else 0.0

    rows = [
        [
            f"{one['trial']}{' (own)' if one['settings'] == found['own'] else ''}",
            *(f"{one['settings'][name]:g}" for name in names),
            *(number(one["held_out_action_error"].get(str(step)), ".3f") for step in steps),
            one["ended"],
            _minutes(one["seconds"]),
        ]
        for one in sorted(found["trials"], key=place)
    ]
    return table(["trial", *names, *(f"step {step}" for step in steps), "ended", "minutes"], rows)


def _minutes(seconds: float | None) -> str:
    """Of what went on from an interrupted process they are not known."""
    return number(None if seconds is None else seconds / 60, ".1f")


def write_figure(found: Mapping[str, Any], path: Path) -> None:
    """Errors by step of all trials and of the promoted, and the last error of each trial by its settings."""
    write_png(lambda: _figure(found), path)


def _figure(found: Mapping[str, Any]) -> Figure:
    names, most = list(found["settings"]["space"]), _most(found)
    figure = Figure(figsize=(WIDTH, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.15, 1])[:, 0]
    short, long = above.subplots(1, 2, sharey=True)
    drawn = {one["trial"]: place for place, one in enumerate(found["promoted"][: len(COLOURS)])}
    for one in _front_last(found["trials"], drawn):
        _curve(short, one, drawn, most)
    for one in _front_last(found["promoted"], drawn):
        _curve(long, one, drawn, most)
        held, step = one["held_out"], found["settings"]["long_steps"]
        beside = step * (1 + 0.025 * (1 + drawn.get(one["trial"], len(drawn))))
        long.vlines(beside, held["low"], held["high"], color=_colour(one, drawn), linewidth=1.4, alpha=0.6)
    short.set_title(f"{len(found['trials'])} trials", loc="left", fontsize=11.5, fontweight="bold")
    long.set_title(f"{len(found['promoted'])} promoted", loc="left", fontsize=11.5, fontweight="bold")
    short.set_ylabel(ERROR)
    _logarithmic(short, "y", FINE)
    for axes, steps in ((short, "pilot_steps"), (long, "long_steps")):
        axes.set_xlabel("step")
        axes.set_xlim(0, 1.09 * found["settings"][steps])
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.grid(axis="y")
    panels = below.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        _setting(axes, found, name, drawn, most)
    panels[0].set_ylabel("error at the last step")
    _logarithmic(panels[0], "y", FINE)
    figure.legend(
        handles=_legend(found, drawn), loc="outside upper left", ncols=5, columnspacing=1.2, handletextpad=0.4
    )
    said = (
        f"{found['recipe']}, stage {found['stage']}. Errors in standard deviations of the trained action. Bars: 95 % "
        "over other held-out episodes and tasks, not over training again. Crosses: stopped early, measured at fewer "
        "steps. What lies above an axis is drawn at its upper end."
    )
    figure.supxlabel(fill(said, 118), x=0.012, ha="left", fontsize=9.5, color=SOFT)
    return figure


def _colour(one: Mapping[str, Any], drawn: Mapping[int, int]) -> str:
    return COLOURS[drawn[one["trial"]]] if one["trial"] in drawn else REST


def _most(found: Mapping[str, Any]) -> float:
    """The highest error that is shown as it is: half as much again as the worst of a trial that was not stopped."""
    complete = [one for one in found["trials"] if one["ended"] == "complete"]
    return 1.5 * max(error for one in complete for error in one["held_out_action_error"].values())


def _front_last(trials: Sequence[Mapping[str, Any]], drawn: Mapping[int, int]) -> list[Mapping[str, Any]]:
    """In the order in which they are drawn: the winner lies on all others."""
    return sorted(trials, key=lambda one: -drawn.get(one["trial"], len(drawn)))


def _curve(axes: Axes, one: Mapping[str, Any], drawn: Mapping[int, int], most: float) -> None:
    values = one["held_out_action_error"]
    if not values:
        return
    steps, colour = [int(step) for step in values], _colour(one, drawn)
    errors = [min(error, most) for error in values.values()]
    axes.plot(steps, errors, color=colour, linewidth=2.0 if one["trial"] in drawn else 1.2)
    _end(axes, one, steps[-1], drawn, most)


def _end(axes: Axes, one: Mapping[str, Any], x: int | float, drawn: Mapping[int, int], most: float) -> None:
    """A marker at the last error: a cross where a trial was stopped."""
    if not (values := one["held_out_action_error"]):
        return
    error = min(list(values.values())[-1], most)
    marker = MARKERS[drawn[one["trial"]]] if one["trial"] in drawn else "o" if one["ended"] == "complete" else "x"
    size = 7 if one["trial"] in drawn else 5
    axes.plot(x, error, marker=marker, markersize=size, color=_colour(one, drawn), linestyle="", clip_on=False)


def _setting(axes: Axes, found: Mapping[str, Any], name: str, drawn: Mapping[int, int], most: float) -> None:
    """The last error of each trial over one of its settings, and the recipe's own value as a line."""
    axes.axvline(found["own"][name], color=INK, linewidth=0.8, linestyle=(0, (4, 4)), alpha=0.5)
    for one in _front_last(found["trials"], drawn):
        _end(axes, one, one["settings"][name], drawn, most)
    text = found["settings"]["space"][name]
    if ":" in text:
        _logarithmic(axes, "x", COARSE)
    else:
        choices = sorted(float(part) for part in text.split(","))
        if choices[0] > 0:
            axes.set_xscale("log")
            axes.set_xlim(choices[0] / 1.4, choices[-1] * 1.4)
        axes.xaxis.set_major_locator(FixedLocator(choices))
        axes.xaxis.set_major_formatter(PLAIN)
        axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(name)
    axes.grid(axis="y")


def _logarithmic(axes: Axes, which: Literal["x", "y"], subs: tuple[float, ...]) -> None:
    """A logarithmic axis with plain numbers at these multiples of powers of ten."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    axes.set(**{f"{which}scale": "log"})
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(PLAIN)
    axis.set_minor_locator(NullLocator())


def _legend(found: Mapping[str, Any], drawn: Mapping[int, int]) -> list[Line2D]:
    def entry(label: str, colour: str, marker: str) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, linestyle="", markersize=7, label=label)

    winner = found["winner"]["trial"]
    named = [
        entry(f"trial {number}{', the winner' if number == winner else ''}", COLOURS[place], MARKERS[place])
        for number, place in drawn.items()
    ]
    own = Line2D([], [], color=INK, linewidth=0.8, linestyle=(0, (4, 4)), label="the recipe's own")
    return [*named, entry("not promoted", REST, "o"), entry("stopped", REST, "x"), own]
