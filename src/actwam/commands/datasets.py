"""Commands about datasets: `collect`, `check`, `mixture`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tyro.conf import Positional

from actwam.commands.options import Json, Scene
from actwam.console import print_numbers, print_table, progress_bars, stderr

if TYPE_CHECKING:
    from actwam.data.check import Report
    from actwam.data.embodiment import Embodiment
    from actwam.data.problem import Problem


def collect(
    out: Positional[Path],
    *,
    tasks: tuple[str, ...],
    episodes: int = 10,
    first_seed: int = 0,
    scene: Scene = "clean",
    image_size: tuple[int, int] = (128, 128),
    action_noise: float = 0.0,
    linger: int = 8,
    workers: int | None = None,
    as_json: Json = False,
) -> int:
    """Record demonstrations of MetaWorld's scripted experts as a LeRobot v3.0 dataset.

    Args:
        out: Folder of the new dataset.
        tasks: MetaWorld tasks, such as drawer-open-v3.
        episodes: Successful episodes of every task.
        first_seed: The first training seed; a seed whose expert fails is passed over.
        scene: Clean, or randomized light, colours and camera poses.
        image_size: Height and width of every camera picture in pixels.
        action_noise: Standard deviation of exploration noise added to the expert's actions.
        linger: Control steps recorded after a success; an episode must be as long as an action chunk.
        workers: Processes; one per core if not given.
        as_json: Print the counts as JSON.
    """
    from actwam.sim.collect import collect as run

    with progress_bars() as report:
        counts = run(
            out,
            tasks=tasks,
            episodes_per_task=episodes,
            first_seed=first_seed,
            scene=scene,
            image_size=image_size,
            action_noise=action_noise,
            linger=linger,
            workers=workers,
            progress=lambda done, total: report("collect", done, total),
        )
    print_numbers(vars(counts), as_json=as_json)
    return 0


def check(
    dataset: Positional[Path],
    *,
    repair: Path | None = None,
    action_horizon: int | None = None,
    decode: Literal["all", "ends", "none"] = "all",
    constant: Literal["error", "center"] = "error",
    fps: int | None = None,
    robot: Path | None = None,
    as_json: Json = False,
) -> int:
    """Examine a dataset and list every problem, before training meets them one by one. Exit code 1 on errors.

    Args:
        dataset: Folder of a LeRobot dataset, v2.0, v2.1 or v3.0, or of video files.
        repair: New folder for a copy in which what can be mended is. Exit code 1 if it has errors.
        action_horizon: Also report episodes shorter than this.
        decode: Decode every frame of every video, the ends of every episode, or nothing.
        constant: Whether a dimension that never moves is an error, or only to be centred by the normaliser.
        fps: The rate of the robot, at which video files will be read.
        robot: YAML file of the robot, whose units are compared.
        as_json: Print the report as JSON.
    """
    from actwam.data.check import check as run
    from actwam.data.embodiment import read_robot

    known = read_robot(robot) if robot is not None else None
    if repair is not None:
        if decode != "all" or fps is not None:
            raise ValueError("--repair looks at every frame of a LeRobot dataset: leave --decode and --fps away")
        return _repair(dataset, repair, action_horizon, constant, known, as_json)
    with progress_bars() as report:
        found = run(
            dataset,
            action_horizon=action_horizon,
            decode=decode,
            constant=constant,
            fps=fps,
            robot=known,
            progress=lambda done, total: report("check", done, total),
        )
    if not as_json:
        _print_problems(found.problems)
    print_numbers(found.to_json() if as_json else _counts(found), as_json=as_json)
    return 0 if found.ok else 1


def _repair(
    dataset: Path,
    out: Path,
    action_horizon: int | None,
    constant: Literal["error", "center"],
    robot: Embodiment | None,
    as_json: bool,
) -> int:
    from actwam.data.repair import repair as run

    with progress_bars() as report:
        made = run(dataset, out, action_horizon=action_horizon, constant=constant, robot=robot, progress=report)
    if not as_json:
        _print_problems(made.original.problems)
        for episode, what in made.done:
            line = f"repaired: {what}" if episode is None else f"repaired: episode {episode}: {what}"
            stderr.print(line, markup=False, soft_wrap=True)
        for problem in made.copy.problems:
            stderr.print(f"left: {problem.severity}: {problem}", markup=False, soft_wrap=True)
    counts = {"original": _counts(made.original), "copy": _counts(made.copy)}
    print_numbers(made.to_json() if as_json else counts, as_json=as_json)
    return 0 if made.ok else 1


def _print_problems(problems: Iterable[Problem]) -> None:
    for problem in problems:
        stderr.print(f"{problem.severity}: {problem}", markup=False, soft_wrap=True)


def _counts(found: Report) -> dict[str, Any]:
    return {
        "episodes": found.episodes,
        "frames": found.frames,
        "seconds": round(found.seconds, 1),
        "problems": len(found.problems),
        "ok": found.ok,
    }


def mixture(file: Positional[Path], *, as_json: Json = False) -> int:
    """List the members of a mixture: whether each is there, its share of what is drawn, and its hours.

    Of datasets of the Hub their info.json is fetched. Exit code 1 when no member is there.

    Args:
        file: A YAML file, as `actwam train --data NAME FILE` takes it.
        as_json: Print the list as JSON.
    """
    from actwam.data.mixture import overview

    rows = overview(file)
    if as_json:
        print_numbers({"members": rows}, as_json=True)
    else:
        print_table([{key: row[key] for key in ("name", "found", "hours", "weight", "share")} for row in rows])
        for row in rows:
            if row["problem"]:
                stderr.print(f"{row['name']}: {row['problem']}", markup=False, soft_wrap=True)
    return 0 if any(row["found"] for row in rows) else 1
