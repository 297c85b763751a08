"""Where the video files of a dataset are: on this disk, or elsewhere until they are read (`hub`)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable


@runtime_checkable
class Shelf(Protocol):
    """Has the video files of one dataset. Paths are those that they have, or will have, on this disk."""

    @property
    def identity(self) -> str | None:
        """Names the content of all files of the dataset, so that they need not be read for it; None if nothing does."""

    def holds(self, path: Path) -> bool:
        """Whether the file is here or can be brought."""

    def bring(self, path: Path) -> None:
        """Have the file here. Raises ValueError when it cannot be brought; what `holds` denies is for its reader."""

    def in_turn(self, paths: Sequence[Path]) -> AbstractContextManager[Callable[[Path], None]]:
        """These files are going to be read in this order. Yields what is called with each that was read to its end."""


@dataclass(frozen=True)
class Here:
    """All files are on this disk."""

    identity: None = None

    def holds(self, path: Path) -> bool:
        return path.is_file()

    def bring(self, path: Path) -> None:
        pass

    @contextmanager
    def in_turn(self, paths: Sequence[Path]) -> Iterator[Callable[[Path], None]]:
        yield lambda path: None


HERE = Here()
