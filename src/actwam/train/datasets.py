"""What a recipe may train on: datasets opened, matched to robots and pictures, refused before anything is encoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from actwam.data.check import check
from actwam.data.clips import at_rate, holds_clips, open_clips
from actwam.data.dataset import Footage, LeRobotDataset, require_embodiment
from actwam.data.loader import require_lengths, trusted_rows
from actwam.data.problem import Problem, refuse
from actwam.data.transforms import View, whole_picture
from actwam.train.config import Recipe, SourceConfig
from actwam.types import Mode


def open_datasets(recipe: Recipe, folders: Mapping[str, Path]) -> dict[str, Footage]:
    """The datasets that the recipe names: LeRobot datasets and, for video alone, folders of video files.

    What teaches or conditions on actions is checked against its robot. Video alone may be of anything: it needs
    cameras that fill the picture (`view_of`), and is read at the rate of the robots.

    Raises ValueError on a dataset that is missing, of another robot, without the actions that its mode needs, or with
    an episode shorter than the window.
    """
    sources: dict[str, list[SourceConfig]] = {}
    for source in (source for stage in recipe.stages for source in stage.sources):
        sources.setdefault(source.dataset, []).append(source)
    for name in recipe.codec.datasets if recipe.codec else ():
        sources.setdefault(name, [SourceConfig(dataset=name, mode=Mode.VIDEO)])
    missing = sorted(set(sources) - set(folders))
    if missing:
        raise ValueError(f"recipe {recipe.name} needs datasets {', '.join(missing)}: give each as NAME FOLDER")
    return {name: _open(recipe, sources[name], folders[name]) for name in sorted(sources)}


def require_sound(recipe: Recipe, datasets: Mapping[str, Footage], say: Callable[[str], None]) -> None:
    """What tables and the ends of videos tell of the LeRobot datasets, before anything is computed: `say` is told the
    first suspicion of each kind. Passed over is what is not learned from: the numbers of video alone, and dimensions
    that never move, of which the normaliser judges.

    Raises ValueError with the first error.
    """
    acting = {source.dataset for stage in recipe.stages for source in stage.sources if source.mode != Mode.VIDEO}
    robots = {robot.name: robot for robot in recipe.robots}
    for name, dataset in datasets.items():
        if holds_clips(dataset.folder):
            continue
        report = check(dataset.folder, decode="none", robot=robots.get(dataset.robot_type))
        found: dict[str, list[Problem]] = {}
        for problem in report.problems:
            if problem.kind != "range" and (name in acting or problem.of_files):
                refuse(problem)
                found.setdefault(problem.kind, []).append(problem)
        for first, *more in found.values():
            others = f" ({len(more)} more of this kind: actwam check {dataset.folder})" if more else ""
            say(f"dataset {name}: {first}{others}")


def _open(recipe: Recipe, sources: Sequence[SourceConfig], folder: Path) -> Footage:
    name, modes = sources[0].dataset, {source.mode for source in sources}
    acting = sorted(modes - {Mode.VIDEO})
    dataset: Footage
    if acting:
        dataset = _demonstrations(recipe, name, acting[0], folder)
    elif holds_clips(folder):
        dataset = open_clips(folder, _rate(recipe, sources[0], ""))
    else:
        dataset = LeRobotDataset.open(folder)
        rate = _rate(recipe, sources[0], dataset.robot_type)
        dataset = dataset if dataset.fps == rate else at_rate(dataset, rate)
    views = robot_views(recipe)
    view_of(dataset, sources[0].view, views)
    if dataset.robot_type in views:
        require_finite(dataset)  # its statistics may be taken, if nothing teaches actions
    require_lengths(dataset, recipe.window, modes)
    for source in sources:
        if source.min_confidence:
            trusted_rows(dataset, recipe.window, source.min_confidence)
    return dataset


def _demonstrations(recipe: Recipe, name: str, mode: Mode, folder: Path) -> LeRobotDataset:
    """A dataset with the actions, and perhaps the state, of a robot of the recipe."""
    if holds_clips(folder):
        raise ValueError(f"{folder}: dataset {name} is a folder of videos; mode {mode} needs actions: use mode video")
    dataset = LeRobotDataset.open(folder)
    if not dataset.action_names:
        raise ValueError(
            f"{folder}: dataset {name} has no actions; mode {mode} needs them: use mode video, or label it with "
            "`actwam label`"
        )
    require_embodiment(dataset, recipe.robot(dataset.robot_type), needs_state=False)
    return dataset


def require_finite(dataset: Footage) -> None:
    """Raises ValueError with episode, frame and dimension on the first NaN or Inf in state or action."""
    for key, names, values in (
        ("state", dataset.state_names, dataset.state),
        ("action", dataset.action_names, dataset.action),
    ):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            row, i = (int(n) for n in bad[0])
            episode = next(e for e in dataset.episodes if e.start <= row < e.start + e.length)
            raise ValueError(
                f"{dataset.where(episode.index)}: frame {row - episode.start}: {key}: {names[i]} is {values[row, i]}; "
                "drop the episode"
            )


def _rate(recipe: Recipe, source: SourceConfig, robot_type: str) -> int:
    """Rows a second of video alone: as its source says, as its robot has, or as all robots of the recipe have."""
    rates = {robot.name: robot.fps for robot in recipe.robots}
    known = source.fps or rates.get(robot_type)
    if known is None and len(set(rates.values())) > 1:
        raise ValueError(
            f"recipe {recipe.name}: its robots have {', '.join(f'{n} fps' for n in sorted(set(rates.values())))}: say "
            f"at which of them dataset {source.dataset} is read, with the fps of its source"
        )
    return known or recipe.robots[0].fps


def robot_views(recipe: Recipe) -> dict[str, View]:
    """How the cameras of every robot make a picture, by the robot's name."""
    pairs = zip(recipe.robots, recipe.layouts, strict=True)
    return {robot.name: View(layout, robot.cameras) for robot, layout in pairs}


def recipe_views(recipe: Recipe, datasets: Mapping[str, Footage]) -> dict[str, View]:
    """How the cameras of every dataset make a picture, by the dataset's name."""
    given = {source.dataset: source.view for stage in recipe.stages for source in stage.sources}
    return {name: view_of(dataset, given.get(name), robot_views(recipe)) for name, dataset in datasets.items()}


def view_of(dataset: Footage, given: View | None, robots: Mapping[str, View]) -> View:
    """How a dataset's cameras make a picture of the size of the first of `robots`: as its source says (`given`), as its
    robot's do, or, where it has a single one, by filling it.

    Raises ValueError when it lacks a camera, or has several and nothing says where they stand.
    """
    names = [camera.name for camera in dataset.cameras]
    like, own = next(iter(robots.values())).layout, robots.get(dataset.robot_type)
    if own is not None and (own.layout.height, own.layout.width) != (like.height, like.width):
        own = None  # a robot that a start brought, which saw other pictures
    view = given or own
    if view is None and len(names) == 1:
        return whole_picture(names[0], like)
    if view is None:
        raise ValueError(
            f"{dataset.folder}: recorded on {dataset.robot_type!r}, none of {', '.join(robots)}, by cameras "
            f"{', '.join(names)}: give its source a view that says which of them fill which slots"
        )
    missing = sorted(set(view.cameras.values()) - set(names))
    if missing:
        raise ValueError(
            f"{dataset.folder}: has cameras {', '.join(names) or 'none'}, not {', '.join(missing)}: give its source a "
            "view of those that it has"
        )
    return view
