"""Worker processes that simulate: each holds its own simulators and answers messages of the parent.

A worker that raises hands its traceback to the parent, which raises it and ends all the others. A worker ends
when the parent does, however the parent ended, since its pipe closes. Everything that passes through a pipe
was made by this program itself.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

from actwam.sim.render import use_headless_rendering

SINGLE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""One process per core, so one thread per process. Libraries read these once, when they are imported."""
PATIENCE = 5.0
"""Seconds that a worker may take to end by itself before it is killed."""


@runtime_checkable
class Servant(Protocol):
    """What lives in a worker process."""

    def answer(self, message: Any) -> Any:
        """The reply to one message of the parent."""

    def close(self) -> None:
        """Free what it holds. Called also after an exception."""


class WorkerError(RuntimeError):
    """A worker raised, or its process died. The message holds the worker's traceback."""


class Workers:
    """`count` processes with one servant each, made there by `make_servant(*args)`. Use it in a `with` block.

    Leaving the block ends every process; after an exception, at once. Ctrl-C reaches only the parent.
    `make_servant` must be a class or function at the top of a module, as "spawn" requires.
    """

    def __init__(self, count: int, make_servant: Callable[..., Servant], *args: Any) -> None:
        if count < 1:
            raise ValueError(f"{count} workers: at least 1 is needed")
        self._count, self._make, self._args = count, make_servant, args

    def __enter__(self) -> Workers:
        use_headless_rendering()
        spawn = get_context("spawn")
        pairs = [spawn.Pipe() for _ in range(self._count)]
        self._pipes: list[Connection] = [parent for parent, _ in pairs]
        self._processes = [
            spawn.Process(target=_serve, args=(child, self._make, self._args), daemon=True) for _, child in pairs
        ]
        with _environment(SINGLE_THREAD):
            for process in self._processes:
                process.start()
        for _, child in pairs:
            child.close()
        return self

    def __len__(self) -> int:
        return self._count

    def send(self, worker: int, message: Any) -> None:
        """Raises WorkerError if the worker is gone."""
        try:
            self._pipes[worker].send(message)
        except (BrokenPipeError, ConnectionResetError):
            self.receive(worker)  # its last words, if it had any
            raise WorkerError(f"worker {worker} is gone") from None

    def receive(self, worker: int) -> Any:
        """Wait for the reply of one worker. Raises WorkerError with its traceback if it raised or died."""
        try:
            ok, reply = self._pipes[worker].recv()
        except (EOFError, ConnectionResetError):
            process = self._processes[worker]
            process.join(PATIENCE)
            raise WorkerError(f"worker {worker} died with exit code {process.exitcode}") from None
        if not ok:
            raise WorkerError(f"worker {worker} failed:\n{reply}")
        return reply

    def ready(self) -> list[int]:
        """Wait until a worker has replied or died, and return all of those, in order."""
        readable = set(wait(self._pipes))
        return [worker for worker, pipe in enumerate(self._pipes) if pipe in readable]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            if error is not None:
                process.terminate()
            process.join(PATIENCE)
            if process.is_alive():
                process.kill()
                process.join()


def _serve(pipe: Connection, make_servant: Callable[..., Servant], args: tuple[Any, ...]) -> None:
    """The life of a worker: answer until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    try:
        servant = make_servant(*args)
        try:
            while True:
                pipe.send((True, servant.answer(pipe.recv())))
        finally:
            servant.close()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is done, or gone
    except Exception:  # noqa: BLE001 - whatever it is, the parent raises it
        _last_words(pipe, traceback.format_exc())


def _last_words(pipe: Connection, text: str) -> None:
    try:
        pipe.send((False, text))
    except (BrokenPipeError, ConnectionResetError):
        sys.stderr.write(text)


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set environment variables for the processes started inside the block."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
