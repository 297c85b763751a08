"""The 50 MetaWorld tasks behind the `Env` protocol, with resets that really repeat.

MetaWorld draws its layouts from NumPy's global generator, and leaves traces of one episode in the model of
the next. Here every reset makes a new simulator from a compiled model that is never touched, and seeds its
own generator. So an episode is a function of (task, scene, seed) and of the actions, in every process and any
order.
"""

from __future__ import annotations

import copy
import difflib
import warnings
from typing import Any

import numpy as np
from jaxtyping import Float

from actwam.sim.env import Outcome
from actwam.sim.instructions import INSTRUCTIONS
from actwam.sim.pictures import SceneRenderer
from actwam.sim.render import use_headless_rendering
from actwam.sim.robot import ACTION_NAMES, STATE_NAMES
from actwam.sim.scene import CAMERAS, Scene, jittered, randomize
from actwam.types import Observation

use_headless_rendering()

import mujoco  # noqa: E402
from metaworld.env_dict import ENV_CLS_MAP  # noqa: E402
from metaworld.policies import ENV_POLICY_MAP  # noqa: E402

TASKS: tuple[str, ...] = tuple(INSTRUCTIONS)
SCENE_STREAM = 1
"""Keeps the look of a scene independent of its layout, which is drawn from the seed alone."""

UNSTABLE = (
    mujoco.mjtWarning.mjWARN_BADQPOS,
    mujoco.mjtWarning.mjWARN_BADQVEL,
    mujoco.mjtWarning.mjWARN_BADQACC,
)
"""MuJoCo's warnings that NaN or huge numbers made it start over from its initial state."""


class SimulationError(RuntimeError):
    """The physics became unstable: the episode cannot go on. No fault of the policy's interface."""


def check_task(task: str) -> None:
    """Raises ValueError, with the nearest names, if MetaWorld has no such task."""
    if task not in INSTRUCTIONS:
        near = difflib.get_close_matches(task, TASKS, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(TASKS)}"
        raise ValueError(f"MetaWorld has no task {task!r}: {hint}")


class TaskAssets:
    """What every episode of one task shares, and what is slow to make: the compiled model and its renderer.

    The renderer is made when the first picture is drawn. `close` frees it.
    """

    def __init__(self, task: str, image_size: tuple[int, int]) -> None:
        """Takes about 0.2 s. Raises ValueError on an unknown task or an image size below 1."""
        check_task(task)
        if min(image_size) < 1:
            raise ValueError(f"image_size is {image_size}: height and width must be 1 pixel or more")
        self.task, self.image_size = task, image_size
        self.model: mujoco.MjModel = ENV_CLS_MAP[task]().model
        self._renderer: SceneRenderer | None = None

    def renderer(self) -> SceneRenderer:
        if self._renderer is None:
            self._renderer = SceneRenderer(self.model, self.image_size, len(CAMERAS))
        return self._renderer

    def simulator(self, seed: int) -> Any:
        """A new MetaWorld simulator on a copy of the model, about to draw the layout that `seed` names."""

        def copied(_: Any) -> tuple[mujoco.MjModel, mujoco.MjData]:
            model = copy.copy(self.model)
            return model, mujoco.MjData(model)

        simulator: Any = type("Simulator", (ENV_CLS_MAP[self.task],), {"_initialize_simulation": copied})()
        # Draw a layout at every reset, from the simulator's own generator, and let the expert know the goal.
        simulator._set_task_called = True
        simulator._freeze_rand_vec = False
        simulator.seeded_rand_vec = True
        simulator._partially_observable = False
        del simulator.sawyer_observation_space  # computed before the goal was to be seen
        simulator.seed(seed)
        return simulator

    def close(self) -> None:
        if self._renderer is not None:
            self._renderer.close()
            self._renderer = None


class MetaWorldEnv:
    """One MetaWorld task. Implements `actwam.sim.env.Env`; see `metaworld_embodiment` for state and action.

    `close` it, or use it in a `with` block.
    """

    def __init__(
        self,
        task: str,
        *,
        scene: str = Scene.CLEAN,
        image_size: tuple[int, int] = (128, 128),
        max_steps: int = 500,
        assets: TaskAssets | None = None,
    ) -> None:
        """`scene` is "clean" or "randomized", `image_size` height and width in pixels.

        Environments of one task may share `assets`, which then decide the image size and are closed by
        whoever made them. Raises ValueError on an unknown task or scene.
        """
        check_task(task)
        if scene not in list(Scene):
            raise ValueError(f"unknown scene {scene!r}: use one of {', '.join(Scene)}")
        if max_steps < 1:
            raise ValueError(f"max_steps is {max_steps}: an episode needs at least 1 step")
        if assets is not None and assets.task != task:
            raise ValueError(f"the assets are for {assets.task}, the environment for {task}")
        self.task, self.scene, self.max_steps = task, Scene(scene), max_steps
        self.instruction = INSTRUCTIONS[task]
        self._assets = assets or TaskAssets(task, image_size)
        self._owns_assets = assets is None
        self._expert: Any = ENV_POLICY_MAP[task]()  # type: ignore[abstract]
        self._cameras = CAMERAS
        self._simulator: Any = None

    def reset(self, seed: int) -> None:
        """Start the episode that `seed` (0 or more) names, in a new simulator (30 ms). Renders nothing."""
        if seed < 0:
            raise ValueError(f"seed {seed} of {self.task} is negative")
        self._simulator = simulator = self._assets.simulator(seed)
        simulator.max_path_length = self.max_steps
        if self.scene is Scene.RANDOMIZED:
            rng = np.random.default_rng([seed, SCENE_STREAM, TASKS.index(self.task)])
            randomize(simulator.model, rng)
            self._cameras = jittered(CAMERAS, rng)
        simulator.reset()
        # MetaWorld moves bodies of the model last and computes no positions from them: neither the picture
        # nor the expert would see where things are.
        mujoco.mj_forward(simulator.model, simulator.data)
        simulator._prev_obs = simulator._get_curr_obs_combined_no_goal()
        self._seen = simulator._get_obs()
        self._success = False

    def observe(self) -> Observation:
        """Draw the three cameras and read the state. Changes nothing in the simulation."""
        simulator = self._started()
        data = simulator.data
        # MuJoCo puts goal markers back to where the model has them; MetaWorld knows where they belong.
        positions = data.site_xpos.copy()
        for site, position in simulator._target_site_config:
            data.site(site).xpos = position
        images = self._assets.renderer().draw(simulator.model, data, self._cameras)
        data.site_xpos[:] = positions
        return Observation(images, self._seen[: len(STATE_NAMES)].astype(np.float32), self.instruction)

    def step(self, action: Float[np.ndarray, "..."]) -> Outcome:
        """Apply one action, clipped to -1..1. `truncated` is True at step `max_steps`.

        Raises ValueError on a wrong shape, NaN or Inf, and past the last step; SimulationError if the physics
        becomes unstable.
        """
        simulator = self._started()
        action = check_action(action, self.task)
        if simulator.curr_path_length >= self.max_steps:
            raise ValueError(f"{self.task}: the episode ended at step {self.max_steps}: call reset")
        try:
            self._seen, _, _, truncated, info = simulator.step(action)
        except mujoco.FatalError as error:
            raise SimulationError(f"{self.task}: {error} at step {simulator.curr_path_length}") from error
        unstable = [kind.name for kind in UNSTABLE if simulator.data.warning[kind].number]
        if unstable:
            raise SimulationError(
                f"{self.task}: unstable physics ({', '.join(unstable)}) at step {simulator.curr_path_length}"
            )
        self._success = self._success or bool(info["success"])
        return Outcome(success=self._success, truncated=truncated)

    def expert_action(self) -> Float[np.ndarray, "A"]:
        """What MetaWorld's scripted expert would do now, clipped to -1..1. It is told object and goal."""
        self._started()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the experts warn that their actions are clipped
            action = self._expert.get_action(self._seen)
        return np.clip(action, -1, 1).astype(np.float32)

    def close(self) -> None:
        """Free the simulator, and the renderer if this environment made it. A second call does nothing."""
        self._simulator = None
        if self._owns_assets:
            self._assets.close()

    def __enter__(self) -> MetaWorldEnv:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _started(self) -> Any:
        if self._simulator is None:
            raise ValueError(f"{self.task}: no episode is running: call reset(seed) first")
        return self._simulator


def check_action(action: Float[np.ndarray, "..."], where: str) -> Float[np.ndarray, "4"]:
    """The action as float32 in -1..1. Raises ValueError, naming `where`, on a wrong shape, NaN or Inf."""
    action = np.asarray(action)
    if action.shape != (len(ACTION_NAMES),):
        raise ValueError(f"{where}: the action has shape {action.shape}, expected ({len(ACTION_NAMES)},)")
    if not np.isfinite(action).all():
        raise ValueError(f"{where}: the action {action.tolist()} is not finite: look at the policy or its statistics")
    return np.clip(action, -1, 1).astype(np.float32)
