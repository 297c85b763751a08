"""Datasets of the Hugging Face Hub: metadata and tables are fetched first, every video file when it is its turn.

An address is `hub:ORG/NAME`, with `@REVISION` behind it for a branch, a tag or a commit. Files go to the Hub's own
cache. `stream:` instead of `hub:` removes a video file that was fetched once it has been read to its end, so that no
more than a few are on the disk: their latents are what stays.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import Any

from actwam.data.problem import Problem

SCHEMES = ("hub", "stream")
AHEAD = 2
"""Video files of one camera that are fetched before they are read."""
CLOCK = 1.0
"""Seconds by which the clock of a disk may be behind."""
TABLES = ("meta/*", "data/*")
"""What is fetched first; * also stands for slashes here."""
_ADDRESS = re.compile(rf"({'|'.join(SCHEMES)}):(\w[\w.\-]*/\w[\w.\-]*)(?:@(\w[\w.\-/]*))?")


@dataclass(frozen=True)
class Address:
    """A dataset of the Hub. Without `revision` it is the newest commit; `keep` says whether videos stay on the disk."""

    repo: str
    revision: str | None
    keep: bool

    def __str__(self) -> str:
        revision = f"@{self.revision}" if self.revision else ""
        return f"{SCHEMES[0] if self.keep else SCHEMES[1]}:{self.repo}{revision}"


def address_of(place: Path | str) -> Address | None:
    """The address that this is, or None if it is a folder. Raises ValueError on one that cannot be read."""
    text = str(place)
    if not text.startswith(tuple(f"{scheme}:" for scheme in SCHEMES)):
        return None
    found = _ADDRESS.fullmatch(text)
    if found is None:
        raise ValueError(f"{text}: no dataset of the Hub: write hub:ORG/NAME or hub:ORG/NAME@REVISION")
    scheme, repo, revision = found.groups()
    return Address(repo, revision, keep=scheme == SCHEMES[0])


def pin(address: Address) -> Address:
    """The same dataset at the commit that its revision is now, or was when it was last fetched if there is no network.

    Raises ValueError, one line, when the dataset or the revision does not exist, is gated, or cannot be reached.
    """
    return replace(address, revision=info_folder(address).name)


def info_folder(address: Address) -> Path:
    """A folder in which meta/info.json of the dataset is. Raises ValueError as `pin` does."""
    return _snapshot(address, ("meta/info.json",))


@dataclass(frozen=True, eq=False)
class HubShelf:
    """The files of one commit. `folder` holds what was fetched of it, `names` are all that there are, if known."""

    address: Address
    folder: Path
    names: frozenset[str] | None
    _fetched: set[Path] = field(default_factory=set)
    """What was not here before: only that is removed."""

    @property
    def identity(self) -> str:
        return f"{self.address.repo}@{self.address.revision}"

    def holds(self, path: Path) -> bool:
        return path.is_file() or (self.names is not None and self._name(path) in self.names)

    def bring(self, path: Path) -> None:
        if path.is_file() or not self.holds(path):
            return
        library, start = _library(self.address), time.time()
        library.utils.disable_progress_bars()  # many files, one after another: the run shows how far it is
        with _one_line(self.address):
            library.hf_hub_download(
                self.address.repo, self._name(path), repo_type="dataset", revision=self.address.revision
            )
        if path.stat().st_mtime > start - CLOCK:  # else another commit brought the same content before
            self._fetched.add(path)

    @contextmanager
    def in_turn(self, paths: Sequence[Path]) -> Iterator[Callable[[Path], None]]:
        room, stopped, read = Semaphore(AHEAD), Event(), set[Path]()

        def ahead() -> None:
            for path in paths:
                room.acquire()
                if stopped.is_set():
                    return
                if path in read:
                    continue
                try:
                    self.bring(path)
                except ValueError:
                    return  # whoever reads the file meets the same, and says so
                if path in read:
                    self._drop(path)

        def done(path: Path) -> None:
            read.add(path)
            self._drop(path)
            room.release()

        Thread(target=ahead, name=f"fetch {self.address.repo}", daemon=True).start()
        try:
            yield done
        finally:
            stopped.set()
            read.update(paths)
            room.release()
            for path in paths:  # some are read to their end by others, or not at all
                self._drop(path)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _drop(self, path: Path) -> None:
        if self.address.keep or path not in self._fetched:
            return
        content = path.resolve()  # the cache keeps the file itself elsewhere, and a link here
        path.unlink(missing_ok=True)
        content.unlink(missing_ok=True)


def open_shelf(address: Address) -> HubShelf:
    """Fetch metadata and tables of a pinned dataset. Raises ValueError as `pin` does."""
    folder = _snapshot(address, TABLES)
    return HubShelf(address, folder, _names(address))


def _snapshot(address: Address, patterns: Sequence[str]) -> Path:
    library = _library(address)
    with _one_line(address):
        return Path(
            library.snapshot_download(
                address.repo, repo_type="dataset", revision=address.revision, allow_patterns=list(patterns)
            )
        )


def _names(address: Address) -> frozenset[str] | None:
    """All files of a commit; None without network, where those that are here must do."""
    library = _library(address)
    try:
        info = library.HfApi().dataset_info(address.repo, revision=address.revision)
    except (OSError, ValueError, library.errors.HTTPError):
        return None
    return frozenset(file.rfilename for file in info.siblings or ())


def _library(address: Address) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise ValueError(f'{address}: to fetch it from the Hub: pip install "actwam[hub]"') from error
    return huggingface_hub


@contextmanager
def _one_line(address: Address) -> Iterator[None]:
    """What the Hub's library raises, as one line that says what to do."""
    errors = _library(address).errors
    page = f"https://huggingface.co/datasets/{address.repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        what = f"is gated; accept its conditions at {page}, then log in with `hf auth login`"
        raise ValueError(f"{address}: {what}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(f"{address}: has no such revision; look at {page}/commits") from error
    except errors.RepositoryNotFoundError as error:
        what = "no such dataset on the Hub, or a private one; check the name, or log in with `hf auth login`"
        raise ValueError(f"{address}: {what}") from error
    except (OSError, ValueError, errors.HTTPError) as error:
        if error.args and isinstance(error.args[0], Problem):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        what = f"not to be had from the Hub ({reason}); check the network, or fetch it and give its folder"
        raise ValueError(f"{address}: {what}") from error
