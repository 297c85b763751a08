"""A folder that appears whole or not at all, and work that processes share by making such folders."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

Job = tuple[Path, Callable[[Path], None]]
"""A folder, and what makes it: called with an empty one that will have its name."""


class Busy(ValueError):
    """Another process writes the folder at this moment."""


def share(jobs: Sequence[Job]) -> None:
    """Have all folders made, each by the function beside it, by this process and whoever else does the same now: each
    takes the first that nobody has taken. What is there already is left alone, so work that was killed goes on.

    Returns when all are there: what others are making last is waited for, and taken over if they fail. Processes on
    several machines must see one file system that locks files for all of them, as NFS and Lustre can.
    """
    for wait in (False, True):
        for folder, make in jobs:
            with suppress(Busy), made_once(folder, wait=wait) as partial:
                if partial is not None:
                    make(partial)


@contextmanager
def partial_folder(folder: Path) -> Iterator[Path]:
    """Yield `<folder>.partial`, empty, and rename it to `folder` at the end of the block.

    An exception in the block removes it. A lock tells what a killed process left behind, which is cleared,
    from what another process is writing at this moment. Raises ValueError if `folder` exists or is being
    written.
    """
    if folder.exists():
        raise ValueError(f"{folder}: exists already; choose another folder or delete this one")
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial):
        _clear(partial)
        try:
            yield partial
            if folder.exists():
                raise ValueError(f"{folder}: was written by somebody else meanwhile; this copy is dropped")
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def made_once(folder: Path, *, wait: bool = True) -> Iterator[Path | None]:
    """Yield `<folder>.partial`, empty, and rename it to `folder` at the end of the block; or None when `folder` exists.

    A process that comes while another one writes waits for it, or raises Busy. An exception in the block removes what
    was written.
    """
    partial = folder.with_name(folder.name + ".partial")
    with ExitStack() as held:
        while not folder.exists():
            with suppress(FileExistsError):
                partial.mkdir(parents=True)
            with suppress(FileNotFoundError):  # renamed or removed before it could be locked
                held.enter_context(locked(partial, wait=wait))
                break
        if folder.exists():
            yield None
            return
        _clear(partial)
        try:
            yield partial
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def locked(folder: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the folder for this process, when others leave it if `wait`. The system releases it however the process
    ends. Raises Busy when another one holds it, FileNotFoundError when it is gone once they have left it.
    """
    if sys.platform == "win32":  # an open file cannot be deleted there, so clearing fails on its own
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(f"{folder}: another process is writing it now; wait for it or stop it") from error
        if not os.path.samestat(os.fstat(handle), os.stat(folder)):
            raise FileNotFoundError(f"{folder}: is another folder now")
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
