"""What a recipe may train on: datasets opened, matched to robots and pictures, refused before anything is encoded."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from actwam.data.clips import at_rate, holds_clips, open_clips
from actwam.data.dataset import Footage, LeRobotDataset, require_embodiment
from actwam.data.hub import address_of, open_shelf
from actwam.data.info import read_info
from actwam.data.latents import MAPPED
from actwam.data.loader import Window, frames_needed, require_lengths, trusted_rows
from actwam.data.transforms import View, whole_picture
from actwam.train.config import Recipe, SourceConfig, StageConfig
from actwam.types import Mode

AT_ONCE = 4
"""Datasets that are opened together."""
FILES_OF_EACH, FILES_BESIDE = 3, 512 + MAPPED
"""Arrays of a dataset that stay mapped (state, action, confidence), and what else a process has open."""
ROWS_AT_ONCE = 1 << 20


def open_datasets(recipe: Recipe, folders: Mapping[str, Path], cache: Path | None = None) -> dict[str, Footage]:
    """The datasets that the recipe names: LeRobot datasets, of a folder or of the Hub (`data.hub`), and, for video
    alone, folders of video files.

    What teaches or conditions on actions is checked against its robot. Video alone may be of anything: it needs
    cameras that fill the picture (`view_of`), and is read at the rate of the robots. With a `cache`, rows are mapped
    from arrays there (`LeRobotDataset.open`).

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
    allow_open_files(FILES_OF_EACH * len(sources))
    with ThreadPoolExecutor(AT_ONCE) as pool:
        opened = [pool.submit(_open, recipe, sources[name], folders[name], cache) for name in sorted(sources)]
        try:
            return {name: each.result() for name, each in zip(sorted(sources), opened, strict=True)}
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _open(recipe: Recipe, sources: Sequence[SourceConfig], folder: Path, cache: Path | None) -> Footage:
    name, modes = sources[0].dataset, {source.mode for source in sources}
    acting = sorted(modes - {Mode.VIDEO})
    views = robot_views(recipe)
    are_clips = address_of(folder) is None and holds_clips(folder)
    if are_clips and acting:
        what = f"{folder}: dataset {name} is a folder of videos"
        raise ValueError(f"{what}; mode {acting[0]} needs actions: use mode video")
    dataset: Footage
    if are_clips:
        dataset = open_clips(folder, _rate(recipe, sources[0], ""), cache)
    else:
        dataset = recorded = _lerobot(folder, sources[0].view, views, cache)
        if acting:
            _require_demonstrations(recipe, name, acting[0], recorded)
        elif dataset.fps != (rate := _rate(recipe, sources[0], dataset.robot_type)):
            dataset = at_rate(dataset, rate)
    view_of(dataset, sources[0].view, views)
    if dataset.robot_type in views:
        require_finite(dataset)  # its statistics may be taken, if nothing teaches actions
    strict = {source.mode for source in sources if not source.leave_short}
    if strict:
        require_lengths(dataset, recipe.window, strict)
    for source in sources:
        if source.min_confidence:
            trusted_rows(dataset, recipe.window, source.min_confidence)
    return dataset


def short_episodes(
    stage: StageConfig, datasets: Mapping[str, Footage], window: Window, time_stride: int
) -> Mapping[str, int]:
    """How many episodes of a dataset a stage leaves out because they are too short for a window, where any is."""
    found: dict[str, int] = {}
    for source in (source for source in stage.sources if source.leave_short):
        least = frames_needed(window, {source.mode}, time_stride)
        short = sum(episode.length < least for episode in datasets[source.dataset].episodes)
        found[source.dataset] = max(short, found.get(source.dataset, 0))
    return {name: short for name, short in found.items() if short}


def _lerobot(place: Path, given: View | None, robots: Mapping[str, View], cache: Path | None) -> LeRobotDataset:
    """A dataset in a folder, or one of the Hub with those cameras that make the picture."""
    address = address_of(place)
    if address is None:
        return LeRobotDataset.open(place, cache=cache)
    shelf = open_shelf(address)
    view = given or robots.get(read_info(shelf.folder).robot_type)
    cameras = None if view is None else set(view.cameras.values())
    return LeRobotDataset.open(shelf.folder, cameras=cameras, shelf=shelf, cache=cache)


def _require_demonstrations(recipe: Recipe, name: str, mode: Mode, dataset: LeRobotDataset) -> None:
    """Raises ValueError unless a dataset has the actions, and perhaps the state, of a robot of the recipe."""
    if not dataset.action_names:
        raise ValueError(
            f"{dataset.folder}: dataset {name} has no actions; mode {mode} needs them: use mode video, or label it "
            "with `actwam label`"
        )
    require_embodiment(dataset, recipe.robot(dataset.robot_type), needs_state=False)


def require_finite(dataset: Footage) -> None:
    """Raises ValueError with episode, frame and dimension on the first NaN or Inf in state or action."""
    for key, names, values in (
        ("state", dataset.state_names, dataset.state),
        ("action", dataset.action_names, dataset.action),
    ):
        for first in range(0, len(values), ROWS_AT_ONCE):
            bad = np.argwhere(~np.isfinite(values[first : first + ROWS_AT_ONCE]))
            if len(bad):
                row, i = first + int(bad[0, 0]), int(bad[0, 1])
                episode = next(e for e in dataset.episodes if e.start <= row < e.start + e.length)
                raise ValueError(
                    f"{dataset.where(episode.index)}: frame {row - episode.start}: {key}: {names[i]} is "
                    f"{values[row, i]}; drop the episode"
                )


def allow_open_files(count: int) -> None:
    """Let this process have so many more files open than now, as far as the system lets it choose: a mapped array keeps
    its file open. Raises ValueError when it does not.
    """
    if sys.platform == "win32":  # there is no such limit there
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + FILES_BESIDE
    if soft == resource.RLIM_INFINITY or wanted <= soft:
        return
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise ValueError(f"{wanted} files would be open, and the system allows {hard}: raise `ulimit -Hn`")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


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
