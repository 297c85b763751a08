"""What a run says of itself, which checkpoint it keeps as the best, and what it does with a broken one."""

from __future__ import annotations

import os
import threading
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from test_adapt import batch

from actwam import cli
from actwam.checkpoint import checkpoints, load
from actwam.data.dataset import LeRobotDataset
from actwam.data.loader import Mixture
from actwam.heldout import held_out, windows_of
from actwam.policy import Policy
from actwam.train import feed, metrics
from actwam.train.config import Recipe
from actwam.train.feed import Feed
from actwam.train.loop import Run, train
from actwam.train.metrics import Watch, read_metrics
from actwam.train.parallel import ALONE
from actwam.types import Batch


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("data") / "squares", tiny.robot())


def run(tmp_path: Path, data: Path, recipe: Recipe | None = None, **changes: Any) -> Path:
    where = Run(out=tmp_path / "run", cache=tmp_path / "cache", **changes)
    return train(recipe or tiny.recipe(tiny.stage(steps=8)), {"squares": data}, where)


class Kept:
    """A sink that keeps what it is told."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: Any) -> None:
        self.rows.append((step, dict(values)))

    def close(self) -> None:
        pass


def test_a_loss_that_jumps_is_said_and_logged() -> None:
    said: list[str] = []
    sink = Kept()
    watch = Watch(ALONE, [sink], batch_size=4, every=10, say=said.append)
    for step in range(40):
        loss = torch.tensor(60.0 if step == 33 else 10.0)
        watch.step(step, {"loss": loss, "grad_norm": torch.tensor(1.0)}, 1e-3, 0.0, last=False)
    assert len(said) == 1
    assert "step 33: loss 60 is 6.0 times the median of the last 33" in said[0]
    assert [step for step, row in sink.rows if "spike" in row] == [39]
    assert sink.rows[3][1]["spike"] == pytest.approx(6.0)
    assert all(row["batch_size"] == 4 and row["memory_gb"] > 0 for _, row in sink.rows)


def test_the_share_that_data_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 10.0, 20.0, 30.0, 40.0])
    monkeypatch.setattr(metrics.time, "perf_counter", lambda: next(clock))
    sink = Kept()
    watch = Watch(ALONE, [sink], batch_size=4, every=1, say=print)
    for step, waited in enumerate((5.0, 5.0)):
        watch.step(step, {"loss": torch.tensor(1.0), "grad_norm": torch.tensor(1.0)}, 1e-3, waited, last=False)
    assert [row["data_wait_share"] for _, row in sink.rows] == [0.5, 0.0]


def test_data_that_do_not_come_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "SILENCE", 0.02)
    gate, told = threading.Event(), threading.Event()

    class Slow(Mixture):
        def batch(self, step: int, rows: Collection[int] | None = None) -> Batch:
            assert gate.wait(30)
            return tiny_batch

    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        gate.set()
        told.set()

    tiny_batch = batch(2)
    source = Feed(Slow([], 2, 0), [range(2)], 3, 5, say)
    assert [part.rows for part in source.next()] == [range(2)]
    assert told.is_set()
    assert "the data of step 3 are not there after" in said[0]
    source.close()


def test_what_goes_wrong_in_making_a_batch_is_raised(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Mixture.batch

    def broken(self: Mixture, step: int, rows: Collection[int] | None = None) -> Batch:
        if step == 5:
            raise ValueError("the disk is gone")
        return real(self, step, rows)

    monkeypatch.setattr(Mixture, "batch", broken)
    with pytest.raises(ValueError, match="the disk is gone"):
        run(tmp_path, data)
    assert [path.name for path in checkpoints(tmp_path / "run" / "1-align")] == ["step_00000002", "step_00000004"]


def test_the_best_checkpoint_is_kept_and_named(tmp_path: Path, data: Path) -> None:
    scores = {2: 0.1, 4: 0.9, 6: 0.3, 8: 0.9}
    seen: list[int] = []

    def examine(folder: Path) -> dict[str, float]:
        step = int(load(folder).trained["step"])
        seen.append(step)
        return {"score": scores[step], "other": 1.0}

    folder = run(tmp_path, data, examine=examine)
    assert seen == [2, 4, 6, 8]
    assert os.readlink(folder / "best") == "step_00000004", "of equal scores the first"
    assert [path.name for path in checkpoints(folder)] == ["step_00000004", "step_00000006", "step_00000008"]
    assert '"score": 0.9' in (folder / "best.json").read_text()
    assert load(folder).trained["step"] == 8, "training goes on from the newest, not from the best"
    rows = [row for row in read_metrics(folder / "metrics.jsonl") if "score" in row]
    assert [row["step"] for row in rows] == [1, 3, 5, 7]


def test_only_some_checkpoints_are_examined(tmp_path: Path, data: Path) -> None:
    seen: list[int] = []

    def examine(folder: Path) -> dict[str, float]:
        seen.append(int(load(folder).trained["step"]))
        return {"score": 0.0}

    run(tmp_path, data, tiny.recipe(tiny.stage(steps=9)), examine=examine, examine_every=2)
    assert seen == [4, 8, 9]


def test_examining_changes_no_weight(tmp_path: Path, data: Path) -> None:
    folder = run(tmp_path / "a", data, examine=lambda _: {"score": torch.randn(3).sum().item()})
    other = run(tmp_path / "b", data)
    weights, others = load(folder).model.state_dict(), load(other).model.state_dict()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_held_out_errors_are_those_of_every_window(data: Path) -> None:
    policy = Policy(tiny.checkpoint(), tiny.transform(tiny.robot()), tiny.ACTION_CENTERED, torch.device("cpu"))
    dataset = LeRobotDataset.open(data)
    found = held_out(policy, dataset, batch_size=3)
    again = held_out(policy, dataset, batch_size=16)
    assert found.windows == len(windows_of(policy, dataset)) > 3
    assert found.action_error == pytest.approx(again.action_error, rel=1e-4)
    assert len(found.by_step) == tiny.HORIZON
    assert [episode for episode, _ in found.by_window] == [episode for episode, _ in windows_of(policy, dataset)]
    assert sum(error for _, error in found.by_window) / found.windows == pytest.approx(found.action_error)
    assert set(found.by_dimension) == set(dataset.action_names)
    assert found.psnr is not None
    assert set(found.metrics()) >= {"heldout_action_error", "heldout_psnr", "heldout_error_of_step_0"}
    with pytest.raises(ValueError, match="no episode has the"):
        windows_of(policy, replace(dataset, episodes=()))


def test_a_broken_checkpoint_is_put_aside_and_training_goes_on_from_the_one_before(tmp_path: Path, data: Path) -> None:
    whole = load(run(tmp_path / "whole", data)).model.state_dict()
    folder = run(tmp_path, data)
    weights = folder / "step_00000008" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    said: list[str] = []
    run(tmp_path, data, resume=True, say=said.append)
    assert any("model.safetensors: changed since it was written" in text and "put aside" in text for text in said)
    assert (folder / "step_00000008.broken").is_dir()
    found = load(folder).model.state_dict()
    assert all(torch.equal(found[name], value) for name, value in whole.items())
    for path in checkpoints(folder):
        (path / "manifest.json").unlink()
    with pytest.raises(ValueError, match="none of its 2 checkpoints can be read"):
        run(tmp_path, data, resume=True)


def test_a_disk_that_is_full_stops_the_run(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import actwam.checkpoint as module

    real, calls = module.save_file, []

    def full(tensors: Any, path: Path) -> None:
        calls.append(path)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(ValueError, match=r"the checkpoint could not be written: .*No space left.*free disk space"):
        run(tmp_path, data)
    assert [path.name for path in checkpoints(tmp_path / "run" / "1-align")] == ["step_00000002"]


def test_verify_says_which_checkpoint_is_damaged(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(tmp_path, data)

    def verify(path: Path) -> int:
        monkeypatch.setattr("sys.argv", ["actwam", "verify", str(path)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    assert verify(tmp_path / "run") == 0
    assert capsys.readouterr().out.count("whole: ") == 2
    (folder / "step_00000006" / "extra").touch()
    assert verify(folder) == 1
    assert "extra: not part of the checkpoint" in capsys.readouterr().err.replace("\n", " ")
    assert verify(tmp_path / "nothing") == 2
