"""A trained model takes in robots that it does not know, and keeps those that it does.

What belongs to one robot is small: its rows of the projectors (`EmbodimentLinear`), its statistics and its layout.
Everything else is shared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from actwam.checkpoint import Setup, require_fitting
from actwam.data.dataset import Footage
from actwam.data.embodiment import Embodiment
from actwam.data.loader import Window
from actwam.data.normalize import Normalizer, NormStats
from actwam.data.transforms import RobotTransform
from actwam.model.config import TransformerConfig
from actwam.model.projectors import EmbodimentLinear
from actwam.model.transformer import WorldActionTransformer
from actwam.train.config import Recipe
from actwam.train.statistics import robot_stats

FAR = 10.0
"""Statistics map a robot's usual numbers to -1..1: what reaches so far beyond is in other units, or another robot."""


def sizes_for(start: Setup, robots: Sequence[Embodiment], where: str, drop: Sequence[str] = ()) -> TransformerConfig:
    """The start's sizes with as many embodiments as it needs for its own robots and these.

    Raises ValueError, beginning with `where`, when a robot changes its index, takes that of one that is kept, or leaves
    rows unused.
    """
    known = {robot.embodiment.name: robot.embodiment for robot in start.robots}
    if unknown := [name for name in drop if name not in known]:
        raise ValueError(f"{where}: has no robot {', '.join(unknown)} to drop; it has {', '.join(known) or 'none'}")
    kept = {name: robot.index for name, robot in known.items() if name not in drop}
    named = {robot.name for robot in robots}
    taken = {*kept.values(), *(robot.index for robot in robots)}
    free = next(i for i in range(len(taken) + 1) if i not in taken)
    for robot in robots:
        owner = next((name for name, index in kept.items() if index == robot.index and name not in named), None)
        if robot.name in kept and kept[robot.name] != robot.index:
            raise ValueError(
                f"{where}: robot {robot.name} has index {kept[robot.name]} there and {robot.index} here, where its "
                f"projectors are not: give it index {kept[robot.name]}"
            )
        if robot.name not in kept and owner is not None:
            raise ValueError(
                f"{where}: index {robot.index} of embodiment {robot.name} is that of robot {owner} there, whose "
                f"projectors would be trained over: give {robot.name} index {free}"
            )
        if robot.index > start.model.embodiments and robot.index - 1 not in taken:
            raise ValueError(f"{where}: index {robot.index} of embodiment {robot.name} leaves rows unused: take {free}")
    return replace(start.model, embodiments=max([start.model.embodiments, *(robot.index + 1 for robot in robots)]))


def grow(model: WorldActionTransformer, start: Setup, recipe: Recipe) -> None:
    """Give the start's model the embodiments of a recipe, in place. Robots that are new to the start begin with the
    projectors of `recipe.like`, or else of its first robot; all other rows stay as they are.

    A new robot's dimensions mean something else, and still a copy is the better beginning than fresh weights: the
    layers behind read what trained rows write (docs/guides/robots.md has figures). In imported weights, which may name
    no robot, any row may be trained, so that only rows that they have not are new, and begin as embodiment 0. Those of
    GWP-0 trained and act as embodiment 0 whatever robot they are given: there every robot begins as that.
    """
    index_of = {robot.embodiment.name: robot.embodiment.index for robot in start.robots}
    source = next(iter(index_of.values()), 0) if recipe.like is None else index_of[recipe.like]
    old = set(range(start.model.embodiments))
    imported = start.trained.get("imported")
    trained = {0} if imported == "gwp0" else old if imported or not start.robots else set(index_of.values())
    begins = {robot.index for robot in recipe.robots} - trained
    rows = [source if i in begins or i not in old else i for i in range(recipe.model.embodiments)]
    for layer in model.modules():
        if isinstance(layer, EmbodimentLinear):
            layer.take(rows)


def known_robots(recipe: Recipe, start: Setup) -> dict[str, RobotTransform]:
    """The robots of a recipe whose statistics stay those of its start, which its weights were trained with.

    That is every robot whose numbers mean what they meant: with the same index, state, actions and control rate.
    Cameras may change, and the statistics of `recipe.refit` do. Raises ValueError where that, or `recipe.like`, names a
    robot that the start has not.
    """
    found = {robot.embodiment.name: robot for robot in start.robots}
    named = {"refit": recipe.refit, "begin like": (recipe.like,) if recipe.like else ()}
    for what, names in named.items():
        if unknown := [name for name in names if name not in found]:
            there = ", ".join(found) or "none"
            raise ValueError(f"{recipe.start}: has no robot {', '.join(unknown)} to {what}; it has {there}")
    known = {}
    for robot, layout in zip(recipe.robots, recipe.layouts, strict=True):
        old = found.get(robot.name)
        if old is None or robot.name in recipe.refit:
            continue
        units = {**robot.units, **old.embodiment.units}
        if replace(old.embodiment, cameras=robot.cameras, image_size=robot.image_size, units=units) == robot:
            known[robot.name] = replace(old, embodiment=robot, layout=layout)
    return known


def kept_robots(recipe: Recipe, start: Setup) -> tuple[RobotTransform, ...]:
    """The robots of the start that the recipe does not train: the new checkpoint acts for them too.

    Raises ValueError when the robots of the recipe leave no place for one.
    """
    where = str(recipe.start)
    sizes_for(start, recipe.robots, where, recipe.drop)
    left_out = {*recipe.drop, *(robot.name for robot in recipe.robots)}
    kept = tuple(robot for robot in start.robots if robot.embodiment.name not in left_out)
    require_fitting([*recipe.robots, *(robot.embodiment for robot in kept)], recipe.model, where)
    return kept


def require_range(robot: RobotTransform, dataset: Footage, window: Window, start: Path, cache: Path) -> None:
    """Raises ValueError, naming the dimension, when a dataset is far outside of the statistics that `robot` keeps. What
    it has itself is kept in `cache`.
    """
    own = robot_stats([dataset], robot.embodiment, window, cache)
    for what, normalizer, found in zip(("state", "action"), (robot.state, robot.action), own, strict=True):
        if problem := _out_of_range(normalizer, found):
            name = robot.embodiment.name
            raise ValueError(
                f"{dataset.folder}: {what}: {problem} in the statistics of robot {name} in {start}: check its units; "
                f"if they are right, fit its statistics anew: refit {name}"
            )


def _out_of_range(normalizer: Normalizer, found: NormStats) -> str | None:
    stats = normalizer.stats
    usual = normalizer.normalize(np.array([found.q01, found.q99]))
    for i, name in enumerate(stats.names):
        reach = float(np.abs(usual[:, i]).max())
        if reach > FAR:
            return f"{name} reaches {reach:.0f} times the range that it has"
        ends = np.array([found.min[i], found.max[i]])
        if normalizer.still[i] and not np.allclose(ends, stats.min[i], rtol=1e-5, atol=1e-6):
            return f"{name} moves, and stands still at {stats.min[i]:g}"
    return None
