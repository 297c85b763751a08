"""A tiny sweep: two stages, the second of which is swept over two learning rates, one of them absurd."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import tiny

from actwam.sweep.plan import Sweep
from actwam.sweep.search import Done, run_sweep
from actwam.train.config import Recipe, SourceConfig
from actwam.types import Mode

ABSURD = 30.0


def recipe() -> Recipe:
    video = (SourceConfig(dataset="squares", mode=Mode.VIDEO),)
    before = tiny.stage("look", sources=video, steps=2)
    return tiny.recipe(before, tiny.stage(steps=24, batch_size=4, learning_rate=1e-2, ema_decay=0.5))


def plan(folder: Path, **changes: Any) -> Sweep:
    fields: dict[str, Any] = {
        "recipe": recipe(),
        "data": {"squares": folder / "squares"},
        "held_out": folder / "heldout",
        "out": folder / "sweep",
        "cache": folder / "cache",
        "space": {"learning_rate": f"1e-2,3e-3,{ABSURD:g}", "action_weight": "0.5:10"},
        "trials": 5,
        "pilot_steps": 8,
        "promote": 2,
        **changes,
    }
    return Sweep(**fields)


def write_data(folder: Path) -> Path:
    tiny.write_dataset(folder / "squares", tiny.robot())
    tiny.write_dataset(folder / "heldout", tiny.robot(), episodes=4, length=12)
    return folder


def killed_after(folder: Path, out: str, calls: int) -> None:
    """Run the sweep in this process, which ends without a word at the so-many-th report of progress."""
    left = [calls]

    def progress(what: str, done: int, total: int) -> None:
        left[0] -= 1
        if not left[0]:
            os._exit(9)

    run_sweep(plan(folder, out=folder / out, progress=progress))


def finish(sweep: Sweep) -> Done:
    return run_sweep(sweep)


if __name__ == "__main__":
    import torch

    torch.set_num_threads(1)
    killed_after(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
