"""A sweep of tiny trainings: the right one wins, and a killed one comes to the same table."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sweeps
import tiny
from optuna.storages.journal import JournalFileBackend

from actwam.checkpoint import checkpoints, load
from actwam.commands.sweep import sweep
from actwam.data.partial import locked
from actwam.sweep import search
from actwam.sweep.results import summarise
from actwam.sweep.search import DIVERGED, JOURNAL, STOPPED, run_sweep
from actwam.train.config import Recipe
from actwam.train.loop import Run
from actwam.train.settings import with_settings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sweeps.write_data(tmp_path_factory.mktemp("sweep"))


@pytest.fixture(scope="module")
def done(folder: Path) -> Path:
    """The folder of a finished sweep."""
    assert sweep(**sweeps.arguments(folder, "whole")) == 0
    return folder / "whole"


def test_an_absurd_learning_rate_is_stopped_early_and_never_wins(done: Path) -> None:
    found = sweeps.table(done)
    rates = [one["settings"]["learning_rate"] for one in found["trials"]]
    assert sweeps.ABSURD in rates
    for one in found["trials"]:
        if one["settings"]["learning_rate"] == sweeps.ABSURD:
            assert one["ended"] in (STOPPED, DIVERGED)
            assert len(one["held_out_action_error"]) <= 1
    assert found["winner"]["settings"]["learning_rate"] in (1e-2, 3e-3)
    assert [len(one["held_out_action_error"]) for one in found["promoted"]] == [4, 4]
    assert found["promoted"][0]["held_out"]["action_error"] <= found["promoted"][1]["held_out"]["action_error"]
    assert found["promoted"][1]["against_best"]["action_error"]["mean"] >= 0


def test_the_first_trial_has_the_recipes_own_settings(done: Path) -> None:
    found = sweeps.table(done)
    assert found["trials"][0]["settings"] == found["own"] == {"learning_rate": 1e-2, "action_weight": 5.0}


def test_a_trial_is_an_ordinary_run_that_says_what_it_was(done: Path) -> None:
    found = sweeps.table(done)
    best = found["promoted"][0]
    config = load(done / best["checkpoint"]).trained["config"]
    stage = with_settings(sweeps.recipe(), None, found["winner"]["settings"]).stages[-1]
    assert {**stage.to_json(), "checkpoint_every": 3, "precision": "fp32"} == {
        **config,
        "sources": tuple(config["sources"]),
        "betas": tuple(config["betas"]),
        "freeze": tuple(config["freeze"]),
    }
    assert f"--set learning_rate {best['settings']['learning_rate']:g} action_weight" in found["winner"]["command"]


def test_the_stage_before_is_trained_once(done: Path) -> None:
    shared = {path.resolve() for path in done.glob("*/*/1-look")}
    assert shared == {(done / "before" / "1-look").resolve()}
    assert len(list((done.parent / "cache").iterdir())) == 1


def test_a_sweep_leaves_a_table_and_a_figure(done: Path) -> None:
    text = (done / "sweep.md").read_text()
    assert "| 0 (own) | 0.01 | 5 |" in text
    assert "training again may change the order" in text
    assert (done / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_killed_and_taken_up_again_it_comes_to_the_same_table(folder: Path, done: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(tiny.__file__).parent), *sys.path])
    for calls in ("13", "9"):  # in the middle of the second trial, and of what comes later
        words = [sys.executable, sweeps.__file__, calls, str(folder), "killed"]
        ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
        assert ended.returncode == 9, ended.stderr
        assert not (folder / "killed" / "sweep.json").exists()
    assert sweep(**sweeps.arguments(folder, "killed")) == 0
    assert sweeps.table(folder / "killed") == sweeps.table(done)


def test_a_finished_sweep_trains_nothing_and_may_be_made_longer(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    longer = done.with_name("longer")
    shutil.copytree(done, longer, symlinks=True)
    trained: list[Path] = []
    usual = search.train

    def counted(recipe: Recipe, data: Mapping[str, Path], run: Run, *, only: str) -> Path:
        trained.append(run.out)
        return usual(recipe, data, run, only=only)

    monkeypatch.setattr(search, "train", counted)
    assert sweep(**sweeps.arguments(done.parent, "longer")) == 0
    assert trained == [longer / "before"]
    assert sweeps.table(longer) == sweeps.table(done)
    assert sweep(**sweeps.arguments(done.parent, "longer", trials=5)) == 0
    assert longer / "trials" / "4" in trained
    assert sweeps.table(longer)["trials"][:4] == sweeps.table(done)["trials"]


def test_other_settings_and_a_second_process_are_refused(folder: Path, done: Path) -> None:
    with pytest.raises(ValueError, match="was begun with another pilot_steps, seed; choose another folder"):
        run_sweep(sweeps.plan(folder, out=done, pilot_steps=9, seed=1))
    with locked(done), pytest.raises(ValueError, match="another process is writing it now"):
        run_sweep(sweeps.plan(folder, out=done))


class Killed(BaseException):
    """As if the process had ended here."""


def imitated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings that leave empty checkpoints, whose error follows from their settings and steps."""

    def train(recipe: Recipe, data: Mapping[str, Path], run: Run, *, only: str) -> Path:
        stage = recipe.stages[recipe.stage(only)]
        folder = run.out / f"{recipe.stage(only) + 1}-{only}"
        settings = {"rate": stage.learning_rate, "weight": stage.objective.action_weight}
        for step in range(stage.checkpoint_every, stage.steps + 1, stage.checkpoint_every):
            made = folder / f"step_{step:08d}"
            if not made.exists():
                made.mkdir(parents=True)
                (made / "made.json").write_text(json.dumps({**settings, "step": step}))
                if run.examine:
                    run.examine(made)
        return folder

    def policy(folder: Path, device: str) -> Any:
        made = json.loads((folder / "made.json").read_text())
        return SimpleNamespace(made=made, checkpoint=SimpleNamespace(trained=made))

    def held_out(policy: Any, dataset: Any) -> Any:
        made = policy.made
        error = abs(made["rate"] - 0.004) * 50 + abs(made["weight"] - 2) / 10 + 1 / made["step"]
        return SimpleNamespace(action_error=error, by_window=((0, error), (1, error + 0.1)), psnr=None)

    monkeypatch.setattr(search, "train", train)
    monkeypatch.setattr(search, "Policy", SimpleNamespace(load=policy))
    monkeypatch.setattr(search, "held_out", held_out)


def imitation(folder: Path, out: str) -> dict[str, Any]:
    plan = sweeps.plan(folder, out=folder / out, trials=7, space={"learning_rate": "1e-3:1e-1", "action_weight": "1:9"})
    found = summarise(plan, run_sweep(plan))
    return {**found, "provenance": None, **{part: [{**o, "seconds": 0} for o in found[part]] for part in PARTS}}


PARTS = ("trials", "promoted")


@pytest.mark.parametrize("written", [True, False], ids=["after", "before"])
def test_killed_at_any_write_to_the_journal_it_comes_to_the_same_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Before a line is written, or after it; every line in turn, in one sweep that is killed again and again, and in
    sweeps that are killed once."""
    imitated(monkeypatch)
    for name in ("squares", "heldout"):
        shutil.copytree(folder / name, tmp_path / name)
    usual = JournalFileBackend.append_logs
    count, kill = [0], [0]

    def append(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        count[0] += 1
        if count[0] == kill[0] and not written:
            raise Killed
        usual(backend, logs)
        if count[0] == kill[0]:
            raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", append)
    whole = imitation(tmp_path, "whole")
    assert {one["ended"] for one in whole["trials"]} == {"complete", "stopped"}
    writes = count[0]
    assert writes > 60
    for n in range(1 + written, writes + 1, 2):
        count[0], kill[0] = 0, n
        with pytest.raises(Killed):
            imitation(tmp_path, f"once {n}")
        count[0], kill[0] = 0, 0
        with (tmp_path / f"once {n}" / JOURNAL).open("a") as file:
            file.write('{"half')  # as if the system had cut a line
        assert imitation(tmp_path, f"once {n}") == whole, n
    runs, kill[0] = 0, 3
    while True:
        count[0], runs = 0, runs + 1
        try:
            again = imitation(tmp_path, "often")
            break
        except Killed:
            continue
    assert again == whole
    assert runs > writes // 4


def test_a_lock_that_a_killed_process_left_holds_nobody_up(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitated(monkeypatch)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / f"{JOURNAL}.lock").symlink_to(JOURNAL)
    assert run_sweep(sweeps.plan(folder, out=tmp_path / "out")).promoted


def test_when_all_diverge_it_is_one_line(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    imitated(monkeypatch)
    nan = SimpleNamespace(action_error=float("nan"))
    monkeypatch.setattr(search, "held_out", lambda policy, dataset: nan)
    with pytest.raises(ValueError, match="all 4 trials diverged; sweep lower learning rates") as error:
        run_sweep(sweeps.plan(folder, out=tmp_path))
    assert "\n" not in str(error.value)


def test_checkpoints_of_promoted_are_whole(done: Path) -> None:
    for one in sweeps.table(done)["promoted"]:
        assert load(checkpoints((done / one["checkpoint"]).parent)[-1]).trained["step"] == 12
