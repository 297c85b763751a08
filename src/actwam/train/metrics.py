"""Where the numbers of a training run go: always to a JSON-lines file, by option to TensorBoard or Weights &
Biases.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from actwam.train.parallel import World

SPIKE, USUAL, LEAST_USUAL = 5.0, 100, 20
"""A loss so many times the median of so many before it, once there are so many at least."""
Tracker = Literal["none", "tensorboard", "wandb"]


@runtime_checkable
class Metrics(Protocol):
    """Something that keeps numbers by step."""

    def log(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """One JSON object a line, with the step. Opening it to resume at a step drops what was logged at or after
    it.
    """

    def __init__(self, path: Path, first_step: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = [row for row in read_metrics(path) if row["step"] < first_step] if path.exists() else []
        new = path.with_name(f"{path.name}.partial")
        new.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        new.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard event files in a folder."""

    def __init__(self, folder: Path, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=first_step)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A Weights & Biases run, named after the folder."""

    def __init__(self, folder: Path) -> None:
        import wandb

        self._run = wandb.init(project="actwam", name=folder.name, dir=str(folder), resume="allow", id=folder.name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class Watch:
    """What a stage says of itself while it trains: losses and speed every `every` steps, and losses that jump.

    A step whose loss is `SPIKE` times the median of those before is said and logged (`spike`, that ratio).
    """

    def __init__(
        self, world: World, sinks: Sequence[Metrics], batch_size: int, every: int, say: Callable[[str], None]
    ) -> None:
        self._world, self._sinks, self._batch_size, self._every, self._say = world, sinks, batch_size, every, say
        self._usual: deque[float] = deque(maxlen=USUAL)
        self._recent: list[Tensor] = []
        self.restart(0.0)

    def restart(self, waited: float) -> None:
        """Do not count the time until now."""
        self._since, self._waited = time.perf_counter(), waited

    def step(self, step: int, metrics: Mapping[str, Tensor], rate: float, waited: float, last: bool) -> None:
        """After a step. `waited` is how many seconds its data were waited for in all. Not every step is looked at by
        itself: that would keep a GPU waiting.
        """
        self._recent.append(metrics["loss"])
        if (step + 1) % self._every and not last:
            return
        losses = self._world.total({str(n): loss for n, loss in enumerate(self._recent)})
        spike = self._spike(step + 1 - len(losses), list(losses.values()))
        parts = self._world.total({name: value for name, value in metrics.items() if name.startswith("loss")})
        now = time.perf_counter()
        speed = {
            "learning_rate": rate,
            "samples_per_second": len(self._recent) * self._batch_size / (now - self._since),
            "data_wait_share": (waited - self._waited) / (now - self._since),
            "batch_size": self._batch_size,
            "memory_gb": _memory_gb(),
        }
        for sink in self._sinks:
            sink.log(step, {**parts, "grad_norm": float(metrics["grad_norm"]), **speed, **spike})
        self._recent = []
        self.restart(waited)

    def _spike(self, first: int, losses: Sequence[float]) -> dict[str, float]:
        highest = 0.0
        for step, loss in enumerate(losses, first):
            usual = median(self._usual) if len(self._usual) >= LEAST_USUAL else 0.0
            if usual and loss > SPIKE * usual:
                self._say(
                    f"step {step}: loss {loss:.3g} is {loss / usual:.1f} times the median of the last "
                    f"{len(self._usual)}: lower the learning rate, or look for what is odd in the data"
                )
                highest = max(highest, loss / usual)
            self._usual.append(loss)
        return {"spike": highest} if highest else {}


def _memory_gb() -> float:
    """The most that was ever held: on the GPU where there is one, else by this process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated() / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024) / 1e9


def open_metrics(folder: Path, tracker: Tracker, first_step: int) -> list[Metrics]:
    """The sinks of one stage. Raises ValueError when the tracker's package is not installed."""
    sinks: list[Metrics] = [JsonLines(folder / "metrics.jsonl", first_step)]
    try:
        if tracker == "tensorboard":
            sinks.append(TensorBoard(folder / "tensorboard", first_step))
        elif tracker == "wandb":
            sinks.append(WeightsAndBiases(folder))
    except ImportError as error:
        raise ValueError(f"--tracker {tracker}: {error}; pip install 'actwam[{tracker}]'") from error
    return sinks


def read_metrics(path: Path) -> list[dict[str, int | float]]:
    """The rows of a metrics file. A last line cut short by a crash is dropped."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]
