"""A folder that appears whole or not at all, and work that processes share by making such folders."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from uuid import uuid4

Job = tuple[Path, Callable[[Path], None]]
"""A folder, and what makes it: called with an empty one that will have its name."""


class Busy(ValueError):
    """Another process writes the folder at this moment."""


def share(jobs: Sequence[Job]) -> None:
    """Have all folders made, each by the function beside it, by this process and whoever else does the same now: each
    takes the first that nobody has taken. What is there already is left alone, so work that was killed goes on.

    Returns when all are there: what others are making last is waited for, and taken over if they fail. Processes on
    several machines must see one disk that locks files for all of them, as NFS, Lustre and CephFS do.
    """
    for wait in (False, True):
        for folder, make in jobs:
            with ExitStack() as stack:
                try:
                    partial = stack.enter_context(made_once(folder, wait=wait))
                except Busy:
                    continue
                if partial is not None:
                    make(partial)


@contextmanager
def made_once(folder: Path, *, wait: bool = True) -> Iterator[Path | None]:
    """Yield an empty folder and rename it to `folder` at the end of the block; or None when `folder` exists.

    A process that comes while another one writes waits for it, or raises Busy. An exception in the block removes what
    was written, and what a killed process left is removed by the next one: a file `<folder>.lock`, which is there while
    somebody writes, has its name. Names are never used again: on a disk whose locks do not hold, one of two that write
    fails, and what appears is whole.
    """
    lock = folder.with_name(folder.name + ".lock")
    with ExitStack() as held:
        while not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # whoever held it has removed it
                held.enter_context(locked(lock, wait=wait))
                held.callback(lock.unlink, missing_ok=True)
                break
        if folder.exists():
            yield None
            return
        if left := lock.read_text(encoding="utf-8"):
            _drop(folder.with_name(left))
        partial = folder.with_name(f"{folder.name}.{uuid4().hex}.partial")
        lock.write_text(partial.name, encoding="utf-8")
        partial.mkdir()
        try:
            yield partial
            for path in partial.rglob("*"):
                flush(path)
            try:
                partial.rename(folder)
            except OSError:
                if not folder.exists():
                    raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)


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
def locked(path: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold a folder, or a file, which is made, for this process, when others leave it if `wait`. The system releases it
    however the process ends. Between machines only files can be held.

    Raises Busy when another one holds it, FileNotFoundError when it is gone once they have left it, and ValueError on a
    disk that cannot lock.
    """
    if sys.platform == "win32":  # an open file cannot be deleted there, so clearing fails on its own
        path.touch()
        yield
        return
    import fcntl

    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError as error:
            raise Busy(f"{path}: another process is writing it now; wait for it or stop it") from error
        except OSError as error:
            raise ValueError(f"{path}: this disk does not lock files ({error}): choose another folder") from error
        if not os.path.samestat(os.fstat(handle), os.stat(path)):
            raise FileNotFoundError(f"{path}: is another one now")
        yield
    finally:
        os.close(handle)


def flush(path: Path) -> None:
    """Ask the disk to keep a file, or the entries of a folder, before anything relies on it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _drop(left: Path) -> None:
    """Remove a folder that a killed process left, if it is there, under another name: the system may remember the old
    one for what it was renamed to on another machine.
    """
    dropped = left.with_name(f"{left.stem}.{uuid4().hex}.dropped")
    with suppress(FileNotFoundError):
        left.rename(dropped)
        shutil.rmtree(dropped, ignore_errors=True)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
