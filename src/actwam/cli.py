"""The command `actwam`: every function here is a subcommand, its arguments are the options."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from tyro.conf import Positional

from actwam.console import print_numbers, progress_bars, stderr

if TYPE_CHECKING:
    from actwam.train.config import Recipe

Json = Annotated[bool, tyro.conf.arg(name="json")]
Scene = Literal["clean", "randomized"]


def collect(
    out: Positional[Path],
    *,
    tasks: tuple[str, ...],
    episodes: int = 10,
    first_seed: int = 0,
    scene: Scene = "clean",
    image_size: tuple[int, int] = (128, 128),
    action_noise: float = 0.0,
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
            workers=workers,
            progress=lambda done, total: report("collect", done, total),
        )
    print_numbers(vars(counts), as_json=as_json)
    return 0


def check(
    dataset: Positional[Path],
    *,
    action_horizon: int | None = None,
    decode: Literal["all", "ends"] = "all",
    constant: Literal["error", "center"] = "error",
    as_json: Json = False,
) -> int:
    """Examine a dataset and list every problem, before training meets them one by one. Exit code 1 on errors.

    Args:
        dataset: Folder of a LeRobot v3.0 dataset.
        action_horizon: Also report episodes shorter than this.
        decode: Decode every frame of every video, or the ends of every episode.
        constant: Whether a dimension that never moves is an error, or only to be centred by the normaliser.
        as_json: Print the report as JSON.
    """
    from actwam.data.check import check as run

    with progress_bars() as report:
        found = run(
            dataset,
            action_horizon=action_horizon,
            decode=decode,
            constant=constant,
            progress=lambda done, total: report("check", done, total),
        )
    if not as_json:
        for problem in found.problems:
            stderr.print(f"{problem.severity}: {problem}", markup=False, soft_wrap=True)
    counts = {
        "episodes": found.episodes,
        "frames": found.frames,
        "problems": len(found.problems),
        "ok": found.ok,
    }
    print_numbers(found.to_json() if as_json else counts, as_json=as_json)
    return 0 if found.ok else 1


def train(
    recipe: Positional[str],
    *,
    data: dict[str, Path],
    out: Path,
    options: dict[str, int] | None = None,
    stage: str | None = None,
    resume: bool = False,
    cache: Path | None = None,
    device: str = "cpu",
    tracker: Literal["none", "tensorboard", "wandb"] = "none",
) -> int:
    """Train the stages of a recipe one after another.

    Args:
        recipe: MODULE.FUNCTION in actwam.recipes, such as metaworld.laptop, or any importable MODULE:FUNCTION.
        data: The datasets the recipe names: --data demos FOLDER general FOLDER ...
        out: Folder of the run; every stage has a folder in it.
        options: Arguments of the recipe: --options align_steps 2000 general_steps 500
        stage: Train this stage only, from the checkpoint of the stage before it.
        resume: Go on from the newest checkpoint.
        cache: Folder of cached latents; OUT/cache if not given.
        device: Where to train: cpu, cuda, cuda:1.
        tracker: Log to TensorBoard or Weights & Biases too; metrics.jsonl is always written.
    """
    from actwam.train.loop import Run
    from actwam.train.loop import train as run

    with progress_bars() as report:
        where = Run(
            out=out,
            cache=cache or out / "cache",
            device=device,
            tracker=tracker,
            resume=resume,
            progress=report,
        )
        folder = run(find_recipe(recipe, options or {}), data, where, only=stage)
    print(folder)
    return 0


def evaluate(
    policy: Positional[Path],
    *,
    tasks: tuple[str, ...],
    episodes: int = 20,
    first_seed: int = 1_000_000,
    scene: Scene = "clean",
    execute_horizon: int = 8,
    max_steps: int = 500,
    out: Path | None = None,
    resume: bool = False,
    videos: int = 0,
    workers: int | None = None,
    device: str = "cpu",
    as_json: Json = False,
) -> int:
    """Run a policy in closed loop in MetaWorld and report its success rate with Wilson 95 % intervals.

    Args:
        policy: A checkpoint, or the folder of a training run.
        tasks: MetaWorld tasks, such as drawer-open-v3.
        episodes: Episodes of every task.
        first_seed: The first evaluation seed, from 1000000 up.
        scene: Clean, or randomized light, colours and camera poses.
        execute_horizon: Actions executed of every chunk before the policy looks again.
        max_steps: Control steps after which an episode has failed; MetaWorld's own limit is 500.
        out: Folder for episodes.jsonl and videos.
        resume: Go on with an interrupted evaluation in OUT.
        videos: Episodes of every task to record.
        workers: Processes; one per core if not given.
        device: Where the policy runs.
        as_json: Print the scores as JSON.
    """
    from actwam.policy import Policy
    from actwam.sim.results import evaluate as score
    from actwam.sim.rollout import rollout

    loaded = Policy.load(policy, device=device)
    with progress_bars() as report:
        results = rollout(
            loaded,
            tasks=tasks,
            episodes_per_task=episodes,
            execute_horizon=execute_horizon,
            first_seed=first_seed,
            scene=scene,
            image_size=loaded.robot.embodiment.image_size,
            max_steps=max_steps,
            workers=workers,
            out=out,
            resume=resume,
            provenance={"policy": loaded.checkpoint.digest},
            videos_per_task=videos,
            progress=lambda done, total: report(f"evaluate {scene}", done, total),
        )
    print_numbers(score(results).to_json(), as_json=as_json)
    return 0


def imagine(
    policy: Positional[Path],
    dataset: Positional[Path],
    *,
    out: Path,
    windows: int = 64,
    seed: int = 0,
    device: str = "cpu",
    as_json: Json = False,
) -> int:
    """Imagine the future of recorded moments under their real actions, and compare it with what happened.

    Args:
        policy: A checkpoint, or the folder of a training run.
        dataset: A dataset that the policy was not trained on.
        out: Folder for imagine.json and pictures.
        windows: Moments to imagine from, spread evenly over the dataset.
        seed: Draws the noise that the future is denoised from.
        device: Where the model runs.
        as_json: Print PSNR and SSIM as JSON.
    """
    from actwam.data.dataset import LeRobotDataset
    from actwam.policy import Policy
    from actwam.world.imagine import imagine_dataset

    result = imagine_dataset(
        Policy.load(policy, device=device), LeRobotDataset.open(dataset), windows=windows, seed=seed, out=out
    )
    print_numbers(result.to_json(), as_json=as_json)
    return 0


def latency(
    policy: Positional[Path],
    dataset: Positional[Path],
    *,
    repeats: int = 50,
    warmup: int = 5,
    device: str = "cpu",
    as_json: Json = False,
) -> int:
    """Time action-only against joint decoding of the same weights, in milliseconds a call.

    Args:
        policy: A checkpoint, or the folder of a training run.
        dataset: A dataset of its robot, for an observation.
        repeats: Timed calls of each.
        warmup: Calls before them.
        device: Where the model runs.
        as_json: Print the percentiles as JSON.
    """
    from actwam.bench.latency import measure_latency
    from actwam.data.dataset import LeRobotDataset
    from actwam.policy import Policy
    from actwam.world.imagine import observation_at

    loaded = Policy.load(policy, device=device)
    observation = observation_at(LeRobotDataset.open(dataset), loaded.robot, 0, 0)
    cases = measure_latency(loaded, observation, repeats=repeats, warmup=warmup)
    print_numbers({name: case.to_json() for name, case in cases.items()}, as_json=as_json)
    return 0


def report(folder: Positional[Path]) -> int:
    """Write report.html from the results in a demo's folder.

    Args:
        folder: What `actwam demo` wrote.
    """
    from actwam.report.page import write_report

    print(write_report(folder))
    return 0


def doctor(*, fix: bool = False, as_json: Json = False) -> int:
    """Find out whether this machine can train, simulate and render, and say how to mend what it lacks.

    Args:
        fix: Install missing system libraries where that is possible.
        as_json: Print the findings as JSON.
    """
    from actwam.doctor import run_doctor

    return run_doctor(fix=fix, as_json=as_json)


def demo(*, out: Path = Path("runs/demo"), smoke: bool = False) -> int:
    """The whole way on this machine: collect, check, train in three stages, evaluate, imagine, report.

    A second call reuses what is finished.

    Args:
        out: Folder for everything, report.html among it.
        smoke: A few episodes and steps: shows that everything works, not that anything was learned.
    """
    from actwam.demo import DEMO, SMOKE, run_demo

    with progress_bars() as progress:
        page = run_demo(out, SMOKE if smoke else DEMO, progress)
    print(page)
    return 0


COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "collect": collect,
    "check": check,
    "train": train,
    "eval": evaluate,
    "imagine": imagine,
    "latency": latency,
    "report": report,
    "doctor": doctor,
}


def find_recipe(name: str, options: Mapping[str, int]) -> Recipe:
    """Call a recipe by name. Raises ValueError when there is no such module, function or option."""
    module, _, function = name.rpartition(":") if ":" in name else f"actwam.recipes.{name}".rpartition(".")
    try:
        return getattr(import_module(module), function)(**options)
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"no recipe {name!r} {dict(options) or ''}: {error}; try metaworld.laptop") from error


def main() -> None:
    """Run a subcommand. What the user can mend is one line on stderr and exit code 2."""
    try:
        code = tyro.extras.subcommand_cli_from_dict(COMMANDS, prog="actwam", description=__doc__)
    except (ValueError, FileNotFoundError) as error:
        stderr.print(f"actwam: {error}", markup=False, soft_wrap=True)
        code = 2
    except KeyboardInterrupt:
        stderr.print("actwam: stopped; the same command goes on where it can")
        code = 130
    sys.exit(code)


if __name__ == "__main__":
    main()
