"""Several processes that train together, as `torchrun` starts them."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as processes

from actwam.train import loop
from actwam.train.config import Recipe
from actwam.train.loop import Run, train
from actwam.types import Batch


class StoppedError(Exception):
    """Ends a run in its middle, as a signal would."""


@dataclass(frozen=True)
class Job:
    """A call of `train`, with the recipe that a function makes in the process itself. It is stopped in the middle of
    step `stop`; sample `row` of the batch of step `poison` is not finite; `fails` is what it must say.
    """

    recipe: Callable[[], Recipe]
    data: dict[str, Path]
    run: Run
    stop: int | None = None
    poison: int | None = None
    row: int = 0
    fails: str | None = None

    def do(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", self._stopping(loop.train_step))
            patch.setattr(loop.Mixture, "batch", self._poisoning(loop.Mixture.batch))
            if self.fails:
                with pytest.raises(ValueError, match=re.escape(self.fails)):
                    train(self.recipe(), self.data, self.run)
            elif self.stop is not None:
                with pytest.raises(StoppedError):
                    train(self.recipe(), self.data, self.run)
            else:
                train(self.recipe(), self.data, self.run)

    def _stopping(self, real: Any) -> Any:
        def step(*given: Any) -> Any:
            if given[4] == self.stop:
                raise StoppedError
            return real(*given)

        return step

    def _poisoning(self, real: Any) -> Any:
        def batch(mixture: Any, step: int, rows: Collection[int]) -> Batch:
            made = real(mixture, step, rows)
            if step != self.poison:
                return made
            bad = torch.tensor([row == self.row for row in sorted(rows)])[:, None, None, None, None]
            return replace(made, latents=torch.where(bad, torch.nan, made.latents))

        return batch


def train_together(*jobs: Job, size: int = 2) -> None:
    """Do the jobs in so many processes, one after another. Raises what a process raises."""
    ports = []
    for _ in jobs:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            ports.append(free.getsockname()[1])
    processes.spawn(_process, (size, ports, jobs), nprocs=size)


def _process(rank: int, size: int, ports: Sequence[int], jobs: Sequence[Job]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1"}
    for port, job in zip(ports, jobs, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        job.do()
