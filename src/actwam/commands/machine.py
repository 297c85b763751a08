"""The machine and the whole way on it: `demo`, `report`, `doctor`."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from actwam.commands.options import Json
from actwam.console import progress_bars


def demo(*, out: Path = Path("runs/demo"), smoke: bool = False) -> int:
    """The whole way on this machine: collect, check, train in three stages, evaluate, imagine, report.

    A second call reuses what is finished.

    Args:
        out: Folder for everything, report.html among it.
        smoke: A few episodes and steps: shows that everything works, not that anything was learned.
    """
    from actwam.demo import DEMO, SMOKE, run_demo

    with progress_bars() as progress:
        page = run_demo(out, SMOKE if smoke else DEMO, progress)
    print(page)
    return 0


def report(folder: Positional[Path]) -> int:
    """Write report.html from the results in a demo's folder.

    Args:
        folder: What `actwam demo` wrote.
    """
    from actwam.report.page import write_report

    print(write_report(folder))
    return 0


def doctor(*, fix: bool = False, as_json: Json = False) -> int:
    """Find out whether this machine can train, simulate and render, and say how to mend what it lacks.

    Args:
        fix: Install missing system libraries where that is possible.
        as_json: Print the findings as JSON.
    """
    from actwam.doctor import run_doctor

    return run_doctor(fix=fix, as_json=as_json)
