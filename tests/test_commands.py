"""Recipes by name, their options, and what the commands say of memory."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import tiny
import torch

from actwam import cli, memory
from actwam.checkpoint import save
from actwam.commands.training import find_recipe
from actwam.model.transformer import WorldActionTransformer
from actwam.train.config import Recipe

ROBOT = Path(__file__).parents[1] / "examples" / "robots" / "so101.yaml"


def recipe(*, size: Literal["small", "large"] = "small", rate: float = 0.5, steps: int | None = None) -> Recipe:
    assert size in ("small", "large")
    assert isinstance(rate, float)
    assert steps is None or isinstance(steps, int)
    return tiny.recipe(tiny.stage(learning_rate=rate, steps=steps or 4))


def run(*words: object, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["actwam", *map(str, words)])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    return int(exit_.value.code or 0)


def test_options_have_the_types_of_the_recipe() -> None:
    made = find_recipe("test_commands:recipe", {"size": "large", "rate": "0.25", "steps": "7"})
    assert (made.stages[0].learning_rate, made.stages[0].steps) == (0.25, 7)
    assert find_recipe("metaworld.laptop", {"align_steps": "9"}).stages[2].steps == 9


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("metaworld.desktop", {}, "no recipe 'metaworld.desktop'"),
        ("nowhere:recipe", {}, "no recipe 'nowhere:recipe'"),
        ("test_commands:recipe", {"options": {"colour": "red"}}, "no option 'colour'; it has size, rate, steps"),
        ("test_commands:recipe", {"options": {"rate": "fast"}}, "option rate of recipe test_commands:recipe is 'fast'"),
        ("test_commands:recipe", {"options": {"size": "huge"}}, "'huge', expected typing.Literal"),
        ("test_commands:recipe", {"start": Path("x")}, "takes no --start"),
        ("test_commands:recipe", {"robots": [ROBOT]}, "takes no --robots"),
        ("gwp.gwp05", {"robots": [ROBOT]}, "recipe gwp.gwp05 needs --start"),
        ("gwp.gwp05", {"start": Path("x")}, "recipe gwp.gwp05 needs --robots"),
        ("gwp.gwp05", {"start": Path("x"), "robots": [Path("y.yaml")]}, "y.yaml: cannot be read"),
        ("gwp.gwp05", {"start": Path("x"), "robots": [ROBOT]}, "x: no checkpoint here"),
    ],
)
def test_what_does_not_fit_is_one_line(name: str, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as error:
        find_recipe(name, **{"options": {}, **given})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_memory_of_a_recipe_and_of_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("memory", "metaworld.laptop", "--json", monkeypatch=monkeypatch) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said) == ["general", "adapt", "align"]
    with torch.device("meta"):
        model = WorldActionTransformer(find_recipe("metaworld.laptop", {}).model)
    assert said["align"]["gradients"] == said["align"]["weights"] == 4 * sum(p.numel() for p in model.parameters())
    save(tiny.checkpoint(), tmp_path / "saved")
    assert run("memory", tmp_path / "saved", monkeypatch=monkeypatch) == 0
    out = capsys.readouterr().out
    assert out.startswith("acting\n")
    assert "total" in out


def test_a_policy_that_does_not_fit_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny.checkpoint(), tmp_path / "saved")
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    words = ("eval", tmp_path / "saved", "--tasks", "drawer-open-v3")
    assert run(*words, monkeypatch=monkeypatch) == 2
    said = capsys.readouterr().err.strip()
    assert "cpu has 0.0 GB to give" in said
    assert "\n" not in said


def test_approximations_that_do_not_fit_the_policy_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save(tiny.checkpoint(), tmp_path / "saved")
    words = ("eval", tmp_path / "saved", "--tasks", "drawer-open-v3", "--robot", "robot_0", "--num-steps", 2)
    assert run(*words, "--warm-steps", 3, monkeypatch=monkeypatch) == 2
    assert "warm_steps is 3, and the schedule has only 2 steps" in capsys.readouterr().err
