"""The doctor finds what works, names what does not, and mends only what it may."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from actwam import doctor
from actwam.doctor import Check
from actwam.sim import render

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="EGL, OSMesa and apt-get are of Linux")


@pytest.fixture(autouse=True)
def no_choice_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MUJOCO_GL", raising=False)


@pytest.fixture
def apt_get(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Path]:
    """Puts an apt-get that notes its arguments and exits with the given code in place of the real one."""

    def make(code: int) -> Path:
        log = tmp_path / "apt.log"
        script = tmp_path / "apt-get"
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\necho "E: no such package" >&2\nexit {code}\n')
        script.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        monkeypatch.setattr("os.geteuid", lambda: 0)
        return log

    return make


def rendering(ok: bool) -> list[Check]:
    return [
        Check("disk", True, "free"),
        Check("rendering by egl", ok, "detail", "" if ok else "install [egl]"),
    ]


def test_this_machine_is_fit(tmp_path: Path) -> None:
    checks = doctor.diagnose(tmp_path)
    assert [check.name for check in checks if check.needed and not check.ok] == []
    assert {"python", "torch", "video", "simulator", "disk"} < {check.name for check in checks}
    assert any(check.ok for check in checks if check.name.startswith("rendering by"))
    assert "mujoco 3" in next(check.detail for check in checks if check.name == "simulator")


@LINUX
def test_without_any_backend_one_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("__EGL_VENDOR_LIBRARY_FILENAMES", "/nonexistent")
    monkeypatch.setattr(doctor, "rendering_candidates", lambda: ("egl",))
    (check,) = doctor.check_rendering()
    assert (check.ok, check.needed) == (False, True)
    assert "EGL" in check.detail
    assert check.fix == render.install_command()
    with pytest.raises(ValueError, match="cannot render without a screen"):
        doctor.rendering_backend()


def test_one_working_backend_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "rendering_candidates", lambda: ("broken", "good"))
    monkeypatch.setattr(doctor, "try_rendering", lambda backend: (backend == "good", backend))
    broken, good = doctor.check_rendering()
    assert (broken.ok, broken.needed, broken.fix) == (False, False, "")
    assert (good.ok, good.needed) == (True, True)
    assert doctor.rendering_backend() == "good"


def test_the_users_own_choice_is_tried_alone_and_named_when_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUJOCO_GL", "crayon")
    (check,) = doctor.check_rendering()
    assert not check.ok
    assert "crayon" in check.detail
    assert "unset MUJOCO_GL" in check.fix


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        ("import os; os.abort()", "crashed with SIGABRT"),
        ("raise ValueError('three')", "ValueError: three"),
        ("import sys; sys.exit(3)", "no message"),
        ("import time; time.sleep(60)", "no answer"),
    ],
)
def test_a_probe_that_fails_says_why(monkeypatch: pytest.MonkeyPatch, source: str, detail: str) -> None:
    monkeypatch.setattr(doctor, "PROBE_SECONDS", 1)
    ok, found = doctor.run_probe(source, "")
    assert not ok
    assert detail in found


def test_a_probe_gets_its_own_backend_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYOPENGL_PLATFORM", "egl")
    source = "import os; print(os.environ['MUJOCO_GL'], 'PYOPENGL_PLATFORM' in os.environ)"
    assert doctor.run_probe(source, "osmesa") == (True, "osmesa False")


@pytest.mark.parametrize(("module", "check"), [("torch", doctor.check_torch), ("av", doctor.check_video)])
def test_a_missing_package(monkeypatch: pytest.MonkeyPatch, module: str, check: Callable[[], Check]) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    assert not check().ok
    assert f"constraints.txt {module}" in check().fix


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No such file" in doctor.check_disk(tmp_path / "missing").detail
    monkeypatch.setattr(doctor, "MINIMUM_FREE_GB", 1e9)
    assert not doctor.check_disk(tmp_path).ok


@LINUX
def test_installing_needs_root(monkeypatch: pytest.MonkeyPatch, apt_get: Callable[[int], Path]) -> None:
    log = apt_get(0)
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(ValueError, match="sudo apt-get install libegl1"):
        doctor.install_rendering()
    assert not log.exists()


@LINUX
def test_installing_updates_the_list_first(apt_get: Callable[[int], Path]) -> None:
    log = apt_get(0)
    doctor.install_rendering()
    update, install = log.read_text().splitlines()
    assert update.split()[-1] == "update"
    assert install.endswith(" ".join(render.APT_PACKAGES))


@LINUX
def test_installing_that_fails_says_what_apt_said(apt_get: Callable[[int], Path]) -> None:
    apt_get(100)
    with pytest.raises(ValueError, match=r"update failed \(E: no such package\): sudo apt-get install"):
        doctor.install_rendering()


def test_fix_installs_and_looks_again(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = iter([rendering(False), rendering(True)])
    monkeypatch.setattr(doctor, "diagnose", lambda folder: next(found))
    monkeypatch.setattr(doctor, "install_rendering", lambda: None)
    assert doctor.run_doctor(fix=True, as_json=True) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_fix_that_cannot_install_says_so_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise ValueError("not root: type [this]")

    monkeypatch.setattr(doctor, "diagnose", lambda folder: rendering(False))
    monkeypatch.setattr(doctor, "install_rendering", refuse)
    assert doctor.run_doctor(fix=True, as_json=False) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "to do: not root: type [this]"


@pytest.mark.parametrize("name", ["rendering by glfw", "torch"])
def test_fix_installs_nothing_for_another_trouble(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda folder: [Check(name, False, "detail", "fix")])
    monkeypatch.setattr(doctor, "install_rendering", lambda: pytest.fail("installed"))
    assert doctor.run_doctor(fix=True, as_json=True) == 1


def test_a_check_that_is_not_needed_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "diagnose", lambda folder: [Check("rendering by osmesa", False, "", "", False)])
    assert doctor.run_doctor(fix=True, as_json=False) == 0
