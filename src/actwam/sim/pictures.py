"""Drawing a MuJoCo scene from several free cameras, quickly and exactly.

The software renderer spends its time on the vertices of meshes, most of them in the robot's arm and mostly
outside the picture. So a camera is given only the geoms whose bounding box touches its view: the picture is the
same to the bit. Shadows, reflections and multisampling are off.
"""

from __future__ import annotations

import atexit
from collections.abc import Mapping
from dataclasses import dataclass

import mujoco
import numpy as np
from jaxtyping import Bool, Float, UInt8

HIDDEN_GROUP = 5
"""A geom group that MuJoCo's default options do not draw."""


@dataclass(frozen=True)
class Camera:
    """A free camera, always upright. Lengths in metres, angles in degrees.

    It looks at `lookat` from `distance`, in the compass direction `azimuth` (0 looks along +x, 90 along +y), and
    up by `elevation` (negative looks down).
    """

    lookat: tuple[float, float, float]
    distance: float
    azimuth: float
    elevation: float

    def position(self) -> Float[np.ndarray, "3"]:
        return np.array(self.lookat) - self.distance * self.axes()[0]

    def axes(self) -> Float[np.ndarray, "3 3"]:
        """Unit vectors of the camera, as rows: forward, right, up."""
        azimuth, elevation = np.deg2rad((self.azimuth, self.elevation))
        forward = np.array(
            [np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)]
        )
        right = np.array([np.sin(azimuth), -np.cos(azimuth), 0.0])
        return np.stack([forward, right, np.cross(right, forward)])


class SceneRenderer:
    """An OpenGL context that holds the meshes and textures of one model. `close` it, or use it in a `with` block.

    It draws that model and any copy of it whose meshes and textures are the same. A renderer that is still open
    when the interpreter exits is closed before MuJoCo ends OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, image_size: tuple[int, int], n_views: int) -> None:
        """`image_size` is height and width in pixels; `n_views` is the most cameras of one `draw`.

        Sets the model's multisampling to 0 and its offscreen buffer to the size needed.
        """
        self.image_size = image_size
        height, width = image_size
        model.vis.quality.offsamples = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = height * n_views, width
        self._gl = mujoco.GLContext(width, height * n_views)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._open = True
        atexit.register(self.close)

    def draw(
        self, model: mujoco.MjModel, data: mujoco.MjData, cameras: Mapping[str, Camera]
    ) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
        """One picture per camera, by the camera's name. The views are drawn into one buffer and read back once."""
        if not self._open:
            raise ValueError("this renderer is closed: make a new one")
        height, width = self.image_size
        self._gl.make_current()
        groups = model.geom_group.copy()
        for row, camera in enumerate(cameras.values()):
            model.geom_group[~_in_view(model, data, camera, width / height)] = HIDDEN_GROUP
            mujoco.mjv_updateScene(
                model, data, self._option, None, _free_camera(camera), mujoco.mjtCatBit.mjCAT_ALL, self._scene
            )
            model.geom_group[:] = groups
            mujoco.mjr_render(mujoco.MjrRect(0, row * height, width, height), self._scene, self._context)
        pixels = np.empty((len(cameras) * height, width, 3), np.uint8)
        mujoco.mjr_readPixels(pixels, None, mujoco.MjrRect(0, 0, width, len(pixels)), self._context)
        views = pixels.reshape(len(cameras), height, width, 3)[:, ::-1]
        return {name: view.copy() for name, view in zip(cameras, views, strict=True)}

    def close(self) -> None:
        """Free the OpenGL context. A second call does nothing."""
        if self._open:
            self._open = False
            self._gl.make_current()
            self._context.free()
            self._gl.free()
            atexit.unregister(self.close)

    def __enter__(self) -> SceneRenderer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_camera(camera: Camera) -> mujoco.MjvCamera:
    free = mujoco.MjvCamera()
    free.type = mujoco.mjtCamera.mjCAMERA_FREE
    free.lookat[:] = camera.lookat
    free.distance, free.azimuth, free.elevation = camera.distance, camera.azimuth, camera.elevation
    return free


def _in_view(
    model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, aspect: float
) -> Bool[np.ndarray, "G"]:
    """Which of the G geoms may be seen: those whose bounding box is not wholly behind one side of the view's pyramid.

    A plane is endless, has no box, and is always drawn.
    """
    forward, right, up = camera.axes()
    half = np.deg2rad(model.vis.global_.fovy) / 2
    half_wide = np.arctan(np.tan(half) * aspect)
    inward = np.stack(
        [
            forward,
            np.sin(half) * forward + np.cos(half) * up,
            np.sin(half) * forward - np.cos(half) * up,
            np.sin(half_wide) * forward + np.cos(half_wide) * right,
            np.sin(half_wide) * forward - np.cos(half_wide) * right,
        ]
    )
    centre, size = model.geom_aabb[:, :3], model.geom_aabb[:, 3:]
    rotation = data.geom_xmat.reshape(-1, 3, 3)
    position = data.geom_xpos + np.einsum("gij,gj->gi", rotation, centre) - camera.position()
    # The box's corner farthest inside: its centre's depth plus the reach of its half sides along the normal.
    reach = np.abs(inward @ rotation) @ size[:, :, None]
    touches: Bool[np.ndarray, "G"] = (position @ inward.T + reach[:, :, 0] > 0).all(1)
    return touches | (model.geom_type == mujoco.mjtGeom.mjGEOM_PLANE)
