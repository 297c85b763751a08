"""Rules that hold episodes against each other: the same one twice, a mirrored gripper, another unit.

What the others do is taken as right, so an odd episode is found while it is in the minority. These are suspicions,
never errors; `certain` says where nothing else explains the numbers, so that they may be mended.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from actwam.data.check_rows import Parts, features, find_idle, moves, pooled, usual_range
from actwam.data.embodiment import Embodiment
from actwam.data.info import ACTION, STATE, Info
from actwam.data.problem import Problem, Reporter

_GRIPPER, _POSE = re.compile("grip|jaw|claw", re.IGNORECASE), re.compile(r"[_.](r?[xyz]|q?[xyzw]|roll|pitch|yaw)$")
FEWEST = 4
"""Episodes that can be held against each other: one against three."""
SETTLE_SECONDS = 0.25
"""A gripper has opened or closed that long after it was told to."""
FEWEST_ROWS = 5
TOLD_APART, ALIKE = 0.3, 0.35
"""Share of the state's range by which open and closed differ, at least; share of that difference within which an
episode is said to be like one or the other. MetaWorld's gripper differs by 0.95, around the widest object by 0.5."""
START = 0.15
"""Share of the gripper's range within which episodes of one instruction start."""

UNITS = {"degrees and radians": math.degrees(1), "millimetres and metres": 1e3, "centimetres and metres": 1e2}
CLOSE, CLEAR = 1.5, 3.0
"""How far the median ratio may be from that of two units, and how far a ratio must be from half way to it, or from all
other episodes, to be certain."""
MOST_RADIANS, MOST_METRES = 4 * math.pi, 10.0
"""No joint makes more turns, no arm reaches farther."""


def find_duplicates(parts: Parts) -> dict[int, int]:
    """Episodes whose state and action are those of an earlier one to the bit: their number, and the earlier one's."""
    first: dict[bytes, int] = {}
    found: dict[int, int] = {}
    for episode, _, rows in parts:
        if rows.state.size + rows.action.size:
            told = hashlib.sha256(repr((rows.state.shape, int(rows.task_index[0]))).encode())
            told.update(rows.state.tobytes())
            told.update(rows.action.tobytes())
            original = first.setdefault(told.digest(), episode.index)
            if original != episode.index:
                found[episode.index] = original
    return found


def check_duplicates(parts: Parts, same_pictures: Mapping[tuple[int, int], bool], report: Reporter) -> None:
    """`same_pictures` tells of two episodes whether they look the same, where that is known: one motion may have been
    drawn twice, in other colours.
    """
    files = {episode.index: file for episode, file, _ in parts}
    for index, original in find_duplicates(parts).items():
        if same_pictures.get((index, original), True):
            what = f"state and action are those of episode {original}, row by row"
            fix = "drop one of them: it counts twice"
            report(Problem(kind="duplicate", severity="warning", file=files[index], episode=index, what=what, fix=fix))


@dataclass(frozen=True)
class Mirrored:
    """One gripper dimension of an episode that is to be subtracted from `about` to be like the others."""

    episode: int
    file: Path
    key: str
    dimension: int
    about: float
    what: str
    certain: bool


def find_mirrored(parts: Parts, info: Info) -> Iterator[Mirrored]:
    """Gripper dimensions whose sign is not that of the other episodes.

    Told by what the gripper does: where one half of the action's range opens it in the others, it closes it here. And
    by where it starts: at the other end than all others of its instruction, which is a suspicion only.
    """
    for told, felt in _grippers(info):
        known = [part for part in parts if all(np.isfinite(getattr(part[2], f)).all() for f in ("state", "action"))]
        if len(known) >= FEWEST:
            contrary = set()
            if felt is not None:
                for each in _contrary(known, info, told, felt):
                    contrary.add(each.episode)
                    yield each
            key, dimension = (ACTION, told) if felt is None else (STATE, felt)
            for each in _started_elsewhere(known, info, key, dimension):
                if each.episode not in contrary:
                    yield each


def is_gripper(name: str) -> bool:
    """Whether a dimension says how far a gripper is open, by its name; `gripper_x` says where it is."""
    return _GRIPPER.search(name) is not None and _POSE.search(name) is None


def _grippers(info: Info) -> list[tuple[int, int | None]]:
    """Gripper dimensions of the action, each with that of the state that has its name or its place among them."""
    told, felt = (
        [i for i, name in enumerate(names) if is_gripper(name)] for names in (info.action_names, info.state_names)
    )
    named = {info.state_names[i]: i for i in felt}
    placed = felt if len(felt) == len(told) else [None] * len(told)
    return [(i, named.get(info.action_names[i], place)) for i, place in zip(told, placed, strict=True)]


def _contrary(parts: Parts, info: Info, told: int, felt: int) -> Iterator[Mirrored]:
    """By episode and half of the action's range: where the gripper is when it has been told that for a while. Where
    nothing moves, the robot may not have listened.
    """
    (a_low, a_high), (s_low, s_high) = (usual_range(pooled(parts, field)) for field in ("action", "state"))
    low, high, width = float(a_low[told]), float(a_high[told]), float(s_high[felt] - s_low[felt])
    if not moves(a_low, a_high)[told] or not moves(s_low, s_high)[felt]:
        return
    lag = max(1, round(SETTLE_SECONDS * info.fps))
    awake = {episode.index: np.ones(len(rows.index), bool) for episode, _, rows in parts}
    for idle in find_idle(parts, info):
        awake[idle.episode.index][idle.first : idle.end] = False
    places: list[dict[int, float]] = []
    for episode, _, rows in parts:
        side = np.rint(np.clip(2 * (rows.action[:, told] - low) / (high - low) - 1, -1, 1)).astype(int)
        steps = np.arange(len(side))
        changed = np.concatenate(([False], side[1:] != side[:-1]))
        held = steps - np.maximum.accumulate(np.where(changed, steps, 0)) >= lag
        held &= awake[episode.index]
        chosen = {n: rows.state[held & (side == n), felt] for n in (-1, 1)}
        places.append({n: float(np.median(values)) for n, values in chosen.items() if len(values) >= FEWEST_ROWS})
    usual = {n: [place[n] for place in places if n in place] for n in (-1, 1)}
    if min(map(len, usual.values())) < FEWEST - 1:
        return
    middle = {n: float(np.median(values)) for n, values in usual.items()}
    apart = abs(middle[1] - middle[-1])
    if apart < TOLD_APART * width:
        return
    starts = np.array([float(rows.state[0, felt]) for _, _, rows in parts])
    for (episode, file, _), place, start in zip(parts, places, starts, strict=True):
        if place and all(abs(value - middle[-n]) < ALIKE * apart for n, value in place.items()):
            usually = float(np.median(starts))
            together = float((np.abs(starts - usually) < START * width).mean()) >= 0.5
            mirrored = abs(s_low[felt] + s_high[felt] - start - usually) < abs(start - usually)
            key, dimension = (STATE, felt) if together and mirrored else (ACTION, told)
            about = float(s_low[felt] + s_high[felt]) if key == STATE else low + high
            name = (info.state_names if key == STATE else info.action_names)[dimension]
            what = f"{name} has the opposite sign of other episodes: the gripper opens where it closes in them"
            yield Mirrored(episode.index, file, key, dimension, about, what, certain=together)


def _started_elsewhere(parts: Parts, info: Info, key: str, dimension: int) -> Iterator[Mirrored]:
    field, names = ("state", info.state_names) if key == STATE else ("action", info.action_names)
    low, high = (float(end[dimension]) for end in usual_range(pooled(parts, field)))
    tasks: dict[int, list[int]] = {}
    for number, (_, _, rows) in enumerate(parts):
        tasks.setdefault(int(rows.task_index[0]), []).append(number)
    for members in tasks.values():
        starts = np.array([float(getattr(parts[n][2], field)[0, dimension]) for n in members])
        usually = float(np.median(starts))
        odd = np.abs(low + high - starts - usually) < START * (high - low)
        alike = np.abs(starts - usually) < START * (high - low)
        if abs(2 * usually - low - high) > 0.5 * (high - low) and odd.any() and (odd | alike).all():
            if odd.sum() * FEWEST > len(members):
                continue
            for n in np.flatnonzero(odd):
                episode, file, _ = parts[members[n]]
                what = f"{names[dimension]} starts at {starts[n]:.4g}, in other episodes of its task at {usually:.4g}"
                yield Mirrored(episode.index, file, key, dimension, low + high, what, certain=False)


def check_grippers(parts: Parts, info: Info, report: Reporter) -> None:
    for each in find_mirrored(parts, info):
        place: dict[str, Any] = {"file": each.file, "episode": each.episode, "key": each.key}
        fix = "compare what opens it, and turn it over"
        report(Problem(kind="gripper", severity="warning", what=each.what, fix=fix, **place))


@dataclass(frozen=True)
class Scaled:
    """Dimensions of an episode that are `factor` times what they are in the others."""

    episode: int
    file: Path
    key: str
    dimensions: tuple[int, ...]
    factor: float
    what: str
    certain: bool


def find_scaled(parts: Parts, info: Info) -> Iterator[Scaled]:
    """Episodes in another unit than the others.

    The level of a dimension is the magnitude that it stays below in 9 of 10 rows. In another unit, at least two of them
    are away from their median over all episodes by the same factor, and what is larger is too large for the smaller
    unit: beyond 2 pi rad or 10 m. That alone is why a robot that hardly moves in some tasks is none.
    """
    for key, names, field in features(info):
        known = [part for part in parts if len(part[2].index) and np.isfinite(getattr(part[2], field)).all()]
        if len(known) < FEWEST or len(names) < 2:
            continue
        levels = np.array([np.quantile(np.abs(getattr(rows, field)), 0.9, axis=0) for _, _, rows in known], np.float64)
        usual = np.median(levels, axis=0)
        for number, ((episode, file, _), level) in enumerate(zip(known, levels, strict=True)):
            highest = np.delete(levels, number, axis=0).max(0)
            if (found := _other_unit(level, usual, highest)) is None:
                continue
            units, factor, scaled, certain = found
            listed = ", ".join(names[i] for i in scaled)
            what = f"{listed} are {factor:.4g} times those of other episodes: {units} are mixed"
            yield Scaled(episode.index, file, key, scaled, factor, what, certain)


def _other_unit(
    level: Float[np.ndarray, "D"], usual: Float[np.ndarray, "D"], highest: Float[np.ndarray, "D"]
) -> tuple[str, float, tuple[int, ...], bool] | None:
    """The two units, the factor, the dimensions that it scales, and whether each of them surely is one or is none: its
    ratio is far from half way between the units, or only in one of them it is not far above all other episodes.
    """
    used = np.minimum(level, usual) > 0
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.where(used, np.log(level / usual), 0.0)
    best: tuple[float, str, float, tuple[int, ...], bool] | None = None
    for units, ratio in UNITS.items():
        limit = 2 * math.pi if "radians" in units else MOST_METRES
        for factor in (ratio, 1 / ratio):
            half = math.log(factor) / 2
            far = np.abs(np.abs(logs) - abs(half)) > math.log(CLEAR)
            plain, converted = level <= CLEAR * highest, level / factor <= CLEAR * highest
            told = used & ~far & (plain != converted)
            scaled = np.flatnonzero(np.where(told, converted, logs * np.sign(half) > abs(half)))
            if len(scaled) < 2 or np.maximum(level, usual)[scaled].max() <= limit:
                continue
            away = abs(float(np.median(logs[scaled])) - 2 * half)
            if away < math.log(CLOSE) and (best is None or away < best[0]):
                certain = bool((far | told).all())
                best = (away, units, factor, tuple(int(i) for i in scaled), certain)
    return None if best is None else best[1:]


def check_units(parts: Parts, info: Info, robot: Embodiment | None, report: Reporter) -> None:
    """Episodes against each other, and all against the units of the robot, where those are known."""
    for each in find_scaled(parts, info):
        place: dict[str, Any] = {"file": each.file, "episode": each.episode, "key": each.key}
        report(Problem(kind="units", severity="warning", what=each.what, fix="convert them to one unit", **place))
    for key, names, field in features(info) if robot is not None and parts else ():
        assert robot is not None
        levels = np.quantile(np.abs(pooled(parts, field)), 0.9, axis=0)
        for limit, unit, other in ((MOST_RADIANS, "rad", "degrees"), (MOST_METRES, "m", "millimetres")):
            beyond = [i for i, name in enumerate(names) if robot.units.get(name) == unit and levels[i] > limit]
            if beyond:
                listed = ", ".join(f"{names[i]} ({levels[i]:.4g})" for i in beyond)
                what = f"{listed} are too large for {unit}, the unit of {robot.name}: they look like {other}"
                fix = "convert them, or correct the units of the robot"
                report(Problem(kind="units", severity="warning", file=info.file, key=key, what=what, fix=fix))
