"""What names the content of a dataset, and how files are told to be the same without reading them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from uuid import uuid4

ENDS = 2**20
"""Bytes at each end of a video file that enter a digest."""


def digest_of(folder: Path, paths: Sequence[Path], whole: Collection[Path] = (), cache: Path | None = None) -> str:
    """SHA-256 of the names, sizes and bytes of files in `folder`: all bytes of those that are to be read whole, a MiB
    at each end of others, which are videos.

    The index of an mp4, which holds the size of every encoded frame, is at one of its ends, so another recording or
    encoding shows. With a folder for a `cache`, nothing is read when the files are those of another time.
    """
    if cache is None:
        return _digest(folder, paths, whole)
    known = cache / "digests" / fingerprint(folder, paths)
    if not known.is_file():
        known.parent.mkdir(parents=True, exist_ok=True)
        write_whole(known, _digest(folder, paths, whole))
    return known.read_text(encoding="ascii")


def fingerprint(folder: Path, files: Iterable[Path], more: str = "") -> str:
    """Another one when a file has another name, size or time, or the folder another place."""
    digest = hashlib.sha256(f"{folder.resolve()}\0{more}".encode())
    for path in files:
        stat = path.stat()
        digest.update(f"\0{path.relative_to(folder).as_posix()} {stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a small file that appears whole or not at all, whoever else writes it."""
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _digest(folder: Path, paths: Iterable[Path], whole: Collection[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if path in whole:
                digest.update(hashlib.file_digest(file, "sha256").digest())
            else:
                digest.update(file.read(ENDS))
                file.seek(max(size - ENDS, 0))
                digest.update(file.read(ENDS))
    return digest.hexdigest()
