"""A package acts as the policy it was made of, without PyTorch, and refuses what does not fit."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from actwam.bench.shapes import INSTRUCTION
from actwam.bench.ways import PACKAGED, Settings, time_ways
from actwam.checkpoint import save
from actwam.cli import COMMANDS
from actwam.deploy.package import write_package
from actwam.policy import Policy
from actwam.tokens import ACTION_CENTERED, JOINT, Table
from actwam.types import Group
from actwam_runner import Runner

SEEN = tiny.observation()


def policy(table: Table = ACTION_CENTERED, robot: int = 0) -> Policy:
    checkpoint = tiny.checkpoint("two", table=table)
    return Policy(checkpoint, checkpoint.robot(f"robot_{robot}"), table, torch.device("cpu"))


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "squares"
    write_package(policy(), tiny.INSTRUCTIONS, folder)
    return folder


@pytest.fixture(scope="module")
def runner(package: Path) -> Runner:
    return Runner(package, threads=1)


def noise_of(policy: Policy, seed: int) -> dict[str, np.ndarray]:
    encoded = policy.encode([SEEN])
    groups = [Group.ACTION, Group.FUTURE] if policy.table is JOINT else [Group.ACTION]
    return {group.value: noise.numpy() for group, noise in policy.noise(groups, encoded, [seed]).items()}


@pytest.mark.parametrize("instruction", tiny.INSTRUCTIONS)
def test_it_acts_as_the_policy(runner: Runner, instruction: str) -> None:
    made = policy()
    seen = replace(SEEN, instruction=instruction)
    expected = made.act(seen, seed=7).actions
    found = runner.act(SEEN.images, SEEN.state, instruction, noise=noise_of(made, 7))
    assert found.shape == expected.shape
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()  # pictures differ by a grey level


def test_other_families_and_robots_are_packaged_too(tmp_path: Path) -> None:
    made = policy(JOINT, robot=1)
    write_package(made, tiny.INSTRUCTIONS, tmp_path / "joint")
    seen = tiny.observation(2, made.robot.embodiment)
    expected = made.act(seen, seed=1).actions
    found = Runner(tmp_path / "joint", threads=1).act(
        seen.images, seen.state, seen.instruction, noise=noise_of(made, 1)
    )
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()


def test_a_robot_that_feels_nothing_is_packaged_too(tmp_path: Path) -> None:
    made = policy()
    made = replace(made, robot=tiny.transform(tiny.robot(0, state_names=())))
    write_package(made, tiny.INSTRUCTIONS, tmp_path / "numb")
    seen = replace(SEEN, state=np.zeros(0, np.float32))
    noise = {"action": made.noise([Group.ACTION], made.encode([seen]), [5])[Group.ACTION].numpy()}
    expected = made.act(seen, seed=5).actions
    found = Runner(tmp_path / "numb", threads=1).act(seen.images, seen.state, seen.instruction, noise=noise)
    assert np.abs(found - expected).max() < 1e-2 * np.abs(expected).max()


def test_it_says_what_it_is(runner: Runner) -> None:
    robot = tiny.robot()
    assert set(runner.cameras) == set(robot.cameras.values())
    assert (runner.image_size, runner.fps, runner.robot) == (robot.image_size, robot.fps, robot.name)
    assert (runner.state_names, runner.action_names) == (robot.state_names, robot.action_names)
    assert (runner.action_horizon, runner.instructions) == (tiny.HORIZON, tiny.INSTRUCTIONS)


def test_a_seed_gives_the_same_actions_and_another_others(runner: Runner) -> None:
    first, again, other = (runner.act(SEEN.images, SEEN.state, SEEN.instruction, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3


def test_bfloat16_is_near(package: Path, runner: Runner) -> None:
    half = Runner(package, precision="bf16", threads=1).act(SEEN.images, SEEN.state, SEEN.instruction)
    whole = runner.act(SEEN.images, SEEN.state, SEEN.instruction)
    assert np.linalg.norm(half - whole) < 3e-2 * np.linalg.norm(whole)


def test_no_torch_is_needed(package: Path) -> None:
    code = (
        "import sys, numpy as np; from actwam_runner import Runner; r = Runner(sys.argv[1], threads=1);"
        "images = {c: np.zeros((*r.image_size, 3), np.uint8) for c in r.cameras};"
        "print(r.act(images, np.zeros(len(r.state_names)), r.instructions[0]).shape);"
        "assert not {'torch', 'actwam'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, package], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"({tiny.HORIZON}, 3)"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda images, state, text: (images, state, "dance"), "'dance' is unknown: this package knows 'push the"),
        (lambda images, state, text: ({}, state, text), "this robot has cameras"),
        (lambda images, state, text: ({n: i[:-1] for n, i in images.items()}, state, text), "must give 32x48x3 uint8"),
        (lambda images, state, text: ({n: i / 255 for n, i in images.items()}, state, text), "not 32x48x3 float64"),
        (lambda images, state, text: (images, state[:-1], text), "state must be the 3 finite numbers"),
        (lambda images, state, text: (images, state * np.nan, text), "state must be the 3 finite numbers"),
    ],
)
def test_what_does_not_fit_is_refused(runner: Runner, change: Callable[..., Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        runner.act(*change(SEEN.images, SEEN.state, SEEN.instruction))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "request.bin").unlink(), "request.bin: missing"),
        (lambda folder: (folder / "request.bin").write_bytes(b""), "request.bin: changed"),
        (lambda folder: (folder / "more.txt").write_text(""), "more.txt: not part of the package"),
        (lambda folder: (folder / "manifest.json").unlink(), "no package here"),
    ],
)
def test_a_damaged_package_is_refused(
    package: Path, tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    copy = shutil.copytree(package, tmp_path / "copy")
    damage(copy)
    with pytest.raises(ValueError, match=message):
        Runner(copy)
    with pytest.raises(ValueError, match="precision is fp32 or bf16"):
        Runner(package, precision="fp8")


def test_bfloat16_that_the_machine_lacks_is_refused(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openvino.Core.get_property", lambda *_: ["FP32"])
    with pytest.raises(ValueError, match="this CPU does not multiply in bfloat16: run the package in fp32"):
        Runner(package, precision="bf16")


def test_what_cannot_be_packaged_leaves_nothing(tmp_path: Path) -> None:
    made = policy()
    with pytest.raises(ValueError, match="name at least one"):
        write_package(made, (), tmp_path / "none")
    with pytest.raises(ValueError, match="words"):
        write_package(made, ("push", "word " * 50), tmp_path / "none")
    made.checkpoint.model.bfloat16()
    with pytest.raises(ValueError, match="load the policy in fp32"):
        write_package(made, ("push",), tmp_path / "none")
    assert list(tmp_path.iterdir()) == []


def test_from_the_command_line(tmp_path: Path) -> None:
    save(tiny.checkpoint("two"), tmp_path / "checkpoint")
    out = tmp_path / "out"
    code = COMMANDS["package"](tmp_path / "checkpoint", instructions=("push the square",), out=out, robot="robot_0")
    assert code == 0
    assert Runner(out, threads=1).instructions == ("push the square",)


def test_it_is_timed_beside_the_policy(tmp_path: Path) -> None:
    made = policy()
    write_package(made, [INSTRUCTION], tmp_path / "package")
    runners = {"fp32": Runner(tmp_path / "package", threads=1)}
    found = time_ways({"fp32": made}, Settings(batches=(1, 2), repeats=2, warmup=1), lambda *_: None, runners)
    (case,) = [case for case in found["cases"] if case["way"] == PACKAGED]
    assert case["latency"]["batch"] == 1
    assert case["deviation"] < 1e-2
