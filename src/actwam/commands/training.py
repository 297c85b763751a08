"""Training: `train`, and what goes before and with it."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import tyro
from tyro.conf import Positional

from actwam.commands.options import Json, Precision
from actwam.console import print_numbers, progress_bars, stderr

if TYPE_CHECKING:
    from actwam.train.config import Recipe
    from actwam.train.loop import Examine

SELECTION_SEED = 1_900_000
"""Checkpoints are chosen by episodes from here on, and reported by those of `actwam eval`, from 1,000,000 on."""


def train(
    recipe: Positional[str],
    *,
    data: dict[str, Path],
    out: Path,
    start: Path | None = None,
    robots: tuple[Path, ...] = (),
    options: dict[str, str] | None = None,
    settings: Annotated[dict[str, float] | None, tyro.conf.arg(name="set")] = None,
    stage: str | None = None,
    resume: bool = False,
    cache: Path | None = None,
    device: str = "cpu",
    shard: int | None = None,
    micro_batch: int | None = None,
    held_out: Path | None = None,
    closed_loop: tuple[str, ...] = (),
    examine_every: int = 1,
    tracker: Literal["none", "tensorboard", "wandb"] = "none",
) -> int:
    """Train the stages of a recipe one after another.

    Args:
        recipe: MODULE.FUNCTION in actwam.recipes, such as metaworld.laptop, or any importable MODULE:FUNCTION.
        data: The datasets the recipe names: --data demos FOLDER general FOLDER ... Instead of a folder:
            hub:ORG/NAME@REVISION, stream:ORG/NAME (keeps no video), or the YAML file of a mixture.
        out: Folder of the run; every stage has a folder in it.
        start: A checkpoint to start from, for recipes that take one: what `actwam import` wrote, or a training run.
        robots: YAML files of the robots, for recipes that take any.
        options: Other arguments of the recipe: --options align_steps 2000 general_steps 500
        settings: Other numbers of the last stage, or of --stage, and of its loss: --set learning_rate 5e-4
        stage: Train this stage only, from the checkpoint of the stage before it.
        resume: Go on from the newest checkpoint.
        cache: Folder of cached latents; OUT/cache if not given.
        device: Where to train: cpu, cuda, cuda:1. Behind torchrun, cuda is a GPU for each process.
        shard: Processes that share one copy of the model; all if not given.
        micro_batch: Samples that a process computes at once; all if not given.
        held_out: Measure checkpoints on this dataset; `best` has the lowest action error.
        closed_loop: Play these MetaWorld tasks too; `best` has the highest success rate.
        examine_every: Of how many checkpoints one is measured.
        tracker: Log to TensorBoard or Weights & Biases too; metrics.jsonl is always written.
    """
    from actwam.train.loop import Run
    from actwam.train.loop import train as run
    from actwam.train.settings import with_settings

    with progress_bars() as report:
        where = Run(
            out=out,
            cache=cache or out / "cache",
            device=device,
            shard=shard,
            micro_batch=micro_batch,
            examine=examiner(held_out, closed_loop, device),
            examine_every=examine_every,
            tracker=tracker,
            resume=resume,
            progress=report,
            say=lambda text: stderr.print(text, markup=False, highlight=False),
        )
        found = find_recipe(recipe, options or {}, start, robots, tuple(data))
        folder = run(with_settings(found, stage, settings or {}), data, where, only=stage)
    if os.environ.get("RANK", "0") == "0":
        print(folder)
    return 0


def prepare(
    recipe: Positional[str],
    *,
    data: dict[str, Path],
    cache: Path,
    start: Path | None = None,
    robots: tuple[Path, ...] = (),
    options: dict[str, str] | None = None,
    device: str = "cpu",
) -> int:
    """Do what train does before its first step: check data, take statistics, embed instructions, encode latents.

    Start it as often as there are machines, GPUs or cores, all with one cache: they share the work. It ends when all is
    done; one that was killed is started again.

    Args:
        recipe: As for train.
        data: As for train.
        cache: A folder that all see; give it to train too.
        start: As for train.
        robots: As for train.
        options: As for train.
        device: Where pictures are encoded: cpu, cuda, cuda:1.
    """
    from actwam.train.prepare import prepare as run

    with progress_bars() as report:
        run(
            find_recipe(recipe, options or {}, start, robots, tuple(data)),
            data,
            cache,
            device=device,
            progress=report,
            say=lambda text: stderr.print(text, markup=False, highlight=False),
        )
    print(cache)
    return 0


def examiner(held_out: Path | None, tasks: tuple[str, ...], device: str) -> Examine | None:
    """What measures checkpoints while they are trained; None where nothing is asked."""
    from actwam.data.dataset import LeRobotDataset
    from actwam.heldout import held_out as measure
    from actwam.policy import Policy

    if held_out is None and not tasks:
        return None
    dataset = held_out and LeRobotDataset.open(held_out)

    def examine(checkpoint: Path) -> dict[str, float]:
        policy, found, scores = Policy.load(checkpoint, device=device), dict[str, float](), list[float]()
        if tasks:
            from actwam.recipes.metaworld import EXECUTE_HORIZON, IMAGE_SIZE
            from actwam.sim.results import evaluate
            from actwam.sim.rollout import rollout

            played = rollout(
                policy,
                tasks=tasks,
                episodes_per_task=10,
                execute_horizon=EXECUTE_HORIZON,
                first_seed=SELECTION_SEED,
                image_size=IMAGE_SIZE,
            )
            found["success_rate"] = evaluate(played).overall.success_rate or 0.0
            scores.append(found["success_rate"])
        if dataset:
            found |= measure(policy, dataset).metrics()
            scores.append(-found["heldout_action_error"])
        return {**found, "score": scores[0]}

    return examine


def verify(folder: Positional[Path]) -> int:
    """Compare every file of a checkpoint, or of all checkpoints of a run, with its hash. Exit code 1 when one differs.

    Args:
        folder: A checkpoint, or the folder of a stage or of a run.
    """
    from actwam.checkpoint import verify as run

    found = sorted({path.parent for path in folder.rglob("manifest.json") if not path.parent.suffix})
    if not found:
        raise ValueError(f"{folder}: no checkpoint here: no manifest.json")
    damaged = 0
    for path in found:
        try:
            run(path)
        except ValueError as error:
            damaged += 1
            stderr.print(f"damaged: {error}", markup=False, soft_wrap=True)
        else:
            print(f"whole: {path}")
    return 1 if damaged else 0


def memory(
    what: Positional[str],
    *,
    start: Path | None = None,
    robots: tuple[Path, ...] = (),
    options: dict[str, str] | None = None,
    device: str = "cpu",
    precision: Precision = "auto",
    as_json: Json = False,
) -> int:
    """Say what training a recipe or acting with a checkpoint needs in memory. Nothing large is allocated.

    Args:
        what: A recipe, as for train, or the folder of a checkpoint.
        start: As for train.
        robots: As for train.
        options: As for train: --options tune lora batch_size 8
        device: Where it would run. The machine need not have it.
        precision: What a checkpoint's model would compute in.
        as_json: Print bytes as JSON.
    """
    from actwam.memory import device_of
    from actwam.policy_memory import policy_need
    from actwam.train.loop import resolve_precision
    from actwam.train.memory import recipe_need

    place = device_of(device, here=False)
    if Path(what).is_dir():
        needs = {"acting": policy_need(what, device=device, precision=precision)}
    else:
        recipe = find_recipe(what, options or {}, start, robots)
        needs = {
            stage.name: recipe_need(recipe, stage, place, resolve_precision(stage, place)) for stage in recipe.stages
        }
    if as_json:
        print_numbers({name: need.to_json() for name, need in needs.items()}, as_json=True)
    else:
        for name, need in needs.items():
            print(f"{name}\n{need.table()}")
    return 0


def find_recipe(
    name: str,
    options: Mapping[str, str],
    start: Path | None = None,
    robots: Sequence[Path] = (),
    datasets: Sequence[str] = (),
) -> Recipe:
    """Call a recipe by name. `start`, the robots and the names of the datasets go to recipes that have such arguments.

    Raises ValueError when there is no such recipe or option, when an option has the wrong type, and when the recipe
    takes no start or no robots but some are given, or the other way round.
    """
    from actwam.data.embodiment import read_robot

    module, _, function = name.rpartition(":") if ":" in name else f"actwam.recipes.{name}".rpartition(".")
    try:
        recipe = getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"no recipe {name!r}: {error}; try metaworld.laptop or gwp.gwp05") from error
    parameters = inspect.signature(recipe, eval_str=True).parameters
    given: dict[str, Any] = {"start": start, "robots": [read_robot(path) for path in robots]}
    for what, value in given.items():
        if value and what not in parameters:
            raise ValueError(f"recipe {name} takes no --{what}")
        if not value and what in parameters and parameters[what].default is inspect.Parameter.empty:
            raise ValueError(f"recipe {name} needs --{what}")
    given |= {"datasets": datasets} if datasets else {}
    arguments = {what: value for what, value in given.items() if what in parameters}
    free = [what for what in parameters if what not in arguments]
    for what, text in options.items():
        if what not in free:
            raise ValueError(f"recipe {name} has no option {what!r}; it has {', '.join(free)}")
        arguments[what] = _parse(f"option {what} of recipe {name}", text, parameters[what].annotation)
    return recipe(**arguments)


def _parse(what: str, text: str, annotation: Any) -> Any:
    """Read `text` as the type of an argument; several values have commas between. Raises ValueError saying what was
    expected.
    """
    texts = text.split(",") if get_origin(annotation) is tuple else [text]
    try:
        with redirect_stderr(StringIO()):  # its box of several lines says less than ours
            return tyro.cli(annotation, args=texts)
    except SystemExit as error:
        raise ValueError(f"{what} is {text!r}, expected {annotation}") from error
