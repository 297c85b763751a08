"""Which OpenGL library MuJoCo is told to use."""

from __future__ import annotations

import os
import sys

import pytest

from actwam.sim import render
from actwam.sim.render import use_headless_rendering

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has a choice")


@pytest.fixture(autouse=True)
def fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """No choice made, MuJoCo not imported; what a test sets is undone."""
    monkeypatch.setenv("MUJOCO_GL", "")
    monkeypatch.delenv("MUJOCO_GL")
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)


def test_egl_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "egl_devices", lambda: 1)
    assert use_headless_rendering() == os.environ["MUJOCO_GL"] == "egl"


def test_osmesa_comes_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "egl_devices", lambda: 0)
    monkeypatch.setattr(render, "OSMESA_LIBRARIES", ("libmissing.so", "libm.so.6"))
    assert use_headless_rendering() == os.environ["MUJOCO_GL"] == "osmesa"


def test_without_a_library_the_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "egl_devices", lambda: 0)
    monkeypatch.setattr(render, "OSMESA_LIBRARIES", ())
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}" if name == "dnf" else None)
    with pytest.raises(ValueError, match="without a screen: sudo dnf install mesa-libEGL"):
        use_headless_rendering()
    assert "MUJOCO_GL" not in os.environ


def test_a_choice_already_made_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "glfw")
    assert use_headless_rendering() == "glfw"


def test_a_choice_after_the_import_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", sys)
    with pytest.raises(ValueError, match="already imported"):
        use_headless_rendering()


def test_a_missing_egl_has_no_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(render, "_load", lambda name: None)
    assert render.egl_devices() == 0
