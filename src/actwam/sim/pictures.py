"""Drawing a MuJoCo scene from several free cameras, quickly.

A software renderer spends its time on the vertices of meshes, most of them in the robot's arm. Two things
save vertices: a camera is given only the geoms whose bounding box touches its view, which leaves the picture
the same to the bit; and very fine meshes are drawn without detail smaller than about a pixel. Shadows,
reflections and multisampling are off. All cameras draw into one buffer that is read back once.
"""

from __future__ import annotations

import atexit
import copy
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt8

from actwam.sim.render import use_headless_rendering

use_headless_rendering()

import mujoco  # noqa: E402

FINE_MESH = 2000
"""Meshes of more faces than this are thinned for drawing: the robot's links, and no object."""
PIXEL = 0.8
"""What a picture's height shows in metres at one metre, about. Divided by its pixels: the size of a pixel."""
EVERYTHING = mujoco.mjtCatBit.mjCAT_ALL.value
HIDDEN_GROUP = 5
"""A geom group that MuJoCo's default options do not draw."""


@dataclass(frozen=True)
class Camera:
    """A free camera, always upright. Lengths in metres, angles in degrees.

    It looks at `lookat` from `distance`, in the compass direction `azimuth` (0 looks along +x, 90 along +y),
    and up by `elevation` (negative looks down).
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
    """An OpenGL context with the meshes and textures of one model, for that model and its copies.

    `close` it, or use it in a `with` block. A renderer that is still open when the interpreter exits is
    closed before MuJoCo ends OpenGL.
    """

    def __init__(self, model: mujoco.MjModel, image_size: tuple[int, int], n_views: int) -> None:
        """`image_size` is height and width in pixels; `n_views` is the most cameras of one `draw`."""
        self.image_size = image_size
        height, width = image_size
        model = _thinned(model, PIXEL / height)
        model.vis.quality.offsamples = 0
        model.vis.global_.offheight, model.vis.global_.offwidth = height * n_views, width
        self._gl = mujoco.GLContext(width, height * n_views)
        self._gl.make_current()
        self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_50.value)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN.value, self._context)
        self._scene = mujoco.MjvScene(model, maxgeom=1000)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._scene.flags[flag] = False
        self._option = mujoco.MjvOption()
        self._open = True
        atexit.register(self.close)

    def draw(
        self, model: mujoco.MjModel, data: mujoco.MjData, cameras: Mapping[str, Camera]
    ) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
        """One picture per camera, by the camera's name."""
        if not self._open:
            raise ValueError("this renderer is closed: make a new one")
        height, width = self.image_size
        self._gl.make_current()
        groups = model.geom_group.copy()
        for row, camera in enumerate(cameras.values()):
            model.geom_group[~_in_view(model, data, camera, width / height)] = HIDDEN_GROUP
            mujoco.mjv_updateScene(
                model,
                data,
                self._option,
                None,
                _free_camera(camera),
                EVERYTHING,
                self._scene,
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


def _thinned(model: mujoco.MjModel, cell: float) -> mujoco.MjModel:
    """A copy for drawing: in fine meshes, the vertices in a cube of side `cell` (metres) become one."""
    model = copy.copy(model)
    for mesh in np.flatnonzero(model.mesh_facenum > FINE_MESH):
        vertex, face = model.mesh_vertadr[mesh], model.mesh_faceadr[mesh]
        faces = slice(face, face + model.mesh_facenum[mesh])
        cubes = np.floor(model.mesh_vert[vertex : vertex + model.mesh_vertnum[mesh]] / cell).astype(int)
        _, first, cube = np.unique(cubes, axis=0, return_index=True, return_inverse=True)
        corners = first[cube.ravel()][model.mesh_face[faces]]
        kept = (corners != np.roll(corners, 1, axis=1)).all(1)
        rest = slice(face, face + int(kept.sum()))
        model.mesh_facenormal[rest] = model.mesh_facenormal[faces][kept]
        model.mesh_facetexcoord[rest] = model.mesh_facetexcoord[faces][kept]
        model.mesh_face[rest] = corners[kept]
        model.mesh_facenum[mesh] = kept.sum()
    return model


def _in_view(model: mujoco.MjModel, data: mujoco.MjData, camera: Camera, aspect: float) -> Bool[np.ndarray, "G"]:
    """Which of the G geoms may be seen: the boxes of all others lie outside the pyramid of the view.

    A box is out when all of it is behind one side of the pyramid. A plane is endless and always in.
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
