"""Searching settings: `sweep`."""

from __future__ import annotations

import json
from pathlib import Path

from tyro.conf import Positional

from actwam.commands.options import Json
from actwam.commands.training import SELECTION_SEED, find_recipe
from actwam.console import print_numbers, progress_bars, stderr, stdout


def sweep(
    recipe: Positional[str],
    *,
    data: dict[str, Path],
    held_out: Path,
    out: Path,
    start: Path | None = None,
    robots: tuple[Path, ...] = (),
    options: dict[str, str] | None = None,
    stage: str | None = None,
    space: dict[str, str] | None = None,
    trials: int = 12,
    pilot_steps: int = 120,
    promote: int = 2,
    long_steps: int | None = None,
    closed_loop: tuple[str, ...] = (),
    episodes: int = 10,
    seed: int = 0,
    cache: Path | None = None,
    device: str = "cpu",
    as_json: Json = False,
) -> int:
    """Search the settings of a recipe's last stage: short trials, losers stopped early, winners trained long.

    The first trial has the recipe's own settings. The same command goes on with a sweep that was interrupted; it may
    ask for more trials, or promote more. It leaves sweep.md, sweep.json and sweep.png.

    Args:
        recipe: As for train.
        data: As for train.
        held_out: A dataset of the robot that is not trained on. Trials are compared by their action error on all of it.
        out: Folder of the sweep; every trial has a folder in it.
        start: As for train.
        robots: As for train.
        options: As for train.
        stage: Sweep this stage; those before it are trained once, those behind it never.
        space: What is searched, LOW:HIGH (evenly by the logarithm) or A,B,C for each number of the stage or its loss.
            If not given: learning_rate 1e-4:3e-3 batch_size 16,32,64, and action_weight from a fifth of the
            future_weight to ten times.
        trials: Short trials, those that are stopped among them.
        pilot_steps: Of each trial. After one and after two quarters of them the worse half is stopped.
        promote: Of so many of the best trials the settings are trained long, from the beginning.
        long_steps: Of each that is promoted; as many as the recipe has if not given.
        closed_loop: MetaWorld tasks that the promoted play. Success then decides, as far as it can be told.
        episodes: Of each of these tasks.
        seed: Of the search. The training seed is that of the recipe.
        cache: Folder of cached latents; OUT/cache if not given.
        device: Where to train.
        as_json: Print the results as JSON.
    """
    try:
        from actwam.sweep.plan import Sweep
        from actwam.sweep.results import summarise
        from actwam.sweep.search import run_sweep
    except ModuleNotFoundError as error:
        raise ValueError(f'a sweep needs {error.name}: pip install "actwam[sweep]"') from error
    from actwam.report.sweep import markdown, write_figure

    with progress_bars() as report:
        plan = Sweep(
            recipe=find_recipe(recipe, options or {}, start, robots, tuple(data)),
            data=data,
            held_out=held_out,
            out=out,
            cache=cache or out / "cache",
            stage=stage,
            space=space,
            trials=trials,
            pilot_steps=pilot_steps,
            promote=promote,
            long_steps=long_steps,
            closed_loop=closed_loop,
            episodes=episodes,
            first_seed=SELECTION_SEED,
            seed=seed,
            device=device,
            progress=report,
            say=lambda text: stderr.print(text, markup=False, highlight=False, soft_wrap=True),
        )
        found = summarise(plan, run_sweep(plan))
    settings = found["winner"]["settings"].items()
    words = ["actwam train", recipe, "--set", *(f"{name} {value:g}" for name, value in settings)]
    words += ["--stage", stage] if stage else []
    words += ["--options", *(f"{name} {value}" for name, value in options.items())] if options else []
    found["winner"]["command"] = " ".join(words)
    path = out / "sweep.json"
    new = path.with_suffix(".partial")
    new.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    new.replace(path)
    path.with_suffix(".md").write_text(markdown(found), encoding="utf-8")
    write_figure(found, path.with_suffix(".png"))
    if as_json:
        print_numbers(found, as_json=True)
    else:
        stdout.print(markdown(found), markup=False, soft_wrap=True)
        stdout.print(f"{path.with_suffix('.md')} {path.with_suffix('.png')} {path}")
    return 0
