"""How a MetaWorld scene looks: three cameras, and the randomized light, colours and camera poses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from enum import StrEnum

import numpy as np
from jaxtyping import Bool, Float

from actwam.sim.pictures import Camera
from actwam.sim.render import use_headless_rendering

use_headless_rendering()

import mujoco  # noqa: E402


class Scene(StrEnum):
    """`CLEAN` looks the same in every episode, `RANDOMIZED` new in every one. The physics is the same."""

    CLEAN = "clean"
    RANDOMIZED = "randomized"


CAMERAS: dict[str, Camera] = {
    "head": Camera(lookat=(0.0, 0.68, 0.12), distance=0.92, azimuth=-90.0, elevation=-64.0),
    "left": Camera(lookat=(0.0, 0.65, 0.13), distance=0.78, azimuth=25.0, elevation=-30.0),
    "right": Camera(lookat=(0.0, 0.65, 0.13), distance=0.78, azimuth=155.0, elevation=-30.0),
}
"""The robot stands at the origin and looks along +y; its work space is 0.6 m wide around (0, 0.7, 0.15).

Objects face the robot, so left and right look past its arm from both sides. Head looks steeply down from the
far side: less steep, a door or a shelf would hide everything; from the robot's side, the arm would.
"""

TABLE = "tablelink"
UNCHANGED = ("base", "mocap")
"""Bodies that keep their look, with all that hangs on them: the robot. So do goal markers."""

DEFAULT_RGBA = np.array([0.5, 0.5, 0.5, 1.0], np.float32)
"""A geom of this colour takes the colour of its material."""


def jittered(cameras: Mapping[str, Camera], rng: np.random.Generator) -> dict[str, Camera]:
    """The same cameras, moved a little: 3 cm, 6 % of the distance, 4 degrees each way."""
    return {
        name: replace(
            camera,
            lookat=tuple(np.array(camera.lookat) + rng.uniform(-0.03, 0.03, 3)),
            distance=camera.distance * rng.uniform(0.94, 1.06),
            azimuth=camera.azimuth + rng.uniform(-4, 4),
            elevation=camera.elevation + rng.uniform(-4, 4),
        )
        for name, camera in cameras.items()
    }


def randomize(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Change the lights of `model`, and the colours of its table and objects. In place: give it a copy.

    Every light turns by up to about 30 degrees and takes a colour of its own. An object's colour is blended
    half and half with a random one, so that it stays recognisable; textures stay, tinted.
    """
    turned = model.light_dir + rng.uniform(-0.6, 0.6, model.light_dir.shape)
    model.light_dir[:] = turned / np.linalg.norm(turned, axis=1, keepdims=True)
    model.light_diffuse[:] = rng.uniform(0.15, 0.5, model.light_diffuse.shape)
    model.vis.headlight.ambient[:] = rng.uniform(0.25, 0.5, 3)

    root = model.body_rootid
    kept = np.isin([model.body(i).name for i in root], UNCHANGED)[model.geom_bodyid]
    table = np.array([model.body(i).name == TABLE for i in root])[model.geom_bodyid]
    rgba = _colours(model)
    rgba[table, :3] *= rng.uniform(0.5, 1.0, 3)
    for body in range(model.nbody):
        part: Bool[np.ndarray, "G"] = (model.geom_bodyid == body) & ~kept & ~table
        rgba[part, :3] = (rgba[part, :3] + rng.uniform(0, 1, 3)) / 2
    # Exactly MuJoCo's default colour would mean "as the material", but a random blend never is that.
    model.geom_rgba[~kept] = rgba[~kept]


def _colours(model: mujoco.MjModel) -> Float[np.ndarray, "G 4"]:
    """The colour each of the G geoms is drawn in: its own, or its material's where it has the default."""
    by_material = (model.geom_matid >= 0) & (model.geom_rgba == DEFAULT_RGBA).all(1)
    colours: Float[np.ndarray, "G 4"] = model.geom_rgba.copy()
    colours[by_material] = model.mat_rgba[model.geom_matid[by_material]]
    return colours
