"""Codec latents of a dataset, computed once and kept on disk: training decodes no video.

A codec that encodes each frame alone needs one latent for each row of the dataset: any window is gathered from
them. A codec that compresses time mixes neighbouring frames, so that what a latent holds depends on where the
window begins: for such a codec every row has the latents of the whole window that begins there.

They are made in pieces of whole episodes, which any number of processes share (`data.partial.share`).
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float16, Float32, Int, UInt8

from actwam.data.dataset import Footage, pieces_of
from actwam.data.info import read_json
from actwam.data.partial import Job

Compose = Callable[[Mapping[str, UInt8[np.ndarray, "T H W 3"]]], UInt8[np.ndarray, "T H W 3"]]
Encode = Callable[[UInt8[np.ndarray, "B T H W 3"]], Float32[np.ndarray, "B Z F h w"]]
Progress = Callable[[int, int], None]

ARRAY, SHEET = "latents.npy", "latents.json"
BATCH_FRAMES = 32
"""Pictures that are encoded in one call, or one clip where that is longer."""
PIECE_FRAMES = 8
"""Frames of a camera that are in memory at once, at whatever size they were recorded."""
PIECE_ROWS = 20_000
"""Rows, in whole episodes, that a process encodes at a time, and loses if it is killed."""
MAPPED = 256
"""Pieces that are mapped at once, of all datasets together: each keeps a file open."""


@dataclass(frozen=True, eq=False)
class Latents:
    """The latents of a dataset of N rows, read from disk on demand: for each row those of one clip, that begins there.

    `pieces` hold the rows of some episodes after another. `offsets` are the steps from the row to the further frames
    of its clip. They are () when `time_stride` is 1: each frame stands alone then, and n is 1. Otherwise `time_stride`
    of them make one latent frame: n is 1+F.
    """

    folder: Path
    pieces: Sequence[Float16[np.ndarray, "_ n Z h w"]]
    time_stride: int = 1
    offsets: tuple[int, ...] = ()
    _ends: Int[np.ndarray, "p"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_ends", np.cumsum([len(piece) for piece in self.pieces]))

    def window(
        self, start: Int[np.ndarray, "B"], last: Int[np.ndarray, "B"], offsets: tuple[int, ...]
    ) -> Float32[np.ndarray, "B Z F h w"]:
        """Copy into memory the latents of the windows that begin at rows `start`: first the present, then the future
        at `offsets`. Frames behind row `last`, the end of the episode, repeat it.

        Raises ValueError on a row that does not exist, and on offsets that were not encoded.
        """
        if self.time_stride == 1:
            return self.single(np.minimum(start[:, None] + np.array([0, *offsets]), last[:, None]))
        if offsets != self.offsets:
            raise ValueError(f"{self.folder}: holds windows of frames {self.offsets}, not {offsets}; encode those")
        return self._gathered(start, start, slice(None))

    def single(self, rows: Int[np.ndarray, "B n"]) -> Float32[np.ndarray, "B Z n h w"]:
        """Copy into memory the latents of pictures that stand alone, n of one episode in each line. Raises ValueError
        on a row that does not exist.
        """
        return self._gathered(rows[:, 0] if rows.shape[1] else np.zeros(len(rows), int), rows, 0)

    def _gathered(
        self, of: Int[np.ndarray, "B"], rows: Int[np.ndarray, "B *n"], frames: int | slice
    ) -> Float32[np.ndarray, "B Z F h w"]:
        """The `frames` of clips at `rows`, which in each line lie in the same piece as row `of`."""
        count = int(self._ends[-1])
        if rows.size and not 0 <= rows.min() <= rows.max() < count:
            raise ValueError(f"{self.folder}: rows {rows} are not all within the {count} cached ones")
        piece, found = np.searchsorted(self._ends, of, "right"), None
        for number in np.unique(piece).tolist() or [0]:
            own, array = piece == number, self.pieces[number]
            part = array[rows[own] - (self._ends[number] - len(array)), frames]
            if found is None:
                found = np.empty((len(rows), *part.shape[1:]), np.float32)
            found[own] = part
        assert found is not None
        return np.ascontiguousarray(found.swapaxes(1, 2))


@dataclass(frozen=True, eq=False, kw_only=True)
class Encoding:
    """What it takes to have the latents of a dataset under `root`, whoever encodes them.

    `compose` joins the frames of `cameras` (by name) of one episode to one picture per frame, `encode` maps
    clips of these to latents, stored as float16: `time_stride` pictures become one latent frame, except the first
    of a clip, which stands alone. `offsets` are the future frames of a window. `key` must change whenever
    `compose` or `encode` would give something else: put the codec's hash, the layout and its cameras in it.
    `size` is the height and width of the picture. `progress(done, total)` tells where in the rows of the dataset the
    work is.
    """

    dataset: Footage
    cameras: tuple[str, ...]
    size: tuple[int, int]
    compose: Compose
    encode: Encode
    time_stride: int
    offsets: tuple[int, ...]
    key: str
    root: Path
    progress: Progress = lambda done, total: None

    @property
    def jobs(self) -> list[Job]:
        """All pieces, to be made with `data.partial.share`. Every video is decoded once, a few frames at a time.

        Making one raises ValueError when the latents change shape or exceed float16, and when the disk is full.
        """
        return [(self._place(piece), partial(self._make, piece)) for piece in self._pieces]

    @property
    def missing_bytes(self) -> int:
        """What the pieces take that are not there yet. Something is encoded to know."""
        rows = sum(self._rows(piece) for piece in self._pieces if not self._place(piece).exists())
        if not rows:
            return 0
        latents = self.encode(np.zeros((1, 1 + len(self._clip), *self.size, 3), np.uint8))
        return rows * latents.size * np.dtype(np.float16).itemsize

    def open(self) -> Latents:
        """What was encoded. Raises ValueError if it is damaged."""
        shapes = [_checked(self._place(piece), self._sheet(piece)) for piece in self._pieces]
        for piece, shape in zip(self._pieces, shapes, strict=True):
            if shape[1:] != shapes[0][1:]:
                raise _unequal(self.dataset.where(piece.start), shape[1:], shapes[0][1:])
        on_disk = _OnDisk([self._place(piece) for piece in self._pieces])
        return Latents(self._folder, on_disk, self.time_stride, self._clip)

    @property
    def _clip(self) -> tuple[int, ...]:
        return () if self.time_stride == 1 else self.offsets

    @cached_property
    def _identity(self) -> dict[str, object]:
        return {
            "dataset": self.dataset.digest,
            "key": self.key,
            "time_stride": self.time_stride,
            "offsets": list(self._clip),
        }

    @cached_property
    def _pieces(self) -> list[range]:
        return pieces_of(self.dataset.episodes, PIECE_ROWS)

    def _rows(self, piece: range) -> int:
        return sum(episode.length for episode in self.dataset.episodes[piece.start : piece.stop])

    @cached_property
    def _folder(self) -> Path:
        return self.root / hashlib.sha256(json.dumps(self._identity).encode()).hexdigest()

    def _place(self, piece: range) -> Path:
        return self._folder / f"{piece.start}-{piece.stop}"

    def _sheet(self, piece: range) -> dict[str, object]:
        return {**self._identity, "episodes": [piece.start, piece.stop], "rows": self._rows(piece)}

    def _make(self, piece: range, folder: Path) -> None:
        path, shape = folder / ARRAY, None
        try:
            with path.open("wb") as file:
                for where, latents in self._encoded(piece):
                    clips = latents.swapaxes(1, 2)
                    if shape is None:
                        shape = (self._rows(piece), *clips.shape[1:])
                        header = {"descr": "<f2", "fortran_order": False, "shape": shape}
                        np.lib.format.write_array_header_1_0(file, header)
                    if clips.shape[1:] != shape[1:]:
                        raise _unequal(where, clips.shape[1:], shape[1:])
                    file.write(clips.astype("<f2").tobytes())
        except OSError as error:
            raise ValueError(f"{path}: cannot be written: {error}; free disk space and run again") from error
        written = {"shape": shape, "sha256": _sha256(path), "time": _time(path)}
        (folder / SHEET).write_text(json.dumps({**self._sheet(piece), **written}, indent=2) + "\n", encoding="utf-8")

    def _encoded(self, piece: range) -> Iterator[tuple[str, Float32[np.ndarray, "B Z F h w"]]]:
        """Where it comes from, and the latents of every batch of clips, in the order of rows.

        Of an episode only the composed pictures are held that a batch of clips reaches.
        """
        steps = np.array([0, *self._clip])
        size, total, dataset = max(1, BATCH_FRAMES // len(steps)), len(self.dataset.state), self.dataset
        shown = zip(*(dataset.videos(camera, PIECE_FRAMES, piece) for camera in self.cameras), strict=True)
        for episode in dataset.episodes[piece.start : piece.stop]:
            held: list[np.ndarray] = []  # from row `first` of the episode
            for first in range(0, episode.length, size):
                end = min(first + size, episode.length)
                reach = min(end + int(steps[-1]), episode.length) - first
                while len(held) < reach:
                    views = zip(self.cameras, next(shown), strict=True)
                    held.extend(self.compose({camera: frames for camera, (_, frames) in views}))
                rows = np.minimum(np.arange(first, end)[:, None] + steps, episode.length - 1) - first
                latents = self.encode(np.stack([held[row] for row in rows.flat]).reshape(*rows.shape, *held[0].shape))
                where = dataset.where(episode.index)
                _check_latents(latents, end - first, 1 + len(self._clip) // self.time_stride, where)
                yield where, latents
                self.progress(episode.start + end, total)
                del held[: end - first]


def require_space(encodings: Iterable[Encoding]) -> None:
    """Raises ValueError when what is not encoded yet does not fit on the disk."""
    needed = [(encoding.root, encoding.missing_bytes) for encoding in encodings]
    for root in {root for root, missing in needed if missing}:
        total = sum(missing for place, missing in needed if place == root)
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if total > free:
            raise ValueError(
                f"{root}: the latents need {total / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; "
                "free some or choose another folder for the cache"
            )


class _OnDisk(Sequence[np.ndarray]):
    """The arrays in some folders, mapped when they are asked for."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self._folders = folders

    def __len__(self) -> int:
        return len(self._folders)

    def __getitem__(self, number: Any) -> Any:
        return _mapped(self._folders[number])


@lru_cache(maxsize=MAPPED)
def _mapped(folder: Path) -> np.ndarray:
    return np.load(folder / ARRAY, mmap_mode="r", allow_pickle=False)


def _check_latents(latents: np.ndarray, count: int, frames: int, where: str) -> None:
    if latents.ndim != 5 or (latents.shape[0], latents.shape[2]) != (count, frames):
        raise ValueError(
            f"{where}: {count} clips gave latents of shape {latents.shape}, expected ({count}, Z, {frames}, h, w); "
            "the time stride of the codec is not the one that it was said to have"
        )
    limit = float(np.finfo(np.float16).max)
    if not (np.abs(latents) <= limit).all():
        raise ValueError(f"{where}: latents have NaN, Inf or numbers beyond {limit:g} of float16; rescale the codec")


def _unequal(where: str, shape: Sequence[int], others: Sequence[int]) -> ValueError:
    return ValueError(
        f"{where}: latents of shape {tuple(shape)} after others of {tuple(others)}; all episodes need one picture size"
    )


def _checked(folder: Path, expected: Mapping[str, object]) -> list[int]:
    """The shape of a piece. The array is read, to compare its hash, only when its time is not that of its sheet: it was
    copied, or changed.
    """
    repair = f"delete {folder} and run again"
    try:
        sheet = read_json(folder / SHEET)
    except ValueError as error:
        raise ValueError(f"{folder / SHEET}: missing or damaged; {repair}") from error
    if {name: sheet.get(name) for name in expected} != expected:
        raise ValueError(f"{folder / SHEET}: belongs to another dataset or codec; {repair}")
    path = folder / ARRAY
    if not path.is_file() or (_time(path) != sheet.get("time") and _sha256(path) != sheet.get("sha256")):
        raise ValueError(f"{path}: missing or damaged, its SHA-256 is not the one in {SHEET}; {repair}")
    array = _mapped(folder)
    if list(array.shape) != sheet.get("shape") or len(array) != expected["rows"] or array.dtype != np.float16:
        raise ValueError(
            f"{path}: {array.dtype} of shape {array.shape}, expected float16 {sheet.get('shape')}; {repair}"
        )
    return list(array.shape)


def _time(path: Path) -> list[int]:
    """What changes when a file is written: its size and its time."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
