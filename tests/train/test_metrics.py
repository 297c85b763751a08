"""The metrics file across stops and crashes."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from types import ModuleType

import pytest

from actwam.train.metrics import JsonLines, open_metrics, read_metrics


def test_rows_are_written_as_they_come(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "metrics.jsonl"
    sink = JsonLines(path, 0)
    sink.log(0, {"loss": 1.5})
    assert read_metrics(path) == [{"step": 0, "loss": 1.5}]  # before it is closed
    sink.log(1, {"loss": 0.1 + 0.2})
    sink.close()
    assert read_metrics(path)[1]["loss"] == 0.1 + 0.2


def test_resuming_drops_what_will_be_logged_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    sink = JsonLines(path, 0)
    for step in range(5):
        sink.log(step, {"loss": float(step)})
    sink.close()
    again = JsonLines(path, 3)
    again.log(3, {"loss": 30.0})
    again.close()
    assert [(row["step"], row["loss"]) for row in read_metrics(path)] == [(0, 0), (1, 1), (2, 2), (3, 30)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_line_cut_short_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 0, "loss": 1.0}) + '\n{"step": 1, "lo')
    assert read_metrics(path) == [{"step": 0, "loss": 1.0}]
    sink = JsonLines(path, 1)
    sink.log(1, {"loss": 2.0})
    sink.close()
    assert [row["step"] for row in read_metrics(path)] == [0, 1]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    sinks = open_metrics(tmp_path, "tensorboard", 0)
    for sink in sinks:
        sink.log(4, {"loss": 0.25})
        sink.close()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(4, 0.25)]
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 4, "loss": 0.25}]


@pytest.mark.parametrize("tracker", ["tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tracker: str
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object) -> ModuleType:
        if name.split(".")[0] == tracker or name == "torch.utils.tensorboard":
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=rf"--tracker {tracker}: No module .*pip install 'actwam\[{tracker}\]'"):
        open_metrics(tmp_path, tracker, 0)
