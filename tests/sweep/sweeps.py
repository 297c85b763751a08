"""A tiny sweep: two stages, the second of which is swept over three learning rates, one of them absurd."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import tiny

from actwam.commands.sweep import sweep
from actwam.sweep import search
from actwam.sweep.plan import Sweep
from actwam.train.config import Recipe, SourceConfig
from actwam.types import Mode

ABSURD = 30.0


def recipe() -> Recipe:
    video = (SourceConfig(dataset="squares", mode=Mode.VIDEO),)
    before = tiny.stage("look", sources=video, steps=2)
    return tiny.recipe(before, tiny.stage(steps=12, batch_size=4, learning_rate=1e-2, ema_decay=0.5))


def write_data(folder: Path) -> Path:
    tiny.write_dataset(folder / "squares", tiny.robot())
    tiny.write_dataset(folder / "heldout", tiny.robot(), episodes=4, length=12)
    return folder


def arguments(folder: Path, out: str, **changes: Any) -> dict[str, Any]:
    """Of the command."""
    return {
        "recipe": "sweeps:recipe",
        "data": {"squares": folder / "squares"},
        "held_out": folder / "heldout",
        "out": folder / out,
        "cache": folder / "cache",
        "space": {"learning_rate": f"1e-2,3e-3,{ABSURD:g}", "action_weight": "0.5:10"},
        "trials": 3,
        "pilot_steps": 8,
        "promote": 2,
        **changes,
    }


def plan(folder: Path, **changes: Any) -> Sweep:
    fields = {**arguments(folder, "sweep"), "recipe": recipe(), **changes}
    return Sweep(**fields)


def table(folder: Path) -> dict[str, Any]:
    """What a sweep found, without what differs from run to run."""
    found: dict[str, Any] = json.loads((folder / "sweep.json").read_text())
    del found["provenance"]
    for one in (*found["trials"], *found["promoted"]):
        del one["seconds"], one["commit"]
    return found


def killed_after(calls: int, folder: Path, out: str) -> None:
    """Run the sweep in this process, which ends without a word at the so-many-th report of a training step."""
    left = [calls]
    usual = search.train

    def train(recipe: Recipe, data: Any, run: Any, **more: Any) -> Path:
        def progress(what: str, done: int, total: int) -> None:
            if "train align" in what:
                left[0] -= 1
            if not left[0]:
                os._exit(9)

        return usual(recipe, data, search.replace(run, progress=progress), **more)

    search.train = train
    sweep(**arguments(folder, out))


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    killed_after(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
