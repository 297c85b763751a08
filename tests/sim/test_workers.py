"""A worker's error reaches the parent, and no process is left behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from actwam.sim.workers import WorkerError, Workers


class Servant:
    """Answers with what it is asked for; writes a file when it is closed."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def answer(self, message: Any) -> Any:
        if message == "raise":
            raise KeyError("on purpose")
        if message == "die":
            os._exit(7)
        if message == "sleep":
            time.sleep(600)
        return os.getpid() if message == "pid" else os.environ.get(message)

    def close(self) -> None:
        (self.folder / f"closed-{os.getpid()}").touch()


def test_replies_limits_and_a_clean_end(tmp_path: Path) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    with Workers(2, Servant, str(tmp_path)) as workers:
        for worker in range(2):
            workers.send(worker, "OMP_NUM_THREADS")
        assert [workers.receive(worker) for worker in range(2)] == ["1", "1"]
        workers.send(1, "pid")
        assert workers.ready() == [1]
        assert workers.receive(1) != os.getpid()
    assert os.environ.get("OMP_NUM_THREADS") == before
    assert len(list(tmp_path.glob("closed-*"))) == 2
    assert not multiprocessing.active_children()


def test_a_workers_traceback_surfaces_and_the_others_are_stopped(tmp_path: Path) -> None:
    def work() -> None:
        with Workers(2, Servant, str(tmp_path)) as workers:
            workers.send(1, "sleep")
            workers.send(0, "raise")
            assert workers.ready() == [0]
            workers.receive(0)

    with pytest.raises(WorkerError, match=r"(?s)worker 0 failed:\nTraceback.*KeyError: 'on purpose'"):
        work()
    assert not multiprocessing.active_children()
    assert len(list(tmp_path.glob("closed-*"))) == 1  # the one that raised


def test_a_worker_that_dies_is_named(tmp_path: Path) -> None:
    with Workers(1, Servant, str(tmp_path)) as workers:
        workers.send(0, "die")
        with pytest.raises(WorkerError, match="worker 0 died with exit code 7"):
            workers.receive(0)


PARENT = """
import sys
sys.path.insert(0, "tests/sim")
from test_workers import *

if __name__ == "__main__":
    with Workers(2, Servant, sys.argv[1]) as workers:
        for worker in range(2):
            workers.send(worker, "pid")
        print(*[workers.receive(worker) for worker in range(2)], flush=True)
        if sys.argv[2] == "busy":
            workers.send(0, "sleep")
        workers.receive(0)
"""


@pytest.mark.parametrize(("how", "workers"), [(signal.SIGINT, "busy"), (signal.SIGKILL, "idle")])
def test_no_worker_outlives_its_parent(tmp_path: Path, how: signal.Signals, workers: str) -> None:
    """SIGINT goes to the whole group, as Ctrl-C in a terminal does, SIGKILL to the parent alone."""
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    parent = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path), workers],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A shell's background jobs ignore SIGINT, and would pass that on: the test may run in one.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert parent.stdout is not None
    pids = parent.stdout.readline().split()
    assert len(pids) == 2
    if how is signal.SIGINT:
        os.killpg(parent.pid, how)
    else:
        parent.send_signal(how)
    _, errors = parent.communicate(timeout=60)  # returns when the last process that could write is gone
    deadline = time.monotonic() + 30
    while (left := [pid for pid in pids if Path("/proc", pid).exists()]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
    if how is signal.SIGINT:
        assert errors.splitlines()[-1] == "KeyboardInterrupt"
        assert errors.count("Traceback") == 1
