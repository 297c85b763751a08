"""A folder that appears whole or not at all."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
def made_once(folder: Path) -> Iterator[Path | None]:
    """Yield `<folder>.partial`, empty, and rename it to `folder` at the end of the block; or None when `folder` exists.

    A process that comes while another one writes waits for it. An exception in the block removes what was written.
    """
    if folder.exists():
        yield None
        return
    partial = folder.with_name(folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    with locked(partial, wait=True):
        if folder.exists():  # it was renamed meanwhile
            yield None
            return
        partial.mkdir(exist_ok=True)  # who wrote before has failed and removed it
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
    ends.
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
            raise ValueError(f"{folder}: another process is writing it now; wait for it or stop it") from error
        yield
    finally:
        os.close(handle)


def _clear(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
