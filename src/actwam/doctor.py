"""What this machine can do: versions, CPU, video, the simulator, rendering without a screen, disk.

Everything that could crash, or that is decided once in the life of a process (MuJoCo's OpenGL library), is
tried in a child process. `fix` installs what ActWAM needs and pip cannot bring: software rendering.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from actwam.sim.render import APT_PACKAGES, install_command

MINIMUM_PYTHON = (3, 11)
MINIMUM_FREE_GB = 3.0
"""What the demo's datasets, caches and checkpoints take, with room to spare."""
PROBE_SECONDS = 120
BF16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")

SIMULATOR_PROBE = """
import metaworld, mujoco
from importlib.metadata import version
print(f"metaworld {version('metaworld')}, mujoco {mujoco.__version__}")
"""
RENDERING_PROBE = """
import os, sys
from actwam.sim.render import egl_devices, osmesa_is_installed
if os.environ.get("MUJOCO_GL") == "egl" and egl_devices() == 0:
    sys.exit("libEGL or its driver is not installed")
if os.environ.get("MUJOCO_GL") == "osmesa" and not osmesa_is_installed():
    sys.exit("libOSMesa is not installed")
sys.unraisablehook = lambda _: None  # a renderer that failed complains once more when it is deleted
import mujoco
from OpenGL import GL
scene = "<light pos='0 0 3'/><geom type='box' size='1 1 .1' rgba='1 0 0 1'/>"
model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{scene}</worldbody></mujoco>")
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
renderer = mujoco.Renderer(model, 48, 64)
renderer.update_scene(data)
picture = renderer.render()
name = GL.glGetString(GL.GL_RENDERER).decode()
renderer.close()
if picture.std() < 1:
    sys.exit(f"{name} draws a blank picture")
print(name)
"""


@dataclass(frozen=True)
class Check:
    """One finding. `fix` says in one line what to do, and is "" where nothing is to be done.

    `needed` is False where a failure does no harm, as of OSMesa on a machine where EGL works.
    """

    name: str
    ok: bool
    detail: str
    fix: str = ""
    needed: bool = True


def diagnose(folder: Path = Path(".")) -> list[Check]:
    """All checks of this machine, in the order to read them. `folder` is where runs will be written.

    Takes some seconds: the simulator is imported and pictures are rendered in child processes.
    """
    simulator = check_simulator()
    rendering = check_rendering() if simulator.ok else []
    return [check_python(), check_torch(), check_video(), simulator, *rendering, check_disk(folder)]


def check_python() -> Check:
    ok = sys.version_info >= MINIMUM_PYTHON
    fix = "" if ok else f"use Python {'.'.join(map(str, MINIMUM_PYTHON))} or newer"
    return Check("python", ok, f"{platform.python_version()}, {sys.executable}", fix)


def check_torch() -> Check:
    """Version, threads, and what makes it fast: CUDA, or vector instructions with bfloat16."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Check("torch", False, _last_line(str(error)), "pip install -c constraints.txt torch")
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    detail = [
        torch.__version__,
        f"{torch.get_num_threads()} threads",
        torch.backends.cpu.get_cpu_capability(),
        f"bf16 by {_bf16_flag() or 'emulation'}",
        ", ".join(devices) or "no CUDA device",
    ]
    return Check("torch", True, ", ".join(detail))


def check_video() -> Check:
    """Videos of datasets are H.264: PyAV must bring the encoder."""
    try:
        import av
    except (ImportError, OSError) as error:
        return Check("video", False, _last_line(str(error)), "pip install -c constraints.txt av")
    ok = "libx264" in av.codecs_available
    detail = f"PyAV {av.__version__}, {'with' if ok else 'without'} libx264"
    return Check("video", ok, detail, "" if ok else "pip install --force-reinstall --only-binary av av")


def check_simulator() -> Check:
    ok, detail = run_probe(SIMULATOR_PROBE, "disable")
    return Check("simulator", ok, detail, "" if ok else 'pip install -c constraints.txt -e ".[sim]"')


def check_rendering() -> list[Check]:
    """One check for each way to render without a screen; one that fails is a defect only if all do."""
    results = [(backend, *try_rendering(backend)) for backend in rendering_candidates()]
    works = any(ok for _, ok, _ in results)
    fix = "" if works else _rendering_fix()
    return [
        Check(f"rendering by {backend or 'the system'}", ok, detail, "" if ok else fix, needed=ok or not works)
        for backend, ok, detail in results
    ]


def check_disk(folder: Path) -> Check:
    """Room for a run, and the right to write it."""
    where = folder.resolve()
    try:
        with tempfile.NamedTemporaryFile(dir=where):
            free = shutil.disk_usage(where).free / 1e9
    except OSError as error:
        return Check("disk", False, f"{where}: {error.strerror}", "work in a folder that you may write")
    ok = free >= MINIMUM_FREE_GB
    return Check("disk", ok, f"{free:.0f} GB free in {where}", "" if ok else f"free {MINIMUM_FREE_GB:.0f} GB")


def rendering_candidates() -> tuple[str, ...]:
    """The values of `MUJOCO_GL` to try, best first. One that is set already is the user's choice."""
    if "MUJOCO_GL" in os.environ:
        return (os.environ["MUJOCO_GL"],)
    return ("egl", "osmesa") if sys.platform == "linux" else ("",)


def rendering_backend() -> str:
    """The first value of `MUJOCO_GL` that really draws here. Raises ValueError when none does."""
    failures = []
    for backend in rendering_candidates():
        ok, detail = try_rendering(backend)
        if ok:
            return backend
        failures.append(f"{backend or 'the system'}: {detail}")
    raise ValueError(f"MuJoCo cannot render without a screen ({'; '.join(failures)}): {_rendering_fix()}")


def try_rendering(backend: str) -> tuple[bool, str]:
    """Whether a picture drawn with this `MUJOCO_GL` shows something, and by which renderer, or why not."""
    return run_probe(RENDERING_PROBE, backend)


def install_rendering() -> None:
    """Install Mesa's software renderer by apt-get, as root.

    Raises ValueError, with the command to type, where that is not possible or does not succeed.
    """
    if not shutil.which("apt-get") or os.geteuid() != 0:
        raise ValueError(f"cannot install a system library here: {install_command()}")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for arguments in (["update"], ["install", "-y", "--no-install-recommends", *APT_PACKAGES]):
        done = subprocess.run(["apt-get", "-qq", *arguments], env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise ValueError(f"apt-get {arguments[0]} failed ({_last_line(done.stderr)}): {install_command()}")


def run_doctor(fix: bool, as_json: bool, folder: Path = Path(".")) -> int:
    """Print what `diagnose` finds, as a table or as JSON; with `fix`, install what is missing first.

    Returns the exit code: 0 when all that is needed works, else 1.
    """
    checks = diagnose(folder)
    if fix and any(check.name == "rendering by egl" and check.fix for check in checks):
        try:
            install_rendering()
            checks = diagnose(folder)
        except ValueError as error:
            trouble = str(error)
            checks = [replace(c, fix=trouble) if c.name.startswith("rendering") else c for c in checks]
    ok = all(check.ok or not check.needed for check in checks)
    if as_json:
        print(json.dumps({"ok": ok, "checks": [asdict(check) for check in checks]}, indent=2))
    else:
        _print_table(checks)
    return 0 if ok else 1


def _print_table(checks: list[Check]) -> None:
    console = Console(highlight=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in checks:
        mark = "[green]ok" if check.ok else "[red]no" if check.needed else "[dim]-"
        table.add_row(mark, check.name, escape(check.detail), style="" if check.ok or check.needed else "dim")
    console.print(table)
    for fix in dict.fromkeys(check.fix for check in checks if check.needed and check.fix):
        console.print(f"[red]to do:[/red] {escape(fix)}", soft_wrap=True)


def _rendering_fix() -> str:
    if "MUJOCO_GL" in os.environ:
        return f"unset MUJOCO_GL (it is {os.environ['MUJOCO_GL']!r}), or {install_command()}"
    return install_command()


def run_probe(source: str, backend: str) -> tuple[bool, str]:
    """Run `source` in a child process with this `MUJOCO_GL`: whether it succeeded, and its last words."""
    # MuJoCo leaves its choice in PYOPENGL_PLATFORM, and then refuses any other in the children.
    environment = {key: value for key, value in os.environ.items() if key not in ("MUJOCO_GL", "PYOPENGL_PLATFORM")}
    if backend:
        environment["MUJOCO_GL"] = backend
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", source],
            env=environment,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return False, f"no answer after {PROBE_SECONDS} s"
    if done.returncode < 0:
        return False, f"crashed with {signal.Signals(-done.returncode).name}"
    return done.returncode == 0, _last_line(done.stdout if done.returncode == 0 else done.stderr)


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1]


def _bf16_flag() -> str:
    """The CPU's instructions for bfloat16 products, "" when it has none or hides them."""
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text().split()) if cpuinfo.exists() else set()
    return next((flag for flag in BF16_FLAGS if flag in words), "")
