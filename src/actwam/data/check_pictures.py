"""Rules about what pictures show: black, frozen while the robot moves, seen by another camera than in other episodes.

A picture is looked at as the mean grey of about 16 x 16 cells: fine enough for an arm that moves, and coarse enough for
the noise of sensors and codecs to vanish.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from actwam.data.check_episodes import FEWEST, is_gripper
from actwam.data.check_rows import Parts, pooled, usual_range
from actwam.data.info import Info
from actwam.data.problem import Problem, Reporter
from actwam.data.tables import Clip

CELLS, SMALLEST_CELL = 16, 8
"""Along either side, and pixels."""
BLACK = 8.0
"""Grey level from 0 to 255 that no cell of a black picture exceeds: what a sensor tells behind a closed lid, or video
black. A scene in the dark is brighter."""
STILL = 5.0
"""Grey levels by which cells of the same picture may differ. x264, as the writer uses it, changes small pictures
by up to 3.6 while they stand still; within half a second of our demonstrations some cell changes by 50 or more."""
SHORTEST_SECONDS = 0.5
"""A camera that drops some frames is not frozen."""
MOVED = 0.2
"""Share of a dimension's usual range that the robot moves while pictures are called frozen."""
MUCH = 0.05
"""Share of the widest range: a dimension that uses less is not seen to move, or is noise."""
SWAPPED = 0.5
"""A swap is believed when it leaves less than this share of the difference to the other episodes. In our demonstrations
every swap adds to it, with random light, colours and poses too (at least 1.1); 0.69 with one episode for each task."""
LEAST_APART = 0.2
"""Difference, per camera, below which cameras are not told apart: 1 - correlation of the grey of their cells."""
MOST_CAMERAS = 5

Looks = Mapping[int, Mapping[str, "Look"]]
"""By episode and name of the camera, for the episodes that were decoded to their end."""


@dataclass(frozen=True, eq=False)
class Look:
    """One episode as one camera saw it: the mean of its pictures, from 0 to 255, and stretches of at least
    `SHORTEST_SECONDS`, first frame and the one behind the last, of black and of equal pictures.
    """

    mean: Float[np.ndarray, "r c"]
    frames: int
    black: tuple[tuple[int, int], ...]
    still: tuple[tuple[int, int], ...]


def cells(picture: UInt8[np.ndarray, "H W 3"]) -> Float[np.ndarray, "r c"]:
    """Mean of the green channel in a grid of cells, without what fills no cell at the lower and the right edge."""
    height, width = (min(max(SMALLEST_CELL, side // CELLS), side) for side in picture.shape[:2])
    rows, columns = (side // cell for side, cell in zip(picture.shape[:2], (height, width), strict=True))
    grid = picture[: rows * height, : columns * width, 1].reshape(rows, height, columns, width)
    return grid.mean((1, 3), dtype=np.float32)


class Watch:
    """Looks at the pictures of an episode one after the other; what is kept of them does not grow with their number."""

    def __init__(self, fps: int) -> None:
        self._shortest = max(2, round(SHORTEST_SECONDS * fps))
        self._sum: Any = 0.0
        self._frames = 0
        self._first: Float[np.ndarray, "r c"] | None = None
        self._since = {"black": 0, "still": 0}
        self._found: dict[str, list[tuple[int, int]]] = {"black": [], "still": []}

    def see(self, picture: UInt8[np.ndarray, "H W 3"]) -> None:
        grey = cells(picture)
        if grey.max() > BLACK:
            self._end("black", self._frames + 1)
        if self._first is None or np.abs(grey - self._first).max() > STILL:
            self._end("still", self._frames)
            self._first = grey
        self._sum = self._sum + grey
        self._frames += 1

    def _end(self, kind: str, following: int) -> None:
        """A stretch goes no farther than to the frame that is looked at; another may begin at `following`."""
        first, end = self._since[kind], self._frames
        if end - first >= self._shortest:
            self._found[kind].append((first, end))
        self._since[kind] = following

    def look(self) -> Look:
        self._end("black", self._frames)
        self._end("still", self._frames)
        return Look(self._sum / max(self._frames, 1), self._frames, *(tuple(found) for found in self._found.values()))


def alike(one: Mapping[str, Look], other: Mapping[str, Look]) -> bool:
    """Whether two episodes look the same to all cameras."""
    return all(float(np.abs(one[name].mean - other[name].mean).max()) < 2 for name in one)


def check_black(looks: Looks, clips: Mapping[int, Mapping[str, Clip]], report: Reporter) -> None:
    for index, cameras in looks.items():
        for name, look in cameras.items():
            if look.black:
                count = sum(end - first for first, end in look.black)
                place: dict[str, Any] = {"episode": index, "frame": look.black[0][0], "key": name}
                what, fix = (
                    f"pictures are black in {count} of {look.frames} frames",
                    "drop the episode, or record it again",
                )
                report(Problem(kind="black", file=clips[index][name].path, what=what, fix=fix, **place))


def check_frozen(
    looks: Looks, clips: Mapping[int, Mapping[str, Clip]], parts: Parts, info: Info, report: Reporter
) -> None:
    """A camera that is frozen in more than half of the episodes sees nothing that moves, and is named once."""
    found: dict[str, list[tuple[int, int, int]]] = {}
    for index, name, first, end in _frozen(looks, parts, info):
        found.setdefault(name, []).append((index, first, end))
    for name, stretches in found.items():
        episodes = {index for index, _, _ in stretches}
        if len(episodes) * 2 > len(looks) >= FEWEST:
            what = f"pictures stand still in {len(episodes)} of {len(looks)} episodes while the robot moves"
            fix = "turn the camera to the robot, or leave it out"
            report(Problem(kind="frozen", severity="warning", file=info.file, key=name, what=what, fix=fix))
            continue
        for index, first, end in stretches:
            place: dict[str, Any] = {"file": clips[index][name].path, "episode": index, "frame": first, "key": name}
            what = f"the same picture in {end - first} frames while the robot moves"
            fix = "drop the episode, or record it again"
            report(Problem(kind="frozen", severity="warning", what=what, fix=fix, **place))


def _frozen(looks: Looks, parts: Parts, info: Info) -> Iterator[tuple[int, str, int, int]]:
    """Episode, camera, first frame and the one behind the last. What a gripper does need not be seen."""
    arm = [i for i, name in enumerate(info.state_names) if not is_gripper(name)]
    if not arm or not parts:
        return
    low, high = (end[arm] for end in usual_range(pooled(parts, "state")))
    width = np.where(high - low > MUCH * (high - low).max(), high - low, np.inf)
    states = {episode.index: rows.state[:, arm] for episode, _, rows in parts}
    for index, cameras in looks.items():
        for name, look in cameras.items():
            for first, end in look.still:
                moved = states[index][first:end] if index in states else np.empty((0, len(arm)))
                if len(moved) and (np.ptp(moved, axis=0) / width).max() >= MOVED:
                    yield index, name, first, end


def find_swapped(looks: Looks, parts: Parts, info: Info) -> dict[int, dict[str, str]]:
    """Episodes whose cameras are exchanged: by camera, whose pictures it holds.

    The mean picture of a camera in an episode is compared with that camera's median over the episodes of its task, or,
    if those are few, over all, light and contrast apart: of all ways to exchange cameras the best must leave less than
    `SWAPPED` of the difference.
    """
    names = [camera.name for camera in info.cameras]
    shapes = {look.mean.shape for cameras in looks.values() for look in cameras.values()}
    whole = {index: cameras for index, cameras in looks.items() if len(cameras) == len(names)}
    if len(whole) < FEWEST or not 2 <= len(names) <= MOST_CAMERAS or len(shapes) != 1:
        return {}
    seen = {i: np.stack([_normalised(cameras[name].mean) for name in names]) for i, cameras in whole.items()}
    task_of = {episode.index: int(rows.task_index[0]) for episode, _, rows in parts}
    tasks: dict[int | None, list[np.ndarray]] = {}
    for index, means in seen.items():
        tasks.setdefault(task_of.get(index), []).append(means)
    everywhere = _usual([*seen.values()])
    usual = {task: _usual(means) if len(means) >= FEWEST else everywhere for task, means in tasks.items()}
    found: dict[int, dict[str, str]] = {}
    for index, means in seen.items():
        apart = 1 - np.einsum("ahw,bhw->ab", means, usual[task_of.get(index)])
        order = _best_order(apart)
        moved = [i for i, j in enumerate(order) if i != j]
        before = sum(float(apart[i, i]) for i in moved)
        after = sum(float(apart[i, order[i]]) for i in moved)
        if moved and before >= LEAST_APART * len(moved) and after < SWAPPED * before:
            found[index] = {names[i]: names[order[i]] for i in moved}
    return found


def _usual(means: list[np.ndarray]) -> np.ndarray:
    return np.stack([_normalised(mean) for mean in np.median(np.stack(means), axis=0)])


def _best_order(apart: Float[np.ndarray, "n n"]) -> tuple[int, ...]:
    """For each camera another one, so that the sum of their differences is least."""
    places = range(len(apart))
    return min(permutations(places), key=lambda order: float(apart[places, order].sum()))


def _normalised(mean: Float[np.ndarray, "r c"]) -> Float[np.ndarray, "r c"]:
    """Without its mean and of length 1, so that a product is a correlation; a blank picture is 0."""
    centred = mean - mean.mean()
    return centred / max(float(np.linalg.norm(centred)), 1e-6)


def check_swapped(
    looks: Looks, clips: Mapping[int, Mapping[str, Clip]], parts: Parts, info: Info, report: Reporter
) -> None:
    for index, exchanged in find_swapped(looks, parts, info).items():
        for name, other in exchanged.items():
            path: Path = clips[index][name].path
            what = f"holds what camera {other} shows in other episodes"
            fix = "exchange the cameras, or record the episode again"
            place: dict[str, Any] = {"file": path, "episode": index, "frame": 0, "key": name}
            report(Problem(kind="swapped", severity="warning", what=what, fix=fix, **place))
