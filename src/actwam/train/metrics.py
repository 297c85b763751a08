"""Where the numbers of a training run go: always to a JSON-lines file, by option to TensorBoard or Weights &
Biases.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

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
