"""Resets repeat, pictures show what is there, bad actions are refused, and nothing is printed at exit."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from actwam.sim import pictures
from actwam.sim.instructions import INSTRUCTIONS
from actwam.sim.metaworld import ENV_CLS_MAP, TASKS, MetaWorldEnv, SimulationError, TaskAssets
from actwam.sim.robot import ACTION_NAMES, CAMERA_NAMES, metaworld_embodiment
from actwam.sim.scene import CAMERAS

SIZE = (64, 64)
STILL = np.zeros(4, np.float32)


@pytest.fixture(scope="module")
def door() -> Iterator[TaskAssets]:
    assets = TaskAssets("door-open-v3", SIZE)
    yield assets
    assets.close()


@pytest.fixture(scope="module")
def puck() -> Iterator[TaskAssets]:
    assets = TaskAssets("pick-place-v3", (128, 160))
    yield assets
    assets.close()


def fingerprint(env: MetaWorldEnv) -> str:
    """Everything there is: pictures, state, physics, object, goal."""
    seen, simulator = env.observe(), env._simulator
    digest = hashlib.sha256(seen.state.tobytes())
    for name in CAMERAS:
        digest.update(seen.images[name].tobytes())
    for part in (simulator.data.qpos, simulator.data.qvel, simulator._target_pos, env._seen):
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.hexdigest()


FRESH = """
import sys
sys.path.insert(0, "tests/sim")
from test_metaworld import *
with MetaWorldEnv("door-open-v3", scene=sys.argv[1], image_size=SIZE) as env:
    env.reset(7)
    print(fingerprint(env))
"""


@pytest.mark.parametrize("scene", ["clean", "randomized"])
def test_a_reset_repeats_in_one_env_in_two_and_in_another_process(door: TaskAssets, scene: str) -> None:
    used = MetaWorldEnv("door-open-v3", scene=scene, assets=door)
    used.reset(7)
    first = fingerprint(used)
    used.reset(8)
    other = fingerprint(used)
    for _ in range(40):
        used.step(used.expert_action())
    used.reset(7)
    assert fingerprint(used) == first != other
    with MetaWorldEnv("door-open-v3", scene=scene, image_size=SIZE) as fresh:
        fresh.reset(7)
        assert fingerprint(fresh) == first
    child = subprocess.run([sys.executable, "-c", FRESH, scene], capture_output=True, text=True, check=True)
    assert child.stdout.strip() == first
    assert child.stderr == ""


def test_the_randomized_scene_changes_the_look_and_not_the_physics(door: TaskAssets) -> None:
    seen = {}
    for scene in ("clean", "randomized"):
        env = MetaWorldEnv("door-open-v3", scene=scene, assets=door)
        env.reset(3)
        look = env.observe().images["head"]
        for _ in range(30):
            env.step(env.expert_action())
        seen[scene] = look, env._simulator.data.qpos.copy()
    assert np.abs(seen["clean"][0].astype(int) - seen["randomized"][0]).mean() > 5
    np.testing.assert_array_equal(seen["clean"][1], seen["randomized"][1])


def test_the_callers_random_numbers_are_left_alone(door: TaskAssets) -> None:
    np.random.seed(1)
    expected = np.random.uniform(size=3)
    np.random.seed(1)
    env = MetaWorldEnv("door-open-v3", assets=door)
    env.reset(0)
    env.step(env.expert_action())
    np.testing.assert_array_equal(np.random.uniform(size=3), expected)


def test_looking_changes_nothing(puck: TaskAssets) -> None:
    ends = []
    for look in (False, True):
        env = MetaWorldEnv("pick-place-v3", assets=puck)
        env.reset(2)
        for _ in range(60):
            if look:
                env.observe()
            env.step(env.expert_action())
        ends.append(np.concatenate([env._simulator.data.qpos, env._seen]))
    np.testing.assert_array_equal(*ends)


def test_the_goal_marker_is_drawn_where_the_goal_is(puck: TaskAssets) -> None:
    """In all cameras, the right way up and not mirrored: the camera's own geometry says where to look."""
    env = MetaWorldEnv("pick-place-v3", assets=puck)
    for seed in (0, 1, 5):
        env.reset(seed)
        images = env.observe().images
        for name, camera in CAMERAS.items():
            red, green, blue = images[name].astype(int).transpose(2, 0, 1)
            rows, columns = np.nonzero((blue > 60) & (blue > 2 * red) & (blue > 2 * green))
            forward, right, up = camera.axes() @ (env._simulator._target_pos - camera.position())
            height, width = env._assets.image_size
            scale = height / 2 / np.tan(np.deg2rad(45) / 2) / forward
            assert abs(rows.mean() - (height / 2 - up * scale)) < 1.5
            assert abs(columns.mean() - (width / 2 + right * scale)) < 1.5


def test_leaving_out_what_is_not_in_view_changes_no_pixel(puck: TaskAssets, monkeypatch: pytest.MonkeyPatch) -> None:
    env = MetaWorldEnv("pick-place-v3", assets=puck)
    env.reset(0)
    drawn: list[dict[str, np.ndarray]] = []
    for _ in range(4):
        for _ in range(12):
            env.step(env.expert_action())
        drawn.append(dict(env.observe().images))
        with monkeypatch.context() as patch:
            patch.setattr(pictures, "_in_view", lambda model, *_: np.ones(model.ngeom, bool))
            everything = env.observe().images
        for name in CAMERAS:
            np.testing.assert_array_equal(drawn[-1][name], everything[name])
    assert not np.array_equal(drawn[0]["head"], drawn[-1]["head"])


def test_thinned_meshes_look_the_same(puck: TaskAssets, monkeypatch: pytest.MonkeyPatch) -> None:
    env = MetaWorldEnv("pick-place-v3", assets=puck)
    env.reset(0)
    thin = env.observe().images
    monkeypatch.setattr(pictures, "FINE_MESH", 10**9)
    with MetaWorldEnv("pick-place-v3", image_size=puck.image_size) as full:
        full.reset(0)
        images = full.observe().images
    for name in CAMERAS:
        difference = np.abs(thin[name].astype(int) - images[name])
        assert 0 < difference.mean() < 1.5
        assert np.median(difference) == 0


def test_the_expert_opens_the_door_and_success_stays(door: TaskAssets) -> None:
    env = MetaWorldEnv("door-open-v3", assets=door)
    env.reset(0)
    while not env.step(env.expert_action()).success:
        pass
    opened = env._simulator.curr_path_length
    env._simulator.data.joint("doorjoint").qpos = 0.0  # shut again: MetaWorld's own verdict is now False
    assert env.step(STILL).success
    assert opened < 200


def test_every_task_has_an_instruction_of_its_own() -> None:
    assert set(TASKS) == set(ENV_CLS_MAP)
    assert len(TASKS) == 50
    assert len(set(INSTRUCTIONS.values())) == 50


@pytest.mark.parametrize("task", TASKS)
def test_every_task_starts_and_its_expert_acts(task: str) -> None:
    with MetaWorldEnv(task) as env:
        env.reset(11)
        action = env.expert_action()
        env.step(action)
        assert action.shape == (4,)
        assert np.abs(action).max() <= 1
        assert np.isfinite(env._seen).all()


def test_state_and_pictures_fit_the_embodiment(puck: TaskAssets) -> None:
    embodiment = metaworld_embodiment(puck.image_size)
    env = MetaWorldEnv("pick-place-v3", assets=puck)
    env.reset(0)
    seen = env.observe()
    assert seen.state.shape == (len(embodiment.state_names),)
    assert seen.state.dtype == np.float32
    assert set(seen.images) == set(embodiment.cameras.values())
    assert all(image.shape == (*embodiment.image_size, 3) for image in seen.images.values())
    assert seen.instruction == INSTRUCTIONS["pick-place-v3"]
    assert embodiment.action_names == ACTION_NAMES
    assert tuple(CAMERAS) == CAMERA_NAMES
    np.testing.assert_allclose(seen.state[:3], env._simulator.get_endeff_pos(), atol=1e-6)


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (np.zeros(3), "shape"),
        (np.zeros((1, 4)), "shape"),
        (np.array([0, np.nan, 0, 0]), "not finite"),
        (np.array([0, 0, 0, np.inf]), "not finite"),
    ],
)
def test_a_bad_action_is_refused_and_moves_nothing(door: TaskAssets, action: np.ndarray, message: str) -> None:
    env = MetaWorldEnv("door-open-v3", assets=door)
    env.reset(0)
    before = env._simulator.data.qpos.copy()
    with pytest.raises(ValueError, match=message):
        env.step(action)
    np.testing.assert_array_equal(env._simulator.data.qpos, before)


def test_an_action_beyond_the_range_is_the_range(door: TaskAssets) -> None:
    ends = []
    for size in (1.0, 5.0):
        env = MetaWorldEnv("door-open-v3", assets=door)
        env.reset(0)
        for _ in range(5):
            env.step(np.full(4, size, np.float32))
        ends.append(env._simulator.data.qpos.copy())
    np.testing.assert_array_equal(*ends)


def test_an_episode_ends_at_max_steps(door: TaskAssets) -> None:
    env = MetaWorldEnv("door-open-v3", max_steps=3, assets=door)
    with pytest.raises(ValueError, match="call reset"):
        env.step(STILL)
    env.reset(0)
    assert [env.step(STILL).truncated for _ in range(3)] == [False, False, True]
    with pytest.raises(ValueError, match="ended at step 3"):
        env.step(STILL)


def test_unstable_physics_is_an_error_of_its_own(
    door: TaskAssets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log file where it is
    env = MetaWorldEnv("door-open-v3", assets=door)
    env.reset(0)
    env._simulator.data.qpos[0] = np.nan
    with pytest.raises(SimulationError, match="door-open-v3: unstable physics"):
        env.step(STILL)
    env.reset(0)
    env.step(STILL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "door-opn-v3"}, "did you mean door-open-v3"),
        ({"task": "door-open-v3", "scene": "night"}, "unknown scene 'night'"),
        ({"task": "door-open-v3", "max_steps": 0}, "at least 1 step"),
        ({"task": "door-open-v3", "image_size": (0, 64)}, "image_size"),
    ],
)
def test_a_bad_environment_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MetaWorldEnv(**arguments)


LEFT_OPEN = """
from actwam.sim.metaworld import MetaWorldEnv
environments = [MetaWorldEnv("door-open-v3", image_size=(32, 32)) for _ in range(2)]
for env in environments:
    env.reset(0)
    env.observe()
print("done")
raise KeyError("on purpose")
"""


def test_a_renderer_left_open_prints_nothing_at_exit() -> None:
    child = subprocess.run([sys.executable, "-c", LEFT_OPEN], capture_output=True, text=True, check=False)
    assert child.stdout == "done\n"
    assert child.stderr.splitlines()[-1] == "KeyError: 'on purpose'"
    assert child.stderr.count("Traceback") == 1
