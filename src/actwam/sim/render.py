"""Rendering without a screen: which OpenGL library MuJoCo uses, chosen before MuJoCo is imported.

MuJoCo reads the environment variable `MUJOCO_GL` once, at import. A wrong value shows as a crash much later,
so every process that simulates calls `use_headless_rendering` first, also the children of a process pool.
`actwam doctor` tells whether the choice really draws pictures.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys

APT_PACKAGES = ("libegl1", "libgl1", "libgl1-mesa-dri")
INSTALL_COMMANDS = {
    "apt-get": f"sudo apt-get install {' '.join(APT_PACKAGES)}",
    "dnf": "sudo dnf install mesa-libEGL mesa-libGL mesa-dri-drivers",
    "pacman": "sudo pacman -S mesa",
    "zypper": "sudo zypper install Mesa-libEGL1 Mesa-libGL1 Mesa-dri",
}
OSMESA_LIBRARIES = ("libOSMesa.so.8", "libOSMesa.so.6", "libOSMesa.so")


def use_headless_rendering() -> str:
    """Set `MUJOCO_GL` for this process and its children, unless it is set, and return its value.

    On Linux this is "egl" (a graphics card, or Mesa's software renderer), else "osmesa". Elsewhere MuJoCo has
    one backend of its own that needs no choice, and the value is "". Takes a few milliseconds.

    Raises ValueError when neither library is installed, and when MuJoCo was imported before the choice.
    """
    if "MUJOCO_GL" in os.environ or sys.platform != "linux":
        return os.environ.get("MUJOCO_GL", "")
    if "mujoco" in sys.modules:
        raise ValueError("mujoco is already imported: call use_headless_rendering before, or set MUJOCO_GL")
    if egl_devices() > 0:
        backend = "egl"
    elif osmesa_is_installed():
        backend = "osmesa"
    else:
        raise ValueError(f"no library to render without a screen: {install_command()}")
    os.environ["MUJOCO_GL"] = backend
    return backend


def egl_devices() -> int:
    """How many devices EGL can render on, software renderers included; 0 where EGL is not installed."""
    library = _load("libEGL.so.1")
    if library is None:
        return 0
    library.eglGetProcAddress.restype = ctypes.c_void_p
    address = library.eglGetProcAddress(b"eglQueryDevicesEXT")
    if not address:
        return 0
    query = ctypes.CFUNCTYPE(ctypes.c_uint, ctypes.c_int, ctypes.c_void_p, ctypes.POINTER(ctypes.c_int))(address)
    count = ctypes.c_int(0)
    return count.value if query(0, None, ctypes.byref(count)) else 0


def osmesa_is_installed() -> bool:
    """Whether Mesa's off-screen library, which newer distributions no longer have, can be loaded."""
    return any(_load(name) for name in OSMESA_LIBRARIES)


def install_command() -> str:
    """The command that installs software rendering on this machine, for a person to type."""
    for manager, command in INSTALL_COMMANDS.items():
        if shutil.which(manager):
            return command
    return "install Mesa's EGL library (libEGL.so.1 and its software driver)"


def _load(name: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(name)
    except OSError:
        return None
