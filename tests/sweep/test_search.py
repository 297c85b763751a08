"""A sweep of tiny trainings: the right one wins, and a killed one comes to the same table."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sweeps
import tiny
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, create_trial

from actwam.checkpoint import checkpoints, load
from actwam.commands.sweep import sweep
from actwam.data.partial import locked
from actwam.report.sweep import markdown, write_figure
from actwam.sim.results import EpisodeOutcome
from actwam.sweep import search
from actwam.sweep.results import summarise
from actwam.sweep.search import COMPLETE, DIVERGED, JOURNAL, STOPPED, Done, run_sweep
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
    assert len(list((done.parent / "cache").rglob("latents.npy"))) == 1


def test_a_sweep_leaves_a_table_and_a_figure(done: Path) -> None:
    text = (done / "sweep.md").read_text()
    assert "| 0 (own) | 0.01 | 5 |" in text
    assert "training again may give another difference" in text
    assert (done / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_killed_and_taken_up_again_it_comes_to_the_same_table(folder: Path, done: Path) -> None:
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(tiny.__file__).parent), *sys.path])
    words = [sys.executable, sweeps.__file__, "13", str(folder), "killed"]  # in the middle of the second trial
    ended = subprocess.run(words, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    assert ended.returncode == 9, ended.stderr
    assert not (folder / "killed" / "sweep.json").exists()
    assert sweep(**sweeps.arguments(folder, "killed")) == 0
    assert sweeps.table(folder / "killed") == sweeps.table(done)


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


def imitation(folder: Path, out: Path) -> dict[str, Any]:
    plan = sweeps.plan(folder, out=out, trials=5, space={"learning_rate": "1e-3:1e-1", "action_weight": "1:9"})
    found = summarise(plan, run_sweep(plan))
    return {**found, "provenance": None, **{part: [{**o, "seconds": 0} for o in found[part]] for part in PARTS}}


PARTS = ("trials", "promoted")


def test_killed_at_a_write_to_the_journal_it_comes_to_the_same_table(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sweeps that are killed once, before or after every third line is written."""
    imitated(monkeypatch)
    usual = JournalFileBackend.append_logs
    count, kill = [0], [0]

    def append(backend: JournalFileBackend, logs: list[dict[str, Any]]) -> None:
        count[0] += 1
        if count[0] == kill[0] and kill[0] % 2:
            raise Killed
        usual(backend, logs)
        if count[0] == kill[0]:
            raise Killed

    monkeypatch.setattr(JournalFileBackend, "append_logs", append)
    whole = imitation(folder, tmp_path / "whole")
    assert {one["ended"] for one in whole["trials"]} == {COMPLETE, STOPPED}
    for n in range(1, count[0] + 1, 3):
        count[0], kill[0] = 0, n
        with pytest.raises(Killed):
            imitation(folder, tmp_path / str(n))
        count[0], kill[0] = 0, 0
        with (tmp_path / str(n) / JOURNAL).open("a") as file:
            file.write('{"half')  # as a full disk leaves it
        assert imitation(folder, tmp_path / str(n)) == whole, n


def test_a_finished_sweep_trains_nothing_and_may_be_made_longer(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    imitated(monkeypatch)
    plan = sweeps.plan(folder, out=tmp_path / "out")
    short = run_sweep(plan)
    trained: list[Path] = []
    usual = search.train

    def counted(recipe: Recipe, data: Mapping[str, Path], run: Run, *, only: str) -> Path:
        trained.append(run.out)
        return usual(recipe, data, run, only=only)

    monkeypatch.setattr(search, "train", counted)
    assert run_sweep(plan) == short
    assert trained == [tmp_path / "out" / "before"]  # which finds that it is done
    long = run_sweep(replace(plan, trials=6, promote=3))
    assert long.trials[: len(short.trials)] == short.trials
    assert len(long.trials) == 6
    complete = [one for one in long.trials if one.user_attrs["ended"] == COMPLETE]
    assert len(long.promoted) == min(3, len(complete))


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
    with pytest.raises(ValueError, match="all 3 trials diverged; sweep lower learning rates") as error:
        run_sweep(sweeps.plan(folder, out=tmp_path))
    assert "\n" not in str(error.value)


def test_checkpoints_of_promoted_are_whole(done: Path) -> None:
    for one in sweeps.table(done)["promoted"]:
        assert load(checkpoints((done / one["checkpoint"]).parent)[-1]).trained["step"] == 12


def played(trial: int, error: float, outcomes: str) -> FrozenTrial:
    """What was promoted and played an episode of each of two tasks for each pair of letters."""
    letters = {"s": EpisodeOutcome.SUCCESS, "t": EpisodeOutcome.TIMEOUT, "c": EpisodeOutcome.CRASH}
    episodes = [[f"task {n % 2}", n // 2, str(letters[letter])] for n, letter in enumerate(outcomes)]
    windows = [[n, error + n / 100] for n in range(4)]
    noted = {"trial": trial, "settings": {"learning_rate": 1e-3}, "ended": COMPLETE, "seconds": 1.0, "commit": None}
    noted |= {"checkpoint": "somewhere", "psnr": None, "windows": windows, "episodes": episodes}
    return create_trial(value=error, user_attrs=noted, intermediate_values={12: error})


@pytest.mark.parametrize(
    ("outcomes", "order", "said"),
    [
        (("st" * 10, "st" * 9 + "tt"), [1, 0], "success rate cannot be told apart"),
        (("ss" * 10, "tt" * 9 + "st"), [0, 1], "success rate is higher beyond chance"),
        (("sc" * 10, "st" * 10), [1, 0], "error is lower beyond chance (2 tasks"),
    ],
    ids=["alike", "apart", "nothing to compare"],
)
def test_success_decides_where_it_can_be_told(
    folder: Path, tmp_path: Path, outcomes: tuple[str, str], order: list[int], said: str
) -> None:
    plan = sweeps.plan(folder, space={"learning_rate": "1e-3,1e-2"})
    object.__setattr__(plan, "closed_loop", ("task 0", "task 1"))
    promoted = (played(0, 0.5, outcomes[0]), played(1, 0.3, outcomes[1]))
    found = summarise(plan, Done(promoted, promoted, {0: "a", 1: "a", 2: "b", 3: "b"}))
    assert [one["trial"] for one in found["promoted"]] == order
    assert said in found["sure"]
    found["winner"]["command"] = "actwam train tiny"
    assert f"The winner is trial {order[0]}: learning_rate 0.001, steps 12." in markdown(found)
    write_figure(found, tmp_path / "sweep.png")
    assert (tmp_path / "sweep.png").stat().st_size > 10_000
