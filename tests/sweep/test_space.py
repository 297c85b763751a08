"""Settings by name, what is searched, and who is stopped."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import sweeps
import tiny
from optuna.trial import TrialState

from actwam import cli
from actwam.checkpoint import load
from actwam.objective import ObjectiveConfig
from actwam.recipes.metaworld import laptop
from actwam.sweep.halving import Halving
from actwam.sweep.space import Axis, read_space, usual_space
from actwam.train.settings import changed, numbers, with_settings


def test_what_follows_from_a_setting_follows() -> None:
    stage = tiny.stage(steps=100, warmup_steps=20, learning_rate=1e-2, final_learning_rate=1e-4)
    made = changed(stage, {"steps": 50, "learning_rate": 1e-3, "action_weight": 2})
    assert (made.steps, made.warmup_steps, made.learning_rate) == (50, 10, 1e-3)
    assert made.final_learning_rate == pytest.approx(1e-5)
    assert made.objective == ObjectiveConfig(action_weight=2.0)
    assert changed(stage, {"steps": 50, "warmup_steps": 1}).warmup_steps == 1
    assert changed(stage, {}) == stage
    assert changed(stage, numbers(stage)) == stage


def test_settings_are_those_of_the_last_stage_or_of_the_one_that_is_named() -> None:
    recipe = with_settings(laptop(), None, {"batch_size": 8})
    assert [stage.batch_size for stage in recipe.stages] == [32, 32, 8]
    recipe = with_settings(laptop(), "adapt", {"batch_size": 8})
    assert [stage.batch_size for stage in recipe.stages] == [32, 8, 64]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"colour": 1.0}, "stage align has no number 'colour'; it has steps, batch_size"),
        ({"optimizer": 1.0}, "has no number 'optimizer'"),
        ({"batch_size": 1.5}, "batch_size must be a whole number, not 1.5"),
        ({"batch_size": 0.0}, "batch_size must be at least 1"),
        ({"learning_rate": -1.0}, "learning_rate must be a number of at least 0, not -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be a number of at least 0, not nan"),
    ],
)
def test_a_setting_that_the_stage_cannot_have_is_refused(settings: dict[str, float], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        changed(tiny.stage(), settings)


def test_a_space_is_read() -> None:
    space = read_space({"learning_rate": "1e-4:1e-2", "batch_size": "16,32", "action_weight": "2"}, tiny.stage())
    assert space == {
        "learning_rate": Axis(1e-4, 1e-2),
        "batch_size": Axis(16, 32, (16, 32), whole=True),
        "action_weight": Axis(2, 2, (2,)),
    }
    assert read_space({"batch_size": "4:64"}, tiny.stage())["batch_size"].whole
    assert 1e-3 in space["learning_rate"]
    assert 24 not in space["batch_size"]


def test_the_usual_space_weighs_losses_where_there_are_two() -> None:
    recipe = tiny.recipe()
    assert set(usual_space(recipe, tiny.stage())) == {"learning_rate", "batch_size", "action_weight"}
    blind = tiny.stage(objective=ObjectiveConfig(future_weight=0.0))
    assert set(usual_space(recipe, blind)) == {"learning_rate", "batch_size"}


def test_sampled_numbers_are_those_of_the_table() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    axis, size = Axis(1e-4, 1e-2), Axis(4, 64, whole=True)
    for _ in range(20):
        trial = study.ask()
        rate, batch = axis.suggest(trial, "rate"), size.suggest(trial, "size")
        assert float(f"{rate:.3g}") == rate
        assert rate in axis
        assert isinstance(batch, int)
        study.tell(trial, 0.0)


def test_the_better_half_goes_on_from_a_rung() -> None:
    """The slow way: sort all that came there, and see whether the place is in the first half."""
    study = optuna.create_study(pruner=Halving((2, 4)))
    errors = [0.5, 0.7, 0.4, 0.6, 0.3, 0.9, 0.45, 0.2, 0.4]
    for number, error in enumerate(errors):
        trial = study.ask()
        trial.report(10.0 + number, 1)
        assert not trial.should_prune()  # this is no rung
        trial.report(error, 2)
        came = sorted(errors[: number + 1])
        stopped = came.index(error) >= max(1, len(came) // 2)
        assert trial.should_prune() == trial.should_prune() == stopped, number
        study.tell(trial, state=TrialState.PRUNED)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"space": {"colour": "1,2"}}, "stage align has no number 'colour'"),
        ({"space": {"learning_rate": "fast"}}, "'fast' is neither LOW:HIGH nor A,B,C"),
        ({"space": {"learning_rate": "1e-2:1e-3"}}, "the low end must be above 0 and below the high one"),
        ({"space": {"learning_rate": "0:1e-3"}}, "the low end must be above 0"),
        ({"space": {"batch_size": "16,2.5"}}, "batch_size must be a whole number, not 2.5"),
        ({"space": {"steps": "10,20"}}, "is the same for all trials of a round"),
        ({"space": {}}, "there is nothing to sweep"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"promote": 9}, "of 3 trials 9 cannot be promoted"),
        ({"pilot_steps": 3}, "pilot_steps must be from 4 to the 12 long ones, not 3"),
        ({"pilot_steps": 13}, "pilot_steps must be from 4 to the 12 long ones, not 13"),
        ({"stage": "lift"}, "recipe tiny has no stage 'lift'; it has look, align"),
        ({"closed_loop": ("drawer-opn-v3",)}, "MetaWorld has no task 'drawer-opn-v3'"),
        ({"closed_loop": ("drawer-open-v3",)}, "recipe tiny has no robot that plays in MetaWorld"),
    ],
)
def test_what_makes_no_sweep_is_refused(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as error:
        sweeps.plan(tmp_path, **changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweeps.write_data(tmp_path)
    words = ["actwam", "sweep", "sweeps:recipe", "--data", "squares", tmp_path / "squares"]
    words += ["--held-out", tmp_path / "nowhere", "--out", tmp_path / "out", "--trials", 2, "--pilot-steps", 4]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.startswith("actwam: ")
    assert "nowhere" in said
    assert "\n" not in said


def test_the_largest_batch_must_fit_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from actwam import memory
    from actwam.sweep.search import run_sweep

    monkeypatch.setattr(memory, "available", lambda device: 1000)
    plan = sweeps.plan(sweeps.write_data(tmp_path), space={"batch_size": "4,4096"})
    with pytest.raises(ValueError, match=r"cpu has 0\.0 GB to give"):
        run_sweep(plan)
    assert not (tmp_path / "sweep" / "trials").exists()


def test_usual_numbers_are_those_of_a_stage() -> None:
    stage = replace(tiny.stage(), ema_decay=None)
    assert "ema_decay" not in numbers(stage)
    assert numbers(stage)["action_weight"] == 5.0


def test_train_takes_numbers_of_a_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squares = tiny.write_dataset(tmp_path / "squares", tiny.robot())
    words = ["actwam", "train", "sweeps:recipe", "--data", "squares", squares, "--out", tmp_path / "run"]
    words += ["--set", "steps", 6, "learning_rate", 1e-3, "action_weight", 2]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert not ended.value.code, capsys.readouterr().err
    config = load(tmp_path / "run" / "2-align").trained["config"]
    assert (config["steps"], config["warmup_steps"], config["learning_rate"]) == (6, 1, 1e-3)
    assert config["objective"]["action_weight"] == 2.0
    assert load(tmp_path / "run" / "1-look").trained["config"]["steps"] == 2
